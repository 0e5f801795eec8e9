"""Analyses a video: every frame in order, decoded, analysed in batches, drawn on and encoded; none is dropped.

`analyze_video` does all of this. Three steps run at once: one thread decodes the next frames, the pipeline analyses up
to `IN_FLIGHT` batches, and another thread draws on analysed batches and encodes them. Frames move on batch by batch, so
that only a few are in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson

from app import metrics
from app.errors import FrameError, InferenceError, InferenceUnavailable, ModelRejected
from app.files import written_atomically
from app.pipeline.models import ModelSet
from app.pipeline.multimodal import Pipeline
from app.pipeline.ordering import Sequencer, Ticket
from app.pipeline.stages.ocr.policy import RUNNING, OcrMemory
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import OK, FrameResult
from app.protocol.stream import StreamSettings
from app.segments.annotate import annotate
from app.segments.blur import FACE_CLASS, FaceBlur
from app.segments.keys import Mode
from app.segments.video.reader import ENTRY, MediaFile, VideoFrame, VideoReader, count_undecodable, open_video
from app.segments.video.writer import VideoEncoder, YuvFrame
from app.settings import PipelineSettings

log = logging.getLogger(__name__)

RATE = metrics.RateGauge(ENTRY)
"""Written frames per second, as a metric."""
MAX_PIXELS = 4096 * 4096
"""The largest frame, pixels, unless the caller sets another limit."""
IN_FLIGHT = 4
"""Batches in the pipeline at once."""
BATCH = 4
"""Frames per batch."""
MAX_TEXT_LAG_S = 1.0
"""How old a text reading may be, seconds of the video, before frames wait for the next one."""
DEADLINE_S = 60.0
"""Time limit of one inference request, seconds. It is long because no user waits for a live result, and a slow result
of a busy machine is better than an unanalysed frame."""
_POLL_S = 0.01
"""Seconds between two checks of whether text reading has caught up."""
_BATCH_PIXELS = 8_000_000
"""Pixels per batch at most, so that batches of large frames contain fewer of them."""
_BLUR_CONFIDENCE = 0.2
"""The highest detection confidence threshold in mode `blur_faces`. It is low because a face that is not detected stays
visible."""

Analyze = Callable[[Sequence[FrameJob]], Awaitable[Sequence[FrameResult | FrameError]]]
"""Returns the result of each job, or its error, in the order of the jobs."""
AnalysisResult = FrameResult | Exception
"""The result of a frame, or the error in place of it."""


class FrameFailed(InferenceError):
    """A model failed on this frame."""

    code = "inference"


@dataclass(frozen=True, slots=True)
class VideoReport:
    """Frame counts and times of a finished analysis."""

    frames: int
    """Frames of the video. The results and the new video contain all of them."""
    failed: int
    """How many of these have an error in place of a result."""
    undecodable: int
    """Pieces of the video that could not be decoded. Neither the results nor the new video contain them."""
    first_frame: int
    """The number of the first frame in the whole video, if this one is a part of it."""
    start_s: float
    """Beginning of this video in the whole one, seconds."""
    duration_s: float
    """From this video's beginning to its last frame's time, seconds."""
    elapsed_s: float
    """Duration of the analysis, seconds."""
    truncated: str | None = None
    """A sentence on the declared part of the file that is missing; None if the file is complete or the caller did not
    check it."""


# --- settings and models ---


def stream_settings(pipeline: PipelineSettings, mode: Mode) -> StreamSettings:
    """The settings for analysing a video. As in a live session, each result has the last texts that were read."""
    confidence = min(pipeline.confidence, _BLUR_CONFIDENCE) if mode == "blur_faces" else pipeline.confidence
    return StreamSettings(mode="lossless", confidence=confidence, iou=pipeline.iou)


async def load_models(pipeline: Pipeline) -> None:
    """Loads the models' descriptions if they are not loaded yet. A rejected model is no error here.

    Raises:
        InferenceUnavailable: the inference server cannot be reached.
    """
    with contextlib.suppress(ModelRejected):  # `ModelSet.rejected` has the reason
        await pipeline.load()
    if not pipeline.client.up:
        raise InferenceUnavailable("the inference server cannot be reached")


def serves_any(models: ModelSet) -> bool:
    """Whether any model is loaded that takes whole frames."""
    return bool(models.whole)


def required_stages(models: ModelSet, mode: Mode) -> tuple[str, ...]:
    """The stages that must succeed on every frame, in the order of the wire: those whose models are loaded.

    Raises:
        InferenceUnavailable: no model is loaded.
        InferenceError: the model that this mode needs is not loaded.
    """
    if not serves_any(models):
        reason = f": {models.refusal}" if models.refusal else ""
        raise InferenceUnavailable(f"this server serves no model that reads frames{reason}")
    if mode == "blur_faces" and "pose" not in models.whole and not models.ids_of("detect", FACE_CLASS):
        raise InferenceError("this server serves neither poses nor a class `face`: faces cannot be hidden")
    return tuple(models.whole)


# --- the analysis ---


async def analyze_video(
    source: Path,
    target: Path | None,
    results: Path,
    mode: Mode,
    pipeline: Pipeline,
    settings: StreamSettings,
    *,
    max_pixels: int = MAX_PIXELS,
    on_frames: Callable[[int], None] | None = None,
    analyze: Callable[[Sequence[FrameJob], Analyze], Awaitable[Sequence[FrameResult | FrameError]]] | None = None,
) -> VideoReport:
    """Analyses a video; writes `results` (JSONL) and, except in mode `results_only`, the new video `target` (MP4).

    Both files appear once they are complete. A frame that cannot be analysed is written unchanged (in mode
    `blur_faces` blurred as a whole), and its line in the results has the error.

    Args:
        target: path of the new video; None writes none in any mode.
        max_pixels: largest frame that is decoded, pixels.
        on_frames: called on the event loop with the number of frames that were written since the last call.
        analyze: analyses the jobs of a batch in another way; called with them and with the pipeline's own analysis,
            which takes any jobs, for example two for each frame. It returns a result for each of the given jobs.

    Raises:
        VideoError: the file has no video, or it ends unexpectedly.
        InferenceUnavailable: the inference server cannot be reached or serves no model. The caller should try again
            later, because a video without results would be useless.
        InferenceError: not one frame could be analysed, or the model that the mode needs is not served. A video in
            which no model looked for faces must not be taken for one whose faces are hidden.
    """
    await load_models(pipeline)
    if mode == "results_only":
        target = None
    started = time.perf_counter()
    with ExitStack() as stack:
        # The video gets its final name last, so that a process that waits for it finds the results, too.
        video_path = None if target is None else stack.enter_context(written_atomically(target))
        results_path = stack.enter_context(written_atomically(results))
        media = stack.enter_context(open_video(source, max_pixels=max_pixels, on_damage=count_undecodable))
        reader = VideoReader(media)
        output = _Output(results_path, video_path, media, mode, pipeline.models)
        stack.callback(output.close)
        await VideoProcessor(pipeline, settings, mode, reader, output, on_frames, analyze).run()
        if output.frames == output.failed:
            raise InferenceError(f"not one of {output.frames} frames could be analysed; the last: {output.last_error}")
        await asyncio.to_thread(output.complete)
        return VideoReport(
            frames=output.frames,
            failed=output.failed,
            undecodable=reader.undecodable,
            first_frame=media.position.first_frame,
            start_s=float(media.position.start),
            duration_s=round(float(output.until - media.position.start), 6),
            elapsed_s=round(time.perf_counter() - started, 3),
        )


class VideoProcessor:
    """Passes the frames of one video from the reader through the pipeline to the output. `run` may be called once.

    Raises:
        InferenceUnavailable: no model is loaded that takes whole frames.
        InferenceError: the model that the mode needs is not loaded.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: StreamSettings,
        mode: Mode,
        reader: VideoReader,
        output: _Output,
        on_frames: Callable[[int], None] | None,
        analyze: Callable[[Sequence[FrameJob], Analyze], Awaitable[Sequence[FrameResult | FrameError]]] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._mode = mode
        self._required = required_stages(pipeline.model_set, mode)
        self._reader = reader
        self._output = output
        self._on_frames = on_frames
        self._analyze_jobs = analyze
        self._stream = uuid.uuid4().hex
        self._memory = StreamMemory()
        self._sequencer = Sequencer()
        self._batch = max(1, min(BATCH, _BATCH_PIXELS // (reader.width * reader.height)))
        self._received = self._reported = 0

    async def run(self) -> None:
        """Processes all frames.

        Raises:
            VideoError: the file ends unexpectedly, or not one of its frames can be decoded.
            InferenceUnavailable: the inference server can no longer be reached.
            InferenceError: the model that the mode needs is no longer loaded.
        """
        loop = asyncio.get_running_loop()
        in_flight: deque[tuple[list[VideoFrame], asyncio.Task[list[AnalysisResult]]]] = deque()
        with ThreadPoolExecutor(2, "video") as threads:
            reading = loop.run_in_executor(threads, self._reader.read, self._batch)
            writing: asyncio.Future[None] = loop.create_future()
            writing.set_result(None)
            try:
                while frames := await asyncio.shield(reading):
                    reading = loop.run_in_executor(threads, self._reader.read, self._batch)
                    self._count_received(len(frames))
                    in_flight.append((frames, asyncio.create_task(self._analyze(frames, self._sequencer.take()))))
                    if len(in_flight) == IN_FLIGHT:
                        writing = await self._write_next(*in_flight.popleft(), writing, threads)
                while in_flight:
                    writing = await self._write_next(*in_flight.popleft(), writing, threads)
                await asyncio.shield(writing)
                self._report_progress()
            finally:
                await self._end([task for _, task in in_flight], reading, writing)

    async def _write_next(
        self,
        frames: list[VideoFrame],
        task: asyncio.Task[list[AnalysisResult]],
        writing: asyncio.Future[None],
        threads: ThreadPoolExecutor,
    ) -> asyncio.Future[None]:
        """Waits for a batch's results and until the batch before it is written; then starts to write this one.

        Returns:
            The writing of this batch.
        """
        try:
            results = await task
            await asyncio.shield(writing)
        finally:
            task.cancel()  # has an effect only if this coroutine was cancelled; otherwise the task is done
            await asyncio.gather(task, return_exceptions=True)
        self._report_progress()
        return asyncio.get_running_loop().run_in_executor(threads, self._output.write, frames, results)

    async def _end(self, tasks: list[asyncio.Task[list[AnalysisResult]]], *threads: asyncio.Future[Any]) -> None:
        """Cancels the batches in flight and waits for them and the threads. Received frames that were not written count
        as failed, because the analysis of the video ended before them.
        """
        for task in tasks:
            task.cancel()
        await asyncio.gather(*threads, *tasks, return_exceptions=True)
        self._pipeline.forget(self._memory)
        if given_up := self._received - self._output.frames:
            metrics.FRAMES_FAILED.labels(ENTRY, "given_up").inc(given_up)

    async def _analyze(self, frames: list[VideoFrame], ticket: Ticket) -> list[AnalysisResult]:
        """Analyses a batch; returns each frame's result, or the error in place of it."""
        with ticket:
            jobs = [self._job(frame) for frame in frames]
            try:
                by_pipeline = functools.partial(self._pipeline.analyze, entry=ENTRY, ticket=ticket)
                results = await (self._analyze_jobs(jobs, by_pipeline) if self._analyze_jobs else by_pipeline(jobs))
            except Exception as error:
                # Any error fails only this batch; the other batches go on.
                log.exception("frames %d to %d of a video failed", frames[0].number, frames[-1].number)
                return [error] * len(frames)
            finally:
                for frame in frames:
                    frame.pixels = None
            required_stages(self._pipeline.model_set, self._mode)  # raises if a required model is gone meanwhile
            checked = functools.partial(_checked, required=self._required, plug_ins=self._pipeline.plug_ins)
            return [checked(result) for result in await self._with_texts(results, frames[-1].at)]

    def _job(self, frame: VideoFrame) -> FrameJob:
        pipeline_frame = Frame(
            stream=self._stream,
            jpeg=b"",
            received=time.perf_counter(),
            received_at_ms=time.time() * 1000,
            seq=frame.number,
            pixels=frame.pixels,
            at_s=float(frame.at),
        )
        return FrameJob(pipeline_frame, self._memory, self._settings, deadline_s=DEADLINE_S)

    async def _with_texts(
        self, results: Sequence[FrameResult | FrameError], at: Fraction
    ) -> Sequence[FrameResult | FrameError]:
        """Waits until text reading has caught up; returns the results with the texts that it read.

        Text reading runs beside the analysis of frames and would fall behind if frames are fast. The processor
        therefore waits for the video's first reading, and for any reading that began more than MAX_TEXT_LAG_S of the
        video ago. OCR's own time limits bound the wait.

        Args:
            at: the time of the last frame, seconds of the video.
        """
        memory: OcrMemory | None = self._memory.parts.get("ocr")
        if memory is None:
            return results
        waited = False
        while memory.pending and memory.problem is None and _text_lags(memory, float(at)):
            await asyncio.sleep(_POLL_S)
            waited = True
        if not waited or memory.problem is not None:
            return results
        return [
            result.replace(texts=memory.texts, stages={**result.stages, "ocr": OK})
            if isinstance(result, FrameResult) and result.stages["ocr"] == RUNNING
            else result
            for result in results
        ]

    def _count_received(self, count: int) -> None:
        self._received += count
        metrics.FRAMES_RECEIVED.labels(ENTRY).inc(count)
        metrics.LAST_ACTIVITY.set_to_current_time()

    def _report_progress(self) -> None:
        """Counts and reports the frames that were written since the last call."""
        new = self._output.frames - self._reported
        self._reported += new
        for _ in range(new):
            RATE.add()
        if new and self._on_frames is not None:
            self._on_frames(new)


def _text_lags(memory: OcrMemory, at_s: float) -> bool:
    return memory.read_at is None or (memory.asked_at is not None and at_s - memory.asked_at >= MAX_TEXT_LAG_S)


def _checked(result: FrameResult | FrameError, *, required: Sequence[str], plug_ins: frozenset[str]) -> AnalysisResult:
    """Returns the result, or an error if a required stage failed or was skipped: the frame is not analysed again.

    Args:
        required: names of the stages that must have run.
        plug_ins: names of stages from outside, whose own errors cost their part of the result alone.

    Raises:
        InferenceUnavailable: the inference server cannot be reached, and the next frames would fail as well.
    """
    if isinstance(result, FrameError):
        return result
    for name, stage in result.stages.items():  # in the order of the wire, so that the first failure is named
        if name in required and stage.status in ("error", "disabled"):
            if stage.reason == "inference_unavailable":
                raise InferenceUnavailable(
                    "the inference server became unreachable, or was too slow, while the video was analysed"
                )
            if name not in plug_ins:
                return FrameFailed(f"{name}: {stage.reason}")
    return result


# --- the output files ---


class _Output:
    """Writes every frame of a video in order to the results and to the new video, and counts frames. One thread at a
    time may use it.

    Args:
        results_path: file for the results.
        video_path: file for the new video; None writes none.
        models: the descriptions of the models, by stage.
    """

    def __init__(
        self,
        results_path: Path,
        video_path: Path | None,
        media: MediaFile,
        mode: Mode,
        models: Mapping[str, Any],
    ) -> None:
        self._stack = ExitStack()
        self._results = self._stack.enter_context(results_path.open("wb"))
        self._encoder = None if video_path is None else VideoEncoder(video_path, media)
        self._models = models
        self._blur = FaceBlur() if mode == "blur_faces" else None
        self._unwritten: deque[VideoFrame] = deque()
        """Frames that are not encoded yet: a face that a later frame shows may have to be blurred in them, too."""
        self._complete = False
        self.frames = self.failed = 0
        self.until: Fraction = media.position.start
        """The last frame's time, seconds of the whole video."""
        self.last_error: Exception | None = None

    def write(self, frames: list[VideoFrame], results: list[AnalysisResult]) -> None:
        """Writes the next frames."""
        for frame, result in zip(frames, results, strict=True):
            self._results.write(_result_line(frame, result))
            if self._encoder is not None:
                self._encode(self._encoder, frame, result)
            self.frames += 1
            self.until = frame.at
            if isinstance(result, FrameResult):
                metrics.FRAMES_PROCESSED.labels(ENTRY).inc()
            else:
                self._count_failed(frame, result)

    def complete(self) -> None:
        """Writes the remaining frames and audio, and closes the files. All frames must have been given to `write`."""
        if self._encoder is not None and self._blur is not None:
            for yuv in self._blur.flush():
                self._encoder.write(yuv, self._unwritten.popleft())
        self._complete = True
        self.close()

    def close(self) -> None:
        """Closes the files in their present state. May be called again."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            self._stack.callback(encoder.close, complete=self._complete)
        self._stack.close()

    def _encode(self, encoder: VideoEncoder, frame: VideoFrame, result: AnalysisResult) -> None:
        clock = time.perf_counter()
        ready = [yuv := YuvFrame(frame.decoded, frame.turn)]
        if self.frames:
            frame.decoded = None  # the encoder needs the colours of the first frame only
        self._unwritten.append(frame)
        found = result if isinstance(result, FrameResult) else None
        if self._blur is not None:
            ready = self._blur.add(yuv, found, float(frame.at))
        elif found is not None:
            annotate(yuv, found, self._models)
        drawn = time.perf_counter()
        for finished in ready:
            encoder.write(finished, self._unwritten.popleft())
        metrics.STAGE_SECONDS.labels(ENTRY, "draw").observe(drawn - clock)
        metrics.STAGE_SECONDS.labels(ENTRY, "encode").observe(time.perf_counter() - drawn)

    def _count_failed(self, frame: VideoFrame, error: Exception) -> None:
        metrics.FRAMES_FAILED.labels(ENTRY, "pipeline").inc()
        if not self.failed:
            log.warning(
                "frame %d of the video could not be analysed (only the first is logged): %s", frame.number, error
            )
        self.failed += 1
        self.last_error = error


def _result_line(frame: VideoFrame, result: AnalysisResult) -> bytes:
    """One line of the results, JSON.

    `frame_id` and `pts_s` count from the whole video's beginning, so that the concatenated results of its parts are
    those of the video. `track_id` and `motion` begin anew in each part, because parts are analysed separately.
    """
    place = {"frame_id": frame.number, "pts_s": round(float(frame.at), 6)}
    if isinstance(result, FrameResult):
        content: dict[str, object] = result.values()
    else:
        content = {"error": {"code": getattr(result, "code", "internal"), "message": str(result)}}
    return orjson.dumps({**place, **content}, option=orjson.OPT_APPEND_NEWLINE)
