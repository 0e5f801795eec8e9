"""A film through the pipeline: every frame, in order, none lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from app.errors import InferenceError, InferenceUnavailable, ModelRejected
from app.files import written_atomically
from app.pipeline.multimodal import Pipeline
from app.protocol.stream import StreamSettings
from app.segments.footage import opened
from app.segments.keys import Mode
from app.segments.output import Output
from app.segments.passage import Passage
from app.segments.reel import Reel, damaged
from app.settings import PipelineSettings

MAX_PIXELS = 4096 * 4096
_BLUR_CONFIDENCE = 0.2
"""A face that is not found stays to be seen."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a film."""

    frames: int
    """All of them are in the results, and in the film."""
    failed: int
    """Of these, without a result."""
    undecodable: int
    """Pieces of the film that held no frame that could be decoded; they are in nothing."""
    first_frame: int
    """Number of its first frame in the whole film, where it is a part of one."""
    start_s: float
    duration_s: float
    """Up to its last frame."""
    elapsed_s: float
    """That it took."""
    truncated: str | None = None
    """What its file lacks of what it declares, in words, where somebody looked."""


def stream_settings(pipeline: PipelineSettings, mode: Mode) -> StreamSettings:
    """What runs on a film. Text is attached as it is live: the last that was read, never waited for."""
    confidence = min(pipeline.confidence, _BLUR_CONFIDENCE) if mode == "blur_faces" else pipeline.confidence
    return StreamSettings(mode="lossless", confidence=confidence, iou=pipeline.iou)


async def described(pipeline: Pipeline) -> None:
    """Has the models described, where they are not yet.

    Raises:
        InferenceUnavailable: the inference server is away.
    """
    with contextlib.suppress(ModelRejected):  # `Vision` says so
        await pipeline.load()
    if not pipeline.client.up:
        raise InferenceUnavailable("the inference server is away")


async def analyze_film(
    source: Path,
    target: Path | None,
    results: Path,
    mode: Mode,
    pipeline: Pipeline,
    settings: StreamSettings,
    *,
    max_pixels: int = MAX_PIXELS,
    on_frames: Callable[[int], None] | None = None,
) -> Report:
    """Analyses a film and writes `results` (JSONL) and, unless its mode is `results_only`, the film `target` (MP4).

    Both appear when they are whole. A frame that cannot be analysed is written as it is – in mode `blur_faces` blurred
    as a whole – and its line has the error.

    Args:
        target: None: no film is written, whatever the mode.
        on_frames: called with how many more frames are done, on the event loop.

    Raises:
        FilmError: there is no film, or it breaks off.
        InferenceUnavailable: the inference server is away, or serves no model: better tried again later than written
            without results.
        InferenceError: not one frame could be analysed, or the mode wants a model that is not served: nobody is to
            take a film for one whose faces are hidden when nothing looked for them.
    """
    await described(pipeline)
    if mode == "results_only":
        target = None
    started = time.perf_counter()
    with ExitStack() as stack:
        # The film takes its name last: who waits for it finds the results, too.
        picture = None if target is None else stack.enter_context(written_atomically(target))
        lines = stack.enter_context(written_atomically(results))
        film = stack.enter_context(opened(source, max_pixels=max_pixels, on_damage=damaged))
        reel = Reel(film)
        output = Output(lines, picture, film, mode)
        stack.callback(output.close)
        await Passage(pipeline, settings, mode, reel, output, on_frames).all()
        if output.frames == output.failed:
            raise InferenceError(f"not one of {output.frames} frames could be analysed; the last: {output.last_error}")
        await asyncio.to_thread(output.complete)
        return Report(
            frames=output.frames,
            failed=output.failed,
            undecodable=reel.undecodable,
            first_frame=film.position.first_frame,
            start_s=float(film.position.start),
            duration_s=round(float(output.until - film.position.start), 6),
            elapsed_s=round(time.perf_counter() - started, 3),
        )
