"""Without tokens only this machine is served, also where a proxy on it lets the world in."""

from __future__ import annotations

import logging

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from app import metrics
from app.addresses import is_loopback
from app.settings import AccessSettings

log = logging.getLogger(__name__)

_DOORS = ("/ws/", "/v1/", "/invocations")
"""What works for whoever asks. The page, health and figures are open, as far as a proxy shows them."""
_WORDS = (
    "AUTH_TOKENS is empty, so only this machine itself is served, and this came from {address}: "
    "set AUTH_TOKENS=some-long-secret, or ALLOW_ANONYMOUS=true if everybody may use it"
)


class LocalOnly:
    """Refuses what came from elsewhere with 403 `anonymous`.

    HOST is checked at the start; but a service that listens on loopback behind nginx has the world for a client, whose
    address FORWARDED_ALLOW_IPS lets the proxy tell.
    """

    def __init__(self, app: ASGIApp, access: AccessSettings) -> None:
        self._app = app
        self._open = bool(access.auth_tokens) or access.allow_anonymous
        self._said = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._open or scope["type"] not in ("http", "websocket") or not scope["path"].startswith(_DOORS):
            await self._app(scope, receive, send)
            return
        client = HTTPConnection(scope).client
        if client is None or is_loopback(client.host):
            await self._app(scope, receive, send)
            return
        metrics.AUTH_FAILURES.labels("anonymous").inc()
        words = _WORDS.format(address=client.host)
        if not self._said:
            self._said = True
            log.warning("turned away: %s", words)
        answer = JSONResponse({"error": {"code": "anonymous", "message": words, "field": None}}, 403)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)
