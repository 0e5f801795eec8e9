"""Makes one clock that never goes back from the times of a source's frames. Pure."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from statistics import median_low

GAP_S = 10
"""A step ahead of more seconds is a jump and no pause. FFmpeg uses the same limit for joined streams."""
_MAX_PERIODS = 10
"""A step ahead of up to this many periods is no jump either, because time-lapse recordings exist."""
_MIN_STEP, _MAX_PERIOD = Fraction(1, 1000), Fraction(3600)


class Clock:
    """Converts presentation times to seconds that grow from frame to frame.

    At a jump – the times go back, because recordings were joined or a counter wrapped, or they go far ahead – a new
    clock begins: the frame comes one period after the frame before it, and later frames keep their distances to it. A
    single frame with a wrong time does not affect the others. A frame without a time comes one period after the last.

    Args:
        period: seconds from frame to frame that the source declares; used until the frames show their real period.
        gap_s: a longer step ahead is a jump; None: no step ahead is, because the container's times are reliable.
    """

    def __init__(self, period: Fraction, *, gap_s: float | None = GAP_S) -> None:
        self._declared = min(max(period, _MIN_STEP), _MAX_PERIOD)
        self._gap = None if gap_s is None else Fraction(gap_s)
        self._steps: deque[Fraction] = deque(maxlen=9)
        self._begun = False
        self._out = Fraction(0)
        self._last: Fraction | None = None
        """The source's time of the last frame that was in step."""
        self._odd: tuple[Fraction, Fraction, Fraction] | None = None
        """If the last frame was out of step: the source's time of it, the time it was given, and the step."""
        self.offsets: list[Fraction] = []
        """Seconds added to the source's times: the first from the beginning, each further one from a jump on."""

    @property
    def period(self) -> Fraction:
        """Seconds from frame to frame, the median of the last few."""
        return median_low(self._steps) if self._steps else self._declared

    def at(self, time: Fraction | None) -> Fraction:
        """The next frame's time, seconds since the first frame.

        Args:
            time: the source's time of the frame, seconds; None: the source gives none.
        """
        if not self._begun:
            self._begun = True
            self._anchor(time)
        elif time is None or self._last is None:
            self._out += self.period
            self._anchor(time)
        elif self._in_step(step := time - self._last):
            self._steps.append(step)
            self._continue(time)
        elif self._odd is not None and self._is_jump(time):
            self.offsets.append(self._odd[1] - self._odd[0])
            self._continue(time)
        else:
            self._out += self.period
            self._odd = (time, self._out, step)
        return self._out

    def _anchor(self, time: Fraction | None) -> None:
        if time is not None and self._last is None:
            self._last = time
            self.offsets.append(self._out - time)

    def _continue(self, time: Fraction) -> None:
        self._out = max(time + self.offsets[-1], self._out + _MIN_STEP)
        self._last, self._odd = time, None

    def _in_step(self, step: Fraction) -> bool:
        return step > 0 and (self._gap is None or step <= max(self._gap, _MAX_PERIODS * self.period))

    def _is_jump(self, time: Fraction) -> bool:
        """Whether this frame is in step with the odd one before it, which then began a new clock."""
        assert self._odd is not None
        step = time - self._odd[0]
        if self._in_step(step):
            return True
        if 0 < step < 2 * self._odd[2] and self._odd[2] < 2 * step:  # the same large step twice is the real period
            self._steps.clear()
            self._steps.append(step)
            return True
        return False
