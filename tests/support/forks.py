"""Commands of the application as processes that are forked from one that has imported it once.

Starting Python and importing the application takes 1.5 s of CPU time, and the tests start hundreds of processes.
A fork is a process of its own like any other: with its own memory, files, signals and exit code. Tests of how a process
starts use `python -m app` itself: `tests/test_process.py`, `tests/live/test_stop.py`, and what `start` does not fork.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from app.settings import ROOT, SECRETS, SECTIONS

READ_LATE = {name.upper() for section in SECTIONS for name in section.model_fields} | {
    f"{name}_FILE" for name in SECRETS
}
"""Variables that the application reads when a command runs, not when it is imported."""
_HARMLESS = {
    "PYTHONUNBUFFERED",
    "SIGHTLINE_TOKEN",
    "SIGHTLINE_TOKEN_FILE",
    "COLUMNS",
    "TERM",
    "NO_COLOR",
    "PYTEST_CURRENT_TEST",
    # AWS's SDK reads these when it makes a client.
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_EC2_METADATA_DISABLED",
}


class Forked:
    """A process that is no child of ours; the part of `subprocess.Popen` that the tests use."""

    def __init__(self, pid: int, ended: threading.Condition) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._ended:
            if not self._ended.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """Our end: asks for forks and hears how they end."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._environment = dict(os.environ)
        command = [sys.executable, "-m", "tests.support.forks", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._asking = threading.Lock()
        self._changed = threading.Condition()
        self._born: int | None = None
        self._forked: dict[int, Forked] = {}
        threading.Thread(target=self._listen, daemon=True).start()
        atexit.register(self._process.kill)

    def differs(self, environment: Mapping[str, str]) -> set[str]:
        """Variables that an import of the application might have read otherwise."""
        names = environment.keys() | self._environment.keys()
        changed = {name for name in names if environment.get(name) != self._environment.get(name)}
        return changed - READ_LATE - _HARMLESS

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[int]) -> Forked:
        with self._asking:
            request = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
            with self._changed:
                self._born = None
            socket.send_fds(self._socket, [len(request).to_bytes(4, "big")], list(files))
            self._socket.sendall(request)
            with self._changed:
                self._changed.wait_for(lambda: self._born is not None)
                assert self._born, "the process that forks has ended; its last words are above"
                return self._forked[self._born]

    def _listen(self) -> None:
        for line in self._socket.makefile("r"):
            said = json.loads(line)
            with self._changed:
                if "born" in said:
                    self._born = said["born"]
                    self._forked[said["born"]] = Forked(said["born"], self._changed)
                else:
                    self._forked.pop(said["ended"]).returncode = said["code"]
                self._changed.notify_all()
        with self._changed:
            self._born = 0
            self._changed.notify_all()


_nursery: _Nursery | None = None


def start(
    arguments: Sequence[str], environment: Mapping[str, str], *, stdout: int, stderr: int
) -> Forked | subprocess.Popen[bytes]:
    """`python -m app …` in the root folder, without stdin. As a fork where its environment allows it, else as itself.

    Args:
        stdout: a file descriptor, as `stderr`.
    """
    global _nursery
    if _nursery is None:
        _nursery = _Nursery()
    several = int(environment.get("WORKERS", "1")) > 1 or "--workers" in arguments
    if several or _nursery.differs(environment):
        command = [sys.executable, "-m", "app", *arguments]
        return subprocess.Popen(
            command, env=dict(environment), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
    return _nursery.fork(arguments, environment, [stdout, stderr])


def run(*arguments: str, timeout_s: float = 60.0, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m app …` to its end, with what it wrote; killed after `timeout_s`.

    Args:
        variables: of its environment, beside this process's.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = start(arguments, {**os.environ, **variables}, stdout=out.fileno(), stderr=err.fileno())
        try:
            code = child.wait(timeout_s)
        finally:
            child.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(["app", *arguments], code, out.read().decode(), err.read().decode())


# --- the process that forks ---


def _serve(ours: socket.socket) -> dict[str, Any] | None:
    """Forks for every request. Returns the request in the fork, and None in this process when the asker has gone."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    while True:
        readable, _, _ = select.select([ours, wake], [], [])
        if wake in readable:
            os.read(wake, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                _say(ours, ended=pid, code=os.waitstatus_to_exitcode(status))
        if ours in readable:
            head, ancillary, _, _ = ours.recvmsg(4, socket.CMSG_SPACE(8))
            if not head:
                return None
            files = array.array("i", ancillary[0][2][:8]).tolist()
            size = int.from_bytes(head, "big")
            request = b""
            while len(request) < size:
                request += ours.recv(size - len(request))
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, file in zip((1, 2), files, strict=True):
                    os.dup2(file, number)
                for file in (wake, waker, *files):
                    os.close(file)
                ours.close()
                asked: dict[str, Any] = json.loads(request)
                return asked
            for file in files:
                os.close(file)
            _say(ours, born=pid)


def _say(ours: socket.socket, **what: int) -> None:
    ours.sendall(json.dumps(what).encode() + b"\n")


_IMPORTED = (
    *("app.main", "app.server", "app.send.stream", "app.fleet.worker", "app.fleet.ingest", "app.fleet.monitor"),
    *("app.segments.commands", "app.segments.worker", "app.segments.local", "app.segments.submit"),
    *("app.segments.reassemble", "boto3.session"),
)


def _main() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    command = importlib.import_module("app.__main__")
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()  # what all share is not copied by the collector
    ours = socket.socket(fileno=int(sys.argv[1]))
    asked = _serve(ours)
    if asked is None:
        return
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv[:] = [str(ROOT / "app" / "__main__.py"), *asked["arguments"]]
    # What multiprocessing starts anew must find the application as its main module.
    sys.modules["__main__"] = command
    through = bool(os.environ.get("PYTHONUNBUFFERED"))
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = open(number, "wb", 0 if through else -1, closefd=False)  # noqa: SIM115
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", line_buffering=number == 2, write_through=through))
    command.main()


if __name__ == "__main__":
    _main()
