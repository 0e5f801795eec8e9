"""Lines of text that stand on their head or their side, read upright.

Runs inside OCR's own environment: imports nothing of `app`.

PaddleOCR's detector finds a line whichever way it is turned, its reader takes every line for upright. What is
read the wrong way round is garbage with a middling score; so a line of doubt is read the other ways round, too, and the
best reading is taken. Turns are counted in quarters, anticlockwise, that bring the text upright.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

SURE = 0.9
"""Score from which a reading is not doubted. Of garbage none came above 0.75."""
GAIN = 0.1
"""How much better another way round must score."""
_LEAST = 2
"""Letters and digits of a line that is taken another way round on its own."""
MOST = 12
"""Lines of one picture that are read again, the largest: each costs as much as the first reading of a line."""
TALL = 1.5
"""Height over width from which a crop comes turned on its side (PaddleX's `get_rotate_crop_image`)."""

Recognise = Callable[[Any], tuple[str, float]]


class Line(NamedTuple):
    text: str
    score: float
    polygon: Any
    """`[4, 2]`, clockwise from the corner at the upper left of the picture."""
    turns: int
    """That `text` was read at, 0 to 3."""


def upright(lines: Sequence[tuple[str, float, Any]], crop: Callable[[Any], Any], recognise: Recognise) -> list[Line]:
    """The lines, each read the way round that reads best.

    Args:
        lines: text, score and polygon, as PaddleOCR reads them.
        crop: gives the picture of a polygon as PaddleOCR cuts it out, turned on its side where that is tall.
        recognise: reads such a picture.
    """
    found = [Line(text, score, polygon, _first(polygon)) for text, score, polygon in lines]
    doubtful = sorted((i for i, line in enumerate(found) if line.score < SURE), key=lambda i: -_area(found[i].polygon))
    pictures: dict[int, Any] = {}
    for i in doubtful[:MOST]:
        pictures[i] = crop(found[i].polygon)
        found[i] = _best(found[i], _others(found[i].polygon), pictures[i], recognise, GAIN)
    # What reads one way and the other ("NOON", "69") goes with the rest of the picture.
    way = _way(found)
    left = MOST - len(pictures)
    for i, line in enumerate(found):
        if left > 0 and i not in pictures and line.turns != way and way in _others(line.polygon):
            left -= 1
            found[i] = _best(line, (way,), crop(line.polygon), recognise, -GAIN)
    return found


def in_order(lines: Sequence[Line], width: int, height: int) -> list[Line]:
    """In reading order for one who holds the picture so that most of its text is upright."""
    way = _way(lines)
    if way == 0:
        return list(lines)
    places = [_turned(np.asarray(line.polygon, float), way, width, height).min(axis=0) for line in lines]
    heights = [min(np.ptp(_turned(np.asarray(line.polygon, float), way, width, height), axis=0)) for line in lines]
    row = max(10.0, float(np.median(heights)) / 2) if heights else 10.0
    order = sorted(range(len(lines)), key=lambda i: (round(places[i][1] / row), places[i][0]))
    return [lines[i] for i in order]


def corners(line: Line) -> Any:
    """Its polygon, clockwise from the text's own top left."""
    return np.roll(np.asarray(line.polygon), -line.turns, axis=0)


def _best(line: Line, turns: Sequence[int], picture: Any, recognise: Recognise, gain: float) -> Line:
    """The best of these ways round, where it is sure and scores more than the line does by `gain`.

    The best of several readings of what nobody can read scores up to 0.85; a lone sign, which a shadow may be,
    up to 0.91: it is taken the other way round only where the rest of the picture stands so (`gain` below 0).
    """
    first = _first(line.polygon)
    best, bar = line, max(SURE, line.score + gain)
    for turn in turns:
        text, score = recognise(np.ascontiguousarray(np.rot90(picture, turn - first)))
        if sum(map(str.isalnum, text)) >= (_LEAST if gain > 0 else 1) and score > bar:
            best, bar = Line(text, score, line.polygon, turn), score
            break
    return best


def _first(polygon: Any) -> int:
    width, height = _sides(polygon)
    return 1 if int(height) >= TALL * int(width) else 0


def _others(polygon: Any) -> tuple[int, ...]:
    """The other ways round that a line of this shape may stand, the likelier ones first."""
    width, height = _sides(polygon)
    if _first(polygon):
        return (3, 0) if height < 2 * TALL * width else (3,)
    return (2, 1, 3) if width < TALL * height else (2,)


def _sides(polygon: Any) -> tuple[float, float]:
    a, b, c, d = np.asarray(polygon, float)
    return (
        max(1.0, float(np.linalg.norm(a - b)), float(np.linalg.norm(c - d))),
        max(1.0, float(np.linalg.norm(a - d)), float(np.linalg.norm(b - c))),
    )


def _area(polygon: Any) -> float:
    width, height = _sides(polygon)
    return width * height


def _way(lines: Sequence[Line]) -> int:
    """The way round of most letters that are read for sure; 0 where there are none."""
    letters = [sum(len(line.text) for line in lines if line.turns == turn and line.score >= SURE) for turn in range(4)]
    return int(np.argmax(letters))


def _turned(points: Any, turns: int, width: int, height: int) -> Any:
    """Where points of the picture lie once it is turned by so many quarters, anticlockwise."""
    x, y = points[:, 0], points[:, 1]
    if turns == 1:
        return np.stack((y, width - x), -1)
    if turns == 2:
        return np.stack((width - x, height - y), -1)
    return np.stack((height - y, x), -1) if turns == 3 else points
