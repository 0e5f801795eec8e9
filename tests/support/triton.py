"""A canned Triton that a test may kill, stop and start again on the same address."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from app.inference.embedded import EmbeddedTriton
from app.settings import TritonSettings


class Mortal:
    """An embedded Triton, supervised from a thread; it comes back by itself half a second after it was killed."""

    def __init__(self, repository: Path, state: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._triton = EmbeddedTriton(TritonSettings(triton_repository=repository), state)
        self.url = ""

    @property
    def process(self) -> psutil.Process:
        pid = self._triton.pid
        assert pid is not None, "it is away"
        return psutil.Process(pid)

    def start(self) -> None:
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._triton.start(), self._loop).result()

    def kill(self) -> None:
        """SIGKILL to the server."""
        self.process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._triton.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def mortal(repository: Path, state: Path) -> Iterator[Mortal]:
    triton = Mortal(repository, state)
    triton.start()
    try:
        yield triton
    finally:
        triton.stop()
