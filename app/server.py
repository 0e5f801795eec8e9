"""Uvicorn, with what it lacks: a clock on sockets that say nothing, a graceful `bye`, and a way to abort."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame

from app.errors import ConfigurationError
from app.live.voice import CONNECTION
from app.settings import LiveSettings, Settings

_MAX_FRAGMENTS = 4096
"""Of one message: empty ones count for nothing in its size, and would add up."""


class ServerConfig(uvicorn.Config):
    """Uvicorn's, and the clocks of its connections; it travels to worker processes as it is."""

    live: LiveSettings


class TimedHttp(H11Protocol):
    """Aborts a connection whose next request's head has not arrived in time: idle, or slow on purpose."""

    config: ServerConfig

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

    def connection_lost(self, exc: Exception | None) -> None:
        self._clock.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._clock.cancel()
        super().handle_websocket_upgrade(event)


class LiveSocket(WebSocketsSansIOProtocol):
    """Lets the session end itself when the service stops, and abort a peer that never reads."""

    end_session: Any = None
    """Set by the session: called when the service stops."""
    config: ServerConfig
    _linger: asyncio.TimerHandle | None = None

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[CONNECTION] = self
        await super().run_asgi()
        if not self.disconnected:
            # Closing in order flushes first: a peer that does not read would keep its socket open for good.
            self._linger = self.loop.call_later(self.config.live.send_timeout_s, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
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
            self.end_session()  # answers what is in flight, says `bye`, closes; uvicorn waits for it

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

    def abort(self) -> None:
        """Closes at once; closing in order would wait for the peer to read."""
        self.transport.abort()


def config(settings: Settings, app: Any, *, factory: bool = False) -> ServerConfig:
    """Uvicorn's configuration for this service."""
    made = ServerConfig(
        app,
        factory=factory,
        workers=settings.server.workers,
        loop="uvloop",
        http=TimedHttp,
        ws=LiveSocket,
        # Larger messages end the connection (1009); those between MAX_FRAME_BYTES and this get an `error`.
        ws_max_size=2 * settings.live.max_frame_bytes,
        ws_per_message_deflate=False,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        forwarded_allow_ips=list(settings.server.forwarded_allow_ips),
        timeout_graceful_shutdown=max(1, round(settings.server.drain_timeout_s)),
    )
    made.live = settings.live
    return made


def listen(host: str, port: int) -> socket.socket:
    """The listening socket.

    Raises:
        ConfigurationError: HOST or PORT cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"HOST='{host}' PORT={port}: cannot listen there ({error.strerror or error}); "
            "stop what uses the port, or set PORT to another (0 takes a free one)"
        ) from None
    listener.listen(2048)
    return listener
