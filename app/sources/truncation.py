"""Whether a film's file was cut off: what lies there is compared with what its container declares.

What is declared exactly is believed to the byte: MP4's sample tables and fragments, the sizes in RIFF, Matroska, FLV
and ASF. A length in seconds alone is believed with a tolerance. Transport streams, program streams and Ogg, which
declare nothing, are never said to be cut off.
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

_LOOSE_S, _LOOSE_SHARE = 0.5, 0.01
"""What a film may lack of a length that is declared in seconds alone: writers round, and count differently."""
_STRICT_S = 0.02
"""The same, where bytes are missing: they may be an index alone."""
_DECLARING = ("mov", "matroska", "avi", "flv", "asf")
_BOXES = {b"ftyp", b"styp", b"sidx", b"free", b"skip", b"wide", b"uuid", b"prft", b"emsg", b"meta", b"moov", b"mfra"}
_SAMPLES = {b"moof", b"mdat"}
_MOST_BOXES = 1_000_000
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD = 1 << 16
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067


def _go_on() -> None:
    """Nobody stops it."""


def truncation(path: Path, name: str | None = None, check: Callable[[], None] = _go_on) -> str | None:
    """What a film lacks of what its file declares, in words; None where it lacks nothing, or nothing is declared.

    Reads through the file where its index is not at its beginning. Blocks.

    Args:
        name: what the film is called in them; None: as its file.
        check: called again and again; what it raises ends the reading.
    """
    try:
        with av.open(ffmpeg_name(path), options={"protocol_whitelist": "file"}, metadata_errors="replace") as film:
            found = _found(film, path, check)
    except (av.error.FFmpegError, OSError):
        return None  # no film at all: who reads it says so
    if found is None:
        return None
    read, declared = found
    of = f" of the {declared:.2f} s that its file declares" if declared else "; its file breaks off there"
    return f"{name or path.name} is truncated: it ends after {read:.2f} s{of}"


def _found(film: Any, path: Path, check: Callable[[], None]) -> tuple[float, float | None] | None:
    """Seconds that are there, and that are declared, where some are missing."""
    kind = film.format.name.split(",")[0]
    if kind not in _DECLARING:
        return None
    size = path.stat().st_size
    declared = _declared(film, kind)
    short: bool | None
    with path.open("rb") as file:
        if kind == "mov":
            fragmented, short = _boxes(file, size)
            if not fragmented:
                return _by_index(film, size, declared)
        elif kind == "matroska":
            short = _matroska(file, size)
            if short is None and not _declares(film):
                return None
        else:
            short = {"avi": _riff, "flv": _flv, "asf": _asf}[kind](file, size)
    if short is False:
        return None
    read = _read(film, check)
    if short:
        if kind in ("mov", "asf") or declared is None:
            return read, None  # FFmpeg's length is that of what it saw
        tolerance = _STRICT_S
    else:
        tolerance = max(_LOOSE_S, _LOOSE_SHARE * (declared or 0.0))
    return (read, declared) if declared and read + tolerance < declared else None


def _declares(film: Any) -> bool:
    """Whether a length was written down: FFmpeg makes one up from the bit rate, and gives it to each stream as well."""
    return film.duration is not None and all(stream.duration is None for stream in film.streams)


def _declared(film: Any, kind: str) -> float | None:
    """Seconds."""
    video = next(iter(film.streams.video), None)
    if kind == "avi" and video is not None and video.frames and video.average_rate:
        return float(video.frames / video.average_rate)
    return film.duration / av.time_base if film.duration else None


def _by_index(film: Any, size: int, declared: float | None) -> tuple[float, float | None] | None:
    """By the sample tables of an MP4: where the first sample is shown that does not lie in the file."""
    lost: list[float] = []
    for stream in (*film.streams.video, *film.streams.audio):
        missing = [one.timestamp for one in stream.index_entries if one.pos + one.size > size]
        if missing:
            # Times of decoding: whatever is shown before the first that is missing is there.
            lost.append(max(0.0, float(min(missing) * Fraction(stream.time_base))))
    return (min(lost), declared) if lost else None


def _read(film: Any, check: Callable[[], None]) -> float:
    """When the last packet that can be read ends, seconds."""
    end = 0.0
    try:
        for number, packet in enumerate(film.demux()):
            if number % 256 == 0:
                check()
            if packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * Fraction(packet.time_base)))
    except av.error.FFmpegError:  # it breaks off within a packet
        pass
    return end


def _boxes(file: BinaryIO, size: int) -> tuple[bool, bool]:
    """Whether an MP4 is made of fragments, and whether the last of them is not all there."""
    at, fragmented = 0, False
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return fragmented, False
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if name not in _BOXES | _SAMPLES or length < 8:
            return fragmented, False  # to the end of the file, or no box
        fragmented = fragmented or name == b"moof"
        at += length
        if at > size:
            return fragmented, name in _SAMPLES
    return fragmented, False


def _riff(file: BinaryIO, size: int) -> bool | None:
    """Whether an AVI's chunks reach beyond its end; None where they have no size."""
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
    """Whether the last tag of a Flash video is not all there."""
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
    """Whether an ASF has fewer bytes than its header says; None where it was written without looking back."""
    head = file.read(_ASF_HEAD)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or len(head) < at + 92:
        return None
    (said,) = struct.unpack_from("<Q", head, at + 40)
    (flags,) = struct.unpack_from("<I", head, at + 88)
    return None if flags & 1 or not said else said > size


def _matroska(file: BinaryIO, size: int) -> bool | None:
    """Whether a Matroska's segment reaches beyond the file's end; None where its size was not known as it began."""
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
    """An EBML element's id, its head's length and its size; None for a size that is not known."""
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
