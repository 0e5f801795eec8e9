"""Runs one variant of the benchmark `segments` in this process."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, get_args

import av
import orjson
import typer
import uvloop

from app.pipeline.multimodal import Pipeline
from app.pipeline.ordering import Sequencer, Ticket
from app.pipeline.startup import open_pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.process import tune
from app.protocol.result import FrameResult
from app.protocol.stream import StreamSettings
from app.segments.http import SegmentService
from app.segments.keys import Mode, uri
from app.segments.video.processor import BATCH, IN_FLIGHT, stream_settings
from app.settings import Settings
from app.sources.reader import encode
from benchmarks.harness import BenchmarkError

WARM_UP = 40
"""Frames."""


async def run(way: str, url: str, video: Path) -> dict[str, float]:
    """Rate and processor time over the whole video, after a short one.

    Raises:
        BenchmarkError: not every frame came out.
    """
    tune()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        settings = Settings(triton_url=url, ocr="off", state_dir=Path(name) / "state", segment_folder=video.parent)
        async with open_pipeline(settings) as opened:
            wish = stream_settings(settings.pipeline, "annotate")
            await _bare(opened.pipeline, wish, video, WARM_UP)
            if way in get_args(Mode):
                return await _video(way, opened.pipeline, settings, video)
            return await _bare(opened.pipeline, wish, video)


async def _video(way: Any, pipeline: Pipeline, settings: Settings, video: Path) -> dict[str, float]:
    service = SegmentService(
        pipeline,
        settings.segments,
        settings.aws,
        pipeline_settings=settings.pipeline,
        limits=settings.live,
    )
    source, target = uri(str(video.parent), video.name), uri(str(video.parent), f"seen-{video.name}")
    clock, processor = time.perf_counter(), time.process_time()
    report = await service.invoke(source, target, way)
    if report.failed:
        raise BenchmarkError(f"{report.failed} of {report.frames} frames failed")
    return _figures(report.frames, clock, processor)


async def _bare(pipeline: Pipeline, settings: StreamSettings, video: Path, most: int | None = None) -> dict[str, float]:
    with av.open(str(video)) as container:
        frames = [encode(frame.to_ndarray(format="rgb24")) for frame in islice(container.decode(video=0), most)]
    batches = [frames[at : at + BATCH] for at in range(0, len(frames), BATCH)]
    memory, turns, room = StreamMemory(), Sequencer(), asyncio.Semaphore(IN_FLIGHT)

    async def look(jpegs: list[bytes], turn: Ticket) -> int:
        try:
            with turn:
                jobs = [FrameJob(Frame("video", jpeg, time.perf_counter(), 0.0, 1), memory, settings) for jpeg in jpegs]
                answers = await pipeline.analyze(jobs, entry="segments", ticket=turn)
                return sum(
                    isinstance(answer, FrameResult) and answer.stages["detect"].status == "ok" for answer in answers
                )
        finally:
            room.release()

    async def begun() -> AsyncIterator[asyncio.Task[int]]:
        for batch in batches:
            await room.acquire()
            yield asyncio.create_task(look(batch, turns.take()))

    clock, processor = time.perf_counter(), time.process_time()
    done = await asyncio.gather(*[task async for task in begun()])
    if sum(done) != len(frames):
        raise BenchmarkError(f"{len(frames) - sum(done)} of {len(frames)} frames failed")
    return _figures(len(frames), clock, processor)


def _figures(frames: int, clock: float, processor: float) -> dict[str, float]:
    elapsed, busy = time.perf_counter() - clock, time.process_time() - processor
    return {"rate": frames / elapsed, "cpu_us": busy / frames * 1e6, "busy": busy / elapsed, "frames": frames}


def main(
    way: Annotated[str, typer.Option()], triton: Annotated[str, typer.Option()], video: Annotated[Path, typer.Option()]
) -> None:
    """Prints one variant's figures as JSON."""
    print(orjson.dumps(uvloop.run(run(way, triton, video))).decode())


if __name__ == "__main__":
    typer.run(main)
