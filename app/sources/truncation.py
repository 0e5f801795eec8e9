"""Tells whether a video's file is cut off, by comparing its content with what its container declares.

Exact declarations count to the byte: MP4's sample tables and fragments, the sizes in RIFF, Matroska, FLV and ASF. A
duration in seconds counts with a tolerance. Transport streams, program streams and Ogg declare nothing, so that they
never count as cut off.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error

from app.sources.address import ffmpeg_name

_TOLERANCE_S, _TOLERANCE_SHARE = 0.5, 0.01
"""Tolerated difference to a declared duration, because writers round and count differently."""
_STRICT_S = 0.02
"""Tolerated difference if bytes are missing, because those may be only an index."""
_DECLARING = ("mov", "matroska", "avi", "flv", "asf")
_BOXES = {b"ftyp", b"styp", b"sidx", b"free", b"skip", b"wide", b"uuid", b"prft", b"emsg", b"meta", b"moov", b"mfra"}
_SAMPLES = {b"moof", b"mdat"}
_MAX_BOXES = 1_000_000
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD = 1 << 16
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067


def _no_check() -> None:
    """The default of `check`: never stops the reading."""


def truncation(path: Path, name: str | None = None, check: Callable[[], None] = _no_check) -> str | None:
    """A sentence that says how much of a video is missing; None if it is complete, or if its file declares nothing.

    Reads the whole file if its index is not at its beginning. Blocks.

    Args:
        name: the video's name in the sentence; None: the file's name.
        check: called repeatedly; its exception ends the reading.
    """
    try:
        with av.open(ffmpeg_name(path), options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            found = _missing(container, path, check)
    except (av.error.FFmpegError, OSError):
        return None  # no video at all, which its reader will report
    if found is None:
        return None
    read, declared = found
    of = f" of the {declared:.2f} s that its file declares" if declared else "; its file breaks off there"
    return f"{name or path.name} is truncated: it ends after {read:.2f} s{of}"


def _missing(container: Any, path: Path, check: Callable[[], None]) -> tuple[float, float | None] | None:
    """Seconds that can be read and seconds that are declared; None if nothing is missing."""
    kind = container.format.name.split(",")[0]
    if kind not in _DECLARING:
        return None
    size = path.stat().st_size
    declared = _declared(container, kind)
    short: bool | None
    with path.open("rb") as file:
        if kind == "mov":
            fragmented, short = _boxes(file, size)
            if not fragmented:
                return _by_index(container, size, declared)
        elif kind == "matroska":
            short = _matroska(file, size)
            if short is None and not _declares(container):
                return None
        else:
            short = {"avi": _riff, "flv": _flv, "asf": _asf}[kind](file, size)
    if short is False:
        return None
    read = _read(container, check)
    if short:
        if kind in ("mov", "asf") or declared is None:
            return read, None  # FFmpeg's duration is that of what it read
        tolerance = _STRICT_S
    else:
        tolerance = max(_TOLERANCE_S, _TOLERANCE_SHARE * (declared or 0.0))
    return (read, declared) if declared and read + tolerance < declared else None


def _declares(container: Any) -> bool:
    """Whether the file stores a duration. A duration that FFmpeg estimates from the bit rate is set in each stream,
    too.
    """
    return container.duration is not None and all(stream.duration is None for stream in container.streams)


def _declared(container: Any, kind: str) -> float | None:
    """The declared duration, seconds."""
    video = next(iter(container.streams.video), None)
    if kind == "avi" and video is not None and video.frames and video.average_rate:
        return float(video.frames / video.average_rate)
    return container.duration / av.time_base if container.duration else None


def _by_index(container: Any, size: int, declared: float | None) -> tuple[float, float | None] | None:
    """Uses the sample tables of an MP4: the time of the first sample that lies beyond the end of the file."""
    lost: list[float] = []
    for stream in (*container.streams.video, *container.streams.audio):
        missing = [entry.timestamp for entry in stream.index_entries if entry.pos + entry.size > size]
        if missing:
            # These are decoding times, so that everything shown before the first missing one is there.
            lost.append(max(0.0, float(min(missing) * Fraction(stream.time_base))))
    return (min(lost), declared) if lost else None


def _read(container: Any, check: Callable[[], None]) -> float:
    """The time at which the last packet that can be read ends, seconds."""
    end = 0.0
    try:
        for number, packet in enumerate(container.demux()):
            if number % 256 == 0:
                check()
            if packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * Fraction(packet.time_base)))
    except av.error.FFmpegError:  # the file ends within a packet
        pass
    return end


def _boxes(file: BinaryIO, size: int) -> tuple[bool, bool]:
    """Whether an MP4 consists of fragments, and whether the last one is incomplete."""
    at, fragmented = 0, False
    for _ in range(_MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return fragmented, False
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if name not in _BOXES | _SAMPLES or length < 8:
            return fragmented, False  # a box up to the end of the file, or no box
        fragmented = fragmented or name == b"moof"
        at += length
        if at > size:
            return fragmented, name in _SAMPLES
    return fragmented, False


def _riff(file: BinaryIO, size: int) -> bool | None:
    """Whether an AVI's chunks reach beyond the end of the file; None if they have no size."""
    at = 0
    while at + 12 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF":
            break
        if length in (0, 0xFFFFFFFF):
            return None
        at += 8 + length
        if at > size:
            return True
        at += length % 2
    return False if at else None


def _flv(file: BinaryIO, size: int) -> bool:
    """Whether the last tag of a Flash video is incomplete."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big") + 4
    while at + 11 <= size:
        file.seek(at)
        head = file.read(4)
        if head[0] & 0x1F not in (8, 9, 18):
            return False  # no tag
        at += 11 + int.from_bytes(head[1:], "big") + 4
    return at != size and at - 4 != size


def _asf(file: BinaryIO, size: int) -> bool | None:
    """Whether an ASF has fewer bytes than its header declares; None if its writer could not go back to the header."""
    head = file.read(_ASF_HEAD)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or len(head) < at + 92:
        return None
    (said,) = struct.unpack_from("<Q", head, at + 40)
    (flags,) = struct.unpack_from("<I", head, at + 88)
    return None if flags & 1 or not said else said > size


def _matroska(file: BinaryIO, size: int) -> bool | None:
    """Whether a Matroska's segment reaches beyond the end of the file; None if its writer did not know the size."""
    at = 0
    for expected in (_EBML, _SEGMENT):
        while True:
            file.seek(at)
            found = _element(file.read(12))
            if found is None:
                return None
            name, head, length = found
            if length is None:
                return None
            at += head + length
            if name == expected:
                break
            if at >= size:
                return None
    return at > size


def _element(head: bytes) -> tuple[int, int, int | None] | None:
    """An EBML element's id, the length of its header, and its size (None: unknown); None if `head` holds no element."""
    first = _width(head, 4)
    if first is None:
        return None
    second = _width(head[first:], 8)
    if second is None or len(head) < first + second:
        return None
    value = int.from_bytes(head[first : first + second], "big") & ((1 << 7 * second) - 1)
    return int.from_bytes(head[:first], "big"), first + second, None if value == (1 << 7 * second) - 1 else value


def _width(head: bytes, most: int) -> int | None:
    width = 9 - head[0].bit_length() if head else most + 1
    return width if width <= most else None
