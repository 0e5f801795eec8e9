"""The pipeline in this process: for recorded video without AWS and without a running service."""

from __future__ import annotations

import asyncio
import itertools
import logging
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from app.errors import InferenceError, InferenceUnavailable
from app.pipeline.multimodal import Pipeline
from app.pipeline.startup import open_pipeline
from app.process import tune
from app.segments.keys import Mode, SegmentKey, beside
from app.segments.ports import Backend, BackendContext, BackendUnavailable, Done, ObjectMissing, Objects, SegmentFailed
from app.segments.video import VideoError, probe
from app.segments.video.processor import VideoReport, analyze_video, stream_settings
from app.segments.video.reader import ENTRY
from app.sinks import Feed, Outcomes, SinkMessage, open_sinks

log = logging.getLogger(__name__)

Result = TypeVar("Result")
SCHEMA = "sightline.video.v1"
"""`schema` of a video's result in a sink."""
_SINKS_CLOSE_S = 3.0
_MOST_SENT = 512
"""Results of one video that the sinks do not have yet."""
_MAX_NAME = 100
"""Bytes of a file's name, which gets a suffix while it is written. File systems take 255."""


async def analyze_stored(
    objects: Objects,
    input_uri: str,
    output_uri: str,
    inspect: Callable[[Path], None],
    analyze: Callable[[Path, Path, Path], Awaitable[VideoReport]],
    feed: Feed | None = None,
) -> VideoReport:
    """Downloads a video, analyses it, sends the results to the sinks, and uploads the results and the new video.

    Args:
        inspect: called in a thread with the downloaded file, before the analysis.
        analyze: called with the downloaded file, and the paths of the new video, which it need not write, and of the
            results.
        feed: gets the results; None: no sinks.

    Raises:
        ObjectMissing, ObjectAddressRefused: of the addresses.
        InferenceUnavailable: the sinks were closed before they had all results.
        Exception: those of `inspect` and `analyze`.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-video-") as name:
        folder = Path(name)
        source, target, results = folder / "in" / _file_name(input_uri), folder / "out.mp4", folder / "out.jsonl"
        source.parent.mkdir()
        await _in_thread(objects.download, input_uri, source)
        await _in_thread(inspect, source)
        report = await analyze(source, target, results)
        if feed is not None:
            await _send_results(feed, input_uri, results)
        # The video is uploaded last, because others wait for it.
        await _in_thread(objects.upload, results, beside(output_uri))
        if target.exists():
            await _in_thread(objects.upload, target, output_uri)
        return report


async def _send_results(feed: Feed, video: str, results: Path) -> None:
    """Sends each line of the results to the sinks, with `schema` and `video` before its fields, and waits until they
    have all of them. A segment that is analysed again is sent again; `video` and `frame_id` show that.

    Args:
        video: address of the video, or of its segment.

    Raises:
        InferenceUnavailable: the sinks were closed before.
    """
    loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(_MOST_SENT)
    head = orjson.dumps({"schema": SCHEMA, "video": video})[:-1] + b","
    left = False

    def ended(was_left: bool) -> None:
        nonlocal left
        left = left or was_left
        slots.release()

    def done(outcomes: Outcomes) -> None:
        with suppress(RuntimeError):  # the loop is closed: the analysis was given up
            loop.call_soon_threadsafe(ended, "left" in outcomes.values())

    async def slot() -> None:
        await slots.acquire()
        if left:
            raise InferenceUnavailable("the service stopped before its sinks had all results of the video")

    with results.open("rb") as file:
        while lines := await _in_thread(lambda: [*itertools.islice(file, _MOST_SENT)]):
            for line in lines:
                await slot()
                number = orjson.loads(line)["frame_id"]
                feed.send(SinkMessage(video, f"{video}#{number}", head + line[1:].rstrip()), done)
    for _ in range(_MOST_SENT):
        await slot()


def _file_name(uri: str) -> str:
    """The end of the address, which errors call the video by."""
    end = uri.rpartition("/")[2].replace("\0", "").encode(errors="ignore")
    name = end[-_MAX_NAME:].decode(errors="ignore")
    return "video" if name in ("", ".", "..") else name


async def _in_thread(work: Callable[..., Result], *arguments: object) -> Result:
    """Like `asyncio.to_thread`, but if cancelled it waits for the thread, which uses files that are deleted then."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(thread)
    finally:
        await asyncio.wait([thread])


class PipelineBackend(Backend):
    """Analyses segments by a pipeline on an event loop in a thread of its own, from `open` to `close`.

    A backend that analyses videos in another way, by the same models, is a subclass with its own `analyze`.
    """

    name = "pipeline"

    def __init__(self, context: BackendContext) -> None:
        self.settings = context.settings
        self._objects = context.objects
        self._progress = context.progress
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pipeline", daemon=True)
        self._closing = asyncio.Event()
        self._pipeline: Future[Pipeline] = Future()
        self._sinks = open_sinks(self.settings, "segments")
        self._feed = self._sinks.feed(ENTRY) if self._sinks else None
        self._running: Future[None] | None = None
        self._analyses: set[asyncio.Task[Any]] = set()
        self._stopped = False

    async def analyze(
        self,
        pipeline: Pipeline,
        source: Path,
        target: Path,
        results: Path,
        mode: Mode,
        on_frames: Callable[[int], None],
    ) -> VideoReport:
        """Analyses one video, on the event loop.

        Args:
            source: the segment.
            target: where the new video belongs; in mode `results_only` none is written.
            results: where the results belong, JSONL.
            on_frames: to be called with the number of frames that were written since the last call.

        Raises:
            VideoError, InferenceError: the segment could not be analysed.
            InferenceUnavailable: it could not be tried.
        """
        return await analyze_video(
            source,
            target,
            results,
            mode,
            pipeline,
            stream_settings(self.settings.pipeline, mode),
            max_pixels=self.settings.live.max_pixels,
            on_frames=on_frames,
        )

    def open(self) -> None:
        tune()
        self._thread.start()
        self._running = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        self._pipeline.result()

    def ready(self) -> bool:
        return self._pipeline.done() and not self._stopped

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done:
        try:
            report = self._analyze(segment, input_uri, output_uri)
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
        if report.failed or report.undecodable:
            message = "segment %s: %d frames could not be analysed, %d pieces could not be decoded"
            log.warning(message, segment, report.failed, report.undecodable)
        return Done()

    def _analyze(self, segment: SegmentKey, input_uri: str, output_uri: str) -> VideoReport:
        total = done = 0

        def inspect(video: Path) -> None:
            nonlocal total
            total = probe(video).frames
            self._progress(segment, 0, total)

        def on_frames(count: int) -> None:
            nonlocal done
            done += count
            self._progress(segment, done, total)

        async def analyze(source: Path, target: Path, results: Path) -> VideoReport:
            return await self.analyze(self._pipeline.result(), source, target, results, segment.mode, on_frames)

        analysis = analyze_stored(self._objects, input_uri, output_uri, inspect, analyze, self._feed)
        return asyncio.run_coroutine_threadsafe(self._cancellable(analysis), self._loop).result()

    async def _cancellable(self, analysis: Coroutine[Any, Any, VideoReport]) -> VideoReport:
        if self._stopped:
            analysis.close()
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._analyses.add(task)
        try:
            return await analysis
        finally:
            self._analyses.discard(task)

    def stop(self) -> None:
        self._stopped = True
        if self._running is not None:
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        for task in self._analyses:
            task.cancel()
        if not self._pipeline.done():
            self._closing.set()

    def close(self) -> None:
        self.stop()
        if self._running is None:
            return
        self._loop.call_soon_threadsafe(self._closing.set)
        self._running.result()
        self._running = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        opened = asyncio.ensure_future(self._open_until_closing())
        closing = asyncio.ensure_future(self._closing.wait())
        await asyncio.wait({opened, closing}, return_when=asyncio.FIRST_COMPLETED)
        if not self._pipeline.done():
            opened.cancel()
            self._pipeline.cancel()
        closing.cancel()
        await asyncio.gather(opened, closing, return_exceptions=True)

    async def _open_until_closing(self) -> None:
        try:
            async with open_pipeline(self.settings) as opened:
                self._sinks.start()
                try:
                    self._pipeline.set_result(opened.pipeline)
                    await self._closing.wait()
                finally:
                    await asyncio.to_thread(self._sinks.close, _SINKS_CLOSE_S)
        except Exception as error:  # passed to the thread that waits for the pipeline
            if self._pipeline.done():
                log.exception("the pipeline could not be closed")
            else:
                self._pipeline.set_exception(error)
