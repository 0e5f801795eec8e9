"""Uvicorn's connections, and what they lack: clocks on peers that say or read nothing, a graceful end, an abort."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame

from app.live.voice import CONNECTION
from app.settings import LiveSettings

_MAX_FRAGMENTS = 4096
"""Of one message: empty ones count for nothing in its size, and would add up."""
_BEFORE_TOKEN = 64 * 1024
"""Bytes of a message that are kept for a client whose token was not seen yet: `init` is far smaller."""
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
"""Linux only."""
_ESTABLISHED = 1


class ServerConfig(uvicorn.Config):
    """Uvicorn's, and the clocks of its connections; it travels to worker processes as it is."""

    live: LiveSettings


class ReaderClock:
    """Aborts a connection once its peer reads nothing for `patience_s`; winds itself up as long as it does."""

    def __init__(self, transport: asyncio.Transport, patience_s: float) -> None:
        self._transport = transport
        self._patience_s = patience_s
        self._wind_up()

    def _wind_up(self) -> None:
        unread = self._transport.get_write_buffer_size()
        self._clock = asyncio.get_running_loop().call_later(self._patience_s, self._look, unread)

    def _look(self, before: int) -> None:
        if self._transport.get_write_buffer_size() < before:
            self._wind_up()
        else:
            self._transport.abort()

    def stop(self) -> None:
        self._clock.cancel()


class TimedHttp(H11Protocol):
    """Aborts a connection whose next request's head has not arrived in time, or that reads nothing of its answer."""

    config: ServerConfig
    _reader: ReaderClock | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wind_up()

    def _wind_up(self) -> None:
        self._clock = self.loop.call_later(self.config.live.init_timeout_s, self._too_slow)

    def _too_slow(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # no request is with the application
            self.transport.abort()

    def on_response_complete(self) -> None:
        # Uvicorn's own clock between requests stops at the next byte, whatever it is.
        self._clock.cancel()
        self._wind_up()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = ReaderClock(self.transport, self.config.live.send_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clock.cancel()
        if self._reader is not None:
            self._reader.stop()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._clock.cancel()
        super().handle_websocket_upgrade(event)


class LiveSocket(WebSocketsSansIOProtocol):
    """Lets the session end itself when the service stops, and abort a peer that never reads."""

    end_session: Any = None
    """Set by the session: called when the service stops, with the seconds that it waits."""
    trusted = False
    """Set by the session once it has seen the client's token, or needs none."""
    config: ServerConfig
    _reader: ReaderClock | None = None
    _heard = False
    """Whether anything came since the clock of the last ping was wound up."""
    _unproven = 0
    """Bytes that came before the token."""

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[CONNECTION] = self
        await super().run_asgi()
        if not self.disconnected:
            self._cut_off_soon()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # The handshake was refused in full. Uvicorn forgets that, and would log every refusal as an error.
            self.handshake_complete = True

    def _cut_off_soon(self) -> None:
        """Closing in order flushes first: a peer that does not read would keep its socket open for good."""
        if self._reader is None:
            self._reader = ReaderClock(self.transport, self.config.live.send_timeout_s)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)
        if not self.trusted and self.handshake_complete:
            self._bound(len(data))

    def _bound(self, size: int) -> None:
        self._unproven += size
        # A whole message has paused reading: the session looks at it first, and there may be a token in it.
        if self._unproven > _BEFORE_TOKEN and not self.read_paused and not self.close_sent:
            self.conn.fail(1009, "too much before a token")
            self.handle_parser_exception()

    def keepalive_timeout(self) -> None:
        """No pong came. It may stand behind frames that we do not read yet; and who sends frames is there."""
        if (self.read_paused or self._heard) and self.ping_timeout is not None:
            self._heard = False
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self._cut_off_soon()

    def send_keepalive_ping(self) -> None:
        self._heard = False
        super().send_keepalive_ping()

    @property
    def left(self) -> bool:
        """Whether the peer has ended the connection, also where we do not read and would not come to its end."""
        if self.disconnected or not self.read_paused or _TCP_INFO is None:
            return self.disconnected
        wire = self.transport.get_extra_info("socket")
        state: int = wire.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]
        return state != _ESTABLISHED

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reader is not None:
            self._reader.stop()
        super().connection_lost(exc)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # dropped: pongs to a peer that does not read would pile up without bound

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < _MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.conn.fail(1009, "too many fragments")
            self.handle_parser_exception()

    def shutdown(self) -> None:
        if self.end_session is None:
            super().shutdown()
        else:
            # Answers what is in flight, says `bye`, closes; uvicorn waits for it so long.
            self.end_session(self.config.timeout_graceful_shutdown)

    def say(self, text: bytes) -> bool:
        """Sends one text message, UTF-8, if that takes no waiting; False: nothing was sent, go the ASGI way.

        The way of every result: no clock, no layers, no way from bytes to text and back.
        """
        if self.close_sent or self.disconnected or not (self.handshake_complete and self.writable.is_set()):
            return False
        try:
            self.conn.send_text(text)
        except InvalidState:
            return False
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    @property
    def unread(self) -> int:
        """Bytes that the transport could not hand on, since the peer does not read."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Closes at once; closing in order would wait for the peer to read."""
        self.transport.abort()
