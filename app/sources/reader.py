"""Reads frames from files, folders, URLs and this machine's cameras by PyAV: upright, on one clock.

`open_source` returns a reader. All entry points use it, so that for all of them FFmpeg may use only the protocols that
the kind of address needs, frames are upright, their times are on one clock that never goes back, sizes are limited
before decoding, interlaced recordings become progressive, and errors contain none of the address's secrets.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median_low
from types import TracebackType
from typing import Any, Literal, Protocol

import av
import av.error
import av.filter
import numpy as np
import simplejpeg
from av.stream import Disposition
from numpy.typing import NDArray

from app.errors import FrameError, FrameTooLarge, SightlineError, UndecodableFrame
from app.pipeline.decode import check_packet, inspect
from app.sources.address import Address, ffmpeg_name, printable
from app.sources.options import AS_IT_IS, Options
from app.sources.orientation import UPRIGHT, Orientation, of_exif, of_frame
from app.sources.truncation import truncation

OPEN_S, READ_S = 10.0, 5.0
"""Longest time for opening a source, and for waiting for its next data, seconds."""
MAX_PIXELS = 4096 * 4096
"""Most pixels of a frame, unless the settings give another limit."""
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
VIDEOS = frozenset(
    {".mp4", ".m4v", ".mkv", ".mov", ".avi", ".webm", ".ts", ".m2ts", ".mpg", ".mpeg", ".mjpeg", ".mjpg"}
)
_JPEGS = (".jpg", ".jpeg")
_STEADY = ("mov", "matroska", "avi", "asf")
"""Containers that store the times of the whole file, so that a long pause in one is a pause and no jump."""
_BURST_GAP_S = 2.0
_LIVE = {"fflags": "nobuffer", "flags": "low_delay"}
_WEB = "http,https,tcp,tls,crypto,data,httpproxy"
_PROTOCOLS = {
    "file": "file,crypto,data",
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto",
    "rtmp": "rtmp,rtmps,rtmpt,rtmpts,tcp,tls,http,https,ffrtmphttp,ffrtmpcrypt,crypto",
    "http": _WEB,
    "tcp": "tcp",
    "udp": "udp",
    "rtp": "rtp,srtp,udp",
    "srt": "srt,udp",
}
_PROTOCOLS |= {"rtsps": _PROTOCOLS["rtsp"], "rtmps": _PROTOCOLS["rtmp"], "https": _WEB}
"""The protocols that FFmpeg may use for a kind of address, also when a playlist or a redirect names another."""
_VIDEO_FILES = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,nut,mxf,mxf_opatom,gxf,dv,rm,ivf,"
    "yuv4mpegpipe,gif,apng,wtv",
    "fflags": "+genpts",
}
"""FFmpeg's options for `ReadLimits.video_file`: only containers that hold their own frames. Playlists and scripts are
not among them, because they name other files."""
_DEVICES = {"linux": "v4l2", "darwin": "avfoundation"}
_NO_TIMESTAMPS = 0x80
"""AVFMT_NOTIMESTAMPS: FFmpeg invents the times of such a stream from a frame rate."""

Pace = Literal["recorded", "bursts", "live"]
FieldOrder = Literal["tff", "bff"]
"""Whether the upper (top) or the lower (bottom) field of an interlaced frame comes first."""
OnDamage = Callable[[str, str], None]
"""Called with a message and a code (`undecodable`, `too_large`, `too_expensive`) for each piece that is not decoded.
Reading continues."""
_AUDIO_RESYNC_S = Fraction(1)
"""If audio and video are this close after a jump, the audio is aligned with the video again, seconds."""


# --- errors ---


class SourceError(SightlineError):
    """The source cannot be read. `code` is the reason under which a frame of it is counted."""

    code = UndecodableFrame.code
    errno: int | None = None
    """The operating system's error number, if it reported one."""


class SourceLost(SourceError):
    """The source cannot be opened, or sends nothing more. Opening it again may help."""


class TooLarge(SourceError):
    """The source's frames have too many pixels or would take too long to decode."""

    def __init__(self, message: str, code: str = FrameTooLarge.code) -> None:
        super().__init__(message)
        self.code = code


# --- what is read ---


@dataclass(slots=True)
class SourceFrame:
    """One frame of a source: either `jpeg` or `decoded` is set."""

    at: Fraction
    """Seconds since the source's first frame, on a clock without jumps."""
    lasts: Fraction = Fraction(1, 25)
    """Seconds until the next frame, as declared by the source or estimated."""
    jpeg: bytes | None = None
    """The source's own JPEG, if it is upright."""
    decoded: Any = None
    """An `av.VideoFrame` as stored."""
    turn: Orientation = UPRIGHT
    """How `decoded` must be turned to be upright."""

    def pixels(self) -> NDArray[np.uint8]:
        """Upright, RGB uint8 `[height, width, 3]`."""
        if self.jpeg is not None:
            return np.asarray(simplejpeg.decode_jpeg(self.jpeg, "RGB"))
        return np.ascontiguousarray(self.turn.apply(self.decoded.to_ndarray(format="rgb24")))

    def encoded(self, quality: int) -> bytes:
        """JPEG, 4:2:0; the source's own JPEG if there is one."""
        return self.jpeg if self.jpeg is not None else encode(self.pixels(), quality)


def encode(rgb: NDArray[Any], quality: int = 85) -> bytes:
    """Encodes an image, RGB uint8 `[height, width, 3]`, as JPEG, 4:2:0."""
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=quality, colorsubsampling="420")
    return jpeg


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """How a source is read, and how much reading it may take."""

    max_pixels: int = MAX_PIXELS
    """Most pixels of a frame."""
    max_bytes: int = 64 << 20
    """Most bytes of an image file, and of a frame of Motion JPEG."""
    threads: int = 1
    """Threads of a decoder; 0: FFmpeg chooses."""
    image_s: float = 1 / 25
    """Seconds that each image of a folder is shown for."""
    with_audio: bool = False
    """Whether audio is read, too. `Container.audio` holds it until it is taken."""
    keeps_pauses: bool = False
    """Whether a long pause in a file stays, if its kind of file stores reliable times; otherwise it is skipped as a
    jump."""
    video_file: bool = False
    """Whether the source must be a file that holds its own frames; playlists and scripts, which name other files, are
    refused. All its frames come decoded, none as JPEG, and every pause stays."""


class Reader(Protocol):
    """An open source: a context manager, and an iterator over its frames in order."""

    pace: Pace
    """`recorded`: a frame is due at its time; `bursts`: likewise, although the source is live, because its frames
    arrive seconds at once (HLS); `live`: a frame is due when it arrives."""
    frames: int | None
    """Number of frames; None if it is unknown."""
    fps: float
    """Average frames per second that the source declares."""
    damaged: int
    """Pieces so far that could not be decoded."""

    @property
    def period(self) -> Fraction:
        """Seconds that the last frame is shown for."""
        ...

    def truncated(self) -> list[str]:
        """A sentence for each truncated file of the source. Blocks, because some files are read to their end."""
        ...

    def __iter__(self) -> Iterator[SourceFrame]: ...

    def __enter__(self) -> Reader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(
    address: Address,
    options: Options | None = None,
    limits: ReadLimits | None = None,
    on_damage: OnDamage = lambda problem, code: None,
) -> Reader:
    """Opens a source. Blocks; if it is no file, at most `OPEN_S`.

    Raises:
        SourceError: the source cannot be opened, or has no frames.
    """
    options, limits = options or AS_IT_IS, limits or ReadLimits()
    if address.kind == "folder":
        return Folder(address, options, limits, on_damage)
    if address.kind == "file" and Path(address.text).suffix.lower() in IMAGES:
        return ImageFile(address, options, limits, on_damage)
    return Container(address, options, limits, on_damage)


def played(opening: Callable[[], Reader], *, again: bool = False) -> Iterator[tuple[Reader, SourceFrame]]:
    """Yields a source's frames.

    Args:
        opening: opens the source.
        again: repeats a recording on one clock, until one round has no frames.
    """
    start = Fraction(0)
    while True:
        last: Fraction | None = None
        with opening() as reader:
            for frame in reader:
                last = frame.at
                frame.at += start
                yield reader, frame
            if last is None or not again or reader.pace != "recorded":
                return
            start += last + reader.period


# --- the readers ---


class Container:
    """Reads one file, URL or device."""

    def __init__(self, address: Address, options: Options, limits: ReadLimits, on_damage: OnDamage) -> None:
        self.address = address
        self.damaged = 0
        self._options = options
        self._limits = limits
        self._on_damage = on_damage
        with source_errors(address):
            self.container: Any = _open(address, options, limits)
        try:
            with source_errors(address):
                self.stream = self._choose_stream()
        except BaseException:
            self.container.close()
            raise
        recorded = address.kind == "file" or (address.is_url and self.container.duration is not None)
        name = self.container.format.name.split(",")[0]
        self.pace: Pace = "recorded" if recorded else "bursts" if name == "hls" else "live"
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = Fraction(rate) if rate and 1 / 3600 < rate <= 1000 else Fraction(25)
        """Average frames per second that the source declares; 25 if it declares none."""
        self.fps = float(self.rate)
        self.frames: int | None = (self.stream.frames or None) if recorded else None
        gap_s: float | None = _BURST_GAP_S if self.pace == "bursts" else GAP_S
        if limits.video_file or (recorded and limits.keeps_pauses and name in _STEADY):
            gap_s = None
        self.clock = Clock(Fraction(1 / self.fps).limit_denominator(90_000), gap_s=gap_s)
        streams = list(self.container.streams.audio) if limits.with_audio else []
        self.audio = AudioBuffer([stream for stream in streams if stream.codec_context is not None], self.clock, gap_s)
        self._timeless = self.pace == "live" and bool(self.container.format.flags & _NO_TIMESTAMPS)
        self._began: float | None = None
        self._lasts: Fraction | None = None
        self._passes: bool | None = False if limits.video_file else None
        """Whether the source's own JPEGs are passed on; None until the first has been checked."""
        self._fields: FieldOrder | None = None
        """The order of the fields if it is Motion JPEG whose packets hold the JPEGs of two fields, each half as high as
        the frame that FFmpeg makes of both."""
        # Only for recordings, because it delays frames by one.
        self._deinterlacer = Deinterlacer() if recorded else None

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the source. No other thread may be reading it."""
        self.container.close()

    @property
    def period(self) -> Fraction:
        # The last packet's. A decoded frame's duration may be that of another frame if there are B-frames.
        return self._lasts or self.clock.period

    @property
    def origin(self) -> Fraction:
        """The source's first moment, perhaps of audio, on its own clock, seconds; transport streams begin at any
        time.
        """
        start, base = self.container.start_time, Fraction(self.stream.time_base)
        return Fraction(0) if start is None else (Fraction(start, av.time_base) // base) * base

    @property
    def first(self) -> Fraction:
        """The first frame's time on the source's own clock, seconds; 0 until that frame is read."""
        return -self.clock.offsets[0] if self.clock.offsets else Fraction(0)

    @property
    def lead(self) -> Fraction:
        """Seconds from the source's first moment to its first frame; 0 until that frame is read."""
        if self.container.start_time is None or not self.clock.offsets:
            return Fraction(0)
        return max(Fraction(0), self.first - self.origin)

    @property
    def left_out(self) -> list[str]:
        """The source's streams that are not read, in words."""
        words = {"video": "another video", "audio": "sound", "subtitle": "subtitles"}
        covers = [video for video in self.container.streams.video if video.disposition & Disposition.attached_pic]
        read = (self.stream, *covers, *self.audio.streams)
        return [
            f"{words.get(str(stream.type), f'a stream of {stream.type}')}"
            + (f", {stream.codec_context.name}" if stream.codec_context is not None else "")
            for stream in self.container.streams
            if stream not in read
        ]

    def truncated(self) -> list[str]:
        lacks = truncation(Path(self.address.text), self.address.shown) if self.address.kind == "file" else None
        return [] if lacks is None else [lacks]

    def __iter__(self) -> Iterator[SourceFrame]:
        with source_errors(self.address):
            for packet in self.container.demux(self.stream, *self.audio.streams):
                if packet.stream_index != self.stream.index:
                    self.audio.put(packet)
                    continue
                if packet.duration:
                    self._lasts = packet.duration * Fraction(packet.time_base)
                try:
                    found = self._decode(packet)
                except (av.error.InvalidDataError, av.error.ArgumentError) as error:
                    self._damage(str(error.strerror), UndecodableFrame.code)
                    continue
                except FrameError as error:
                    self._damage(str(error), error.code)
                    continue
                yield from self._with_times(found)
            if self._deinterlacer is not None:
                yield from self._with_times([(raw, self._frame(raw, UPRIGHT)) for raw in self._deinterlacer.flush()])

    def _with_times(self, found: list[tuple[Any, SourceFrame]]) -> Iterator[SourceFrame]:
        for timed, frame in found:
            frame.at, frame.lasts = self._time(timed)
            yield frame

    def _choose_stream(self) -> Any:
        """The first video stream that is no cover image, ready to be decoded."""
        shown, most = self.address.shown, self._limits.max_pixels
        videos = [video for video in self.container.streams.video if not video.disposition & Disposition.attached_pic]
        if not videos:
            raise SourceLost(f"{shown}: there is no video in it")
        stream = videos[0]
        codec = stream.codec_context
        if codec is None:
            raise SourceError(f"{shown}: its video is of a kind that cannot be decoded here")
        if codec.width * codec.height > most:
            raise self._too_large(codec.width, codec.height)
        codec.thread_count = self._limits.threads
        codec.thread_type = "NONE" if self._limits.threads == 1 else "AUTO"
        # With this limit FFmpeg refuses a larger frame before it allocates memory for it, even if the header declares a
        # smaller one.
        codec.options = {"max_pixels": str(most)}
        return stream

    def _too_large(self, width: int, height: int) -> TooLarge:
        return TooLarge(
            f"{self.address.shown}: its frames are {width}x{height}; "
            f"at most {self._limits.max_pixels:,} pixels are taken, which is MAX_PIXELS"
        )

    def _decode(self, packet: Any) -> list[tuple[Any, SourceFrame]]:
        """Decodes a packet; returns its frames, each with the frame or packet of PyAV that has its time."""
        if self.stream.codec_context.name != "mjpeg" or not packet.size:
            return [(raw, self._frame(raw, UPRIGHT)) for raw in self._deinterlaced(packet.decode())]
        jpeg = bytes(packet)
        check_packet(jpeg, max_pixels=self._limits.max_pixels)
        turn, height = UPRIGHT, None
        with suppress(UndecodableFrame):  # FFmpeg decodes some JPEGs that other decoders refuse
            info = inspect(jpeg, max_bytes=self._limits.max_bytes, max_pixels=self._limits.max_pixels)
            turn, height = of_exif(info.orientation), info.height
        decoded: list[Any] | None = None
        if self._passes is None:
            decoded = packet.decode()
            upright = not decoded or not turn.upright or self._turn(decoded[0], UPRIGHT).upright
            whole = height is not None and (not decoded or decoded[0].height == height)
            self._passes = upright and whole and not self._options.rotation and _is_jpeg(jpeg)
        if self._passes and height is not None and (turn.upright or self._options.rotation == 0):
            return [(packet, SourceFrame(Fraction(0), jpeg=jpeg))]
        decoded = packet.decode() if decoded is None else decoded
        if decoded and height is not None:
            if decoded[0].height != 2 * height:
                self._fields = None
            elif self._fields is None:
                self._fields = _field_order(jpeg, decoded[0])
        return [(raw, self._frame(raw, turn)) for raw in self._deinterlaced(decoded, self._fields)]

    def _deinterlaced(self, frames: list[Any], fields: FieldOrder | None = None) -> list[Any]:
        if self._deinterlacer is None:
            return frames
        return [progressive for frame in frames for progressive in self._deinterlacer.push(frame, fields)]

    def _frame(self, raw: Any, exif: Orientation) -> SourceFrame:
        if raw.width * raw.height > self._limits.max_pixels:
            raise self._too_large(raw.width, raw.height)
        return SourceFrame(Fraction(0), decoded=raw, turn=self._turn(raw, exif))

    def _turn(self, frame: Any, exif: Orientation) -> Orientation:
        if self._options.rotation is not None:
            return Orientation.from_degrees(self._options.rotation)
        return of_frame(frame) if exif.upright else exif

    def _time(self, timed: Any) -> tuple[Fraction, Fraction]:
        """When a frame is shown, and for how long, seconds.

        Args:
            timed: the frame or packet of PyAV that has the time.
        """
        if self._timeless:
            now = time.monotonic()
            self._began = now if self._began is None else self._began
            return self.clock.at(Fraction(now - self._began).limit_denominator(1_000_000)), self.clock.period
        base = Fraction(timed.time_base or self.stream.time_base or 0)
        at = self.clock.at(None if timed.pts is None or not base else timed.pts * base)
        return at, timed.duration * base if timed.duration else self.clock.period

    def _damage(self, problem: str, code: str) -> None:
        self.damaged += 1
        self._on_damage(f"{self.address.shown}: {self.address.redact(problem)}", code)


class ImageFile:
    """Reads one image file."""

    pace: Pace = "recorded"
    frames: int | None = 1

    def __init__(self, address: Address, options: Options, limits: ReadLimits, on_damage: OnDamage) -> None:
        self.fps = 1 / limits.image_s
        self.period = Fraction(limits.image_s).limit_denominator(90_000)
        self.damaged = 0
        self._address = address
        self._options = options
        self._limits = limits
        self._on_damage = on_damage

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing, because no file stays open."""

    def truncated(self) -> list[str]:
        return []

    def __iter__(self) -> Iterator[SourceFrame]:
        with source_errors(self._address):
            try:
                frame = self._read_jpeg() or self._decode()
            except FrameError as error:
                raise TooLarge(f"{self._address.shown}: {error}", error.code) from None
            frame.lasts = self.period
            yield frame

    def _read_jpeg(self) -> SourceFrame | None:
        """The file's own JPEG, if it is upright and any decoder accepts it."""
        path = Path(self._address.text)
        if path.suffix.lower() not in _JPEGS or path.stat().st_size > self._limits.max_bytes:
            return None
        jpeg = path.read_bytes()
        check_packet(jpeg, max_pixels=self._limits.max_pixels)
        try:
            info = inspect(jpeg, max_bytes=self._limits.max_bytes, max_pixels=self._limits.max_pixels)
        except UndecodableFrame:  # FFmpeg decodes some JPEGs that other decoders refuse
            return None
        if not _is_jpeg(jpeg):
            return None
        rotation = self._options.rotation
        turn = of_exif(info.orientation) if rotation is None else Orientation.from_degrees(rotation)
        if turn.upright:
            return SourceFrame(Fraction(0), jpeg=jpeg)
        pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
        return SourceFrame(Fraction(0), decoded=av.VideoFrame.from_ndarray(pixels, format="rgb24"), turn=turn)

    def _decode(self) -> SourceFrame:
        with Container(self._address, self._options, self._limits, self._on_damage) as container:
            for frame in container:
                frame.at = Fraction(0)
                return frame
        raise SourceLost(
            f"{self._address.shown}: no image that can be read, "
            f"or one of more than {self._limits.max_pixels:,} pixels, which is MAX_PIXELS"
        )


class Folder:
    """Reads all images and videos of a folder by name, one after the other, and leaves out those it cannot read."""

    pace: Pace = "recorded"

    def __init__(self, address: Address, options: Options, limits: ReadLimits, on_damage: OnDamage) -> None:
        with source_errors(address):
            names = sorted(os.listdir(address.text))
        members = [Path(address.text, name) for name in names if Path(name).suffix.lower() in IMAGES | VIDEOS]
        if not members:
            raise SourceLost(f"{address.shown}: no images or videos in it ({', '.join(sorted(IMAGES | VIDEOS))})")
        self.fps = 1 / limits.image_s
        self.period = Fraction(limits.image_s).limit_denominator(90_000)
        self.damaged = 0
        self.frames = len(members) if all(path.suffix.lower() in IMAGES for path in members) else None
        self._members = [Address(str(path), "file", printable(str(path)), "") for path in members]
        self._opening = (options, limits, on_damage)
        self._on_damage = on_damage

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing, because no file stays open."""

    def truncated(self) -> list[str]:
        videos = [member for member in self._members if Path(member.text).suffix.lower() in VIDEOS]
        return [lacks for video in videos if (lacks := truncation(Path(video.text), video.shown)) is not None]

    def __iter__(self) -> Iterator[SourceFrame]:
        start = Fraction(0)
        for member in self._members:
            last: Fraction | None = None
            try:
                with open_source(member, *self._opening) as reader:
                    for frame in reader:
                        last = frame.at
                        frame.at += start
                        yield frame
                    self.damaged += reader.damaged
            except SourceError as error:
                self.damaged += 1
                self._on_damage(f"left out: {error}", error.code)
            if last is not None:
                self.period = reader.period  # the folder's last frame may be one of a video
                start += last + self.period


# --- parts of a container: its clock, progressive frames, audio ---

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


class Deinterlacer:
    """Makes a recording's frames progressive, each at its own time; adds no frames and leaves none out.

    Frames before the first interlaced one pass unchanged and at once. From then on each frame comes one frame later,
    and progressive ones still pass unchanged. Each frame tells whether it is interlaced and which of its two fields is
    the earlier, unless `push` is told.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._format: tuple[object, ...] = ()
        self._inside: deque[Any] = deque()
        """Time, time base and duration of each frame inside the filter."""

    def push(self, frame: Any, fields: FieldOrder | None = None) -> Iterator[Any]:
        """Takes the next `av.VideoFrame`; yields those that are ready.

        Args:
            fields: the frame is interlaced in this order, whatever it tells.
        """
        if self._graph is not None and (*_frame_format(frame), fields) != self._format:
            yield from self.flush()
        if self._graph is None:
            if not (frame.interlaced_frame or fields):
                yield frame
                return
            self._open(frame, fields)
        self._inside.append((frame.pts, frame.time_base, frame.duration))
        self._graph.push(frame)
        yield from self._ready()

    def flush(self) -> Iterator[Any]:
        """Yields the remaining frames."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._ready()
            self._graph = None

    def _open(self, frame: Any, fields: FieldOrder | None) -> None:
        self._format = (*_frame_format(frame), fields)
        graph = av.filter.Graph()
        # The filter's times are not used, because some frames have none; frames are recognized by their order.
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base or Fraction(1)
        )
        bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        sink = graph.add("buffersink")
        graph.link_nodes(source, *([graph.add("setfield", fields)] if fields else []), bwdif, sink).configure()
        self._graph = graph

    def _ready(self) -> Iterator[Any]:
        while self._inside:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            frame.pts, frame.time_base, frame.duration = self._inside.popleft()
            yield frame


def _frame_format(frame: Any) -> tuple[object, ...]:
    return frame.width, frame.height, frame.format.name


def _field_order(packet: bytes, frame: Any) -> FieldOrder:
    """The order of the fields in a frame that FFmpeg made of a Motion JPEG packet, whose first JPEG is the earlier one.

    FFmpeg weaves both into one `av.VideoFrame`, but does not tell which of them it took for the upper field.
    """
    try:
        first = np.asarray(simplejpeg.decode_jpeg(packet, "GRAY"), np.int16)[:, :, 0]
    except ValueError:
        return "bff"  # as FFmpeg supposes for AVI
    grey = frame.to_ndarray(format="gray")
    upper, lower = (int(np.abs(first - grey[row::2]).sum()) for row in (0, 1))
    return "tff" if upper <= lower else "bff"


class AudioBuffer:
    """Holds the packets of a source's audio streams, to be copied, with their times on the clock of the source's
    frames.

    One thread may `put` what is read while another takes it by `until`.

    Where the source's times jump, those of the audio jump, too: each stream has a clock of its own, and after a jump it
    is aligned with the frames again.

    Args:
        frames: the clock of the source's frames.
        gap_s: the same as that clock's.
    """

    def __init__(self, streams: list[Any], frames: Clock, gap_s: float | None) -> None:
        self.streams = streams
        self._frames = frames
        self._numbers = {stream.index: number for number, stream in enumerate(streams)}
        self._clocks = [Clock(Fraction(1, 50), gap_s=gap_s) for _ in streams]
        self._first: list[Fraction | None] = [None] * len(streams)
        """The time of each stream's first packet on the source's own clock."""
        self._waiting: deque[tuple[int, Any, Fraction, Fraction, int]] = deque()
        """Number of the stream, packet, its time, its time on the stream's clock, and how often that clock jumped."""

    def put(self, packet: Any) -> None:
        """Adds a packet as it was read from the source."""
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
        """Removes the packets that begin before this moment; yields number of the stream, packet and its time.

        Times are seconds on the clock of the frames, whose first frame is at 0; earlier audio has a negative time.

        Args:
            moment: on that clock; None: removes all packets.
        """
        offsets = self._frames.offsets
        while self._waiting and offsets:
            number, packet, time, own, jumps = self._waiting[0]
            first = self._first[number]
            assert first is not None
            at = first + offsets[0] + own
            if 0 < jumps < len(offsets) and abs(time + offsets[jumps] - at) <= _AUDIO_RESYNC_S:
                at = time + offsets[jumps]
            if moment is not None and at >= moment:
                return
            self._waiting.popleft()
            yield number, packet, at


# --- opening ---


def _open(address: Address, options: Options, limits: ReadLimits) -> Any:
    chosen = {"max_pixels": str(limits.max_pixels)}
    waits = (OPEN_S, READ_S)
    if address.kind == "device":
        return _open_device(address, {**chosen, **dict(options.ffmpeg)})
    chosen["protocol_whitelist"] = _PROTOCOLS[address.kind]
    if address.kind == "file":
        if limits.video_file:
            # Without a time limit, because the index of a long video may be spread over the whole file.
            return av.open(ffmpeg_name(address.text), options={**chosen, **_VIDEO_FILES}, metadata_errors="replace")
        # With the prefix a colon in a name is no protocol. Images are passed by content, so that a % in a name is no
        # pattern.
        chosen |= dict(options.ffmpeg)
        if Path(address.text).suffix.lower() in IMAGES:
            with Path(address.text).open("rb") as file:
                return av.open(io.BytesIO(file.read(limits.max_bytes)), options=chosen, metadata_errors="replace")
        return av.open(ffmpeg_name(address.text), options=chosen, timeout=waits, metadata_errors="replace")
    # Without a buffer FFmpeg loses what it read to find the streams. For HTTP those are seconds of a recording or
    # playlist.
    chosen |= {} if address.kind in ("http", "https") else _LIVE
    chosen |= dict(options.ffmpeg)
    if address.kind.startswith("rtsp"):
        if options.transport == "auto":
            flags = chosen.get("rtsp_flags")
            chosen["rtsp_flags"] = f"{flags}+prefer_tcp" if flags else "prefer_tcp"
        else:
            chosen["rtsp_transport"] = options.transport
    return av.open(address.text, options=chosen, timeout=waits, metadata_errors="replace")


def _open_device(address: Address, chosen: dict[str, str]) -> Any:
    system = _DEVICES.get(sys.platform)
    if system is None:
        raise SourceError(f"{address.shown}: cameras of this machine are read on Linux and macOS only; want a URL")
    name = address.text if system == "v4l2" else address.text.removeprefix("/dev/video")
    if system == "v4l2" and "input_format" not in chosen:
        try:  # most cameras send more frames per second as JPEG, and those need no encoding
            return av.open(name, format=system, options={**chosen, "input_format": "mjpeg"}, timeout=(OPEN_S, READ_S))
        except av.error.FFmpegError:
            pass
    return av.open(name, format=system, options=chosen, timeout=(OPEN_S, READ_S))


@contextmanager
def source_errors(address: Address) -> Iterator[None]:
    """Replaces FFmpeg's errors by ours, whose messages contain none of the address's secrets.

    Raises:
        SourceLost: in place of FFmpeg's error.
    """
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        lost = SourceLost(_message(address, error))
        lost.errno = getattr(error, "errno", None)
        raise lost from None


def _message(address: Address, error: Exception) -> str:
    shown = address.shown
    reason = address.redact(getattr(error, "strerror", None) or str(error) or type(error).__name__)
    if isinstance(error, av.error.ExitError):
        reason = f"no data for {READ_S:g} s"
    elif isinstance(error, av.error.ProtocolNotFoundError):
        reason = f"{address.kind}:// is not in the FFmpeg that PyAV brings here"
    elif address.kind.startswith("rtsp") and getattr(error, "errno", None) == errno.EPROTONOSUPPORT:
        reason += "; the camera does not have this transport, want another (transport: auto, tcp, udp)"
    if address.kind == "device":
        return (
            f"camera {shown.removeprefix('/dev/video')} ({shown}): cannot be opened ({reason}); is it there, and free?"
        )
    if address.is_url:
        return f"{shown}: {reason}"
    if isinstance(error, OSError) and not isinstance(error, av.error.InvalidDataError):
        return f"{shown}: {reason}"
    what = "image" if Path(address.text).suffix.lower() in IMAGES else "video"
    return f"{shown}: no {what} that can be read ({reason})"


def _is_jpeg(jpeg: bytes) -> bool:
    """Whether every decoder accepts it: the "JPEG" of some cameras is incomplete."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True
