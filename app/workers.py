"""Several processes that serve: started, watched, replaced, ended. Uvicorn's own supervisor with our patience."""

from __future__ import annotations

import logging
import pickle
import signal
import time
from socket import socket

from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import Server as UvicornServer
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app.connections import ServerConfig
from app.server import Server

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_HUNG_S = 30.0
"""Without an answer of a worker that has served: it takes no turn, and no session of its is served."""
_PAUSES_S = (0.5, 30.0)
"""Before a worker is replaced: the first, and the longest."""
_STEADY_S = 60.0
_GRACE_S = 5.0
"""Beyond DRAIN_TIMEOUT_S, for what closes after the sessions."""


class Worker(Process):
    """One process. It is asked whether it is there by a pipe, which a thread of its own answers."""

    def __init__(self, config: ServerConfig, sockets: list[socket], start_s: float) -> None:
        super().__init__(config, sockets)
        self.begun = time.monotonic()
        self.started = False
        """Whether it has been ready to serve."""
        self._start_s = start_s
        self._asked: float | None = None

    @property
    def server(self) -> UvicornServer:
        if self._server is None:
            self._server = Server(self.config)
            self._server.says_how_it_ends = False
        return self._server

    def trouble(self) -> str | None:
        """Why it has to be replaced; None while it is well. Never waits."""
        now = time.monotonic()
        code = self.process.exitcode
        if code is not None:
            return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        try:
            if self._asked is None:
                self._asked = now
                self.parent_conn.send(b"ping")
            if self.parent_conn.poll(0):
                self.started = self.parent_conn.recv() or self.started
                self._asked = None
        except (OSError, EOFError, pickle.UnpicklingError):
            return "closed its pipe"
        if not self.started:
            if now - self.begun > self._start_s:
                return f"was not ready after {self._start_s:.0f} s, which TRITON_START_TIMEOUT_S gives"
        elif self._asked is not None and now - self._asked > _HUNG_S:
            return f"has not answered for {_HUNG_S:.0f} s"
        return None


class Workers(Multiprocess):
    """
    Args:
        start_s: seconds that each has to become ready.
        drain_s: seconds that each has to end.
    """

    def __init__(self, config: ServerConfig, sockets: list[socket], *, start_s: float, drain_s: float) -> None:
        super().__init__(config, sockets)
        self._config = config
        self._start_s, self._end_s = start_s, drain_s + _GRACE_S
        self._pause_s = _PAUSES_S[0]
        self._due: dict[int, float] = {}
        """When a place is filled again."""
        self._served = False
        """Whether any worker has been ready: what is set up wrongly fails before."""
        self.failed = False
        self._told_by = "the end"

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            self.processes.append(self._worker())

    def _worker(self) -> Worker:
        worker = Worker(self._config, self.sockets, self._start_s)
        worker.start()
        return worker

    def run(self) -> None:
        """Returns when all have ended, having been told to by a signal or because none can start."""
        self.init_processes()
        while not self.should_exit.wait(_LOOK_S):
            self.handle_signals()
            self.keep_subprocess_alive()
        log.info("stopping: %s; %d workers have %g seconds", self._told_by, len(self.processes), self._end_s)
        begun = time.monotonic()
        self.terminate_all()
        self.join_all()
        log.info("drained after %.1f s", time.monotonic() - begun)

    def handle_signals(self) -> None:
        if self.signal_queue:
            self._told_by = f"{signal.Signals(self.signal_queue[0]).name} came"
        super().handle_signals()

    def keep_subprocess_alive(self) -> None:
        now = time.monotonic()
        for place, worker in enumerate(self.processes):
            assert isinstance(worker, Worker)
            if self.should_exit.is_set():
                return
            if place in self._due:
                if now >= self._due[place]:
                    del self._due[place]
                    self.processes[place] = self._worker()
                continue
            trouble = worker.trouble()
            self._served = self._served or worker.started
            if trouble is not None:
                self._lose(place, worker, trouble)

    def _lose(self, place: int, worker: Worker, trouble: str) -> None:
        if worker.process.is_alive():
            worker.kill()
            worker.join()
        if worker.exitcode == STARTUP_FAILURE and not self._served:
            log.critical("worker %d (pid %s) could not start; so could no other", place, worker.pid)
            self._told_by, self.failed = "a worker could not start", True
            self.should_exit.set()
            return
        steady = time.monotonic() - worker.begun > _STEADY_S and worker.started
        self._pause_s = _PAUSES_S[0] if steady else min(_PAUSES_S[1], 2 * self._pause_s)
        self._due[place] = time.monotonic() + self._pause_s
        log.error("worker %d (pid %s) %s; starting another in %.1f s", place, worker.pid, trouble, self._pause_s)

    def restart_all(self) -> None:
        """SIGHUP: each is asked to end, and then replaced, one after the other."""
        for place, old in enumerate(self.processes):
            if place in self._due or self.should_exit.is_set():
                continue
            new = self._worker()
            while not new.started:
                trouble = new.trouble()
                if trouble is not None:
                    log.error("the new worker (pid %s) %s; the old ones go on", new.pid, trouble)
                    new.kill()
                    new.join()
                    return
                time.sleep(0.1)
            log.info("worker %d (pid %s) is replaced by pid %s: SIGHUP came", place, old.pid, new.pid)
            old.terminate()
            self._join(old)
            self.processes[place] = new

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
