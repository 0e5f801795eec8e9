"""HTTP of the function URL: reads events of payload format 2.0, checks origins and tokens, builds answers.

This module sends the CORS headers. The URL's own `Cors` setting must stay unset, because browsers refuse headers that
come twice.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METHODS = ("GET", "POST")


@dataclass(frozen=True)
class Request:
    """The method, origin and token of a call."""

    method: str
    origin: str | None
    token: str | None

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Request:
        """Reads a function URL's event, whose header names are in lower case."""
        headers = event.get("headers") or {}
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return cls(
            method=event["requestContext"]["http"]["method"],
            origin=headers.get("origin"),
            token=token.strip() if scheme.lower() == "bearer" and token else None,
        )

    def origin_allowed(self, origins: tuple[str, ...]) -> bool:
        """Whether the page's origin may call. Programs other than browsers send no origin, and need only the token."""
        return self.origin is None or self.origin in origins

    def token_valid(self, tokens: tuple[str, ...]) -> bool:
        """Whether the token is one of `tokens`, compared in constant time. If `tokens` is empty, any call is valid."""
        given = (self.token or "").encode()
        matches = [hmac.compare_digest(given, known.encode()) for known in tokens]
        return any(matches) or not tokens


def answer(
    request: Request, origins: tuple[str, ...], status: int, body: Mapping[str, Any], **more: str
) -> dict[str, Any]:
    """An answer in Lambda's format, with the CORS headers that let the calling page read it."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", "Vary": "Origin"}
    if request.origin is not None and request.origin in origins:
        headers |= {
            "Access-Control-Allow-Origin": request.origin,
            "Access-Control-Allow-Methods": ", ".join(METHODS),
            "Access-Control-Allow-Headers": "authorization, content-type",
            "Access-Control-Expose-Headers": "retry-after",
            "Access-Control-Max-Age": "3600",
        }
    headers |= {name.replace("_", "-").title(): value for name, value in more.items()}
    return {"statusCode": status, "headers": headers, "body": json.dumps(body) if body else ""}
