"""A film's file as it lies there: opened safely, looked at, and where a part of a film says that it stands."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error

from app.errors import SightlineError
from app.sources.address import Address, printable
from app.sources.options import AS_IT_IS
from app.sources.reader import Container, Limits, OnDamage, SourceError

_ANY_SIZE = (1 << 31) - 1
"""Pixels of a frame: who analyses a film bounds them, and who only copies it need not."""
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_START, _FIRST, _RATE, _SIZE = "sightline_start", "sightline_first_frame", "sightline_rate", "sightline_size"
_MOST_PIXELS = 4096 * 4096
"""Of a size that a part's metadata ask for."""


class FilmError(SightlineError):
    """The film cannot be used. The message names the file and what is wrong with it."""


class Truncated(FilmError):
    """The film's file was cut off, and that is not allowed."""


@dataclass(frozen=True, slots=True)
class FilmInfo:
    duration_s: float
    """Of its pictures; the sound may be longer or shorter."""
    frames: int
    fps: float
    """On average."""
    width: int
    """As it is to be seen: a rotation that the file asks for is applied."""
    height: int
    audio: bool


@dataclass(frozen=True, slots=True)
class Position:
    """Where a part stands in its film. It travels in the part's own metadata."""

    start: Fraction = Fraction(0)
    """Seconds from the film's beginning to the part's."""
    first_frame: int = 0
    """Number of its first frame in the film."""
    rate: Fraction | None = None
    """Frames a second of the whole film: parts are coded alike only if they agree on it."""
    size: tuple[int, int] | None = None
    """Width and height of the film's first frame, upright: its parts are coded so, also where it changes its size."""
    known: bool = False
    """Whether the file said so."""

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Position:
        """What the file says; the beginning, where it says nothing that makes sense."""
        try:
            metadata = {name.lower(): value for name, value in metadata.items()}  # Matroska writes them large
            start, first = Fraction(metadata[_START]), int(metadata[_FIRST])
            rate = Fraction(metadata[_RATE]) if _RATE in metadata else None
            width, height = (int(side) for side in metadata[_SIZE].split("x")) if _SIZE in metadata else (0, 0)
        except (KeyError, ValueError, ZeroDivisionError):
            return cls()
        if start < 0 or first < 0 or (rate is not None and not 0 < rate < 1000):
            return cls()
        size = (width, height) if min(width, height) > 0 and width * height <= _MOST_PIXELS else None
        return cls(start, first, rate, size, known=True)

    def tags(self) -> dict[str, str]:
        """For the part's metadata."""
        said = {_START: str(self.start), _FIRST: str(self.first_frame)}
        if self.rate is not None:
            said[_RATE] = str(self.rate)
        if self.size is not None:
            said[_SIZE] = f"{self.size[0]}x{self.size[1]}"
        return said


@dataclass(frozen=True, slots=True)
class Footage:
    """An open film: its first video stream and all its sound. Anything else in it is left behind."""

    path: Path
    reader: Container
    """Its pictures, decoded; who copies packets takes them from `container`."""
    audio: list[Any]
    position: Position

    @property
    def container(self) -> Any:
        return self.reader.container

    @property
    def video(self) -> Any:
        return self.reader.stream

    @property
    def origin(self) -> Fraction:
        """The film's first moment on its file's own clock, seconds.

        A part's is 0, whatever comes first in it: its pictures may begin later than sound that it was cut without.
        """
        return Fraction(0) if self.position.known else self.reader.origin

    def number(self, stream: Any) -> int:
        """The number of a stream's track in an MP4: a part's own, else in the order of the streams, from 1.

        Matroska knows no such numbers, and shows empty tracks. Of an MP4 without sound at its end its empty track is
        not seen; the others keep their numbers.
        """
        numbered = self.position.known and self.container.format.name.startswith("mov")
        return int(stream.id) if numbered else 1 + [self.video, *self.audio].index(stream)

    @property
    def rate(self) -> Fraction:
        """Frames a second: the whole film's, where this is a part of one."""
        return self.position.rate or self.reader.rate


@contextmanager
def opened(
    path: Path, *, max_pixels: int = _ANY_SIZE, on_damage: OnDamage = lambda problem, code: None
) -> Iterator[Footage]:
    """Opens a film for reading.

    Args:
        max_pixels: of a frame.
        on_damage: is given what is wrong with each piece of it that is not decoded.

    Raises:
        FilmError: there is none, it cannot be read, or it breaks off while it is read.
    """
    address = Address(str(path), "file", printable(path.name), "")
    limits = Limits(max_pixels=max_pixels, threads=0, film=True)
    with explained(path), Container(address, AS_IT_IS, limits, on_damage) as reader:
        video = reader.stream
        if video.time_base is None or not video.codec_context.width or not video.codec_context.height:
            raise FilmError(f"{path.name}: its video has no size; the file is damaged or cut short")
        position = Position.read(reader.container.metadata)
        yield Footage(path, reader, list(reader.container.streams.audio), position)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """A reader's and FFmpeg's errors, in our words; a full disk is no fault of a film's."""
    try:
        yield
    except SourceError as error:
        if error.errno in _OURS:
            raise OSError(error.errno, str(error)) from None
        remedy = "; if it is of another kind: ffmpeg -i FILM new.mp4" if error.errno == errno.EINVAL else ""
        raise FilmError(f"{error}{remedy}") from None
    except av.error.FFmpegError as error:
        if error.errno in _OURS:
            raise
        raise FilmError(f"{path.name}: no film that can be read ({error.strerror})") from None


def refused(film: str, error: Exception) -> FilmError:
    """No container here takes a film's streams."""
    return FilmError(f"{film}: its streams cannot be copied ({error}); convert it: ffmpeg -i FILM new.mp4")


def backwards(film: str, at_s: Fraction) -> FilmError:
    """A film's times go back, as where two recordings were put one after the other."""
    minutes, seconds = divmod(max(0, int(at_s)), 60)
    remedy = "remux it: ffmpeg -fflags +genpts -i FILM -c copy new.mp4"
    return FilmError(f"{film}: its times go back at {minutes}:{seconds:02d}; {remedy}")


def probe(path: Path) -> FilmInfo:
    """Looks a film over and decodes its first frame.

    Raises:
        FilmError: there is none that can be decoded.
    """
    if (size := upright(path)) is None:
        raise FilmError(f"{path.name}: not one frame of its video can be decoded")
    with opened(path) as film:
        base, video = Fraction(film.video.time_base), film.video
        frames, seconds = video.frames, (video.duration or 0) * base
        if not frames or not seconds:
            frames, seconds = _counted(film)
        audio = bool(film.audio)
    return FilmInfo(float(seconds), frames, float(frames / seconds) if seconds else 0.0, *size, audio)


def upright(path: Path) -> tuple[int, int] | None:
    """Width and height of a film's first frame, as it is to be seen; None where there is none."""
    with opened(path) as film:
        first = next(iter(film.reader), None)
        return None if first is None else first.turn.size(first.frame.width, first.frame.height)


def _counted(film: Footage) -> tuple[int, Fraction]:
    """Frames and seconds of a film whose file does not say: Matroska's and transport streams."""
    count, first, last = 0, None, Fraction(0)
    base = Fraction(film.video.time_base)
    for packet in film.container.demux(film.video):
        if packet.pts is None or packet.is_discard:
            continue
        count += 1
        first = packet.pts * base if first is None else min(first, packet.pts * base)
        last = max(last, (packet.pts + (packet.duration or round(1 / film.rate / base))) * base)
    return count, last - (first or Fraction(0))
