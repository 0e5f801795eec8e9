"""Opens a video file with limits, reads a part's position in the whole video, and reads numbered frames in order."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av.error
import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import SightlineError, UndecodableFrame
from app.sources.address import Address, printable
from app.sources.options import AS_IT_IS
from app.sources.orientation import UPRIGHT, Orientation
from app.sources.reader import Container, OnDamage, ReadLimits, SourceError

log = logging.getLogger(__name__)

ENTRY = "segments"
"""The entry point's name in metrics."""
_ANY_SIZE = (1 << 31) - 1
"""Pixels per frame. Copying packets needs no lower limit; analysis sets its own."""
_OWN_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of this machine, for which the video is not to blame."""
_START, _FIRST, _RATE, _SIZE = "sightline_start", "sightline_first_frame", "sightline_rate", "sightline_size"
_MAX_PIXELS = 4096 * 4096
"""The largest frame size that a part's metadata may ask for, pixels."""


# --- errors ---


class VideoError(SightlineError):
    """The video cannot be used. The message names the file and the defect."""


class TruncatedVideo(VideoError):
    """The video's file is cut off, and the caller did not allow that."""


@contextmanager
def ffmpeg_errors(path: Path) -> Iterator[None]:
    """Raises a `VideoError` in place of a `SourceError` or an error of FFmpeg.

    Args:
        path: the file that FFmpeg's error is about.

    Errors of this machine, such as a full disk, stay `OSError`s, because the video is not to blame.
    """
    try:
        yield
    except SourceError as error:
        if error.errno in _OWN_ERRNOS:
            raise OSError(error.errno, str(error)) from None
        remedy = "; if it is of another kind: ffmpeg -i VIDEO new.mp4" if error.errno == errno.EINVAL else ""
        raise VideoError(f"{error}{remedy}") from None
    except av.error.FFmpegError as error:
        if error.errno in _OWN_ERRNOS:
            raise
        raise VideoError(f"{path.name}: no video that can be read ({error.strerror})") from None


def cannot_copy(name: str, error: Exception) -> VideoError:
    """The error of a video whose streams no container here accepts."""
    return VideoError(f"{name}: its streams cannot be copied ({error}); convert it: ffmpeg -i VIDEO new.mp4")


def times_go_back(name: str, at_s: Fraction) -> VideoError:
    """The error of a video whose timestamps decrease, for example because two recordings were concatenated.

    Args:
        at_s: where they decrease, seconds from the video's beginning.
    """
    minutes, seconds = divmod(max(0, int(at_s)), 60)
    remedy = "remux it: ffmpeg -fflags +genpts -i VIDEO -c copy new.mp4"
    return VideoError(f"{name}: its times go back at {minutes}:{seconds:02d}; {remedy}")


# --- the file ---


@dataclass(frozen=True, slots=True)
class Position:
    """Where a part stands in the whole video. It is stored in the part's own metadata."""

    start: Fraction = Fraction(0)
    """Seconds from the video's beginning to the part's."""
    first_frame: int = 0
    """The number of the part's first frame in the video."""
    rate: Fraction | None = None
    """Frames per second of the whole video; None if unknown. Parts are encoded alike only if they agree on it."""
    size: tuple[int, int] | None = None
    """Width and height of the video's first frame, upright, pixels; None if unknown. All parts are encoded in this
    size, also where the video changes its size."""
    known: bool = False
    """Whether the file's metadata contain the position."""

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Position:
        """The position in a file's metadata; the video's beginning if they contain none or an invalid one."""
        try:
            metadata = {name.lower(): value for name, value in metadata.items()}  # Matroska writes names in capitals
            start, first = Fraction(metadata[_START]), int(metadata[_FIRST])
            rate = Fraction(metadata[_RATE]) if _RATE in metadata else None
            width, height = (int(side) for side in metadata[_SIZE].split("x")) if _SIZE in metadata else (0, 0)
        except (KeyError, ValueError, ZeroDivisionError):
            return cls()
        if start < 0 or first < 0 or (rate is not None and not 0 < rate < 1000):
            return cls()
        size = (width, height) if min(width, height) > 0 and width * height <= _MAX_PIXELS else None
        return cls(start, first, rate, size, known=True)

    def tags(self) -> dict[str, str]:
        """The position as entries for a part's metadata."""
        tags = {_START: str(self.start), _FIRST: str(self.first_frame)}
        if self.rate is not None:
            tags[_RATE] = str(self.rate)
        if self.size is not None:
            tags[_SIZE] = f"{self.size[0]}x{self.size[1]}"
        return tags


@dataclass(frozen=True, slots=True)
class MediaFile:
    """An open video file: its first video stream and all its audio streams. Other streams are ignored."""

    path: Path
    reader: Container
    """Decodes the video's frames. Packets to be copied are read from `container`."""
    audio: list[Any]
    """Audio streams of PyAV."""
    position: Position

    @property
    def container(self) -> Any:
        """The `av.container.InputContainer`."""
        return self.reader.container

    @property
    def video(self) -> Any:
        """The `av.VideoStream`."""
        return self.reader.stream

    @property
    def origin(self) -> Fraction:
        """The video's first moment on the file's own clock, seconds.

        For a part it is 0 even if its first frame is later, because audio that began before that frame may have been
        dropped when the part was cut.
        """
        return Fraction(0) if self.position.known else self.reader.origin

    def track_id(self, stream: Any) -> int:
        """A stream's track number in an MP4: a part's own, otherwise in the order of the streams, from 1.

        Matroska has no such numbers and lists empty tracks. An MP4 that ends without audio does not list its empty
        audio track, but its other tracks keep their numbers.
        """
        numbered = self.position.known and self.container.format.name.startswith("mov")
        return int(stream.id) if numbered else 1 + [self.video, *self.audio].index(stream)

    @property
    def rate(self) -> Fraction:
        """Frames per second; for a part those of the whole video."""
        return self.position.rate or self.reader.rate


@contextmanager
def open_video(
    path: Path, *, max_pixels: int = _ANY_SIZE, on_damage: OnDamage = lambda problem, code: None
) -> Iterator[MediaFile]:
    """Opens a video file for reading.

    Args:
        max_pixels: largest frame that is decoded, pixels.
        on_damage: called with a message and an error code for each piece of the video that cannot be decoded.

    Raises:
        VideoError: the file is missing or cannot be read, or it ends unexpectedly while it is read.
    """
    address = Address(str(path), "file", printable(path.name), "")
    limits = ReadLimits(max_pixels=max_pixels, threads=0, video_file=True)
    with ffmpeg_errors(path), Container(address, AS_IT_IS, limits, on_damage) as reader:
        video = reader.stream
        if video.time_base is None or not video.codec_context.width or not video.codec_context.height:
            raise VideoError(f"{path.name}: its video has no size; the file is damaged or cut short")
        position = Position.read(reader.container.metadata)
        yield MediaFile(path, reader, list(reader.container.streams.audio), position)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The properties of a video that `probe` reads."""

    duration_s: float
    """Duration of the video stream, seconds; the audio may be longer or shorter."""
    frames: int
    fps: float
    """Frames per second on average; 0 if the duration is unknown."""
    width: int
    """Width of the upright first frame, pixels: the rotation that the file asks for is applied."""
    height: int
    """Height of the same frame, pixels."""
    audio: bool
    """Whether the file has an audio stream."""


def probe(path: Path) -> VideoInfo:
    """Reads a video's properties and decodes its first frame.

    Raises:
        VideoError: the file has no video that can be decoded.
    """
    if (size := upright_size(path)) is None:
        raise VideoError(f"{path.name}: not one frame of its video can be decoded")
    with open_video(path) as media:
        base, video = Fraction(media.video.time_base), media.video
        frames, seconds = video.frames, (video.duration or 0) * base
        if not frames or not seconds:
            frames, seconds = _count_frames(media)
        audio = bool(media.audio)
    return VideoInfo(float(seconds), frames, float(frames / seconds) if seconds else 0.0, *size, audio)


def upright_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a video's first frame, upright, pixels; None if no frame can be decoded.

    Raises:
        VideoError: the file is missing or cannot be read.
    """
    with open_video(path) as media:
        first = next(iter(media.reader), None)
        return None if first is None else first.turn.size(first.decoded.width, first.decoded.height)


def _count_frames(media: MediaFile) -> tuple[int, Fraction]:
    """Frames and seconds of a video whose container does not store them, such as Matroska or a transport stream."""
    count, first, last = 0, None, Fraction(0)
    base = Fraction(media.video.time_base)
    for packet in media.container.demux(media.video):
        if packet.pts is None or packet.is_discard:
            continue
        count += 1
        first = packet.pts * base if first is None else min(first, packet.pts * base)
        last = max(last, (packet.pts + (packet.duration or round(1 / media.rate / base))) * base)
    return count, last - (first or Fraction(0))


# --- its frames ---


@dataclass(slots=True)
class VideoFrame:
    """One frame of a video."""

    number: int
    """Number in the whole video, from 0."""
    at: Fraction
    """Seconds from the whole video's beginning."""
    pts: int
    """The time from this file's beginning, in units of its video stream's time base; increases from frame to frame."""
    decoded: Any | None = None
    """The `av.VideoFrame` as stored, from which the new video's frame is made."""
    turn: Orientation = UPRIGHT
    """How `decoded` must be turned to be upright."""
    pixels: NDArray[np.uint8] | None = None
    """Upright, RGB uint8 `[height, width, 3]`, for the pipeline; dropped once the frame is analysed."""


def count_undecodable(problem: str, code: str) -> None:
    """Counts a piece of a video that cannot be decoded as a received and failed frame; `on_damage` of `open_video`."""
    metrics.FRAMES_RECEIVED.labels(ENTRY).inc()
    metrics.FRAMES_FAILED.labels(ENTRY, "decode").inc()
    if code != UndecodableFrame.code:  # undecodable frames are not logged, because a video may have many
        log.warning("a frame is left out: %s", problem)


class VideoReader:
    """Reads a video's frames in batches. Blocks; one thread at a time may use it."""

    def __init__(self, media: MediaFile) -> None:
        codec = media.video.codec_context
        self.width, self.height = codec.width, codec.height
        """Size of the frames as stored, pixels."""
        self._media = media
        self._frames = self._numbered()

    @property
    def undecodable(self) -> int:
        """Number of pieces so far that could not be decoded."""
        return self._media.reader.damaged

    def read(self, count: int) -> list[VideoFrame]:
        """The next frames, at most `count`; an empty list at the end.

        Raises:
            VideoError: the file ends unexpectedly, or not one of its frames can be decoded.
        """
        return list(islice(self._frames, count))

    def _numbered(self) -> Iterator[VideoFrame]:
        reader, position, last = self._media.reader, self._media.position, -1
        base = Fraction(self._media.video.time_base)
        for number, frame in enumerate(reader, position.first_frame):
            last = pts = max(round((frame.at + reader.first - self._media.origin) / base), last + 1)
            yield VideoFrame(number, position.start + pts * base, pts, frame.decoded, frame.turn, frame.pixels())
        if last < 0:
            raise VideoError(f"{self._media.path.name}: not one frame of its video can be decoded")
