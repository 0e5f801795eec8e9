"""A film, decoded frame by frame: every one, in order, upright, progressive."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import av.error
import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import TooExpensive
from app.pipeline.jpeg import check_packet
from app.segments.fields import Deinterlacer
from app.segments.footage import FilmError, Footage
from app.sources.orientation import UPRIGHT, Orientation, of_frame

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


class Reel:
    """Reads on where it stopped. Blocks; one thread at a time.

    Args:
        max_pixels: of a frame.

    Raises:
        FilmError: frames are larger than that.
    """

    def __init__(self, film: Footage, *, max_pixels: int) -> None:
        codec = film.video.codec_context
        if codec.width * codec.height > max_pixels:
            raise FilmError(
                f"{film.path.name}: its frames are {codec.width}x{codec.height}; "
                f"at most {max_pixels:,} pixels are taken, which is MAX_PIXELS"
            )
        self.width, self.height = codec.width, codec.height
        film.video.thread_type = "AUTO"
        self._film = film
        self._max_pixels = max_pixels
        self._base = Fraction(film.video.time_base)
        self._origin = round(film.origin / self._base)
        self._step = max(1, round(1 / film.rate / self._base))
        self._shots = self._decode()
        self.undecodable = 0
        """Pieces so far that held no frame that could be decoded."""

    def read(self, count: int) -> list[Shot]:
        """The next shots; none at the end.

        Raises:
            FilmError: the file breaks off, or not one of its frames can be decoded.
        """
        return list(islice(self._shots, count))

    def _decode(self) -> Iterator[Shot]:
        number, last = self._film.position.first_frame, -1
        for frame in self._frames():
            if frame is None:
                self.undecodable += 1
                metrics.FRAMES_RECEIVED.labels(DOOR).inc()
                metrics.FRAMES_FAILED.labels(DOOR, "decode").inc()
                continue
            if frame.width * frame.height > self._max_pixels:
                raise FilmError(f"{self._film.path.name}: frame {number} is {frame.width}x{frame.height}, too large")
            pts = last + self._step if frame.pts is None else frame.pts - self._origin
            last = pts = max(pts, last + 1)
            turn = of_frame(frame)
            pixels = turn.apply(frame.to_ndarray(format="rgb24"))
            yield Shot(number, self._film.position.start + pts * self._base, pts, frame, turn, pixels)
            number += 1
        if last < 0:
            raise FilmError(f"{self._film.path.name}: not one frame of its video can be decoded")

    def _frames(self) -> Iterator[Any | None]:
        """Frames as they are to be shown, progressive; None for a piece that cannot be decoded."""
        fields = Deinterlacer()
        for frame in self._decoded():
            if frame is None:
                yield None
            else:
                yield from fields.push(frame)
        yield from fields.rest()

    def _decoded(self) -> Iterator[Any | None]:
        jpegs = self._film.video.codec_context.name == "mjpeg"
        for packet in self._film.container.demux(self._film.video):
            try:
                if jpegs:
                    check_packet(bytes(packet), max_pixels=self._max_pixels)
                yield from packet.decode()
            except av.error.InvalidDataError:
                yield None
            except TooExpensive as error:
                log.warning("%s: a frame is left out: %s", self._film.path.name, error)
                yield None
