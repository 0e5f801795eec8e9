"""The segment door over HTTP: what a worker with INFERENCE_BACKEND=http asks, and what SageMaker asks of a container.

SageMaker sends an asynchronous invocation's body, which lies in S3, as the body of a plain `POST /invocations`, and
puts the answer into S3 itself; it knows no tokens, so that a container of its runs with ALLOW_ANONYMOUS=true.
Who may ask is decided before any route is reached, by `auth`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from app import bodies
from app.errors import MAX_LONG_MESSAGE, MAX_VALUE, InferenceUnavailable, SightlineError, shortened
from app.segments.keys import Mode, beside
from app.segments.ports import ObjectAddressRefused, ObjectMissing
from app.segments.service import Busy, SegmentService
from app.segments.video import TruncatedVideo, VideoError

log = logging.getLogger(__name__)

router = APIRouter()
_MOST_BYTES = 64 * 1024
_RETRY_S = "5"
_STATUS: tuple[tuple[type[SightlineError], int, str], ...] = (
    (Busy, 503, "busy"),
    (InferenceUnavailable, 503, "inference_unavailable"),
    (ObjectMissing, 404, "object_missing"),
    (ObjectAddressRefused, 403, "address_refused"),
    (TruncatedVideo, 422, "truncated_film"),
    (VideoError, 422, "unreadable_film"),
)


class Invocation(BaseModel):
    """What is to be done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    s3_input_uri: str = Field(min_length=1, max_length=2048)
    s3_output_uri: str = Field(min_length=1, max_length=2048, pattern=r"\.mp4$")
    mode: Mode = "annotate"
    allow_truncated: bool = False
    """Whether a film whose file was cut off is taken for what is there of it."""


def _service(request: Request) -> SegmentService:
    service: SegmentService = request.app.state.segments
    return service


@router.get("/ping")
async def ping(request: Request) -> Response:
    """200 while films would be analysed, 503 while the server of models is away or serves none. Asks for no token."""
    ready = await _service(request).ready()
    return _json({"status": "ok" if ready else "inference_unavailable"}, 200 if ready else 503)


@router.post("/invocations")
async def invocations(request: Request) -> Response:
    """Analyses one film and answers when it is done: how many frames, how long, where its results are."""
    service = _service(request)
    try:
        body = await bodies.read(request, most=_MOST_BYTES, within_s=service.body_timeout_s)
        asked = Invocation.model_validate_json(body)
    except ValidationError as error:
        return _invalid(error)
    except bodies.BodyTooSlow as error:
        answer = _problem(408, "timeout", str(error))
        answer.headers["Connection"] = "close"  # the rest of it is no request
        return answer
    except bodies.BodyTooLarge as error:
        return _problem(413, "too_large", f"{error}; an invocation has at most {_MOST_BYTES}")
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it
    work = asyncio.create_task(_answered(service, asked))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        log.warning("%s: the client went away; its analysis is given up", asked.s3_input_uri)
        return Response(status_code=400)  # nobody reads it
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _answered(service: SegmentService, asked: Invocation) -> Response:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        report = await service.invoke(
            asked.s3_input_uri, asked.s3_output_uri, asked.mode, allow_truncated=asked.allow_truncated
        )
    except SightlineError as error:
        status, code = next(((s, c) for kind, s, c in _STATUS if isinstance(error, kind)), (500, "analysis_failed"))
        return _problem(status, code, str(error))
    except (ClientError, BotoCoreError) as error:
        return _problem(502, "storage", f"the store did not do what it was asked: {error}")
    except OSError as error:
        log.exception("%s", asked.s3_input_uri)
        return _problem(507, "no_room", f"a file could not be written: {error.strerror or error}")
    except Exception as error:
        # The boundary of one film: the service goes on.
        log.exception("%s", asked.s3_input_uri)
        return _problem(500, "internal", f"{type(error).__name__}: {error}")
    written = None if asked.mode == "results_only" else asked.s3_output_uri
    where = {"mode": asked.mode, "s3_output_uri": written, "results_uri": beside(asked.s3_output_uri)}
    return _json({"status": "completed", **where, **dataclasses.asdict(report)})


async def _gone(request: Request) -> None:
    """Returns when the client has."""
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
        answer.headers["Retry-After"] = _RETRY_S
    return answer
