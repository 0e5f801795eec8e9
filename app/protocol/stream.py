"""The settings of one stream, as every entry point passes them to the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from app.protocol.stages import STAGES

Mode = Literal["realtime", "lossless"]


SUMMARY = "summary"
"""The switch of summaries, which are no stage: they are made from the results of many frames."""


class Stages(dict[str, bool]):
    """Which stages run, by name, and whether the stream is summarized. Never changed: `but` makes another one.

    Without an argument all stages of live streams run, and there are no summaries.
    """

    def __init__(self, **chosen: bool) -> None:
        super().__init__({name: True for name, stage in STAGES.items() if stage.live})
        self[SUMMARY] = False
        self.update(chosen)

    def __getattr__(self, name: str) -> bool:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def but(self, **changes: bool) -> Stages:
        """A copy in which some stages are switched."""
        return Stages(**{**self, **changes})

    @classmethod
    def only(cls, names: Iterable[str]) -> Stages:
        """The switches of a stream on which these stages run, and no others."""
        chosen = frozenset(names)
        return cls(**{name: name in chosen for name, stage in STAGES.items() if stage.live or name in chosen})

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        live: list[Any] = [(name, bool, field(default=True)) for name, stage in STAGES.items() if stage.live]
        kind = make_dataclass("Stages", [*live, (SUMMARY, bool, field(default=False))])
        kind.__doc__ = "Which stages run, and whether the stream is summarized."

        def read(value: Any, handle: Callable[[Any], Any]) -> Stages:
            known = vars(handle(value))  # first, because it refuses what is no object
            return cls(**{**value, **known})

        return core_schema.no_info_wrap_validator_function(read, handler.generate_schema(kind))


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The settings in force for one stream."""

    mode: Mode = "realtime"
    stages: Stages = field(default_factory=Stages)
    confidence: float = 0.35
    iou: float = 0.45
    classes: tuple[int, ...] | None = None
    """Class ids to keep; null keeps all."""
    motion_grid: bool = False
    mask_rle: bool = False
    """Whether masks come as run lengths, too, beside their outlines."""
    max_age_ms: float = 2000.0
    summary_prompt: str | None = None
    """Name of the operator's prompt for summaries, if `stages.summary` is on."""
