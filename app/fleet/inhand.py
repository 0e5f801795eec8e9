"""What a worker has taken from Redis and not acknowledged yet, and how much more it may take.

Two bounds: frames that wait for the models or are with them (pixels, heavy), and answers that Kafka has not taken
yet (a few kilobytes each). Once either is reached nothing more is read: what is not read waits in Redis, whose MAXLEN
bounds it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from app.fleet.frames import Origin

MOST_ANSWERS = 1024
"""Answers on their way to Kafka at once."""


class InHand:
    """Shared by the threads of one worker."""

    def __init__(self, frames: int, answers: int = MOST_ANSWERS) -> None:
        self._most_frames = frames
        self._most_answers = answers
        self._frames = 0
        self._taken: dict[tuple[str, str], float] = {}
        self._held_up = False
        self._least = 1
        """Frames that whoever waits for room wants room for."""
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Entries read and not acknowledged."""
        return len(self._taken)

    def __contains__(self, at: tuple[str, str]) -> bool:
        """Whether the entry `(stream, id)` is in hand."""
        return at in self._taken

    def entries(self) -> frozenset[tuple[str, str]]:
        """All that is in hand at this moment, `(stream, id)`."""
        with self._changed:
            return frozenset(self._taken)

    def room(self, least: int, timeout_s: float) -> int:
        """How many frames may be read; waits for at least so many, then says 0."""
        with self._changed:
            self._least = least
            self._changed.wait_for(lambda: self._room() >= least, timeout_s)
            room = self._room()
        return room if room >= least else 0

    def _room(self) -> int:
        if self._held_up:
            return 0
        return min(self._most_frames - self._frames, self._most_answers - len(self._taken))

    def _tell(self) -> None:
        """Wakes those who wait, once what they wait for is there: waking them for every frame would cost more."""
        if self._room() >= self._least or not self._taken:
            self._changed.notify_all()

    def take(self, origins: Iterable[Origin]) -> None:
        """They were read."""
        now = time.monotonic()
        with self._changed:
            for origin in origins:
                self._taken[origin.stream, origin.entry] = now
                self._frames += 1

    def looked_at(self, count: int) -> None:
        """So many frames are done with, pixels and all; their answers are still to be delivered."""
        with self._changed:
            self._frames -= count
            self._tell()

    def settle(self, origins: Sequence[Origin]) -> None:
        """They are acknowledged."""
        with self._changed:
            for origin in origins:
                self._taken.pop((origin.stream, origin.entry), None)
            self._tell()

    def hold_up(self, yes: bool) -> None:
        """Kafka's own queue is full: nothing more is read until it is not."""
        with self._changed:
            self._held_up = yes
            self._tell()

    def until_empty(self, timeout_s: float) -> bool:
        """Waits until nothing is in hand; whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._taken, timeout_s)

    def older_than(self, age_s: float) -> dict[str, list[str]]:
        """Ids in hand for longer than that, by stream."""
        limit = time.monotonic() - age_s
        found: dict[str, list[str]] = {}
        with self._changed:
            for (stream, entry), since in self._taken.items():
                if since <= limit:
                    found.setdefault(stream, []).append(entry)
        return found

    def count_by_stream(self) -> dict[str, int]:
        """Entries in hand of each stream."""
        counts: dict[str, int] = {}
        with self._changed:
            for stream, _ in self._taken:
                counts[stream] = counts.get(stream, 0) + 1
        return counts
