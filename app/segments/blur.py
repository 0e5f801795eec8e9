"""Faces made unrecognisable, also in the moments before and after they are found."""

from __future__ import annotations

from collections import deque

import cv2

from app.protocol.result import FrameResult
from app.segments.faces import Face, faces, followed
from app.segments.sheet import Plane, Sheet

HOLD_S = 0.5
"""How long a face is blurred before it was first seen and after it was last seen, seconds of the film."""
MOST_PIXELS = 64_000_000
"""Of the pictures that wait for faces yet to be found: half a second of 1920x1080 at 60 frames a second, less of larger
ones. 1.5 bytes each."""
CELLS = 6
"""A face is brought down to so many cells across before it is blurred: what is gone is gone."""


class Faces:
    """The faces of one film, in the order of its frames.

    A face that is found all at once was there before: pictures are kept for HOLD_S, so that it can be blurred in them.

    Args:
        most_pixels: of the pictures that are kept.
    """

    def __init__(self, most_pixels: int = MOST_PIXELS) -> None:
        self._most_pixels = most_pixels
        self._held: list[tuple[Face, float]] = []
        """Each face where it was last seen, and when."""
        self._kept: deque[tuple[float, Sheet]] = deque()
        self._pixels = 0

    def hide(self, sheet: Sheet, found: FrameResult | None, at_s: float) -> list[Sheet]:
        """Blurs every face that was found, and those found a moment ago, or in a moment; everything where `found` is
        None: nobody knows where the faces are in a frame that was not analysed.

        Returns:
            The sheets, this one or earlier ones, that nothing more is to be blurred on; each once, in their order.
        """
        self._keep(sheet, at_s)
        if found is None:
            blur(sheet, 0, 0, sheet.width, sheet.height)
        else:
            self._follow(faces(found), at_s)
            for face, last in self._held:
                _hide(sheet, face, at_s - last)
        return self._done(at_s)

    def rest(self) -> list[Sheet]:
        """The sheets that are still kept: there are no more frames."""
        left = [sheet for _, sheet in self._kept]
        self._kept.clear()
        return left

    def _follow(self, seen: list[Face], at_s: float) -> None:
        """Those that were seen before have moved; the others were there before, too."""
        held = [(face, last) for face, last in self._held if at_s - last < HOLD_S]
        same = followed([face for face, _ in held], seen)
        for face, before in zip(seen, same, strict=True):
            since = at_s - HOLD_S if before is None else held[before][1]
            for at, sheet in self._kept:
                if since < at < at_s:
                    _hide(sheet, face, at_s - at)
        moved = set(same)
        missed = [one for index, one in enumerate(held) if index not in moved]
        self._held = [*missed, *((face, at_s) for face in seen)]

    def _keep(self, sheet: Sheet, at_s: float) -> None:
        self._kept.append((at_s, sheet))
        self._pixels += sheet.width * sheet.height

    def _done(self, at_s: float) -> list[Sheet]:
        done = []
        while self._kept and (self._kept[0][0] <= at_s - HOLD_S or self._pixels > self._most_pixels):
            _, sheet = self._kept.popleft()
            self._pixels -= sheet.width * sheet.height
            done.append(sheet)
        return done


def _hide(sheet: Sheet, face: Face, apart_s: float) -> None:
    """Blurs a face that was seen so many seconds before or after: it may have moved meanwhile."""
    blur(sheet, *face.box(1 + 0.5 * apart_s / HOLD_S))


def blur(sheet: Sheet, x1: float, y1: float, x2: float, y2: float) -> None:
    """Blurs a box for good: down to a few cells, then smooth."""
    y, *colours = sheet.planes
    _blur(y, x1, y1, x2, y2)
    for plane in colours:
        _blur(plane, x1 / 2, y1 / 2, x2 / 2, y2 / 2)


def _blur(plane: Plane, x1: float, y1: float, x2: float, y2: float) -> None:
    height, width = plane.shape
    left, top = max(0, int(x1)), max(0, int(y1))
    part = plane[top : min(height, int(y2) + 1), left : min(width, int(x2) + 1)]
    if part.size == 0:
        return
    rows, columns = part.shape
    cell = max(rows, columns) / CELLS
    small = cv2.resize(part, (max(1, round(columns / cell)), max(1, round(rows / cell))), interpolation=cv2.INTER_AREA)
    part[:] = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
