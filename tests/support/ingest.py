"""Ingest as a test runs it, and what it left in Redis."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from prometheus_client import REGISTRY

from app.fleet.ingest import Ingest, SourceList
from app.fleet.streams import Keys
from app.settings import ROOT, Settings
from tests.support.redis import RedisServer, require_program

PATIENCE_S = 30.0


@contextmanager
def ingesting(server: RedisServer, *sources: str, loop: bool = False, **settings: Any) -> Iterator[Ingest]:
    """All of `fleet ingest` but its signals and its metrics' port; ended with the block."""
    stop = threading.Event()
    chosen = Settings(redis_url=server.url, **settings)
    with Ingest(chosen, SourceList(sources, Keys.of(chosen.redis).sources, loop=loop)) as ingest:
        thread = threading.Thread(target=ingest.until, args=(stop,))
        thread.start()
        try:
            yield ingest
        finally:
            stop.set()
            thread.join()


def until(what: Callable[[], Any], *, patience_s: float = PATIENCE_S) -> Any:
    """Calls until the value is true; returns it."""
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"did not come true in {patience_s:g} s"
        time.sleep(0.05)
    return found


def entries(client: redis.Redis, camera: str) -> list[dict[bytes, bytes]]:
    """A camera's frames in Redis, oldest first."""
    return [fields for _, fields in client.xrange(f"frames:{camera}")]  # type: ignore[misc, union-attr]


def frames_counted(outcome: str) -> float:
    """`sightline_ingest_frames_total` of this process."""
    return REGISTRY.get_sample_value("sightline_ingest_frames_total", {"outcome": outcome}) or 0.0


@contextmanager
def on_a_terminal(*arguments: str, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """`python -m app …` on a terminal of its own, and a function that tells what it has written there so far."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    environment = {**os.environ, **settings, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "app", *arguments]
    written = ""

    def screen() -> str:
        nonlocal written
        with suppress(BlockingIOError):
            while True:
                written += os.read(ours, 65536).decode(errors="replace")
        return written

    with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        try:
            yield child, screen
        finally:
            child.kill()
    os.close(ours)
    os.close(theirs)


@contextmanager
def network_source(film: Path, port: int, log_path: Path) -> Iterator[str]:
    """`ffmpeg` serving a film for ever, in real time, as MPEG-TS to the one client that connects: its URL."""
    require_program("ffmpeg", "ffmpeg")
    address = f"tcp://127.0.0.1:{port}"
    command = ["ffmpeg", "-nostdin", "-loglevel", "warning", "-re", "-stream_loop", "-1", "-i", str(film)]
    with log_path.open("ab") as log:
        child = subprocess.Popen([*command, "-c", "copy", "-f", "mpegts", f"{address}?listen=1"], stderr=log)
    try:
        yield address
    finally:
        child.kill()
        child.wait()
