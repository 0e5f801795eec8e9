"""The times of a source's pictures, made into one clock that only goes on. Pure."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from statistics import median_low

GAP_S = 10
"""A step ahead of more than this is a jump and no pause; FFmpeg's own bound for streams that are joined."""
_LIKE_BEFORE = 10
"""So many times the usual distance of two pictures is no jump either: time-lapse recordings exist."""
_LEAST, _MOST = Fraction(1, 1000), Fraction(3600)


class Clock:
    """Turns presentation times into seconds that grow from picture to picture.

    A jump – times that go back, as where recordings were joined or a counter wrapped, or that go far ahead – starts a
    new clock: the picture comes one period after the one before it, and those behind it keep their distances to it. A
    single picture whose time is wrong changes nothing for the others; one without a time comes a period after the last.

    Args:
        period: seconds from picture to picture, as far as the source says; until it is known better.
        gap_s: a longer step ahead is a jump; None: no step ahead is, where the container's times can be relied on.
    """

    def __init__(self, period: Fraction, *, gap_s: float | None = GAP_S) -> None:
        self._declared = min(max(period, _LEAST), _MOST)
        self._gap = None if gap_s is None else Fraction(gap_s)
        self._steps: deque[Fraction] = deque(maxlen=9)
        self._begun = False
        self._out = Fraction(0)
        self._last: Fraction | None = None
        """The source's time of the last picture that was in step."""
        self._odd: tuple[Fraction, Fraction, Fraction] | None = None
        """Of the last picture, where it was out of step: the source's time, the time it was given, and the step."""
        self.offsets: list[Fraction] = []
        """What is added to the source's times: from the beginning, and from each jump on."""

    @property
    def period(self) -> Fraction:
        """Seconds from picture to picture, as they came lately."""
        return median_low(self._steps) if self._steps else self._declared

    def at(self, time: Fraction | None) -> Fraction:
        """Seconds since the first picture, of the next picture, whose time its source gives so; None: it gives none."""
        if not self._begun:
            self._begun = True
            self._anchor(time)
        elif time is None or self._last is None:
            self._out += self.period
            self._anchor(time)
        elif self._in_step(step := time - self._last):
            self._steps.append(step)
            self._go_on(time)
        elif self._odd is not None and self._is_jump(time):
            self.offsets.append(self._odd[1] - self._odd[0])
            self._go_on(time)
        else:
            self._out += self.period
            self._odd = (time, self._out, step)
        return self._out

    def _anchor(self, time: Fraction | None) -> None:
        if time is not None and self._last is None:
            self._last = time
            self.offsets.append(self._out - time)

    def _go_on(self, time: Fraction) -> None:
        self._out = max(time + self.offsets[-1], self._out + _LEAST)
        self._last, self._odd = time, None

    def _in_step(self, step: Fraction) -> bool:
        return step > 0 and (self._gap is None or step <= max(self._gap, _LIKE_BEFORE * self.period))

    def _is_jump(self, time: Fraction) -> bool:
        """Whether this picture follows on the odd one before it: then that one began a new clock."""
        assert self._odd is not None
        step = time - self._odd[0]
        if self._in_step(step):
            return True
        if 0 < step < 2 * self._odd[2] and self._odd[2] < 2 * step:  # far apart, and again: that is their distance
            self._steps.clear()
            self._steps.append(step)
            return True
        return False
