"""The live door's routes: the socket, and plain HTTP beside it."""

from __future__ import annotations

import difflib
import math
import re
import shutil
import time
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
from app.live import choices
from app.live.admission import Rejected
from app.live.door import LiveDoor
from app.live.session import Session
from app.live.single import analyze_one, count_refused
from app.protocol import messages
from app.protocol.messages import StreamSettings
from app.settings import LiveSettings

router = APIRouter()
_STARTED = time.time()
_ID = re.compile("[0-9]{1,9}")
_MOST_SHOWN = 40


async def invalid_query(request: Request, error: Exception) -> Response:
    """A wrong query parameter, in the shape of our other errors. FastAPI's handler of `RequestValidationError`."""
    assert isinstance(error, RequestValidationError)
    detail = error.errors()[0]  # of our own few parameters
    field = str(detail["loc"][-1])
    return _problem(422, "invalid_value", f"{field}: {detail['msg']}", field)


async def _known_query(request: Request) -> None:
    """A parameter that a route does not know is a misspelt one: it is said, not ignored.

    Raises:
        RequestValidationError: names it, and what was probably meant.
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


def _door(request: Request | WebSocket) -> LiveDoor:
    door: LiveDoor = request.app.state.door
    return door


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _problem(status: int, code: str, message: str, field: str | None = None) -> Response:
    return _json({"error": {"code": code, "message": shortened(message, MAX_LONG_MESSAGE), "field": field}}, status)


@router.websocket(LIVE)
async def inference(socket: WebSocket) -> None:
    """The live protocol, version 1."""
    await Session(socket, _door(socket)).run()


@router.websocket("/{path:path}")
async def no_socket(socket: WebSocket) -> None:
    """An upgrade anywhere else: said and counted, as every other handshake that leads to nothing."""
    metrics.CONNECTIONS_REFUSED.labels("bad_upgrade").inc()
    await socket.send_denial_response(_problem(404, "not_found", f"there is no socket here; it is at {LIVE}"))


@router.post(LIVE)
async def why_not(request: Request) -> Response:
    """Why a socket would be refused here: the refusal, in plain HTTP; 204: nothing stands against it.

    A browser keeps from a page why its handshake was refused. What bounds connections, and `auth`, have looked at this
    request before, as they look at a handshake.
    """
    return Response(status_code=204)


@router.post("/v1/frames", dependencies=[Depends(_known_query)])
async def frames(
    request: Request,
    confidence: Annotated[float | None, Query(ge=0, le=1)] = None,
    iou: Annotated[float | None, Query(ge=0, le=1)] = None,
    classes: Annotated[str | None, Query(max_length=10_000)] = None,
) -> Response:
    """One JPEG, PNG or WebP in, as the body or as the part `file` of a form; one result out.

    Text is read too and waited for, since nobody else is held up by it.
    """
    door = _door(request)
    if door.pictures >= door.live.max_sessions:
        answer = _problem(503, "rejected", f"{door.pictures} pictures are being analysed, as many as MAX_SESSIONS")
        answer.headers["Retry-After"] = "1"
        count_refused("rejected")
        return answer
    token = bearer(request.scope)
    door.pictures += 1
    try:
        with door.admission.picture(token=token, address=address_of(request.scope)):
            settings = _wishes(door, confidence, iou, classes)
            jpeg = await _picture(request, door.live)
            result = await analyze_one(door.pipeline, jpeg, settings, ocr_timeout_s=door.ocr_timeout_s)
    except Rejected as error:
        answer = _problem(429, "rejected", str(error))
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        count_refused("rejected")
        return answer
    except ProtocolError as error:
        return _problem(422, error.code, str(error), error.field)
    except bodies.BodyTooSlow as error:
        answer = _problem(408, "timeout", str(error))
        answer.headers["Connection"] = "close"  # the rest of it is no request
        return answer
    except (FrameTooLarge, TooExpensive) as error:
        return _problem(413, error.code, str(error))
    except FrameError as error:
        return _problem(415, error.code, str(error))
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it
    finally:
        door.pictures -= 1
    return Response(messages.encode(result), media_type="application/json")


def _wishes(door: LiveDoor, confidence: float | None, iou: float | None, classes: str | None) -> StreamSettings:
    """The settings in force for a request; `classes` as in `person,16`."""
    wanted = None if not classes else [int(one) if _ID.fullmatch(one) else one for one in classes.split(",")]
    try:
        patch = messages.Patch.model_validate({"confidence": confidence, "iou": iou, "classes": wanted})
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False, include_input=False)
        raise ProtocolError(f"classes: {shortened(first['msg'])}", code="invalid_value", field="classes") from None
    detect = door.pipeline.model_set.detect
    return choices.apply(patch, door.defaults, detect.class_names if detect else ())


async def _picture(request: Request, live: LiveSettings) -> bytes:
    """The picture: the body itself, or the part `file` of a form."""
    most, kind = live.max_frame_bytes, request.headers.get("content-type")
    form = bodies.is_form(kind)
    try:
        body = await bodies.read(
            request, most=bodies.max_form_bytes(most) if form else most, within_s=live.init_timeout_s
        )
        picture = bodies.file_in(body, kind or "") if form else body
    except bodies.BodyTooSlow:
        count_refused("timeout")
        raise
    except bodies.BodyTooLarge as error:
        count_refused("too_large")
        raise FrameTooLarge(f"{error}; MAX_FRAME_BYTES is {most}") from None
    except ProtocolError as error:
        count_refused(error.code)
        raise
    if len(picture) > most:
        count_refused("too_large")
        raise FrameTooLarge(f"{len(picture)} bytes; MAX_FRAME_BYTES is {most}")
    return picture


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """What is served now: the names behind each stage, classes, keypoints."""
    return _json(_door(request).pipeline.models)


@router.get("/v1/sessions/{session_id}/summaries", dependencies=[Depends(_known_query)])
async def summaries(
    request: Request,
    session_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$")],
    last: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Response:
    """The last summaries of a session, oldest first, also after its end; twenty at most."""
    kept = await _door(request).summaries.last(session_id, last)
    return _json({"session_id": session_id, "summaries": kept})


@router.get("/schema.json")
async def schema() -> Response:
    """JSON Schema of the live protocol."""
    return Response(_schema(), media_type="application/json")


@cache
def _schema() -> bytes:
    """Made once: it takes as long as several frames, and anybody may ask for it."""
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
        "ocr": _door(request).pipeline.ocr.health(),
        "summaries": _door(request).summaries.health(),
        "disk": {"state": "ok" if disk.free > _LEAST_FREE else "full", "free_bytes": disk.free},
    }
    well = parts["inference"]["state"] == "ok" and parts["disk"]["state"] == "ok"
    return _json({"status": "ready" if well else "unavailable", **parts}, 200 if well else 503)


_LEAST_FREE = 64 * 1024 * 1024


@router.get("/status")
async def status() -> Response:
    """How busy the service is, over all workers: what an idle stop reads."""
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
