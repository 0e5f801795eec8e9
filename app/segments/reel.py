"""A film's frames: every one, numbered, at its time in the whole film."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import UndecodableFrame
from app.segments.footage import FilmError, Footage
from app.sources.orientation import UPRIGHT, Orientation

log = logging.getLogger(__name__)

DOOR = "segments"


@dataclass(slots=True)
class Shot:
    """One frame of a film."""

    number: int
    """In the whole film, from 0."""
    at: Fraction
    """Seconds from the whole film's beginning."""
    pts: int
    """The same from this file's beginning, in its video's own unit; grows from shot to shot."""
    frame: Any | None = None
    """As decoded, for the film that is written."""
    turn: Orientation = UPRIGHT
    """What is to be done to `frame`, for it to be upright."""
    pixels: NDArray[np.uint8] | None = None
    """Upright, RGB `[height, width, 3]`, for the pipeline; dropped once it was looked at."""


def damaged(problem: str, code: str) -> None:
    """Counts a piece that held no frame that could be decoded. For `opened`."""
    metrics.FRAMES_RECEIVED.labels(DOOR).inc()
    metrics.FRAMES_FAILED.labels(DOOR, "decode").inc()
    if code != UndecodableFrame.code:  # a film has many of those at once, or none
        log.warning("a frame is left out: %s", problem)


class Reel:
    """Reads on where it stopped. Blocks; one thread at a time."""

    def __init__(self, film: Footage) -> None:
        codec = film.video.codec_context
        self.width, self.height = codec.width, codec.height
        self._film = film
        self._shots = self._numbered()

    @property
    def undecodable(self) -> int:
        """Pieces so far that held no frame that could be decoded."""
        return self._film.reader.damaged

    def read(self, count: int) -> list[Shot]:
        """The next shots; none at the end.

        Raises:
            FilmError: the file breaks off, or not one of its frames can be decoded.
        """
        return list(islice(self._shots, count))

    def _numbered(self) -> Iterator[Shot]:
        reader, position, last = self._film.reader, self._film.position, -1
        base = Fraction(self._film.video.time_base)
        for number, shot in enumerate(reader, position.first_frame):
            last = pts = max(round((shot.at + reader.first - self._film.origin) / base), last + 1)
            yield Shot(number, position.start + pts * base, pts, shot.frame, shot.turn, shot.pixels())
        if last < 0:
            raise FilmError(f"{self._film.path.name}: not one frame of its video can be decoded")
