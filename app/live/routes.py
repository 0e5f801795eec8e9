"""The routes of the live entry point: the socket, and images, health and metrics by HTTP."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import shutil
import time
import uuid
from functools import cache
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocket

from app import __version__, bodies, metrics
from app.auth import LIVE, address_of, bearer
from app.errors import MAX_LONG_MESSAGE, FrameError, FrameTooLarge, ProtocolError, TooExpensive, shortened
from app.live.admission import Rejected
from app.live.session import LiveEntryPoint, Session, apply_patch
from app.pipeline.multimodal import Pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol import messages
from app.protocol.messages import Dropped, Result, StreamSettings
from app.settings import LiveSettings

router = APIRouter()
_STARTED = time.time()
_ID = re.compile("[0-9]{1,9}")
_MOST_SHOWN = 40
"""Characters of an unknown parameter's name that the error quotes."""
_LEAST_FREE = 64 * 1024 * 1024
"""Bytes of free disk below which the service is not ready."""
ENTRY = "http"
"""This entry point's value of the metrics' label."""
RATE = metrics.RateGauge(ENTRY)
_POLL_S = 0.01
"""Seconds between two checks whether an image's text has been read."""


async def invalid_query(request: Request, error: Exception) -> Response:
    """Handles FastAPI's `RequestValidationError`: reports a wrong query parameter in the form of our other errors."""
    assert isinstance(error, RequestValidationError)
    detail = error.errors()[0]  # of our own few parameters
    field = str(detail["loc"][-1])
    return _problem(422, "invalid_value", f"{field}: {detail['msg']}", field)


async def _known_query(request: Request) -> None:
    """Refuses a query parameter that the route does not know, because it is probably misspelt.

    Raises:
        RequestValidationError: names the parameter, and the one that was probably meant.
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name in known:
            continue
        near = [other for other in known if len(name) > 1 and other.startswith(name.lower())]
        near += difflib.get_close_matches(name.lower(), known, n=1)
        meant = f"{near[0]} is probably meant; " if near else ""
        shown = name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}..."
        words = f"there is no such parameter; {meant}known: {', '.join(known)}"
        raise RequestValidationError([{"loc": ("query", shown), "msg": words, "type": "unknown"}])


def _entry_point(request: Request | WebSocket) -> LiveEntryPoint:
    entry_point: LiveEntryPoint = request.app.state.live
    return entry_point


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _problem(status: int, code: str, message: str, field: str | None = None) -> Response:
    return _json({"error": {"code": code, "message": shortened(message, MAX_LONG_MESSAGE), "field": field}}, status)


@router.websocket(LIVE)
async def inference(socket: WebSocket) -> None:
    """The live protocol, version 1."""
    await Session(socket, _entry_point(socket)).run()


@router.websocket("/{path:path}")
async def no_socket(socket: WebSocket) -> None:
    """Refuses and counts an upgrade at any other path."""
    metrics.CONNECTIONS_REFUSED.labels("bad_upgrade").inc()
    await socket.send_denial_response(_problem(404, "not_found", f"there is no socket here; it is at {LIVE}"))


@router.post(LIVE)
async def why_not(request: Request) -> Response:
    """Answers with the refusal that a handshake would get here, in plain HTTP; 204 if it would be accepted.

    A browser does not show a page why its handshake was refused. The limits on connections and `auth` have checked this
    request already, as they check a handshake.
    """
    return Response(status_code=204)


@router.post("/v1/frames", dependencies=[Depends(_known_query)])
async def frames(
    request: Request,
    confidence: Annotated[float | None, Query(ge=0, le=1)] = None,
    iou: Annotated[float | None, Query(ge=0, le=1)] = None,
    classes: Annotated[str | None, Query(max_length=10_000)] = None,
    mask_rle: bool | None = None,
) -> Response:
    """One JPEG, PNG or WebP in, as the body or as the part `file` of a form; one result out.

    The response waits until text is read, because the wait delays no other frame.
    """
    entry_point = _entry_point(request)
    if entry_point.images >= entry_point.live.max_sessions:
        answer = _problem(503, "rejected", f"{entry_point.images} images are being analysed, as many as MAX_SESSIONS")
        answer.headers["Retry-After"] = "1"
        _count_refused("rejected")
        return answer
    token = bearer(request.scope)
    entry_point.images += 1
    try:
        with entry_point.admission.admit_image(token=token, address=address_of(request.scope)):
            settings = _settings(entry_point, classes, confidence=confidence, iou=iou, mask_rle=mask_rle)
            image = await _read_image(request, entry_point.live)
            result = await _analyze(entry_point.pipeline, image, settings)
    except Rejected as error:
        answer = _problem(429, "rejected", str(error))
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        _count_refused("rejected")
        return answer
    except ProtocolError as error:
        return _problem(422, error.code, str(error), error.field)
    except bodies.BodyTooSlow as error:
        answer = _problem(408, "timeout", str(error))
        answer.headers["Connection"] = "close"  # the rest of the body is no request
        return answer
    except (FrameTooLarge, TooExpensive) as error:
        return _problem(413, error.code, str(error))
    except FrameError as error:
        return _problem(415, error.code, str(error))
    except ClientDisconnect:
        return Response(status_code=400)  # the client does not read it
    finally:
        entry_point.images -= 1
    return Response(messages.encode(result), media_type="application/json")


def _settings(entry_point: LiveEntryPoint, classes: str | None, **given: float | bool | None) -> StreamSettings:
    """The settings in force for a request; `classes` as in `person,16`."""
    wanted = None if not classes else [int(name) if _ID.fullmatch(name) else name for name in classes.split(",")]
    try:
        patch = messages.Patch.model_validate({**given, "classes": wanted})
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False, include_input=False)
        raise ProtocolError(f"classes: {shortened(first['msg'])}", code="invalid_value", field="classes") from None
    return apply_patch(patch, entry_point.defaults, entry_point.pipeline.model_set.class_names)


async def _read_image(request: Request, live: LiveSettings) -> bytes:
    """Reads the image: the body itself, or the part `file` of a form."""
    most, kind = live.max_frame_bytes, request.headers.get("content-type")
    form = bodies.is_form(kind)
    try:
        body = await bodies.read(
            request, most=bodies.max_form_bytes(most) if form else most, within_s=live.init_timeout_s
        )
        image = bodies.file_in(body, kind or "") if form else body
    except bodies.BodyTooSlow:
        _count_refused("timeout")
        raise
    except bodies.BodyTooLarge as error:
        _count_refused("too_large")
        raise FrameTooLarge(f"{error}; MAX_FRAME_BYTES is {most}") from None
    except ProtocolError as error:
        _count_refused(error.code)
        raise
    if len(image) > most:
        _count_refused("too_large")
        raise FrameTooLarge(f"{len(image)} bytes; MAX_FRAME_BYTES is {most}")
    return image


async def _analyze(pipeline: Pipeline, image: bytes, settings: StreamSettings) -> Result:
    """Analyses one JPEG, PNG or WebP, and waits until its text is read.

    Args:
        ocr_timeout_s: seconds that one OCR run may take. The wait is for the image's own run, and one run before it.

    Raises:
        FrameError: the image cannot be used.
    """
    metrics.FRAMES_RECEIVED.labels(ENTRY).inc()
    metrics.LAST_ACTIVITY.set_to_current_time()
    received, stream = time.perf_counter(), uuid.uuid4().hex
    now_ms = time.time() * 1000
    frame = Frame(stream=stream, jpeg=image, received=received, received_at_ms=now_ms, seq=1)
    counted = False
    try:
        memory = StreamMemory()
        off = {stage.name: False for stage in pipeline.stages if not stage.single}
        alone = dataclasses.replace(settings, stages=settings.stages.but(**off))
        job = FrameJob(frame, memory, alone, photo=True)
        (result,) = await pipeline.analyze([job], entry=ENTRY)
        if isinstance(result, FrameError):
            metrics.FRAMES_DROPPED.labels(ENTRY, result.code).inc()
            counted = True
            raise result
        result = await pipeline.settle(job, result)
        age_s = time.perf_counter() - received
        metrics.FRAMES_PROCESSED.labels(ENTRY).inc()
        RATE.add()
        metrics.FRAME_AGE.labels(ENTRY).observe(age_s)
        counted = True
    finally:
        if not counted:
            metrics.FRAMES_FAILED.labels(ENTRY, "pipeline").inc()
    return Result(
        session_id=stream,
        frame_id=1,
        seq=1,
        captured_at_ms=now_ms,
        frame=result,
        age_ms=round(age_s * 1000, 3),
        dropped=Dropped(0, 0),
    )


def _count_refused(reason: str) -> None:
    """Counts an image that was refused before it arrived whole."""
    metrics.FRAMES_RECEIVED.labels(ENTRY).inc()
    metrics.FRAMES_DROPPED.labels(ENTRY, reason).inc()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The models that are served now: the names for each stage, classes, keypoints."""
    return _json(_entry_point(request).pipeline.models)


@router.get("/v1/sessions/{session_id}/summaries", dependencies=[Depends(_known_query)])
async def summaries(
    request: Request,
    session_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$")],
    last: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Response:
    """The last summaries of a session, oldest first, also after its end; at most twenty."""
    kept = await _entry_point(request).summaries.last(session_id, last)
    return _json({"session_id": session_id, "summaries": kept})


@router.get("/schema.json")
async def schema() -> Response:
    """JSON Schema of the live protocol."""
    return Response(_schema(), media_type="application/json")


@cache
def _schema() -> bytes:
    """Made once, because it takes as long as several frames, and every client may ask for it."""
    return orjson.dumps(messages.schema())


@router.get("/health/live")
async def live() -> Response:
    """200 while the process answers."""
    return _json({"status": "ok"})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """200 when frames are fully analysed; 503 with the state of each part otherwise."""
    state = request.app.state
    disk = shutil.disk_usage(state.settings.server.state_dir)
    parts = {
        "inference": state.inference_health(),
        **_entry_point(request).pipeline.health(),
        "summaries": _entry_point(request).summaries.health(),
        "disk": {"state": "ok" if disk.free > _LEAST_FREE else "full", "free_bytes": disk.free},
    }
    if sinks := state.sinks_health():
        parts["sinks"] = sinks
    well = parts["inference"]["state"] == "ok" and parts["disk"]["state"] == "ok"
    return _json({"status": "ready" if well else "unavailable", **parts}, 200 if well else 503)


@router.get("/status")
async def status() -> Response:
    """How busy the service is, over all workers; an automatic stop of idle machines reads it."""
    registry = metrics.registry()
    last = registry.get_sample_value("sightline_last_activity_timestamp_seconds") or 0.0
    return _json(
        {
            "version": __version__,
            "uptime_s": round(time.time() - _STARTED, 1),
            "sessions_active": int(registry.get_sample_value("sightline_sessions_active") or 0),
            "sessions_waiting": int(registry.get_sample_value("sightline_sessions_waiting") or 0),
            "last_activity": last or None,
            "idle_s": round(time.time() - (last or _STARTED), 1),
        }
    )


@router.get("/metrics")
async def prometheus() -> Response:
    """Prometheus' text format."""
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
