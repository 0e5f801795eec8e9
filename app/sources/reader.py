"""Moving pictures read: files, folders, URLs and cameras of this machine, by PyAV; upright, on one clock.

`open_source` gives a reader. What every entry point needs is done here: the address is opened with what its kind allows
and nothing else, pictures are turned as the source asks for, their times become one clock that only goes on, sizes are
bounded before anything is decoded, and what goes wrong is said without the address' secrets.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import av
import av.error
import numpy as np
import simplejpeg
from av.stream import Disposition
from numpy.typing import NDArray

from app.errors import FrameError, FrameTooLarge, SightlineError, UndecodableFrame
from app.pipeline.decode import check_packet, inspect
from app.sources import orientation
from app.sources.address import Address, ffmpeg_name, printable
from app.sources.clock import GAP_S, Clock
from app.sources.fields import Deinterlacer
from app.sources.options import AS_IT_IS, Options
from app.sources.orientation import UPRIGHT, Orientation
from app.sources.sound import Sound
from app.sources.truncation import truncation

OPEN_S, READ_S = 10.0, 5.0
"""Longest wait for a source to open, and for its next data."""
MAX_PIXELS = 4096 * 4096
"""Of a picture, unless the settings say otherwise."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
VIDEOS = frozenset(
    {".mp4", ".m4v", ".mkv", ".mov", ".avi", ".webm", ".ts", ".m2ts", ".mpg", ".mpeg", ".mjpeg", ".mjpg"}
)
_JPEGS = (".jpg", ".jpeg")
_STEADY = ("mov", "matroska", "avi", "asf")
"""Containers whose times were written down for the whole file: a long pause in one is a pause."""
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
"""What FFmpeg may open for a kind of address, also where a playlist or a redirect names something else."""
_FILMS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,nut,mxf,mxf_opatom,gxf,dv,rm,ivf,"
    "yuv4mpegpipe,gif,apng,wtv",
    "fflags": "+genpts",
}
"""Of recorded film: containers that hold their own frames. Playlists and scripts, which name other files, are none."""
_DEVICES = {"linux": "v4l2", "darwin": "avfoundation"}
_NO_TIMESTAMPS = 0x80
"""AVFMT_NOTIMESTAMPS: the times of such a stream are made up from a frame rate."""

Pace = Literal["recorded", "bursts", "live"]
OnDamage = Callable[[str, str], None]
"""Is given a line and a code (`undecodable`, `too_large`, `too_expensive`) for each piece that is not decoded; reading
goes on."""


class SourceError(SightlineError):
    """The source cannot be read. `code` is what a counter of its pictures says of one."""

    code = UndecodableFrame.code
    errno: int | None = None
    """The system's, where it was its error."""


class SourceLost(SourceError):
    """The source cannot be opened, or gives nothing more. It may be worth trying again."""


class TooLarge(SourceError):
    """The source's pictures have more pixels than are taken, or would cost too much."""

    def __init__(self, message: str, code: str = FrameTooLarge.code) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Shot:
    """One picture, not yet encoded: one of `jpeg` and `frame` is there."""

    at: Fraction
    """Seconds since the source's first picture, on a clock without jumps."""
    lasts: Fraction = Fraction(1, 25)
    """Seconds until the next picture, as far as the source says."""
    jpeg: bytes | None = None
    """As the source gave it; it is upright."""
    frame: Any = None
    """An `av.VideoFrame`, as it is stored."""
    turn: Orientation = UPRIGHT
    """What is to be done to `frame`, for it to be upright."""

    def pixels(self) -> NDArray[np.uint8]:
        """Upright, RGB uint8 `[height, width, 3]`."""
        if self.jpeg is not None:
            return np.asarray(simplejpeg.decode_jpeg(self.jpeg, "RGB"))
        return orientation.contiguous(self.turn.apply(self.frame.to_ndarray(format="rgb24")))

    def encoded(self, quality: int) -> bytes:
        """JPEG, 4:2:0; as the source gave it, where it gave one."""
        return self.jpeg if self.jpeg is not None else encode(self.pixels(), quality)


def encode(rgb: NDArray[Any], quality: int = 85) -> bytes:
    """JPEG, 4:2:0, of a picture RGB uint8 `[height, width, 3]`."""
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=quality, colorsubsampling="420")
    return jpeg


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading a source may take."""

    max_pixels: int = MAX_PIXELS
    """Of a picture."""
    max_bytes: int = 64 << 20
    """Of a picture's file, and of a picture of Motion JPEG."""
    threads: int = 1
    """Of a decoder; 0: as many as FFmpeg likes."""
    picture_s: float = 1 / 25
    """Seconds that each picture of a folder is shown for."""
    with_sound: bool = False
    """Whether sound is read, too: `Container.sound` holds it until somebody takes it."""
    keeps_pauses: bool = False
    """Whether a long pause in a file is one, and no jump to be passed over, where the kind of file can be relied on."""
    film: bool = False
    """Whether it is recorded film: a file that holds its own frames, and no playlist or script, which name others. All
    its pictures come as frames, none as JPEG, and every pause is one."""


class Reader(Protocol):
    """An open source: a context, and an iterator over its pictures in their order."""

    pace: Pace
    """`recorded`: a picture is due at its time; `bursts`: the same, though it happens now (HLS comes in pieces of
    seconds); `live`: a picture is due when it comes."""
    frames: int | None
    """How many there will be; None where nobody knows."""
    fps: float
    """On average, as far as the source says."""
    damaged: int
    """Pieces so far that held no picture that could be decoded."""

    @property
    def period(self) -> Fraction:
        """Seconds that the last picture is to be shown for."""
        ...

    def truncated(self) -> list[str]:
        """What its files lack of what they declare, in words. Blocks: some are read through for it."""
        ...

    def __iter__(self) -> Iterator[Shot]: ...

    def __enter__(self) -> Reader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(
    address: Address,
    options: Options | None = None,
    limits: Limits | None = None,
    on_damage: OnDamage = lambda problem, code: None,
) -> Reader:
    """Opens a source. Blocks, `OPEN_S` at most where it is not a file.

    Raises:
        SourceError: it cannot be opened, or has no pictures.
    """
    options, limits = options or AS_IT_IS, limits or Limits()
    if address.kind == "folder":
        return Folder(address, options, limits, on_damage)
    if address.kind == "file" and Path(address.text).suffix.lower() in PICTURES:
        return Still(address, options, limits, on_damage)
    return Container(address, options, limits, on_damage)


def played(opening: Callable[[], Reader], *, again: bool = False) -> Iterator[tuple[Reader, Shot]]:
    """A source's pictures; with `again` a recording's over and over, on one clock, until one round brings none."""
    start = Fraction(0)
    while True:
        last: Fraction | None = None
        with opening() as reader:
            for shot in reader:
                last = shot.at
                shot.at += start
                yield reader, shot
            if last is None or not again or reader.pace != "recorded":
                return
            start += last + reader.period


class Container:
    """One file, URL or device."""

    def __init__(self, address: Address, options: Options, limits: Limits, on_damage: OnDamage) -> None:
        self.address = address
        self.damaged = 0
        self._options = options
        self._limits = limits
        self._on_damage = on_damage
        with explained(address):
            self.container: Any = _open(address, options, limits)
        try:
            with explained(address):
                self.stream = self._choose()
        except BaseException:
            self.container.close()
            raise
        recorded = address.kind == "file" or (address.is_url and self.container.duration is not None)
        name = self.container.format.name.split(",")[0]
        self.pace: Pace = "recorded" if recorded else "bursts" if name == "hls" else "live"
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = Fraction(rate) if rate and 1 / 3600 < rate <= 1000 else Fraction(25)
        """Frames a second, on average, as far as the source says."""
        self.fps = float(self.rate)
        self.frames: int | None = (self.stream.frames or None) if recorded else None
        gap_s: float | None = _BURST_GAP_S if self.pace == "bursts" else GAP_S
        if limits.film or (recorded and limits.keeps_pauses and name in _STEADY):
            gap_s = None
        self.clock = Clock(Fraction(1 / self.fps).limit_denominator(90_000), gap_s=gap_s)
        heard = list(self.container.streams.audio) if limits.with_sound else []
        self.sound = Sound([stream for stream in heard if stream.codec_context is not None], self.clock, gap_s)
        self._timeless = self.pace == "live" and bool(self.container.format.flags & _NO_TIMESTAMPS)
        self._began: float | None = None
        self._lasts: Fraction | None = None
        self._passes: bool | None = False if limits.film else None
        """Whether a JPEG is handed on as it came; None until the first has been looked at."""
        # Only of recordings: a picture comes one later by it.
        self._fields = Deinterlacer() if recorded else None

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the source. Reading it must be over."""
        self.container.close()

    @property
    def period(self) -> Fraction:
        # The last packet's: a frame's own is in the order of decoding, and another frame's where there are B-frames.
        return self._lasts or self.clock.period

    @property
    def origin(self) -> Fraction:
        """The source's first moment, of sound maybe, on its own clock, seconds: transport streams begin anywhere."""
        start, base = self.container.start_time, Fraction(self.stream.time_base)
        return Fraction(0) if start is None else (Fraction(start, av.time_base) // base) * base

    @property
    def first(self) -> Fraction:
        """When the first picture is to be shown, on the source's own clock, seconds; 0 until it is read."""
        return -self.clock.offsets[0] if self.clock.offsets else Fraction(0)

    @property
    def lead(self) -> Fraction:
        """Seconds from the source's first moment to its first picture; 0 until that is read."""
        if self.container.start_time is None or not self.clock.offsets:
            return Fraction(0)
        return max(Fraction(0), self.first - self.origin)

    @property
    def left_out(self) -> list[str]:
        """What the source holds beside its pictures and sound, in words."""
        words = {"video": "another video", "audio": "sound", "subtitle": "subtitles"}
        covers = [one for one in self.container.streams.video if one.disposition & Disposition.attached_pic]
        rest = [one for one in self.container.streams if one not in (self.stream, *covers, *self.sound.streams)]
        return [
            f"{words.get(str(one.type), f'a stream of {one.type}')}"
            + (f", {one.codec_context.name}" if one.codec_context is not None else "")
            for one in rest
        ]

    def truncated(self) -> list[str]:
        lacks = truncation(Path(self.address.text), self.address.shown) if self.address.kind == "file" else None
        return [] if lacks is None else [lacks]

    def __iter__(self) -> Iterator[Shot]:
        with explained(self.address):
            for packet in self.container.demux(self.stream, *self.sound.streams):
                if packet.stream_index != self.stream.index:
                    self.sound.take(packet)
                    continue
                if packet.duration:
                    self._lasts = packet.duration * Fraction(packet.time_base)
                try:
                    found = self._decoded(packet)
                except (av.error.InvalidDataError, av.error.ArgumentError) as error:
                    self._damage(str(error.strerror), UndecodableFrame.code)
                    continue
                except FrameError as error:
                    self._damage(str(error), error.code)
                    continue
                yield from self._timed(found)
            if self._fields is not None:
                yield from self._timed([(frame, self._shot(frame, UPRIGHT)) for frame in self._fields.rest()])

    def _timed(self, found: list[tuple[Any, Shot]]) -> Iterator[Shot]:
        for timed, shot in found:
            shot.at, shot.lasts = self._time(timed)
            yield shot

    def _choose(self) -> Any:
        """The first video stream that is no cover, ready to be decoded."""
        shown, most = self.address.shown, self._limits.max_pixels
        video = [one for one in self.container.streams.video if not one.disposition & Disposition.attached_pic]
        if not video:
            raise SourceLost(f"{shown}: there is no video in it")
        stream = video[0]
        codec = stream.codec_context
        if codec is None:
            raise SourceError(f"{shown}: its video is of a kind that cannot be decoded here")
        if codec.width * codec.height > most:
            raise self._too_large(codec.width, codec.height)
        codec.thread_count = self._limits.threads
        codec.thread_type = "NONE" if self._limits.threads == 1 else "AUTO"
        # A picture that is larger than the header says is refused before there is memory for it.
        codec.options = {"max_pixels": str(most)}
        return stream

    def _too_large(self, width: int, height: int) -> TooLarge:
        return TooLarge(
            f"{self.address.shown}: its pictures are {width}x{height}; "
            f"at most {self._limits.max_pixels:,} pixels are taken, which is MAX_PIXELS"
        )

    def _decoded(self, packet: Any) -> list[tuple[Any, Shot]]:
        """A packet's pictures, each with what tells its time."""
        if self.stream.codec_context.name != "mjpeg" or not packet.size:
            return [(frame, self._shot(frame, UPRIGHT)) for frame in self._whole(packet.decode())]
        jpeg = bytes(packet)
        check_packet(jpeg, max_pixels=self._limits.max_pixels)
        turn, sound = UPRIGHT, False
        with suppress(UndecodableFrame):  # FFmpeg takes some that others do not
            info = inspect(jpeg, max_bytes=self._limits.max_bytes, max_pixels=self._limits.max_pixels)
            turn, sound = orientation.of_exif(info.orientation), True
        as_stored = turn.upright or self._options.rotation == 0
        if self._passes is None:
            first = packet.decode()
            plain = not first or not turn.upright or self._turn(first[0], UPRIGHT).upright
            self._passes = plain and not self._options.rotation and sound and _is_jpeg(jpeg)
            if not (self._passes and sound and as_stored):
                return [(frame, self._shot(frame, turn)) for frame in first]
        if self._passes and sound and as_stored:
            return [(packet, Shot(Fraction(0), jpeg=jpeg))]
        return [(frame, self._shot(frame, turn)) for frame in self._whole(packet.decode())]

    def _whole(self, frames: list[Any]) -> list[Any]:
        """A recording's frames without fields."""
        return frames if self._fields is None else [whole for frame in frames for whole in self._fields.push(frame)]

    def _shot(self, frame: Any, exif: Orientation) -> Shot:
        if frame.width * frame.height > self._limits.max_pixels:
            raise self._too_large(frame.width, frame.height)
        return Shot(Fraction(0), frame=frame, turn=self._turn(frame, exif))

    def _turn(self, frame: Any, exif: Orientation) -> Orientation:
        if self._options.rotation is not None:
            return Orientation.from_degrees(self._options.rotation)
        return orientation.of_frame(frame) if exif.upright else exif

    def _time(self, timed: Any) -> tuple[Fraction, Fraction]:
        """When a picture is to be shown, and for how long."""
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


class Still:
    """One picture's file."""

    pace: Pace = "recorded"
    frames: int | None = 1

    def __init__(self, address: Address, options: Options, limits: Limits, on_damage: OnDamage) -> None:
        self.fps = 1 / limits.picture_s
        self.period = Fraction(limits.picture_s).limit_denominator(90_000)
        self.damaged = 0
        self._address = address
        self._options = options
        self._limits = limits
        self._on_damage = on_damage

    def __enter__(self) -> Still:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open."""

    def truncated(self) -> list[str]:
        return []

    def __iter__(self) -> Iterator[Shot]:
        with explained(self._address):
            try:
                shot = self._jpeg() or self._other()
            except FrameError as error:
                raise TooLarge(f"{self._address.shown}: {error}", error.code) from None
            shot.lasts = self.period
            yield shot

    def _jpeg(self) -> Shot | None:
        """A JPEG's own bytes, where they are upright and any decoder takes them."""
        path = Path(self._address.text)
        if path.suffix.lower() not in _JPEGS or path.stat().st_size > self._limits.max_bytes:
            return None
        jpeg = path.read_bytes()
        check_packet(jpeg, max_pixels=self._limits.max_pixels)
        try:
            info = inspect(jpeg, max_bytes=self._limits.max_bytes, max_pixels=self._limits.max_pixels)
        except UndecodableFrame:  # FFmpeg takes some that others do not
            return None
        if not _is_jpeg(jpeg):
            return None
        rotation = self._options.rotation
        turn = orientation.of_exif(info.orientation) if rotation is None else Orientation.from_degrees(rotation)
        if turn.upright:
            return Shot(Fraction(0), jpeg=jpeg)
        pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
        return Shot(Fraction(0), frame=av.VideoFrame.from_ndarray(pixels, format="rgb24"), turn=turn)

    def _other(self) -> Shot:
        with Container(self._address, self._options, self._limits, self._on_damage) as container:
            for shot in container:
                shot.at = Fraction(0)
                return shot
        raise SourceLost(
            f"{self._address.shown}: no picture that can be read, "
            f"or one of more than {self._limits.max_pixels:,} pixels, which is MAX_PIXELS"
        )


class Folder:
    """All pictures and videos of a folder by name, one after the other. One that cannot be read is left out."""

    pace: Pace = "recorded"

    def __init__(self, address: Address, options: Options, limits: Limits, on_damage: OnDamage) -> None:
        with explained(address):
            names = sorted(os.listdir(address.text))
        members = [Path(address.text, name) for name in names if Path(name).suffix.lower() in PICTURES | VIDEOS]
        if not members:
            raise SourceLost(f"{address.shown}: no pictures in it ({', '.join(sorted(PICTURES | VIDEOS))})")
        self.fps = 1 / limits.picture_s
        self.period = Fraction(limits.picture_s).limit_denominator(90_000)
        self.damaged = 0
        self.frames = len(members) if all(path.suffix.lower() in PICTURES for path in members) else None
        self._members = [Address(str(path), "file", printable(str(path)), "") for path in members]
        self._opening = (options, limits, on_damage)
        self._on_damage = on_damage

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open."""

    def truncated(self) -> list[str]:
        videos = [one for one in self._members if Path(one.text).suffix.lower() in VIDEOS]
        return [lacks for one in videos if (lacks := truncation(Path(one.text), one.shown)) is not None]

    def __iter__(self) -> Iterator[Shot]:
        start = Fraction(0)
        for member in self._members:
            last: Fraction | None = None
            try:
                with open_source(member, *self._opening) as reader:
                    for shot in reader:
                        last = shot.at
                        shot.at += start
                        yield shot
                    self.damaged += reader.damaged
            except SourceError as error:
                self.damaged += 1
                self._on_damage(f"left out: {error}", error.code)
            if last is not None:
                start += last + reader.period


def _open(address: Address, options: Options, limits: Limits) -> Any:
    chosen = {"max_pixels": str(limits.max_pixels)}
    waits = (OPEN_S, READ_S)
    if address.kind == "device":
        return _open_device(address, {**chosen, **dict(options.ffmpeg)})
    chosen["protocol_whitelist"] = _PROTOCOLS[address.kind]
    if address.kind == "file":
        if limits.film:
            # No bound of time: the index of a long one may be all over it.
            return av.open(ffmpeg_name(address.text), options={**chosen, **_FILMS}, metadata_errors="replace")
        # The prefix: a colon in a name is no protocol. Pictures by content: a % in a name is no pattern.
        chosen |= dict(options.ffmpeg)
        if Path(address.text).suffix.lower() in PICTURES:
            with Path(address.text).open("rb") as file:
                return av.open(io.BytesIO(file.read(limits.max_bytes)), options=chosen, metadata_errors="replace")
        return av.open(ffmpeg_name(address.text), options=chosen, timeout=waits, metadata_errors="replace")
    # Without a buffer what was read to find the streams is lost: of the web that is seconds of a recording or playlist.
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
        raise SourceError(f"{address.shown}: cameras of this machine are read on Linux and macOS alone; want a URL")
    name = address.text if system == "v4l2" else address.text.removeprefix("/dev/video")
    if system == "v4l2" and "input_format" not in chosen:
        try:  # most cameras give more pictures a second as JPEG, and those need no encoding
            return av.open(name, format=system, options={**chosen, "input_format": "mjpeg"}, timeout=(OPEN_S, READ_S))
        except av.error.FFmpegError:
            pass
    return av.open(name, format=system, options=chosen, timeout=(OPEN_S, READ_S))


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """FFmpeg's errors in our words, without the address' secrets.

    Raises:
        SourceLost: in place of them.
    """
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        lost = SourceLost(_words(address, error))
        lost.errno = getattr(error, "errno", None)
        raise lost from None


def _words(address: Address, error: Exception) -> str:
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
    what = "picture" if Path(address.text).suffix.lower() in PICTURES else "video"
    return f"{shown}: no {what} that can be read ({reason})"


def _is_jpeg(jpeg: bytes) -> bool:
    """Whether it can go on as it is: some cameras' "JPEG" lacks what every decoder wants."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True
