"""What `/invocations` does: a film out of the store, through the pipeline, back into the store."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app import metrics
from app.errors import MAX_MESSAGE, InferenceUnavailable, SightlineError, shortened
from app.pipeline.multimodal import Pipeline
from app.segments.keys import Mode, beside
from app.segments.objects import AnyObjects
from app.segments.ports import ObjectAddressRefused, Objects
from app.segments.video import TruncatedVideo
from app.segments.video.processor import VideoReport, analyze_video, load_models, serves_any, stream_settings
from app.settings import AwsSettings, LiveSettings, PipelineSettings, SegmentSettings
from app.sources.truncation import truncation

log = logging.getLogger(__name__)

BACKEND = "invocations"
Result = TypeVar("Result")
_MOST_NAME = 100
"""Bytes. File systems take 255."""


class Busy(SightlineError):
    """As many films as may be are being analysed."""


class SegmentService:
    """Analyses films for whoever asks. One a process; up to INFERENCE_MAX_IN_FLIGHT at once."""

    def __init__(
        self,
        pipeline: Pipeline,
        segments: SegmentSettings,
        aws: AwsSettings,
        *,
        pipeline_settings: PipelineSettings,
        limits: LiveSettings,
    ) -> None:
        self.body_timeout_s = limits.init_timeout_s
        """Seconds that the body of a request has."""
        self._pipeline = pipeline
        self._objects: Objects = AnyObjects(aws, segments.segment_folder)
        self._input_bucket, self._output_bucket = segments.input_bucket_name, segments.output_bucket_name
        self._most = segments.inference_max_in_flight
        self._settings = pipeline_settings
        self._max_pixels = limits.max_pixels
        self._running = 0

    async def ready(self) -> bool:
        """Whether films would be analysed now: the inference server is there, and serves a model that we can read."""
        try:
            await load_models(self._pipeline)
        except InferenceUnavailable:
            return False
        return serves_any(self._pipeline.model_set)

    async def invoke(
        self, input_uri: str, output_uri: str, mode: Mode, *, allow_truncated: bool = False
    ) -> VideoReport:
        """Analyses the film at one address and writes it to the other, its results beside it (`.jsonl`).

        Args:
            allow_truncated: whether a film whose file was cut off is taken for what is there of it.

        Raises:
            Busy: too many at once.
            InferenceUnavailable: the inference server is away, or serves no model.
            InferenceError: the film cannot be analysed in this mode by the models that are served.
            ObjectMissing, ObjectAddressRefused: of the addresses.
            VideoError: what lies there is no film.
            TruncatedVideo: its file was cut off, and that is not allowed.
        """
        _expect(input_uri, "INPUT_BUCKET_NAME", self._input_bucket)
        _expect(output_uri, "OUTPUT_BUCKET_NAME", self._output_bucket)
        if not await self.ready():
            metrics.SEGMENTS.labels(BACKEND, "refused").inc()
            raise InferenceUnavailable("the inference server is away, or serves no model that can be used")
        if self._running >= self._most:
            metrics.SEGMENTS.labels(BACKEND, "refused").inc()
            raise Busy(f"{self._running} films are being analysed, as many as INFERENCE_MAX_IN_FLIGHT")
        self._running += 1
        metrics.SEGMENTS_IN_FLIGHT.labels(BACKEND).inc()
        outcome = "failed"
        try:
            with metrics.SEGMENT_SECONDS.labels(BACKEND).time():
                report = await self._analyze(input_uri, output_uri, mode, allow_truncated)
            outcome = "completed"
            return report
        finally:
            self._running -= 1
            metrics.SEGMENTS_IN_FLIGHT.labels(BACKEND).dec()
            metrics.SEGMENTS.labels(BACKEND, outcome).inc()

    async def _analyze(self, input_uri: str, output_uri: str, mode: Mode, allow_truncated: bool) -> VideoReport:
        folder = tempfile.TemporaryDirectory(prefix="sightline-film-")
        try:
            target, results = Path(folder.name) / "out.mp4", Path(folder.name) / "out.jsonl"
            source = Path(folder.name) / "in" / _name(input_uri)
            source.parent.mkdir()
            await _thread(self._objects.download, input_uri, source)
            lacks = await _thread(truncation, source)
            if lacks is not None and not allow_truncated:
                raise TruncatedVideo(f"{lacks}; nothing was analysed. With allow_truncated what is there is taken")
            settings = stream_settings(self._settings, mode)
            report = await analyze_video(
                source, target, results, mode, self._pipeline, settings, max_pixels=self._max_pixels
            )
            # The film last: its appearing is what others wait for.
            await _thread(self._objects.upload, results, beside(output_uri))
            if target.exists():
                await _thread(self._objects.upload, target, output_uri)
            log.info(
                "%s: %s, %d frames in %.1f s, %d failed",
                input_uri,
                mode,
                report.frames,
                report.elapsed_s,
                report.failed,
            )
            return dataclasses.replace(report, truncated=lacks)
        finally:
            folder.cleanup()


def _expect(uri: str, name: str, bucket: str | None) -> None:
    """Where a bucket is named there is no other."""
    if bucket is not None and uri.startswith("s3://") and not uri.startswith(f"s3://{bucket}/"):
        raise ObjectAddressRefused(f"{shortened(uri, MAX_MESSAGE)}: should begin with s3://{bucket}/, which is {name}")


def _name(uri: str) -> str:
    """What errors call the film: the end of its address, as a file may be named that grows a suffix while it comes."""
    end = uri.rpartition("/")[2].replace("\0", "").encode(errors="ignore")
    name = end[-_MOST_NAME:].decode(errors="ignore")
    return "film" if name in ("", ".", "..") else name


async def _thread(work: Callable[..., Result], *arguments: object) -> Result:
    """`asyncio.to_thread`, but when it is cancelled the thread is waited for: it uses files that go away."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(thread)
    finally:
        await asyncio.wait([thread])
