"""The protocol as JSON Schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter

from app.protocol.from_client import CLIENT_MESSAGES
from app.protocol.from_service import SERVER_MESSAGES, Result

PROTOCOL_VERSION = 1


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
