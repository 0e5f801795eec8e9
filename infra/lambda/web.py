"""The function URL's side: events of payload format 2.0 in, answers out; origins and tokens.

CORS is answered here and not by the URL's own `Cors` setting: with both, browsers get the headers twice and refuse.
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
    """What was asked, and by whom."""

    method: str
    origin: str | None
    token: str | None

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Request:
        """Reads a function URL's event; header names come in lower case."""
        headers = event.get("headers") or {}
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return cls(
            method=event["requestContext"]["http"]["method"],
            origin=headers.get("origin"),
            token=token.strip() if scheme.lower() == "bearer" and token else None,
        )

    def origin_allowed(self, origins: tuple[str, ...]) -> bool:
        """Browsers name the page's origin; what is no browser names none, and needs the token alone."""
        return self.origin is None or self.origin in origins

    def token_valid(self, tokens: tuple[str, ...]) -> bool:
        """Compared in constant time with every one of them. No tokens: everybody may."""
        given = (self.token or "").encode()
        matches = [hmac.compare_digest(given, known.encode()) for known in tokens]
        return any(matches) or not tokens


def answer(
    request: Request, origins: tuple[str, ...], status: int, body: Mapping[str, Any], **more: str
) -> dict[str, Any]:
    """An answer in the shape that Lambda wants, with the headers that let this page read it."""
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
