"""The settings of one stream, as every entry point passes them to the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["realtime", "lossless"]


@dataclass(frozen=True, slots=True)
class Stages:
    """Which modalities run."""

    detect: bool = True
    pose: bool = True
    ocr: bool = True
    motion: bool = True
    track: bool = True
    summary: bool = False


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The settings in force for one stream."""

    mode: Mode = "realtime"
    stages: Stages = Stages()
    confidence: float = 0.35
    iou: float = 0.45
    classes: tuple[int, ...] | None = None
    """Class ids to keep; null keeps all."""
    motion_grid: bool = False
    max_age_ms: float = 2000.0
    summary_prompt: str | None = None
    """Name of the operator's prompt for summaries, if `stages.summary` is on."""
