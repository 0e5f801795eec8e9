"""What a session says: messages to a client that may be slow, or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from app.protocol import messages
from app.protocol.messages import CLOSE_CODES, Bye, ServerMessage

_LAST_WORD_S = 1.0
CONNECTION = "sightline.connection"
"""Key of the ASGI scope's extensions: the socket itself, where the server gives it (`connections.LiveSocket`)."""


class TooSlow(Exception):
    """The client did not read for SEND_TIMEOUT_S."""


class Gone(Exception):
    """The client is not there any more."""


class Voice:
    """Sends over one socket."""

    def __init__(self, socket: WebSocket, send_timeout_s: float) -> None:
        self._socket = socket
        self._send_timeout_s = send_timeout_s
        self._connection: Any = socket.scope.get("extensions", {}).get(CONNECTION)

    def on_shutdown(self, end: Callable[[float], None]) -> None:
        """`end` is called when the service stops, with the seconds that it waits for its sessions."""
        if self._connection is not None:
            self._connection.end_session = end

    def trust(self) -> None:
        """The client may use the service: messages may be as large as they are for everybody."""
        if self._connection is not None:
            self._connection.trusted = True

    @property
    def left(self) -> bool:
        """Whether the client is gone, as far as that can be seen without reading what it sent."""
        return self._connection is not None and bool(self._connection.left)

    async def say(self, message: ServerMessage) -> None:
        """Sends; waits while the transport's buffer is full.

        Raises:
            TooSlow: nothing was read for SEND_TIMEOUT_S.
            Gone: the socket is closed.
        """
        text = messages.encode(message)
        if self._connection is not None and self._connection.try_send(text):
            return
        await self._in_turn({"type": "websocket.send", "text": text.decode()}, self._send_timeout_s)

    async def _in_turn(self, event: Message, patience_s: float) -> None:
        """Waits as long as the client reads at all."""
        unread = None
        while True:
            before, unread = unread, self._connection.unread if self._connection is not None else 0
            if before is not None and unread >= before:
                raise TooSlow
            try:
                async with asyncio.timeout(patience_s):
                    await self._socket.send(event)
            except TimeoutError:  # nothing was sent
                continue
            except (WebSocketDisconnect, RuntimeError):  # RuntimeError: Starlette's word for a socket that is closed
                raise Gone from None
            return

    async def farewell(self, bye: Bye) -> None:
        """The last message and the close frame; whoever does not take them is cut off."""
        if self._socket.client_state == WebSocketState.DISCONNECTED:
            return
        close = {"type": "websocket.close", "code": CLOSE_CODES[bye.reason], "reason": bye.reason}
        try:
            await self._in_turn({"type": "websocket.send", "text": messages.encode(bye).decode()}, _LAST_WORD_S)
            await self._in_turn(close, self._send_timeout_s)
        except TooSlow:
            if self._connection is not None:
                self._connection.abort()
        except Gone:
            pass  # it left while we spoke
