"""What a JPEG says of itself, and what it would cost: read from its markers, before a codec sees it. Pure.

Markers are found as libjpeg finds them (ITU-T T.81, B.1.1; libjpeg's jdmarker.c): fill bytes and whatever is no marker
are skipped, so are TEM and RSTn, which have no length; a segment's payload is skipped by its length; behind SOS comes
coded data up to the next marker that is no RSTn. So what a payload or a thumbnail holds is not counted, and what
the decoder will see is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from app.errors import FrameError, FrameTooLarge, TooExpensive, UndecodableFrame

SOI = b"\xff\xd8"
MAX_SCANS = 100
"""Of a progressive JPEG, whatever its size. Encoders write about ten; a sequential JPEG has one a component at most."""
MAX_SEGMENTS = 1024
"""Of one JPEG. A photograph of a telephone, with its profiles and preview pictures, has under a hundred."""
WORK_A_PIXEL = 32
"""Samples of all scans together, for each pixel of the largest frame. A progressive JPEG comes to 8 at 4:2:0 and to 16
at 4:4:4."""
PLANNED_BYTES = 65_536
"""That `work_of` searches for markers, besides the segments that it skips: a millisecond for the worst."""
ENDLESS = 1 << 40
ARITHMETIC = 64
"""An arithmetic-coded sample may cost as much as so many others: a coefficient is up to thirty decisions, which may
take no bytes at all."""

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_MARKERS = {bytes((0xFF, code)) for code in (*range(0xC0, 0xD0), *range(0xD8, 0xFF))}
"""The same, all of them."""
_STEP = 65_536
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_KNOWN = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC9: "arithmetic", 0xCA: "arithmetic, progressive"}
_DHP, _SOS, _EOI, _APP1, _APP14, _RESERVED = 0xDE, 0xDA, 0xD9, 0xE1, 0xEE, 0xD8
_SUBSAMPLINGS = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (1, 4): "441"}


class _Unsettled(Exception):
    """Planning has looked at as much as it may."""


Colorspace = Literal["YCbCr", "Gray", "RGB", "CMYK", "YCCK"]


@dataclass(frozen=True, slots=True)
class JpegInfo:
    """What a JPEG's markers say."""

    width: int
    """As it is coded: an orientation is not applied."""
    height: int
    colorspace: Colorspace
    subsampling: str
    """`420`, `422`, `444`, `440`, `411`, `441`, `Gray`, or `other`."""
    progressive: bool
    scans: int = 1
    work: int = 0
    """Samples over all scans: what decoding costs, but for the bytes. See `WORK_A_PIXEL`."""
    whole: bool = True
    """Whether its end was found (EOI)."""
    orientation: int = 1
    """EXIF's: 1 to 8."""


@dataclass(frozen=True, slots=True)
class _Header:
    """A frame header (SOF)."""

    width: int
    height: int
    progressive: bool
    names: bytes
    """Of the components, a byte each."""
    samples: tuple[int, ...]
    """What one scan of each component costs: its samples in blocks of 8x8, as they are coded, weighed."""
    subsampling: str

    @property
    def work(self) -> int:
        """Of one scan of all components."""
        return sum(self.samples)


def inspect(jpeg: bytes, *, max_bytes: int, max_pixels: int) -> JpegInfo:
    """Reads the markers alone: some 30 microseconds for a camera's frame, milliseconds for the worst.

    Raises:
        FrameTooLarge: more bytes or pixels than allowed.
        TooExpensive: so many scans over so many pixels that they are meant to hurt.
        UndecodableFrame: not a JPEG, of a kind that nobody decodes, or its markers are damaged.
    """
    if len(jpeg) > max_bytes:
        raise FrameTooLarge(f"the frame has {len(jpeg):,} bytes; at most {max_bytes:,} are taken (MAX_FRAME_BYTES)")
    if jpeg[:2] != SOI:
        raise UndecodableFrame(f"the frame is {kind_of(jpeg)}; want a JPEG")
    return _walk(jpeg, max_pixels)


def work_of(jpeg: bytes) -> int:
    """`JpegInfo.work` for who plans; 0 of what will be refused. Microseconds: of a sequential JPEG its header alone.

    It is asked in the event loop. What is not settled within `PLANNED_BYTES`, a long progressive JPEG or a flood of
    fill bytes, counts as endless.
    """
    try:
        return _walk(jpeg, 1 << 32, planning=True).work if jpeg[:2] == SOI else 0
    except _Unsettled:
        return ENDLESS
    except FrameError:
        return 0


def check_packet(packet: bytes, *, max_pixels: int) -> None:
    """Bounds what a packet of Motion JPEG may cost FFmpeg, which finds markers otherwise than libjpeg.

    It looks into the payload of segments that it does not know, and reads on behind an end: so whatever may be a scan
    counts. A packet holds a frame, or its two fields, and perhaps preview pictures. What else is wrong with it is
    left to FFmpeg.

    Raises:
        TooExpensive: too many scans or frame headers.
    """
    scans = packet.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise TooExpensive(f"a frame of Motion JPEG has {scans:,} scans; at most {MAX_SCANS} are decoded")
    headers = [packet[found.end() : found.end() + 7] for found in _ANY_SOF.finditer(packet)]
    if len(headers) > MAX_SCANS:
        raise TooExpensive(f"a frame of Motion JPEG has {len(headers):,} frame headers; at most {MAX_SCANS} are read")
    if scans > _PACKET_SCANS:
        pixels = max((int.from_bytes(one[3:5]) * int.from_bytes(one[5:7]) for one in headers), default=max_pixels)
        if scans * pixels > _PACKET_SCANS * max_pixels:
            raise TooExpensive(
                f"a frame of Motion JPEG has {scans} scans over {pixels:,} pixels; at most {_PACKET_SCANS} times "
                "MAX_PIXELS are decoded"
            )


_PACKET_SCANS = WORK_A_PIXEL // 2
_ANY_SOF = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]")


def _walk(jpeg: bytes, max_pixels: int, *, planning: bool = False) -> JpegInfo:
    header: _Header | None = None
    adobe: int | None = None
    room = PLANNED_BYTES
    at, segments, scans, work, orientation, whole = 2, 0, 0, 0, 1, False
    while (found := _behind_marker(jpeg, at, at + room if planning else len(jpeg))) is not None:
        room -= found - at
        at = found
        marker = jpeg[at - 1]
        if marker == _EOI:
            whole = True
            break
        if marker == _RESERVED:  # a second SOI: every decoder gives up here
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise UndecodableFrame(f"the JPEG has more than {MAX_SEGMENTS:,} segments")
        # A length under 2 skips itself alone, as libjpeg does it.
        end = at + max(2, int.from_bytes(jpeg[at : at + 2]))
        if marker == _SOS:
            if header is None:
                raise UndecodableFrame("the JPEG's header is damaged: a scan before the frame header")
            scans += 1
            work += _scanned(header, jpeg[at + 2 : end])
            if planning and not header.progressive:
                # As one scan of all, which several of some come to.
                work = header.work
                break
            if not header.progressive and scans > len(header.names):
                raise TooExpensive(
                    f"the sequential JPEG has more scans than its {len(header.names)} components, "
                    "and each is coded once"
                )
            _bound(work, scans, header.width, header.height, max_pixels)
        elif marker in _SOF:
            if header is not None:
                raise UndecodableFrame("the JPEG's header is damaged: it has two frame headers")
            header = _header(marker, jpeg[at + 2 : end])
            if header.width * header.height > max_pixels:
                raise too_many_pixels(header.width, header.height, max_pixels)
        elif marker == _DHP:
            raise UndecodableFrame("the JPEG is hierarchical; want a baseline or progressive one")
        elif marker == _APP1 and orientation == 1 and jpeg[at + 2 : at + 8] == b"Exif\0\0":
            orientation = exif_orientation(jpeg[at + 8 : end])
        elif marker == _APP14 and jpeg[at + 2 : at + 7] == b"Adobe" and end - at >= 14:
            adobe = jpeg[at + 13] if at + 13 < len(jpeg) else None
        at = end
    settled = whole or (header is not None and not header.progressive and scans > 0)
    if planning and not settled and at + room < len(jpeg):
        raise _Unsettled
    if header is None or not scans:
        raise UndecodableFrame("the JPEG's header is damaged, or cut short: no picture follows")
    return JpegInfo(
        header.width,
        header.height,
        _colorspace(header, adobe),
        header.subsampling,
        header.progressive,
        scans,
        work,
        whole,
        orientation,
    )


def _behind_marker(jpeg: bytes, at: int, end: int) -> int | None:
    """Where the next marker ends that begins at `at` or behind and ends at `end` or before.

    In steps: a search holds the GIL, and one through two megabytes of fill bytes takes tens of milliseconds.
    """
    if at + 2 <= end and jpeg[at : at + 2] in _MARKERS:  # as most are; a search takes a microsecond to begin
        return at + 2
    while at < end:
        found = _MARKER.search(jpeg, at, min(end, at + _STEP))
        if found is not None or at + _STEP >= end:
            return found and found.end()
        at += _STEP - 1  # a marker may lie across
    return None


def _bound(work: int, scans: int, width: int, height: int, max_pixels: int) -> None:
    if scans > MAX_SCANS:
        raise TooExpensive(f"the JPEG has {scans} or more scans; at most {MAX_SCANS} are decoded")
    most = WORK_A_PIXEL * max_pixels
    if work > most:
        raise TooExpensive(
            f"the JPEG codes its {width}x{height} pixels in {scans} scans or more: {work:,} samples in all, weighed by "
            f"their coding; at most {most:,} are decoded, {WORK_A_PIXEL} times MAX_PIXELS"
        )


def too_many_pixels(width: int, height: int, most: int) -> FrameTooLarge:
    return FrameTooLarge(
        f"the frame is {width}x{height}, {width * height:,} pixels; at most {most:,} are taken (MAX_PIXELS)"
    )


@lru_cache(maxsize=256)
def _header(marker: int, segment: bytes) -> _Header:
    """Reads a frame header (T.81, B.2.2). A camera's is the same on every frame.

    Raises:
        UndecodableFrame: damaged, or of a kind that is not decoded.
    """
    if marker not in _KNOWN:
        kind = "lossless" if marker in (0xC3, 0xCB) else "hierarchical"
        raise UndecodableFrame(f"the JPEG is a {kind} one (SOF{marker - 0xC0}); want a baseline or progressive one")
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        raise UndecodableFrame("the JPEG's header is damaged or cut short: its frame header has another length")
    precision, count = segment[0], segment[5]
    height, width = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
    if precision != 8:
        raise UndecodableFrame(f"the JPEG has {precision} bits a sample; want 8")
    if not width or not height:
        raise UndecodableFrame(f"the JPEG's header is damaged: it is {width}x{height}")
    if count not in (1, 3, 4):
        raise UndecodableFrame(f"the JPEG has {count} components; want 1 (grey), 3 (colour) or 4 (CMYK)")
    sampling = [(segment[at], segment[at + 1] >> 4, segment[at + 1] & 15) for at in range(6, len(segment), 3)]
    if not all(1 <= h <= 4 and 1 <= v <= 4 for _, h, v in sampling):
        raise UndecodableFrame("the JPEG's header is damaged: a sampling factor is not from 1 to 4")
    most_h, most_v = max(h for _, h, _ in sampling), max(v for _, _, v in sampling)
    weight = ARITHMETIC if marker in (0xC9, 0xCA) else 1
    return _Header(
        width,
        height,
        marker in (0xC2, 0xCA),
        bytes(name for name, _, _ in sampling),
        tuple(_padded(width * h, most_h) * _padded(height * v, most_v) * weight for _, h, v in sampling),
        _subsampling([(h, v) for _, h, v in sampling]),
    )


def _padded(side: int, over: int) -> int:
    return -(-side // (8 * over)) * 8


def _scanned(header: _Header, segment: bytes) -> int:
    """What a scan costs: samples of the components that it names (T.81, B.2.3), weighed."""
    count = segment[0] if segment else 0
    named = segment[1 : 1 + 2 * count : 2]
    if named == header.names and len(set(named)) == count:
        return header.work
    # Decoders differ in which of two components of one name is meant.
    return sum(
        max(
            (samples for own, samples in zip(header.names, header.samples, strict=True) if own == name),
            default=header.samples[0],
        )
        for name in named
    )


def _colorspace(header: _Header, adobe: int | None) -> Colorspace:
    """As libjpeg guesses it (jdapimin.c)."""
    count = len(header.names)
    if count == 1:
        return "Gray"
    if count == 4:
        return "YCCK" if adobe == 2 else "CMYK"
    return "RGB" if adobe == 0 or (adobe is None and header.names == b"RGB") else "YCbCr"


def _subsampling(factors: list[tuple[int, int]]) -> str:
    first, *others = factors
    if not others:
        return "Gray"
    # The fourth of CMYK is as fine as the first.
    chroma = others[:2]
    if len(others) == 3 and others[2] != first:
        return "other"
    return _SUBSAMPLINGS.get(first, "other") if chroma == [(1, 1), (1, 1)] else "other"


def exif_orientation(exif: bytes) -> int:
    """How the picture is to be turned: tag 0x0112 of the first directory of a TIFF; 1, as it lies, where nothing says.

    Exif 2.32, 4.5.4 and 4.6.4: 1 as it is, 2 mirrored, 3 by 180 degrees, 4 upside down, 5 transposed, 6 by 90 degrees
    clockwise, 7 transposed the other way, 8 by 90 degrees counter-clockwise.
    """
    order: Literal["little", "big"] | None = {b"II": "little", b"MM": "big"}.get(exif[:2])  # type: ignore[assignment]
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * min(number(directory, 2), 256), 12):
        if entry + 12 > len(exif):
            return 1
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if number(entry + 2, 2) == 3 and 1 <= value <= 8 else 1
    return 1


_KINDS = (
    (b"\x89PNG", "a PNG"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\0\0\0\x0cJXL", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cjP", "a JPEG 2000"),
    (b"\0\0\0\1", "an H.264 or H.265 stream"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska file"),
)


def kind_of(data: bytes) -> str:
    """What it is instead, as far as its first bytes tell."""
    if not data:
        return "empty"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP"
    if data[4:8] == b"ftyp":
        return "an MP4, HEIC or AVIF file"
    named = next((name for start, name in _KINDS if data.startswith(start)), None)
    return named or f"no JPEG (it starts with {data[:4].hex(' ').upper()})"
