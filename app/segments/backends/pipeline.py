"""The pipeline in this process: for recorded video without AWS and without a running service."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from app.errors import InferenceError, InferenceUnavailable
from app.pipeline.multimodal import Pipeline
from app.pipeline.startup import open_pipeline
from app.process import tune
from app.segments.keys import SegmentKey, beside
from app.segments.ports import BackendUnavailable, Done, ObjectMissing, Objects, SegmentFailed
from app.segments.video import VideoError, probe
from app.segments.video.processor import VideoReport, analyze_video, stream_settings
from app.settings import Settings

log = logging.getLogger(__name__)

Progress = Callable[[SegmentKey, int | None, int], None]
"""Called with a segment, the number of its analysed frames (None: its analysis ended), and the number of all."""


class PipelineBackend:
    """`Backend` whose pipeline runs on an event loop in a thread of its own, from `open` to `close`."""

    name = "pipeline"

    def __init__(self, settings: Settings, objects: Objects, progress: Progress) -> None:
        self._settings = settings
        self._objects = objects
        self._progress = progress
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pipeline", daemon=True)
        self._closing = asyncio.Event()
        self._pipeline: Future[Pipeline] = Future()
        self._life: Future[None] | None = None
        self._analysing: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def open(self) -> None:
        """Begins to open the pipeline; `wait` waits for it."""
        tune()
        self._thread.start()
        self._life = asyncio.run_coroutine_threadsafe(self._live(), self._loop)

    def wait(self) -> None:
        """Until the pipeline is open.

        Raises:
            SightlineError: it cannot be: the message says why.
            CancelledError: it was closed before.
        """
        self._pipeline.result()

    def ready(self) -> bool:
        return self._pipeline.done() and not self._stopped

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done:
        try:
            with tempfile.TemporaryDirectory(prefix="segment-") as folder:
                self._analyse(segment, input_uri, output_uri, Path(folder))
        except (VideoError, ObjectMissing) as error:
            raise SegmentFailed(str(error)) from None
        except CancelledError:
            raise BackendUnavailable("stopped before the segment was done") from None
        except InferenceUnavailable as error:
            raise BackendUnavailable(str(error)) from None
        except InferenceError as error:
            raise SegmentFailed(str(error)) from None
        finally:
            self._progress(segment, None, 0)
        return Done()

    def _analyse(self, segment: SegmentKey, input_uri: str, output_uri: str, folder: Path) -> None:
        source, target, results = folder / "segment.mp4", folder / "seen.mp4", folder / "seen.jsonl"
        self._objects.download(input_uri, source)
        frames, done = probe(source).frames, 0

        def on_frames(more: int) -> None:
            nonlocal done
            done += more
            self._progress(segment, done, frames)

        self._progress(segment, 0, frames)
        pipeline = self._pipeline.result()
        wish = stream_settings(self._settings.pipeline, segment.mode)
        most = self._settings.live.max_pixels
        analysis = analyze_video(
            source, target, results, segment.mode, pipeline, wish, max_pixels=most, on_frames=on_frames
        )
        report = asyncio.run_coroutine_threadsafe(self._tracked(analysis), self._loop).result()
        if report.failed or report.undecodable:
            words = "segment %s: %d frames could not be analysed, %d pieces could not be decoded"
            log.warning(words, segment, report.failed, report.undecodable)
        self._objects.upload(results, beside(output_uri))
        if target.exists():
            self._objects.upload(target, output_uri)

    async def _tracked(self, analysis: Coroutine[Any, Any, VideoReport]) -> VideoReport:
        if self._stopped:
            analysis.close()
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._analysing.add(task)
        try:
            return await analysis
        finally:
            self._analysing.discard(task)

    def stop(self) -> None:
        """What is being analysed is given up; nothing more is. From any thread, or a signal."""
        self._stopped = True
        if self._life is not None:
            self._loop.call_soon_threadsafe(self._give_up)

    def _give_up(self) -> None:
        for task in self._analysing:
            task.cancel()
        if not self._pipeline.done():
            self._closing.set()

    def close(self) -> None:
        self.stop()
        if self._life is None:
            return
        self._loop.call_soon_threadsafe(self._closing.set)
        self._life.result()
        self._life = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _live(self) -> None:
        opening = asyncio.ensure_future(self._opened())
        closing = asyncio.ensure_future(self._closing.wait())
        await asyncio.wait({opening, closing}, return_when=asyncio.FIRST_COMPLETED)
        if not self._pipeline.done():
            opening.cancel()
            self._pipeline.cancel()
        closing.cancel()
        await asyncio.gather(opening, closing, return_exceptions=True)

    async def _opened(self) -> None:
        try:
            async with open_pipeline(self._settings, self._settings.ocr) as one:
                self._pipeline.set_result(one.pipeline)
                await self._closing.wait()
        except Exception as error:  # whoever waits for the pipeline is told
            if self._pipeline.done():
                log.exception("the pipeline could not be closed")
            else:
                self._pipeline.set_exception(error)
