"""The live protocol, version 1: every message in both directions, and all of them as JSON Schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter

from app.protocol.from_client import (
    CLIENT_MESSAGES,
    ClientMessage,
    Init,
    Patch,
    Pause,
    Pong,
    Resume,
    StagesPatch,
    Stop,
    SummaryChoice,
    Update,
    parse,
)
from app.protocol.from_service import (
    CLOSE_CODES,
    SERVER_MESSAGES,
    Bye,
    ByeReason,
    Dropped,
    Error,
    Limits,
    Models,
    Notice,
    Ping,
    Queued,
    Ready,
    Report,
    Result,
    ServerMessage,
    SettingsInForce,
    StageDescription,
    StageTimes,
    Summary,
    encode,
    stage_descriptions,
)
from app.protocol.stream import (
    Mode,
    Stages,
    StreamSettings,
)

__all__ = [
    "CLIENT_MESSAGES",
    "CLOSE_CODES",
    "PROTOCOL_VERSION",
    "SERVER_MESSAGES",
    "Bye",
    "ByeReason",
    "ClientMessage",
    "Dropped",
    "Error",
    "Init",
    "Limits",
    "Mode",
    "Models",
    "Notice",
    "Patch",
    "Pause",
    "Ping",
    "Pong",
    "Queued",
    "Ready",
    "Report",
    "Result",
    "Resume",
    "ServerMessage",
    "SettingsInForce",
    "StageDescription",
    "StageTimes",
    "Stages",
    "StagesPatch",
    "Stop",
    "StreamSettings",
    "Summary",
    "SummaryChoice",
    "Update",
    "encode",
    "parse",
    "schema",
    "stage_descriptions",
]

PROTOCOL_VERSION = 1


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every message, both directions, keyed by `client` and `server`."""
    definitions: dict[str, Any] = {}
    out: dict[str, Any] = {"client": {}, "server": {}}
    for side, models in (("client", CLIENT_MESSAGES), ("server", SERVER_MESSAGES)):
        for model in models:
            mode: Literal["validation", "serialization"] = "validation" if side == "client" else "serialization"
            described = TypeAdapter(model).json_schema(ref_template="#/$defs/{model}", mode=mode)
            definitions.update(described.pop("$defs", {}))
            if model is Result:
                flat = definitions.pop("FrameResult")
                del described["properties"]["frame"]
                described["properties"].update(flat["properties"])
                described["required"] = [
                    *(n for n in described.get("required", []) if n != "frame"),
                    *flat.get("required", []),
                ]
            out[side][described["properties"]["type"]["const"]] = described
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sightline live protocol",
        "version": PROTOCOL_VERSION,
        **out,
        "$defs": definitions,
    }
