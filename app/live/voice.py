"""What a session says: messages to a client that may be slow, or gone."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from app.protocol import messages
from app.protocol.messages import CLOSE_CODES, Bye, ServerMessage

_LAST_WORD_S = 1.0
CONNECTION = "sightline.connection"
"""Key of the ASGI scope's extensions: the socket itself, where the server gives it (`server.LiveSocket`)."""


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

    def on_shutdown(self, end: Any) -> None:
        """`end` is called when the service stops."""
        if self._connection is not None:
            self._connection.end_session = end

    async def say(self, message: ServerMessage) -> None:
        """Sends; waits while the transport's buffer is full.

        Raises:
            TooSlow: nothing was read for SEND_TIMEOUT_S.
            Gone: the socket is closed.
        """
        text = messages.encode(message)
        if self._connection is not None and self._connection.say(text):
            return
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await self._socket.send({"type": "websocket.send", "text": text.decode()})
        except TimeoutError:
            raise TooSlow from None
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: Starlette's word for a socket that is closed
            raise Gone from None

    async def farewell(self, bye: Bye) -> None:
        """The last message and the close frame; whoever does not take them is cut off."""
        if self._socket.client_state == WebSocketState.DISCONNECTED:
            return
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await self._socket.send({"type": "websocket.send", "text": messages.encode(bye).decode()})
                await self._socket.close(CLOSE_CODES[bye.reason], bye.reason)
        except TimeoutError:
            if self._connection is not None:
                self._connection.abort()
        except (WebSocketDisconnect, RuntimeError):
            pass  # it left while we spoke
