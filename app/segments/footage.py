"""A film's file as it lies there: opened safely, looked at, and where a part of a film says that it stands."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Disposition

from app.errors import SightlineError
from app.sources.orientation import of_frame
from app.sources.reader import ffmpeg_name

_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,nut,mxf,mxf_opatom,gxf,dv,rm,ivf,yuv4mpegpipe,gif,apng,wtv"
)
"""Containers that hold their own frames. Playlists and scripts, which name other files, are no films here."""
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "fflags": "+genpts"}
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_START, _FIRST, _RATE, _SIZE = "sightline_start", "sightline_first_frame", "sightline_rate", "sightline_size"
_MOST_PIXELS = 4096 * 4096
"""Of a size that a part's metadata ask for."""


class FilmError(SightlineError):
    """The film cannot be used. The message names the file and what is wrong with it."""


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
    container: Any
    video: Any
    audio: list[Any]
    position: Position

    @property
    def origin(self) -> Fraction:
        """The film's first moment on its file's own clock, seconds: transport streams begin anywhere.

        A part's is 0, whatever comes first in it: its pictures may begin later than sound that it was cut without.
        """
        if self.position.known:
            return Fraction(0)
        start, base = self.container.start_time, Fraction(self.video.time_base)
        return Fraction(0) if start is None else (Fraction(start, av.time_base) // base) * base

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
        rate = self.position.rate or self.video.average_rate or self.video.guessed_rate
        return Fraction(rate) if rate and 0 < rate < 1000 else Fraction(25)


@contextmanager
def opened(path: Path) -> Iterator[Footage]:
    """Opens a film for reading.

    Raises:
        FilmError: there is none, it cannot be read, or it breaks off while it is read.
    """
    with explained(path):
        container = av.open(ffmpeg_name(path), options=_OPTIONS, metadata_errors="replace")
    with container, explained(path):
        video = next((one for one in container.streams.video if not one.disposition & Disposition.attached_pic), None)
        if video is None:
            raise FilmError(f"{path.name}: there is no video in it")
        if video.time_base is None or not video.codec_context.width or not video.codec_context.height:
            raise FilmError(f"{path.name}: its video has no size; the file is damaged or cut short")
        position = Position.read(container.metadata)
        yield Footage(path, container, video, list(container.streams.audio), position)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """FFmpeg's errors, in our words; a full disk is no fault of a film's."""
    try:
        yield
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
    with opened(path) as film:
        first = next(film.container.decode(film.video), None)
        if first is None:
            raise FilmError(f"{path.name}: not one frame of its video can be decoded")
        width, height = upright(first)
    with opened(path) as film:
        base, video = Fraction(film.video.time_base), film.video
        frames, seconds = video.frames, (video.duration or 0) * base
        if not frames or not seconds:
            frames, seconds = _counted(film)
        audio = bool(film.audio)
    return FilmInfo(float(seconds), frames, float(frames / seconds) if seconds else 0.0, width, height, audio)


def upright(frame: Any) -> tuple[int, int]:
    """Width and height of a frame as it is to be seen."""
    return of_frame(frame).size(frame.width, frame.height)


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
