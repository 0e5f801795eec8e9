"""What a worker has taken from Redis and not acknowledged yet, and how much more it may take.

Two bounds: frames that wait for the models or are with them (pixels, heavy), and answers that Kafka has not taken
yet (a few kilobytes each). Once either is reached nothing more is read: what is not read waits in Redis, whose MAXLEN
bounds it.

Frames are no more than are done with in the time given: those that the models are too slow for would get old in hand,
while newer ones of their cameras wait. By Little's law as many are in hand as come in while one is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence

from app.fleet.frames import CameraFrame, Origin

MOST_ANSWERS = 1024
"""Answers on their way to Kafka at once."""
_WEIGHT = 0.3
"""Of the newest frames in what is averaged."""


class InHand:
    """Shared by the threads of one worker."""

    def __init__(
        self, frames: int, answers: int = MOST_ANSWERS, *, least_frames: int | None = None, within_s: float = math.inf
    ) -> None:
        """
        Args:
            frames: frames at most.
            answers: answers at most, those of frames that are still looked at among them.
            least_frames: frames at the beginning, and however slow the models are; unset: `frames`.
            within_s: seconds in which a frame should be done with from when it was read.
        """
        self._most_frames = frames
        self._least_frames = frames if least_frames is None else min(frames, least_frames)
        self._most_answers = answers
        self._within_s = within_s
        self._bound = float(self._least_frames)
        """Frames at most, as fast as the models are now; rounded, since an average never quite comes to its most."""
        self.in_hand_s = 0.0
        """Seconds from read to done with, lately."""
        self._frames = 0
        self._taken: set[tuple[str, str]] = set()
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
        """How many frames may be read; waits for at least so many, or for a quarter of what may be in hand where that
        is less, then says 0.
        """
        with self._changed:
            self._least = least
            self._changed.wait_for(self._is_room, timeout_s)
            return self._room() if self._is_room() else 0

    def _is_room(self) -> bool:
        return self._room() >= max(1, min(self._least, round(self._bound) // 4))

    def _room(self) -> int:
        if self._held_up:
            return 0
        return min(round(self._bound) - self._frames, self._most_answers - len(self._taken))

    def _tell(self) -> None:
        """Wakes those who wait, once what they wait for is there: waking them for every frame would cost more."""
        if self._is_room() or not self._taken:
            self._changed.notify_all()

    def take(self, origins: Iterable[Origin]) -> None:
        """They were read."""
        with self._changed:
            for origin in origins:
                self._taken.add((origin.stream, origin.entry))
                self._frames += 1

    def looked_at(self, frames: Sequence[CameraFrame]) -> None:
        """They are done with, pixels and all; their answers are still to be delivered."""
        now = time.perf_counter()
        spent_s = sum(now - frame.arrived for frame in frames) / len(frames)
        with self._changed:
            self.in_hand_s += _WEIGHT * (spent_s - self.in_hand_s)
            if self._within_s < math.inf:
                bound = self._frames * self._within_s / max(spent_s, 1e-6)
                bound = min(self._most_frames, max(self._least_frames, bound))
                self._bound += _WEIGHT * (bound - self._bound)
            self._frames -= len(frames)
            self._tell()

    def settle(self, origins: Sequence[Origin]) -> None:
        """They are acknowledged."""
        with self._changed:
            for origin in origins:
                self._taken.discard((origin.stream, origin.entry))
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

    def count_by_stream(self) -> dict[str, int]:
        """Entries in hand of each stream."""
        counts: dict[str, int] = {}
        with self._changed:
            for stream, _ in self._taken:
                counts[stream] = counts.get(stream, 0) + 1
        return counts
