"""Recorded video over HTTP: `GET /ping` and `POST /invocations`.

A worker with INFERENCE_BACKEND=http calls them, and SageMaker calls them on a container. SageMaker sends the body of an
asynchronous invocation, which is an object in S3, as the body of a plain `POST /invocations`, and writes the answer to
S3 itself. It sends no token, so that a container there runs with ALLOW_ANONYMOUS=true. `auth` decides about access
before a route is reached.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from app import bodies, metrics
from app.errors import (
    MAX_LONG_MESSAGE,
    MAX_MESSAGE,
    MAX_VALUE,
    InferenceUnavailable,
    SightlineError,
    quoted,
    shortened,
)
from app.pipeline.multimodal import Pipeline
from app.segments.aws import Clients, S3Objects
from app.segments.backends.pipeline import analyze_stored
from app.segments.keys import Mode, beside
from app.segments.local import FolderObjects
from app.segments.ports import ObjectAddressRefused, ObjectMissing, Objects
from app.segments.video import TruncatedVideo, VideoError
from app.segments.video.processor import VideoReport, analyze_video, load_models, serves_any, stream_settings
from app.settings import AwsSettings, LiveSettings, PipelineSettings, SegmentSettings
from app.sinks import Feed
from app.sources.truncation import truncation

log = logging.getLogger(__name__)

# --- the service ---

BACKEND = "invocations"
"""The metrics' label."""


class Busy(SightlineError):
    """INFERENCE_MAX_IN_FLIGHT videos are being analysed."""


class SegmentService:
    """Analyses videos for HTTP clients. One for each process; up to INFERENCE_MAX_IN_FLIGHT videos at once."""

    def __init__(
        self,
        pipeline: Pipeline,
        segments: SegmentSettings,
        aws: AwsSettings,
        *,
        pipeline_settings: PipelineSettings,
        limits: LiveSettings,
        feed: Feed | None = None,
    ) -> None:
        """`feed`: gets the results of all videos; None: no sinks."""
        self.body_timeout_s = limits.init_timeout_s
        """Seconds in which the body of a request must arrive."""
        self._pipeline = pipeline
        self._objects: Objects = AnyObjects(aws, segments.segment_folder)
        self._input_bucket, self._output_bucket = segments.input_bucket_name, segments.output_bucket_name
        self._max_running = segments.inference_max_in_flight
        self._settings = pipeline_settings
        self._max_pixels = limits.max_pixels
        self._running = 0
        self._feed = feed

    async def ready(self) -> bool:
        """Whether videos can be analysed now: the inference server is reachable and serves a model that we can read."""
        try:
            await load_models(self._pipeline)
        except InferenceUnavailable:
            return False
        return serves_any(self._pipeline.model_set)

    async def invoke(
        self, input_uri: str, output_uri: str, mode: Mode, *, allow_truncated: bool = False
    ) -> VideoReport:
        """Analyses the video at one address and writes the new one to the other, with its results beside it (`.jsonl`).

        Args:
            allow_truncated: accept a video whose file was cut off, and analyse the part that exists.

        Raises:
            Busy: too many videos at once.
            InferenceUnavailable: the inference server cannot be reached, or serves no model.
            InferenceError: the models that are served cannot analyse the video in this mode.
            ObjectMissing, ObjectAddressRefused: of the addresses.
            VideoError: the object is not a video.
            TruncatedVideo: its file was cut off, and `allow_truncated` is not set.
        """
        _check_bucket(input_uri, "INPUT_BUCKET_NAME", self._input_bucket)
        _check_bucket(output_uri, "OUTPUT_BUCKET_NAME", self._output_bucket)
        if not await self.ready():
            metrics.SEGMENTS.labels(BACKEND, "refused").inc()
            raise InferenceUnavailable("the inference server is away, or serves no model that can be used")
        if self._running >= self._max_running:
            metrics.SEGMENTS.labels(BACKEND, "refused").inc()
            raise Busy(f"{self._running} videos are being analysed, as many as INFERENCE_MAX_IN_FLIGHT")
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
        lacks: str | None = None

        def inspect(video: Path) -> None:
            nonlocal lacks
            lacks = truncation(video)
            if lacks is not None and not allow_truncated:
                raise TruncatedVideo(
                    f"{lacks}; nothing was analysed. With allow_truncated the part that exists is analysed"
                )

        async def analyze(source: Path, target: Path, results: Path) -> VideoReport:
            settings = stream_settings(self._settings, mode)
            return await analyze_video(
                source, target, results, mode, self._pipeline, settings, max_pixels=self._max_pixels
            )

        report = await analyze_stored(self._objects, input_uri, output_uri, inspect, analyze, self._feed)
        log.info(
            "%s: %s, %d frames in %.1f s, %d failed", input_uri, mode, report.frames, report.elapsed_s, report.failed
        )
        return dataclasses.replace(report, truncated=lacks)


def _check_bucket(uri: str, name: str, bucket: str | None) -> None:
    """If the settings name a bucket, no other one may be used."""
    if bucket is not None and uri.startswith("s3://") and not uri.startswith(f"s3://{bucket}/"):
        raise ObjectAddressRefused(f"{shortened(uri, MAX_MESSAGE)}: should begin with s3://{bucket}/, which is {name}")


class AnyObjects:
    """`Objects` at every address that this process may use: `s3://`, and `file://` inside one folder.

    Args:
        folder: SEGMENT_FOLDER, outside which no file may be used; None: no file may be used.
    """

    def __init__(self, aws: AwsSettings, folder: Path | None) -> None:
        self._aws = aws
        self._folder = FolderObjects(folder) if folder else None
        self._s3: S3Objects | None = None
        self._opening = threading.Lock()

    def download(self, uri: str, path: Path) -> None:
        self._choose(uri).download(uri, path)

    def upload(self, path: Path, uri: str) -> None:
        self._choose(uri).upload(path, uri)

    def read(self, uri: str) -> bytes:
        return self._choose(uri).read(uri)

    def write(self, uri: str, data: bytes) -> None:
        self._choose(uri).write(uri, data)

    def exists(self, uri: str) -> bool:
        return self._choose(uri).exists(uri)

    def _choose(self, uri: str) -> Objects:
        if uri.startswith("s3://"):
            with self._opening:  # made on first use, so that AWS need not be configured where only files are used
                if self._s3 is None:
                    self._s3 = S3Objects(Clients(self._aws).s3())
                return self._s3
        if uri.startswith("file://"):
            if self._folder is None:
                raise ObjectAddressRefused(
                    f"{shortened(uri, MAX_MESSAGE)}: SEGMENT_FOLDER is unset, so no file may be read or written"
                )
            return self._folder
        raise ObjectAddressRefused(f"{quoted(uri)}: should begin with s3:// or file://")


# --- the routes ---

router = APIRouter()
_MAX_BODY_BYTES = 64 * 1024
_RETRY_AFTER_S = "5"
_STATUS: tuple[tuple[type[SightlineError], int, str], ...] = (
    (Busy, 503, "busy"),
    (InferenceUnavailable, 503, "inference_unavailable"),
    (ObjectMissing, 404, "object_missing"),
    (ObjectAddressRefused, 403, "address_refused"),
    (TruncatedVideo, 422, "truncated_film"),
    (VideoError, 422, "unreadable_film"),
)


class InvocationRequest(BaseModel):
    """The body of `POST /invocations`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    s3_input_uri: str = Field(min_length=1, max_length=2048)
    s3_output_uri: str = Field(min_length=1, max_length=2048, pattern=r"\.mp4$")
    mode: Mode = "annotate"
    allow_truncated: bool = False
    """Accept a video whose file was cut off, and analyse the part that exists."""


def _service(request: Request) -> SegmentService:
    service: SegmentService = request.app.state.segments
    return service


@router.get("/ping")
async def ping(request: Request) -> Response:
    """200 if videos can be analysed, 503 while the inference server is away or serves no model. Needs no token."""
    ready = await _service(request).ready()
    return _json({"status": "ok" if ready else "inference_unavailable"}, 200 if ready else 503)


@router.post("/invocations")
async def invocations(request: Request) -> Response:
    """Analyses one video, and answers when it is done: number of frames, duration, address of the results."""
    service = _service(request)
    try:
        body = await bodies.read(request, most=_MAX_BODY_BYTES, within_s=service.body_timeout_s)
        invocation = InvocationRequest.model_validate_json(body)
    except ValidationError as error:
        return _invalid(error)
    except bodies.BodyTooSlow as error:
        answer = _problem(408, "timeout", str(error))
        answer.headers["Connection"] = "close"  # the rest of the body is not another request
        return answer
    except bodies.BodyTooLarge as error:
        return _problem(413, "too_large", f"{error}; an invocation has at most {_MAX_BODY_BYTES}")
    except ClientDisconnect:
        return Response(status_code=400)  # no client reads it
    work = asyncio.create_task(_answer(service, invocation))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        log.warning("%s: the client went away; its analysis is given up", invocation.s3_input_uri)
        return Response(status_code=400)  # no client reads it
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _answer(service: SegmentService, invocation: InvocationRequest) -> Response:
    from botocore.exceptions import BotoCoreError, ClientError

    input_uri, output_uri, mode = invocation.s3_input_uri, invocation.s3_output_uri, invocation.mode
    try:
        report = await service.invoke(input_uri, output_uri, mode, allow_truncated=invocation.allow_truncated)
    except SightlineError as error:
        status, code = next(((s, c) for kind, s, c in _STATUS if isinstance(error, kind)), (500, "analysis_failed"))
        return _problem(status, code, str(error))
    except (ClientError, BotoCoreError) as error:
        return _problem(502, "storage", f"the object store failed: {error}")
    except OSError as error:
        log.exception("%s", input_uri)
        return _problem(507, "no_room", f"a file could not be written: {error.strerror or error}")
    except Exception as error:
        # The boundary of one video: the service goes on.
        log.exception("%s", input_uri)
        return _problem(500, "internal", f"{type(error).__name__}: {error}")
    written = None if mode == "results_only" else output_uri
    addresses = {"mode": mode, "s3_output_uri": written, "results_uri": beside(output_uri)}
    return _json({"status": "completed", **addresses, **dataclasses.asdict(report)})


async def _disconnected(request: Request) -> None:
    """Returns once the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _invalid(error: ValidationError) -> Response:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = shortened(".".join(str(part) for part in detail["loc"]), MAX_VALUE) or None
    wanted = "want {s3_input_uri, s3_output_uri (….mp4), mode: annotate | blur_faces | results_only, allow_truncated}"
    return _problem(422, "invalid_value", f"{field or 'body'}: {detail['msg']}; {wanted}", field)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _problem(status: int, code: str, message: str, field: str | None = None) -> Response:
    answer = _json({"error": {"code": code, "message": shortened(message, MAX_LONG_MESSAGE), "field": field}}, status)
    if status == 503:
        answer.headers["Retry-After"] = _RETRY_AFTER_S
    return answer
