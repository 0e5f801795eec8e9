"""Control messages of the live protocol, version 1: what the client may say and what the service says.

From the client: pydantic models, strict (a string is not a number), unknown fields ignored.
From the service: frozen dataclasses that orjson writes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from app.errors import ProtocolError
from app.protocol.result import FrameResult

PROTOCOL_VERSION = 1

Mode = Literal["realtime", "lossless"]


@dataclass(frozen=True, slots=True)
class Stages:
    """Which modalities run."""

    detect: bool = True
    pose: bool = True
    ocr: bool = True
    motion: bool = True
    track: bool = True
    summary: bool = False


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The settings in force for one stream."""

    mode: Mode = "realtime"
    stages: Stages = Stages()
    confidence: float = 0.35
    iou: float = 0.45
    classes: tuple[int, ...] | None = None
    """Class ids to keep; null keeps all."""
    motion_grid: bool = False
    max_age_ms: float = 2000.0


# --- from the client ---------------------------------------------------------


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class StagesPatch(_Message):
    """Booleans; what is left out stays as it is."""

    detect: bool | None = None
    pose: bool | None = None
    ocr: bool | None = None
    motion: bool | None = None
    track: bool | None = None
    summary: bool | None = None


class SummaryChoice(_Message):
    prompt: str = Field(min_length=1, max_length=64, description="name of one of the operator's prompts")


def _name_or_id(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("want a class's name or id")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):  # which Python takes for 1
        raise ValueError("want a number")
    return value


ClassChoice = Annotated[int | str, BeforeValidator(_name_or_id)]


class Patch(_Message):
    """What `init` and `update` may both change."""

    stages: StagesPatch | None = Field(
        None, description="which modalities run: `detect`, `pose`, `ocr`, `motion`, `track`, `summary`"
    )
    confidence: float | None = Field(None, ge=0, le=1, description="least score of a detection")
    iou: float | None = Field(None, ge=0, le=1, description="NMS threshold")
    classes: Annotated[list[ClassChoice] | None, Field(max_length=1000)] = Field(
        None, description="class names or ids to keep; an empty list keeps all"
    )
    motion_grid: bool | None = Field(None, description="send the flow as a grid of vectors")
    max_age_ms: float | None = Field(
        None, gt=0, le=600_000, description="a realtime frame that waited longer is dropped"
    )
    summary: SummaryChoice | None = Field(None, description="`{prompt: NAME}`")


class Init(Patch):
    """Once, first; optional. Answered by `ready`, or `queued` and then `ready`."""

    type: Literal["init"]
    protocol: Annotated[Literal[1], BeforeValidator(_number)] = Field(1, description="version spoken")
    token: str | None = Field(None, max_length=4096, description="one of AUTH_TOKENS, where the service asks for one")
    mode: Mode | None = Field(None, description="`realtime` (the newest frame wins) or `lossless` (every frame)")


class Update(Patch):
    """Takes effect at the next frame; answered by `settings`."""

    type: Literal["update"]


class Pause(_Message):
    """The idle clock stops; the slot stays until `max_pause_s`."""

    type: Literal["pause"]


class Resume(_Message):
    """Ends a pause."""

    type: Literal["resume"]


class Stop(_Message):
    """Finish what is in flight, then `bye`."""

    type: Literal["stop"]


class Pong(_Message):
    """The answer to `ping`."""

    type: Literal["pong"]
    t: float | None = Field(None, description="`t` of the ping")


CLIENT_MESSAGES: tuple[type[_Message], ...] = (Init, Update, Pause, Resume, Stop, Pong)
ClientMessage = Init | Update | Pause | Resume | Stop | Pong
_BY_TYPE: dict[str, type[Any]] = {model.model_fields["type"].annotation.__args__[0]: model for model in CLIENT_MESSAGES}  # type: ignore[union-attr]


def parse(text: str | bytes) -> ClientMessage:
    """One control message.

    Raises:
        ProtocolError: not a JSON object, an unknown `type`, or a wrong value (with the field's dotted name).
    """
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"not JSON: {error}", code="not_json") from None
    if not isinstance(data, dict):
        raise ProtocolError(f"want a JSON object with a `type`, got {_kind(data)}", code="not_an_object")
    name = data.get("type")
    model = _BY_TYPE.get(name) if isinstance(name, str) else None
    if model is None:
        raise ProtocolError(
            f"unknown type {name!r}; known: {', '.join(_BY_TYPE)}"[:300], code="unknown_type", field="type"
        )
    try:
        message: ClientMessage = model.model_validate(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        path = ".".join(map(str, detail["loc"]))
        message_ = detail["msg"].removeprefix("Value error, ")
        raise ProtocolError(f"{path}: {message_}", code="invalid_value", field=path) from None
    return message


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


# --- from the service --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DetectModel:
    name: str
    """What really answers, e.g. `yolov8n` or `mediapipe`."""
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PoseModel:
    name: str
    keypoints: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Models:
    detect: DetectModel | None
    """Null while the inference server is away."""
    pose: PoseModel | None
    ocr: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    max_frame_bytes: int
    max_pixels: int
    max_messages_per_s: float
    idle_timeout_s: float
    max_pause_s: float
    max_session_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """All slots are taken; repeated as the line moves."""

    position: int
    """1 is next."""
    ahead: int
    eta_s: float | None
    """From how long sessions lasted lately; null while unknown."""
    type: Literal["queued"] = "queued"


@dataclass(frozen=True, slots=True)
class Ready:
    """Frames may come."""

    protocol: int
    session_id: str
    models: Models
    settings: StreamSettings
    limits: Limits
    credits: int
    """Frames that may be in flight. A `result`, or an `error` with a `seq`, returns the credit of its frame
    and of all frames before it: those were superseded, and nothing else will come of them."""
    type: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class SettingsInForce:
    """The answer to `update`."""

    settings: StreamSettings
    type: Literal["settings"] = "settings"


@dataclass(frozen=True, slots=True)
class Dropped:
    since_last: int
    """Frames of this session dropped since its last `result`."""
    total: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one frame gave."""

    session_id: str
    frame_id: int
    """The service's number of the frame in this session, from 1."""
    seq: int
    """The client's number out of the header; without one, `frame_id`."""
    captured_at_ms: float
    """The header's; without one, when the service received it."""
    frame: FrameResult
    age_ms: float
    """From received to sent, on the service's clock."""
    dropped: Dropped
    type: Literal["result"] = "result"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something is degraded or restored; the session goes on."""

    code: Literal["ocr_unavailable", "ocr_restored", "inference_unavailable", "inference_restored", "summary_backlog"]
    message: str
    type: Literal["notice"] = "notice"


@dataclass(frozen=True, slots=True)
class Error:
    """One message or frame was refused."""

    code: str
    message: str
    field: str | None = None
    seq: int | None = None
    """Of the frame refused; returns its credit."""
    fatal: bool = False
    """True: `bye` follows."""
    type: Literal["error"] = "error"


@dataclass(frozen=True, slots=True)
class Ping:
    t: float
    """Epoch milliseconds."""
    type: Literal["ping"] = "ping"


ByeReason = Literal[
    "stopped",
    "idle",
    "max_session",
    "slow_reader",
    "unauthorized",
    "shutdown",
    "protocol_error",
    "inference_unavailable",
    "rejected",
]


@dataclass(frozen=True, slots=True)
class StageTimes:
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """received = processed + dropped + failed, always."""

    received: int = 0
    processed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    failed: int = 0
    bytes: int = 0
    duration_s: float = 0.0
    stages: dict[str, StageTimes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bye:
    """The last message; the close frame follows."""

    reason: ByeReason
    report: Report
    message: str | None = None
    retry_after_s: float | None = None
    type: Literal["bye"] = "bye"


SERVER_MESSAGES = (Queued, Ready, SettingsInForce, Result, Notice, Error, Ping, Bye)
ServerMessage = Queued | Ready | SettingsInForce | Result | Notice | Error | Ping | Bye

CLOSE_CODES: dict[str, int] = {
    "stopped": 1000,
    "idle": 4000,
    "max_session": 4001,
    "slow_reader": 4002,
    "unauthorized": 4003,
    "shutdown": 1001,
    "protocol_error": 4004,
    "inference_unavailable": 1013,
    "rejected": 1013,
}
"""The close frame's code for every `bye.reason`."""


def encode(message: ServerMessage) -> bytes:
    """UTF-8 JSON of a message; a `Result`'s frame is laid flat, as PROTOCOL says."""
    if isinstance(message, Result):
        return encode_result(message)
    return orjson.dumps(message)


def encode_result(message: Result) -> bytes:
    """The `result` message."""
    frame = message.frame
    return orjson.dumps(
        {
            "type": "result",
            "session_id": message.session_id,
            "frame_id": message.frame_id,
            "seq": message.seq,
            "captured_at_ms": message.captured_at_ms,
            "image": frame.image,
            "objects": frame.objects,
            "poses": frame.poses,
            "texts": frame.texts,
            "motion": frame.motion,
            "stages": frame.stages,
            "timings_ms": frame.timings_ms,
            "age_ms": message.age_ms,
            "dropped": message.dropped,
        }
    )


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every message, both directions, keyed by `client` and `server`."""
    definitions: dict[str, Any] = {}
    out: dict[str, Any] = {"client": {}, "server": {}}
    for side, models in (("client", CLIENT_MESSAGES), ("server", SERVER_MESSAGES)):
        for model in models:
            mode: Literal["validation", "serialization"] = "validation" if side == "client" else "serialization"
            one = TypeAdapter(model).json_schema(ref_template="#/$defs/{model}", mode=mode)
            definitions.update(one.pop("$defs", {}))
            if model is Result:
                flat = definitions.pop("FrameResult")
                del one["properties"]["frame"]
                one["properties"].update(flat["properties"])
                one["required"] = [*(n for n in one.get("required", []) if n != "frame"), *flat.get("required", [])]
            out[side][one["properties"]["type"]["const"]] = one
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sightline live protocol",
        "version": PROTOCOL_VERSION,
        **out,
        "$defs": definitions,
    }
