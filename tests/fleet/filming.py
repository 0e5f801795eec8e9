"""Cameras that go on sending while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import redis as redis_library

from tests.fleet.work import film


@dataclass
class Filming:
    """Cameras that go on while the block lasts."""

    cameras: int = 4
    rate: float = 10.0
    """Frames a second of each camera."""
    bad: list[bytes] = field(default_factory=list)
    """Shown once each instead of a picture, one for every `every` frames."""
    every: int = 100
    pictures: set[tuple[str, str]] = field(default_factory=set)
    """Camera and entry of what was filmed."""
    broken: set[tuple[str, str]] = field(default_factory=set)

    @contextmanager
    def on(self, redis: redis_library.Redis, jpeg: bytes) -> Iterator[None]:
        ended = threading.Event()

        def run() -> None:
            for number in count():
                camera = f"cam-{number % self.cameras}"
                spoilt = self.bad and number % self.every == self.every // 2
                picture = self.bad.pop() if spoilt else jpeg
                (entry,) = film(redis, camera, [picture])
                (self.broken if spoilt else self.pictures).add((camera, entry))
                if ended.wait(1 / self.rate / self.cameras):
                    return

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
