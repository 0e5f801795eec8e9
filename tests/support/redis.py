"""A real redis-server on a free loopback port, that a test may stop, kill and start again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

START_S = 20.0


class RedisServer:
    """`redis-server` in the foreground as a child of the test; nothing is written to disk, so a restart empties it."""

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "redis.log"
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A new client; the caller closes it."""
        return redis.Redis(host="127.0.0.1", port=self.port)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        options += ["--dir", str(self._folder), "--daemonize", "no", "--protected-mode", "no", *self._options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["redis-server", *options], stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits for its end. Does nothing where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        with redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def free_port() -> int:
    """A loopback port that nobody listens on now, below the range for outgoing connections: a restart finds it free."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def require_program(name: str, package: str) -> None:
    """Skips by name at home, fails in CI, where a program that a test needs is not installed."""
    if shutil.which(name):
        return
    message = f"{name} is missing: install Debian's package {package}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server of the test's own, with these options besides, ended with the block."""
    require_program("redis-server", "redis-server")
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
