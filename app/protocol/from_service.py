"""Messages from service to client: frozen dataclasses, which orjson serializes without conversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, get_args

import orjson
from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from app.protocol.result import FrameResult
from app.protocol.stages import STAGES, Figure, FigurePlace, Shape, ShapeKind
from app.protocol.stream import StreamSettings


class Models(dict[str, Any]):
    """The models that are loaded, by stage, also as attributes; null for those that are not."""

    def __getattr__(self, name: str) -> Any:
        if name in STAGES:
            return self.get(name)
        raise AttributeError(name)

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of a dataclass with the models of this process's stages, from which pydantic reads a message."""
        models: list[Any] = [
            (stage.name, stage.model | None, field(default=None))
            for stage in STAGES.values()
            if stage.model is not None
        ]
        kind = make_dataclass("Models", models)
        kind.__doc__ = "The models that are loaded, by stage; null for those that are not."

        def read(value: Any, handle: Callable[[Any], Any]) -> Models:
            known = vars(handle(value))  # first, because it refuses what is no object
            return cls({**value, **known})

        return core_schema.no_info_wrap_validator_function(read, handler.generate_schema(kind))


def _only(field: str, literal: Any) -> BeforeValidator:
    """Leaves out what only a later version can draw: a client draws the rest."""
    known = get_args(literal)

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [entry for entry in value if not isinstance(entry, dict) or entry.get(field) in known]

    return BeforeValidator(read)


@dataclass(frozen=True, slots=True)
class StageDescription:
    """A stage that a client may switch, and how to draw its part of a result."""

    name: str
    """Its key in `stages`."""
    title: str
    description: str
    field: str | None
    """Its field of a result; null where it adds to the fields of others."""
    shapes: Annotated[tuple[Shape, ...], _only("kind", ShapeKind)]
    """How each entry of the field is drawn."""
    figures: Annotated[tuple[Figure, ...], _only("place", FigurePlace)]
    """What the field says in words and numbers."""
    late: bool
    """Whether entries may come from an earlier frame; the stage's `age_ms` says how old they are."""


def stage_descriptions() -> tuple[StageDescription, ...]:
    """The stages of live streams, in the order of the wire."""
    return tuple(
        StageDescription(
            stage.name,
            stage.title,
            stage.description,
            None if (part := stage.part) is None else part.field,
            () if part is None else part.shapes,
            () if part is None else part.figures,
            part is not None and part.late,
        )
        for stage in STAGES.values()
        if stage.live
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a session. Times are seconds; `max_pixels` is width times height of a frame."""

    max_frame_bytes: int
    max_pixels: int
    max_messages_per_s: float
    idle_timeout_s: float
    max_pause_s: float
    max_session_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """All slots are taken, so the session waits. Sent again whenever its position changes."""

    position: int
    """1 is next."""
    ahead: int
    eta_s: float | None
    """Estimated seconds until a slot is free, from the length of recent sessions; null while unknown."""
    type: Literal["queued"] = "queued"


@dataclass(frozen=True, slots=True)
class Ready:
    """The session has a slot, so the client may send frames."""

    protocol: int
    session_id: str
    models: Models
    settings: StreamSettings
    limits: Limits
    credits: int
    """Frames that may be in flight. A `result` returns the credit of its frame and of all frames before it that
    were not answered: those were superseded, and get no result. An `error` with a `seq` returns the
    credit of that frame alone: one that is refused on arrival is answered before older ones."""
    prompts: tuple[str, ...] = ()
    """Names that `summary.prompt` may have; empty if there are no summaries."""
    stages: tuple[StageDescription, ...] = ()
    """The stages that may run, in order. A client can show each without knowing it."""
    type: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class SettingsInForce:
    """The answer to `update`."""

    settings: StreamSettings
    type: Literal["settings"] = "settings"


@dataclass(frozen=True)
class Dropped:
    """Numbers of dropped frames."""

    since_last: int
    """Frames of this session dropped since its last `result`."""
    total: int


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one frame."""

    session_id: str
    frame_id: int
    """The service's number of the frame in this session, from 1."""
    seq: int
    """The client's number of the frame, from its header; without a header, `frame_id`."""
    captured_at_ms: float
    """Epoch milliseconds from the header; without a header, the time at which the service received the frame."""
    frame: FrameResult
    age_ms: float
    """Milliseconds from receiving the frame to sending its result, on the service's clock."""
    dropped: Dropped
    type: Literal["result"] = "result"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something is degraded or restored; the session goes on. If it is degraded at the start, this follows `ready`."""

    code: str
    """`inference_unavailable`, `inference_restored`, `summary_backlog`; or a stage's name with `_unavailable` or
    `_restored`, where the stage itself fails."""
    message: str
    type: Literal["notice"] = "notice"


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary in words of what the stream showed since the last one."""

    source: Literal["llm", "digest"]
    """`digest`: made from the results by rule, without a language model."""
    title: str
    scene: str
    activities: tuple[str, ...]
    visible_text: tuple[str, ...]
    concerns: tuple[str, ...]
    """Things that the prompt asks to watch for, or that look unusual."""
    confidence: float
    first_frame_id: int
    last_frame_id: int
    generated_at_ms: float
    type: Literal["summary"] = "summary"


@dataclass(frozen=True, slots=True)
class Error:
    """One message or frame was refused."""

    code: str
    message: str
    field: str | None = None
    seq: int | None = None
    """`seq` of the refused frame; returns the credit of this frame alone."""
    fatal: bool = False
    """True: `bye` follows."""
    type: Literal["error"] = "error"


@dataclass(frozen=True, slots=True)
class Ping:
    """A check whether the client is alive, which it answers with `pong`."""

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
    """Quantiles of the time that a stage took, milliseconds."""

    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """received = processed + dropped + failed, always."""

    received: int = 0
    processed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of frames by reason."""
    failed: int = 0
    bytes: int = 0
    duration_s: float = 0.0
    stages: dict[str, StageTimes] = field(default_factory=dict)
    summary: Summary | None = None
    """Summary of the frames since the last `summary`, if the stream was summarized."""


@dataclass(frozen=True, slots=True)
class Bye:
    """The last message; the close frame follows."""

    reason: ByeReason
    report: Report
    message: str | None = None
    retry_after_s: float | None = None
    type: Literal["bye"] = "bye"


SERVER_MESSAGES = (Queued, Ready, SettingsInForce, Result, Summary, Notice, Error, Ping, Bye)
ServerMessage = Queued | Ready | SettingsInForce | Result | Summary | Notice | Error | Ping | Bye

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
    """UTF-8 JSON of a message; the fields of a `Result`'s frame are fields of the message itself."""
    if not isinstance(message, Result):
        return orjson.dumps(message)
    return orjson.dumps(
        {
            "type": "result",
            "session_id": message.session_id,
            "frame_id": message.frame_id,
            "seq": message.seq,
            "captured_at_ms": message.captured_at_ms,
            **message.frame.values(),
            "age_ms": message.age_ms,
            "dropped": message.dropped,
        }
    )
