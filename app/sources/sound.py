"""Sound that is copied beside pictures: packets as they were read, on the pictures' clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from app.sources.clock import Clock

_TOGETHER = Fraction(1)
"""Seconds that sound and pictures may have moved apart at a jump, for them to be put together again there."""


class Sound:
    """All audio streams of an open source. One thread may `take` what is read while another asks for it by `until`.

    Where the source's times jump, the sound's jump too: each stream has a clock of its own, and after a jump is put to
    the pictures again.

    Args:
        pictures: the clock of the source's pictures.
        gap_s: as the pictures' clock has it.
    """

    def __init__(self, streams: list[Any], pictures: Clock, gap_s: float | None) -> None:
        self.streams = streams
        self._pictures = pictures
        self._numbers = {stream.index: number for number, stream in enumerate(streams)}
        self._clocks = [Clock(Fraction(1, 50), gap_s=gap_s) for _ in streams]
        self._first: list[Fraction | None] = [None] * len(streams)
        self._waiting: deque[tuple[int, Any, Fraction, Fraction, int]] = deque()

    def take(self, packet: Any) -> None:
        """A packet as it was read from the source."""
        number = self._numbers.get(packet.stream_index)
        stamp = packet.pts if packet.pts is not None else packet.dts
        if number is None or stamp is None or not packet.size:
            return
        time = stamp * Fraction(packet.time_base)
        clock = self._clocks[number]
        if self._first[number] is None:
            self._first[number] = time
        own = clock.at(time)
        self._waiting.append((number, packet, time, own, len(clock.offsets) - 1))

    def until(self, moment: Fraction | None) -> Iterator[tuple[int, Any, Fraction]]:
        """Number of the stream, packet, and when it is to be heard, of what begins before this moment; None: of all.

        Seconds on the pictures' clock, on which the first picture is at 0: what is heard before it is below.
        """
        offsets = self._pictures.offsets
        while self._waiting and offsets:
            number, packet, time, own, jumps = self._waiting[0]
            first = self._first[number]
            assert first is not None
            at = first + offsets[0] + own
            if 0 < jumps < len(offsets) and abs(time + offsets[jumps] - at) <= _TOGETHER:
                at = time + offsets[jumps]
            if moment is not None and at >= moment:
                return
            self._waiting.popleft()
            yield number, packet, at
