"""The service's processes: uvicorn's configuration, listening sockets, one or several workers, startup and shutdown."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import HANDLED_SIGNALS
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app import metrics
from app.addresses import bracketed
from app.auth import require_tokens
from app.connections import DescriptorWatch, HttpConnection, LiveSocket, ServerConfig, raise_descriptor_limit
from app.errors import ConfigurationError
from app.inference.embedded import shared_triton
from app.limits import backoff_s
from app.logging import configure
from app.pipeline.startup import check_settings
from app.process import end_with_parent, handling_signals, log_while_waiting
from app.settings import Settings

log = logging.getLogger(__name__)

_UNSENT_BYTES = 16 * 1024
"""Most unsent bytes that the kernel buffers for a peer. Its default is megabytes, in which results would grow old."""
_BACKLOG = 2048
_POLL_S = 0.5
"""Seconds between two checks of the workers."""
_HUNG_S = 30.0
"""Seconds without an answer after which a worker that was ready is replaced. A thread of the worker answers, so that
this finds a stopped process, or one in which native code holds the interpreter's lock."""
_PAUSES_S = (0.5, 30.0)
"""Seconds of pause before a worker is replaced: first and longest."""
_STEADY_S = 60.0
"""Seconds; a failure of a worker that lived longer, and was ready, starts with the first pause again."""
_GRACE_S = 5.0
"""Seconds beyond DRAIN_TIMEOUT_S that a worker has to close what outlives its sessions."""


def run() -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = Settings()
    configure(settings.server)
    signal.signal(signal.SIGTERM, _stop_start)  # until uvicorn sets its own handler
    try:
        check_settings(settings)
        if settings.server.workers > 1:
            _serve_with_workers(settings)
        else:
            _serve_in_process(settings)
    except _StoppedEarly:
        log.info("stopping: SIGTERM came while the service was starting")
        log.info("drained: no session was open yet")
        log.info("ended")


class _StoppedEarly(BaseException):
    """SIGTERM was received before the server ran."""


def _stop_start(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # the first one already ends the process
    raise _StoppedEarly


def _serve_in_process(settings: Settings) -> None:
    with log_while_waiting("the service's own modules"):
        from app.main import create_app

        app = create_app(settings)
    listener = listen(settings.server.host, settings.server.port)
    app.state.address = _announce(settings, listener.getsockname()[1])
    server = Server(server_config(settings, app))
    app.state.stopping = lambda: server.should_exit
    server.run([listener])
    if not server.started and not server.should_exit:
        sys.exit(1)


def _serve_with_workers(settings: Settings) -> None:
    """Runs several processes on one port, which share one embedded Triton."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    require_tokens(settings)
    shared = settings.server.state_dir / f"metrics-{os.getpid()}"
    metrics.share_between_workers(shared)
    listener = listen_shared(settings.server.host, settings.server.port)
    _announce(settings, listener.getsockname()[1])
    try:
        with shared_triton(settings.triton, settings.server.state_dir):
            supervisor = Supervisor(
                server_config(settings, "app.server:worker_app", factory=True),
                [listener],
                start_s=settings.triton.triton_start_timeout_s,
                drain_s=settings.server.drain_timeout_s,
            )
            supervisor.run()
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    log.info("ended")
    if supervisor.failed:
        sys.exit(1)


def worker_app() -> FastAPI:
    """The application of one worker process; uvicorn calls this factory in each."""
    from app.main import create_app

    settings = Settings()
    configure(settings.server)
    end_with_parent()
    return create_app(settings)


def _announce(settings: Settings, port: int) -> str:
    address = f"http://{bracketed(settings.server.host)}:{port}"
    log.info("starting on %s", address)
    return address


# --- one process ---


def server_config(settings: Settings, app: Any, *, factory: bool = False) -> ServerConfig:
    """Uvicorn's configuration for this service."""
    config = ServerConfig(
        app,
        factory=factory,
        workers=settings.server.workers,
        loop="uvloop",
        http=HttpConnection,
        ws=LiveSocket,
        # A larger message ends the connection (1009); one between MAX_FRAME_BYTES and this gets an `error`.
        ws_max_size=2 * settings.live.max_frame_bytes,
        # Every WebSocket client answers these by itself, also in a hidden tab; it may not answer our own `ping`.
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
    config.live = settings.live
    return config


class Server(uvicorn.Server):
    """uvicorn's server with our startup and shutdown.

    uvicorn handles signals only once the application has started, and then ends by the signal it received. This server
    handles them during startup as well (the application watches `should_exit` and gives up), logs its shutdown, and
    ends with 0 on SIGTERM, because it did what it was asked.
    """

    config: ServerConfig
    logs_shutdown = True
    """False in a worker process: its parent logs the shutdown."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._descriptors = DescriptorWatch()
        raise_descriptor_limit(self.config.live)
        try:
            await super().startup(sockets)
        except SystemExit:  # how uvicorn reports a failed startup
            if not self.should_exit:
                raise
            self._log("stopping: %s came while the service was starting", self._stop_reason())
            self._log("drained: no session was open yet")
            self._log("ended")
            return
        self.config.limits.fit_descriptors()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._descriptors.check()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopped = time.monotonic()
        still_open = len(self.server_state.connections)
        message = "stopping: %s came; %d connections are open and have DRAIN_TIMEOUT_S=%g seconds"
        self._log(message, self._stop_reason(), still_open, self.config.timeout_graceful_shutdown)
        await super().shutdown(sockets)
        self._log("ended")

    async def _wait_tasks_to_complete(self) -> None:
        try:
            await super()._wait_tasks_to_complete()
        finally:
            left = len(self.server_state.connections)
            passed_s = time.monotonic() - self._stopped
            if left:
                self._log("drained after %.1f s, except %d connections, which are closed now", passed_s, left)
            else:
                self._log("drained after %.1f s", passed_s)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handling_signals(self.handle_exit, *HANDLED_SIGNALS):
            yield
        if signal.SIGINT in self._captured_signals:  # so that a shell learns that Ctrl-C ended the process
            signal.raise_signal(signal.SIGINT)

    def _stop_reason(self) -> str:
        return signal.Signals(self._captured_signals[0]).name if self._captured_signals else "the end"

    def _log(self, message: str, *values: object) -> None:
        if self.logs_shutdown:
            log.info(message, *values)


# --- several processes ---


class WorkerProcess(Process):
    """One worker. The supervisor pings it through a pipe, which a thread of the worker answers."""

    def __init__(self, config: ServerConfig, sockets: list[socket.socket], start_s: float) -> None:
        super().__init__(config, sockets)
        self.begun = time.monotonic()
        self.started = False
        """Whether it has ever been ready."""
        self._start_s = start_s
        self._pinged_at: float | None = None

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = Server(self.config)
            self._server.logs_shutdown = False
        return self._server

    def trouble(self) -> str | None:
        """Why the worker has to be replaced; None while it is well. Does not block."""
        now = time.monotonic()
        code = self.process.exitcode
        if code is not None:
            return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        try:
            if self._pinged_at is None:
                self._pinged_at = now
                self.parent_conn.send(b"ping")
            if self.parent_conn.poll(0):
                self.started = self.parent_conn.recv() or self.started
                self._pinged_at = None
        except (OSError, EOFError, pickle.UnpicklingError):
            return "closed its pipe"
        if not self.started:
            if now - self.begun > self._start_s:
                return f"was not ready after {self._start_s:.0f} s, which TRITON_START_TIMEOUT_S gives"
        elif self._pinged_at is not None and now - self._pinged_at > _HUNG_S:
            return f"has not answered for {_HUNG_S:.0f} s"
        return None


class Supervisor(Multiprocess):
    """Starts, watches, replaces and ends the workers: uvicorn's supervisor with our time-outs.

    Args:
        start_s: seconds for a worker to become ready.
        drain_s: seconds for a worker to end.
    """

    def __init__(self, config: ServerConfig, sockets: list[socket.socket], *, start_s: float, drain_s: float) -> None:
        super().__init__(config, sockets)
        self._config = config
        self._start_s, self._end_s = start_s, drain_s + _GRACE_S
        self._failures = 1
        """Failures in a row, of which the start counts as one: the pause doubles with each."""
        self._restart_at: dict[int, float] = {}
        """By slot: when its next worker starts, monotonic seconds."""
        self._served = False
        """Whether any worker was ever ready. A wrong configuration fails before that, and no restart helps it."""
        self.failed = False
        self._stop_reason = "the end"

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            self.processes.append(self._start_worker())

    def _start_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self._config, self.sockets, self._start_s)
        worker.start()
        return worker

    def run(self) -> None:
        """Returns once all workers have ended, after a signal or because none can start."""
        self.init_processes()
        while not self.should_exit.wait(_POLL_S):
            self.handle_signals()
            self.keep_subprocess_alive()
        log.info("stopping: %s; %d workers have %g seconds", self._stop_reason, len(self.processes), self._end_s)
        begun = time.monotonic()
        self.terminate_all()
        self.join_all()
        log.info("drained after %.1f s", time.monotonic() - begun)

    def handle_signals(self) -> None:
        if self.signal_queue:
            self._stop_reason = f"{signal.Signals(self.signal_queue[0]).name} came"
        super().handle_signals()

    def keep_subprocess_alive(self) -> None:
        now = time.monotonic()
        for slot, worker in enumerate(self.processes):
            assert isinstance(worker, WorkerProcess)
            if self.should_exit.is_set():
                return
            if slot in self._restart_at:
                if now >= self._restart_at[slot]:
                    del self._restart_at[slot]
                    self.processes[slot] = self._start_worker()
                continue
            trouble = worker.trouble()
            self._served = self._served or worker.started
            if trouble is not None:
                self._replace(slot, worker, trouble)

    def _replace(self, slot: int, worker: WorkerProcess, trouble: str) -> None:
        if worker.process.is_alive():
            worker.kill()
            worker.join()
        if worker.exitcode == STARTUP_FAILURE and not self._served:
            log.critical("worker %d (pid %s) could not start, so no other could", slot, worker.pid)
            self._stop_reason, self.failed = "a worker could not start", True
            self.should_exit.set()
            return
        steady = time.monotonic() - worker.begun > _STEADY_S and worker.started
        self._failures = 1 if steady else self._failures + 1
        pause_s = backoff_s(self._failures, *_PAUSES_S)
        self._restart_at[slot] = time.monotonic() + pause_s
        log.error("worker %d (pid %s) %s; starting another in %.1f s", slot, worker.pid, trouble, pause_s)

    def restart_all(self) -> None:
        """On SIGHUP: replaces the workers one after the other; an old one ends once its successor is ready."""
        for slot, old in enumerate(self.processes):
            if slot in self._restart_at or self.should_exit.is_set():
                continue
            new = self._start_worker()
            while not new.started:
                trouble = new.trouble()
                if trouble is not None:
                    log.error("the new worker (pid %s) %s; the old ones go on", new.pid, trouble)
                    new.kill()
                    new.join()
                    return
                time.sleep(0.1)
            log.info("worker %d (pid %s) is replaced by pid %s: SIGHUP came", slot, old.pid, new.pid)
            old.terminate()
            self._join(old)
            self.processes[slot] = new

    def join_all(self) -> None:
        deadline = time.monotonic() + self._end_s
        for worker in self.processes:
            self._join(worker, deadline)

    def _join(self, worker: Process, deadline: float | None = None) -> None:
        worker.process.join(max(0.0, (deadline or time.monotonic() + self._end_s) - time.monotonic()))
        if worker.process.exitcode is None:
            log.error("worker pid %s does not end; killed", worker.pid)
            worker.process.kill()
            worker.process.join()


# --- listening sockets ---


def listen(host: str, port: int) -> socket.socket:
    """Opens the listening socket.

    Raises:
        ConfigurationError: HOST and PORT cannot be listened on.
    """
    listener = _bound(socket.socket, host, port)
    listener.listen(_BACKLOG)
    return listener


def listen_shared(host: str, port: int) -> socket.socket:
    """A socket for several processes: each that gets a copy listens on the same port with a socket of its own.

    Linux then spreads connections over the processes. With one socket for all, the first process to wake accepts all
    that wait: of 24 sessions that connected at once, all went to one of two workers. Other kernels do not spread
    connections; there all processes have one socket.

    Raises:
        ConfigurationError: HOST and PORT cannot be listened on.
    """
    if sys.platform != "linux":
        return listen(host, port)
    with _bound(socket.socket, host, port) as exclusive:  # with SO_REUSEPORT, a port that is in use would not fail
        port = exclusive.getsockname()[1]
    return _bound(_Shared, host, port)


class _Shared(socket.socket):
    """Holds a port without listening; a copy of it in another process listens."""

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
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)  # accepted sockets inherit this
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"HOST='{host}' PORT={port}: cannot listen there ({error.strerror or error}); "
            "stop what uses the port, or set PORT to another (0 takes a free one)"
        ) from None
    return listener
