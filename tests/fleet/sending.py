"""Cameras that send frames in the background of a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import redis as redis_library

from tests.fleet.work import add_frames


@dataclass
class SendingCameras:
    """Cameras that send frames while the block of `on` lasts."""

    cameras: int = 4
    rate: float = 10.0
    """Frames a second of each camera."""
    bad: list[bytes] = field(default_factory=list)
    """Each is sent once in the place of the JPEG, one in every `every` frames."""
    every: int = 100
    frames: set[tuple[str, str]] = field(default_factory=set)
    """Camera and entry of what was sent."""
    broken: set[tuple[str, str]] = field(default_factory=set)

    @contextmanager
    def on(self, redis: redis_library.Redis, jpeg: bytes) -> Iterator[None]:
        ended = threading.Event()

        def run() -> None:
            for number in count():
                camera = f"cam-{number % self.cameras}"
                spoilt = self.bad and number % self.every == self.every // 2
                data = self.bad.pop() if spoilt else jpeg
                (entry,) = add_frames(redis, camera, [data])
                (self.broken if spoilt else self.frames).add((camera, entry))
                if ended.wait(1 / self.rate / self.cameras):
                    return

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
