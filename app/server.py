"""The listening socket, and uvicorn's configuration for this service."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from app.admittance import DescriptorWatch, raise_descriptors
from app.connections import LiveSocket, ServerConfig, TimedHttp
from app.errors import ConfigurationError
from app.settings import Settings

log = logging.getLogger(__name__)

_UNSENT = 16 * 1024
"""Bytes the kernel keeps for a peer that does not read: left alone it takes megabytes, and results grow old in them."""
_BACKLOG = 2048


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
        # Any WebSocket answers these by itself, through proxies and behind hidden tabs, which `ping` need not be.
        ws_ping_interval=settings.live.ping_interval_s,
        ws_ping_timeout=2 * settings.live.ping_interval_s,
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


class Server(uvicorn.Server):
    """Uvicorn's own looks at signals only once the application has started, and ends by the signal that it was told by.

    This one looks also while it starts (the application looks at `should_exit` meanwhile, and gives up), says how it
    ends, and ends with 0 on SIGTERM: it did what it was asked.
    """

    config: ServerConfig
    says_how_it_ends = True
    """Several workers have a parent, which does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._descriptors = DescriptorWatch()
        raise_descriptors(self.config.live)
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's word for a start that failed
            if not self.should_exit:
                raise
            self._say("stopping: %s came while the service was starting", self._told_by())
            self._say("drained: nobody was served yet")
            self._say("ended")
            return
        self.config.admittance.fit_descriptors()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._descriptors.look()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopped = time.monotonic()
        held = len(self.server_state.connections)
        words = "stopping: %s came; %d connections are open, and have DRAIN_TIMEOUT_S=%g seconds"
        self._say(words, self._told_by(), held, self.config.timeout_graceful_shutdown)
        await super().shutdown(sockets)
        self._say("ended")

    async def _wait_tasks_to_complete(self) -> None:
        try:
            await super()._wait_tasks_to_complete()
        finally:
            left = len(self.server_state.connections)
            passed_s = time.monotonic() - self._stopped
            if left:
                self._say("drained after %.1f s, but for %d connections, which are given up", passed_s, left)
            else:
                self._say("drained after %.1f s", passed_s)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if signal.SIGINT in self._captured_signals:  # a shell wants to know that Ctrl-C ended it
            signal.raise_signal(signal.SIGINT)

    def _told_by(self) -> str:
        return signal.Signals(self._captured_signals[0]).name if self._captured_signals else "the end"

    def _say(self, words: str, *values: object) -> None:
        if self.says_how_it_ends:
            log.info(words, *values)


def listen(host: str, port: int) -> socket.socket:
    """The listening socket.

    Raises:
        ConfigurationError: HOST or PORT cannot be had.
    """
    listener = _bound(socket.socket, host, port)
    listener.listen(_BACKLOG)
    return listener


def share(host: str, port: int) -> socket.socket:
    """For several processes: each that this is handed to gets a listening socket of its own, on the same port.

    The kernel then spreads connections over them. With one socket for all, the first process to wake takes
    whatever waits: of 24 sessions that came at once, all went to one of two workers. Elsewhere than on Linux the
    kernel does not spread, and there it is one socket.

    Raises:
        ConfigurationError: HOST or PORT cannot be had.
    """
    if sys.platform != "linux":
        return listen(host, port)
    with _bound(socket.socket, host, port) as alone:  # nobody else's: sharing would not tell
        taken = alone.getsockname()[1]
    return _bound(_Shared, host, taken)


class _Shared(socket.socket):
    """Holds a port and does not listen; its copy in another process listens."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _join, self.getsockname()[:2]


def _join(host: str, port: int) -> socket.socket:
    listener = _bound(_Shared, host, port)
    listener.listen(_BACKLOG)
    return listener


def _bound(kind: type[socket.socket], host: str, port: int) -> socket.socket:
    listener = kind(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind is _Shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)  # accepted sockets inherit it
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"HOST='{host}' PORT={port}: cannot listen there ({error.strerror or error}); "
            "stop what uses the port, or set PORT to another (0 takes a free one)"
        ) from None
    return listener
