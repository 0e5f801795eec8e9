"""Image bytes to pixels. First the markers of a JPEG, which show what it is and what it costs; then decoding.

Markers are found as libjpeg finds them (ITU-T T.81, B.1.1; libjpeg's jdmarker.c): fill bytes and bytes of no marker
are skipped, and so are TEM and RSTn, which have no length; the payload of a segment is skipped by its length; after SOS
follows coded data up to the next marker that is not RSTn. Therefore only markers that the decoder
will read count, and none inside a payload or a thumbnail.

`exact` gives the pixels that OpenCV gives, to the level: `cv2.imdecode`, then `cv2.resize` with `INTER_LINEAR` from the
full size, as Ultralytics prepares an image. Fast decoding differs by up to 37 levels: it uses libjpeg's quick DCT and
upsampling, and the codec itself shrinks an image that is at least twice too large. The codecs free the GIL.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.errors import FrameError, FrameTooLarge, TooExpensive, UndecodableFrame
from app.pipeline.boxes import Letterbox

Pixels = NDArray[np.uint8]

# --- the markers of a JPEG ---

SOI = b"\xff\xd8"
MAX_SCANS = 100
"""Scans of a progressive JPEG of any size. Encoders write about ten; a sequential JPEG has at most one a component."""
MAX_SEGMENTS = 1024
"""Segments of one JPEG. A phone's photograph, with its profiles and previews, has fewer than a hundred."""
WORK_A_PIXEL = 32
"""Samples of all scans together, for each pixel of the largest frame. A progressive JPEG reaches 8 at 4:2:0 and 16 at
4:4:4."""
PLANNED_BYTES = 65_536
"""Bytes that `work_of` searches for markers, besides the segments that it skips: a millisecond in the worst case."""
ENDLESS = 1 << 40
"""The work of a JPEG that `work_of` cannot settle."""
ARITHMETIC = 64
"""An arithmetic-coded sample may cost as much as this many Huffman-coded ones: a coefficient takes up to thirty
decisions, which may take no bytes at all."""

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_MARKERS = {bytes((0xFF, code)) for code in (*range(0xC0, 0xD0), *range(0xD8, 0xFF))}
"""All markers that `_MARKER` finds."""
_STEP = 65_536
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_KNOWN = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC9: "arithmetic", 0xCA: "arithmetic, progressive"}
_DHP, _SOS, _EOI, _APP1, _APP14, _RESERVED = 0xDE, 0xDA, 0xD9, 0xE1, 0xEE, 0xD8
_OTHER = "other"
"""A subsampling that TurboJPEG does not know; OpenCV decodes it."""
_SUBSAMPLINGS = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (1, 4): "441"}


class _Unsettled(Exception):
    """Planning has searched `PLANNED_BYTES` without a result."""


Colorspace = Literal["YCbCr", "Gray", "RGB", "CMYK", "YCCK"]


@dataclass(frozen=True, slots=True)
class JpegInfo:
    """The properties of a JPEG that its markers show."""

    width: int
    """As coded: the orientation is not applied."""
    height: int
    colorspace: Colorspace
    subsampling: str
    """`420`, `422`, `444`, `440`, `411`, `441`, `Gray`, or `other`."""
    progressive: bool
    scans: int = 1
    work: int = 0
    """Samples over all scans: the cost of decoding, apart from the bytes. See `WORK_A_PIXEL`."""
    whole: bool = True
    """Whether the end marker (EOI) was found."""
    orientation: int = 1
    """The EXIF orientation, 1 to 8."""


@dataclass(frozen=True, slots=True)
class _Header:
    """A frame header (SOF)."""

    width: int
    height: int
    progressive: bool
    names: bytes
    """The component identifiers, a byte each."""
    samples: tuple[int, ...]
    """The cost of one scan of each component: its samples in coded blocks of 8x8, weighted."""
    subsampling: str
    work: int
    """The cost of one scan of all components."""


def inspect(jpeg: bytes, *, max_bytes: int, max_pixels: int) -> JpegInfo:
    """Reads only the markers: some 30 microseconds for a camera's frame, milliseconds in the worst case.

    Raises:
        FrameTooLarge: more bytes or pixels than allowed.
        TooExpensive: so many scans over so many pixels that they can only be an attack.
        UndecodableFrame: not a JPEG, of a kind that no decoder here reads, or its markers are damaged.
    """
    if len(jpeg) > max_bytes:
        raise FrameTooLarge(f"the frame has {len(jpeg):,} bytes; at most {max_bytes:,} are taken (MAX_FRAME_BYTES)")
    if jpeg[:2] != SOI:
        raise UndecodableFrame(f"the frame is {kind_of(jpeg)}; want a JPEG")
    return _walk(jpeg, max_pixels)


def work_of(jpeg: bytes) -> int:
    """An estimate of `JpegInfo.work` for planning; 0 for a JPEG that will be refused.

    Takes microseconds, because it runs in the event loop: of a sequential JPEG only the header is read. A JPEG that is
    not settled within `PLANNED_BYTES` (a long progressive one, or a flood of fill bytes) counts as `ENDLESS`.
    """
    try:
        return _walk(jpeg, 1 << 32, planning=True).work if jpeg[:2] == SOI else 0
    except _Unsettled:
        return ENDLESS
    except FrameError:
        return 0


def check_packet(packet: bytes, *, max_pixels: int) -> None:
    """Bounds the cost of a Motion JPEG packet for FFmpeg, which finds markers differently from libjpeg.

    FFmpeg reads the payload of segments that it does not know, and reads on after an end marker. Therefore everything
    that may be a scan counts. A packet holds a frame, or its two fields, and perhaps previews. FFmpeg itself reports
    all other errors.

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
        pixels = max((int.from_bytes(sof[3:5]) * int.from_bytes(sof[5:7]) for sof in headers), default=max_pixels)
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
    unsearched = PLANNED_BYTES if planning else len(jpeg) + 2
    """Bytes that may still be searched for markers."""
    at, segments, scans, work, orientation, whole = 2, 0, 0, 0, 1, False
    while True:
        if unsearched >= 2 and jpeg[at : at + 2] in _MARKERS:  # almost always: a search takes a microsecond to begin
            found: int | None = at + 2
        else:
            found = _after_marker(jpeg, at, min(at + unsearched, len(jpeg)))
        if found is None:
            break
        unsearched -= found - at
        at = found
        marker = jpeg[at - 1]
        if marker == _EOI:
            whole = True
            break
        if marker == _RESERVED:  # a second SOI: every decoder stops here
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise UndecodableFrame(f"the JPEG has more than {MAX_SEGMENTS:,} segments")
        # A length below 2 skips only itself, as in libjpeg.
        end = at + max(2, int.from_bytes(jpeg[at : at + 2]))
        if marker == _SOS:
            if header is None:
                raise UndecodableFrame("the JPEG's header is damaged: a scan before the frame header")
            scans += 1
            if planning and not header.progressive:
                # Several scans of some components cost as much as one scan of all.
                work = header.work
                break
            work += _scanned(header, jpeg[at + 2 : end])
            if not header.progressive and scans > len(header.names):
                raise TooExpensive(
                    f"the sequential JPEG has more scans than its {len(header.names)} components, "
                    "and each is coded once"
                )
            if scans > MAX_SCANS or work > WORK_A_PIXEL * max_pixels:
                raise _too_many_scans(work, scans, header, max_pixels)
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
    if planning and not settled and at + unsearched < len(jpeg):
        raise _Unsettled
    if header is None or not scans:
        raise UndecodableFrame("the JPEG's header is damaged, or cut short: no image follows")
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


def _after_marker(jpeg: bytes, at: int, end: int) -> int | None:
    """The end of the next marker that begins at `at` or later and ends at `end` or earlier.

    Searches in steps, because a search holds the GIL and one through two megabytes of fill bytes takes tens of
    milliseconds.
    """
    while at < end:
        found = _MARKER.search(jpeg, at, min(end, at + _STEP))
        if found is not None or at + _STEP >= end:
            return found and found.end()
        at += _STEP - 1  # a marker may lie across the boundary of two steps
    return None


def _too_many_scans(work: int, scans: int, header: _Header, max_pixels: int) -> TooExpensive:
    if scans > MAX_SCANS:
        return TooExpensive(f"the JPEG has {scans} or more scans; at most {MAX_SCANS} are decoded")
    return TooExpensive(
        f"the JPEG codes its {header.width}x{header.height} pixels in {scans} scans or more: {work:,} samples in all, "
        f"weighed by their coding; at most {WORK_A_PIXEL * max_pixels:,} are decoded, {WORK_A_PIXEL} times MAX_PIXELS"
    )


def too_many_pixels(width: int, height: int, most: int) -> FrameTooLarge:
    """The error for an image of more than `most` pixels; all arguments are pixels."""
    return FrameTooLarge(
        f"the frame is {width}x{height}, {width * height:,} pixels; at most {most:,} are taken (MAX_PIXELS)"
    )


@lru_cache(maxsize=256)
def _header(marker: int, segment: bytes) -> _Header:
    """Reads a frame header (T.81, B.2.2). Cached, because all frames of a camera have the same one.

    Raises:
        UndecodableFrame: the header is damaged, or of a kind that is not decoded.
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
    samples = tuple(_padded(width * h, most_h) * _padded(height * v, most_v) * weight for _, h, v in sampling)
    return _Header(
        width,
        height,
        marker in (0xC2, 0xCA),
        bytes(name for name, _, _ in sampling),
        samples,
        _subsampling([(h, v) for _, h, v in sampling]),
        sum(samples),
    )


def _padded(side: int, over: int) -> int:
    return -(-side // (8 * over)) * 8


def _scanned(header: _Header, segment: bytes) -> int:
    """The cost of a scan: the weighted samples of the components that it names (T.81, B.2.3)."""
    count = segment[0] if segment else 0
    named = segment[1 : 1 + 2 * count : 2]
    if named == header.names and len(set(named)) == count:
        return header.work
    # Where two components have one name, decoders differ in which one they take; the more expensive one counts.
    return sum(
        max(
            (samples for own, samples in zip(header.names, header.samples, strict=True) if own == name),
            default=header.samples[0],
        )
        for name in named
    )


def _colorspace(header: _Header, adobe: int | None) -> Colorspace:
    """The colour space that libjpeg guesses (jdapimin.c)."""
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
    # The fourth component of CMYK must be as fine as the first.
    chroma = others[:2]
    if len(others) == 3 and others[2] != first:
        return _OTHER
    return _SUBSAMPLINGS.get(first, _OTHER) if chroma == [(1, 1), (1, 1)] else _OTHER


def exif_orientation(exif: bytes) -> int:
    """The EXIF orientation: tag 0x0112 of the first directory of a TIFF; 1 (as it lies) where the tag is missing.

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
    """The kind of file that the first bytes show, for messages."""
    if not data:
        return "empty"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP"
    if data[4:8] == b"ftyp":
        return "an MP4, HEIC or AVIF file"
    named = next((name for start, name in _KINDS if data.startswith(start)), None)
    return named or f"no JPEG (it starts with {data[:4].hex(' ').upper()})"


# --- JPEG to pixels ---

Coded = bytes | bytearray
"""A JPEG's bytes. A bytearray where another thread may overwrite it during decoding, so that the codec ends soon."""

BORDER = 114
"""Grey level of the canvas around the image; the models were trained with it."""
LONGEST = 160
"""Longest side of the grey frame that motion is measured on, pixels."""
SHORTEST = 16
"""Least length of its shorter side, pixels: dense flow needs that much."""
_HARMLESS = (
    "extraneous bytes",
    "Invalid SOS parameters",
    "bad ICC marker",
    "unknown JFIF revision",
    "Unknown Adobe color transform",
)
"""Warnings of libjpeg about images that are whole; the MJPEG of cameras often causes the first two."""


def decode_into(
    jpeg: Coded, info: JpegInfo, box: Letterbox, canvas: Pixels, *, border: bool = True, exact: bool = True
) -> None:
    """Decodes into a canvas, letterboxed: RGB uint8 `[canvas height, canvas width, 3]`, C-contiguous.

    The former content of the canvas does not matter. With `border` False the border must already be there, and only the
    image is written, also for a frame that turns out to be damaged. A frame that fills the rows is decoded in place.

    Raises:
        UndecodableFrame: the frame is damaged or cut short. The content of the canvas is then undefined.
    """
    if border:
        _border(canvas, box)
    image = image_of(canvas, box)
    if fits(info, box) if exact else _fits_reduced(info, box):
        _decode(jpeg, info, "RGB", box.width, box.height, buffer=image, exact=exact)
    else:
        _resize(_decode(jpeg, info, "RGB", box.width, box.height, exact=exact), box, image)


def decode_whole(jpeg: Coded, info: JpegInfo, *, exact: bool = True) -> Pixels:
    """The image at its full size, as coded: RGB uint8 `[h, w, 3]`.

    Raises:
        UndecodableFrame: the frame is damaged or cut short.
    """
    return _decode(jpeg, info, "RGB", info.width, info.height, exact=exact)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """The image turned and mirrored by its EXIF orientation, 1 to 8: a C-contiguous copy, or for 1 the image itself."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    # Codes of cv2.flip: 0 upside down, 1 left and right, -1 both.
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)  # type: ignore[return-value]


def fits(info: JpegInfo, box: Letterbox) -> bool:
    """Whether the frame has the size of its place in the canvas and fills the rows, so that it is decoded in place."""
    return (box.width, box.height) == (info.width, info.height) and box.width == box.canvas_width


def described(pixels: Pixels, *, max_pixels: int) -> JpegInfo:
    """The `JpegInfo` of an image that came decoded, RGB uint8 `[h, w, 3]`.

    Raises:
        FrameTooLarge: more pixels than allowed.
    """
    height, width = pixels.shape[:2]
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
    return JpegInfo(width, height, "RGB", "444", progressive=False)


def lay_into(pixels: Pixels, box: Letterbox, canvas: Pixels, *, border: bool = True, exact: bool = True) -> None:
    """`decode_into` for an image that came decoded, RGB uint8 `[h, w, 3]`."""
    image = image_of(canvas, box)
    if border:
        _border(canvas, box)
    # Halve it first where it is at least twice too large, because bilinear scaling alone would skip pixels.
    while not exact and pixels.shape[0] >= 2 * box.height and pixels.shape[1] >= 2 * box.width:
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    _resize(pixels, box, image)


_LONGEST = 16
"""Times the canvas's side that an image is scaled to as a whole, to show its middle."""


def crop_into(pixels: Pixels, box: Letterbox, canvas: Pixels) -> None:
    """Lays the middle of an image, RGB uint8 `[h, w, 3]`, into a canvas, as torchvision's `Resize` and `CenterCrop` do.

    They scale images of Pillow by its antialiased `BILINEAR`, which no filter of OpenCV equals; so does this, to the
    level. Takes 7 ms for 1920x1080.

    Args:
        box: made by `boxes.crop`.
    """
    from PIL import Image  # a tenth of the start's time, needed only where a model wants its images so

    width, height = round(box.scale_x * box.image_width), round(box.scale_y * box.image_height)
    if max(width, height) > _LONGEST * max(box.width, box.height):
        # Only the part that is seen, within a level of it: the whole of a line of pixels would take gigabytes.
        left, top = box.cut_x / box.scale_x, box.cut_y / box.scale_y
        part = (left, top, left + box.width / box.scale_x, top + box.height / box.scale_y)
        seen = Image.fromarray(pixels).resize((box.width, box.height), Image.Resampling.BILINEAR, part)
        canvas[...] = np.asarray(seen)
        return
    scaled = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    canvas[...] = scaled[box.cut_y : box.cut_y + box.height, box.cut_x : box.cut_x + box.width]


def _resize(pixels: Pixels, box: Letterbox, image: Pixels) -> None:
    if pixels.shape == image.shape:
        image[:] = pixels
    else:
        cv2.resize(pixels, (box.width, box.height), dst=image, interpolation=cv2.INTER_LINEAR)


def grey_of(pixels: Pixels, longest: int = LONGEST) -> Pixels:
    """`decode_grey` for an image that came decoded, RGB uint8 `[h, w, 3]`."""
    height, width = pixels.shape[:2]
    return _shrink(pixels, *grey_size(width, height, longest))


def small_grey(canvas: Pixels, box: Letterbox, longest: int = LONGEST) -> Pixels:
    """The frame in a canvas, small and grey: uint8 `[h, w]` of `grey_size`. The pixels are copied."""
    return _shrink(image_of(canvas, box), *grey_size(box.image_width, box.image_height, longest))


def decode_grey(jpeg: Coded, info: JpegInfo, longest: int = LONGEST) -> Pixels:
    """`small_grey` without a canvas: the codec omits colour and decodes smaller. Never exact: no model sees it.

    Raises:
        UndecodableFrame: the frame is damaged or cut short.
    """
    width, height = grey_size(info.width, info.height, longest)
    if info.subsampling == _OTHER:
        return _shrink(_by_opencv(jpeg, info), width, height)
    return _shrink(_decode(jpeg, info, "GRAY", width, height, exact=False)[..., 0], width, height)


@lru_cache(maxsize=256)
def grey_size(image_width: int, image_height: int, longest: int = LONGEST) -> tuple[int, int]:
    """Width and height of the small grey frame: in proportion, but no side below `SHORTEST` or above the frame's."""
    scale = min(1.0, longest / max(image_width, image_height))
    width = min(image_width, max(SHORTEST, round(image_width * scale)))
    return width, min(image_height, max(SHORTEST, round(image_height * scale)))


def _shrink(image: Pixels, width: int, height: int) -> Pixels:
    """Converts to grey of that size, in steps of at most 2 on the longer side.

    Bilinear scaling to half the size is the mean of 2x2 pixels and OpenCV's fastest path; a larger step would skip
    pixels. This takes a third of the time of one `INTER_AREA` step.
    """
    if image.ndim == 3:
        # Before halving, though on four times the pixels: one channel halves faster than three, by a fifth in all.
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # type: ignore[assignment]
    halvings = 0
    while max(image.shape[1] / width, image.shape[0] / height) > 2 << halvings:
        halvings += 1
    # A strip of 65500x16 is halved only along its length, and not enlarged across it first.
    widest, highest = max(width, 2 * image.shape[1]), max(height, 2 * image.shape[0])
    for step in range(halvings, -1, -1):
        size = (min(width << step, widest), min(height << step, highest))
        if size != image.shape[1::-1]:
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return np.ascontiguousarray(image)


def image_of(canvas: Pixels, box: Letterbox) -> Pixels:
    """The part of a canvas that the frame covers: a view `[box.height, box.width, 3]`."""
    return canvas[box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width]


def _border(canvas: Pixels, box: Letterbox) -> None:
    bottom, right = box.pad_y + box.height, box.pad_x + box.width
    canvas[: box.pad_y] = BORDER
    canvas[bottom:] = BORDER
    if box.width < box.canvas_width:
        canvas[box.pad_y : bottom, : box.pad_x] = BORDER
        canvas[box.pad_y : bottom, right:] = BORDER


def _factor(info: JpegInfo, width: int, height: int) -> int:
    """8, 4, 2 or 1: by how much the codec may shrink the image and still return at least the wanted size.

    Only these factors have fast code in libjpeg-turbo; 3/8 takes longer than 1/2.
    """
    return next((f for f in (8, 4, 2) if info.width >= f * width and info.height >= f * height), 1)


def _reduced(info: JpegInfo, width: int, height: int) -> tuple[int, int]:
    factor = _factor(info, width, height)
    return -(-info.width // factor), -(-info.height // factor)


def _fits_reduced(info: JpegInfo, box: Letterbox) -> bool:
    return box.width == box.canvas_width and (box.width, box.height) == _reduced(info, box.width, box.height)


def _decode(
    jpeg: Coded,
    info: JpegInfo,
    colorspace: str,
    width: int,
    height: int,
    *,
    buffer: Pixels | None = None,
    exact: bool,
) -> Pixels:
    """Pixels `[h, w, 3 or 1]` of the full size where exact, else at least `width` x `height`. Refuses damage."""
    pixels: Pixels
    if info.subsampling == _OTHER:
        pixels = _by_opencv(jpeg, info)
        if buffer is not None:
            cv2.resize(pixels, buffer.shape[1::-1], dst=buffer, interpolation=cv2.INTER_LINEAR)
        return pixels
    options: dict[str, Any] = {"buffer": buffer}
    if not exact:
        min_width, min_height = _reduced(info, width, height)
        options |= {"min_width": min_width, "min_height": min_height, "fastdct": True, "fastupsample": True}
    try:
        try:
            pixels = simplejpeg.decode_jpeg(jpeg, colorspace, **options)
        except ValueError as error:
            # The decoder reports only its first warning; that the data continue to the end was checked before.
            if not (info.whole and any(words in str(error) for words in _HARMLESS)):
                raise
            pixels = simplejpeg.decode_jpeg(jpeg, colorspace, strict=False, **options)
    except ValueError as error:
        raise UndecodableFrame(f"the JPEG is damaged or cut short: {error}") from None
    return pixels


def _by_opencv(jpeg: Coded, info: JpegInfo) -> Pixels:
    """RGB of the full size, for subsamplings that TurboJPEG does not know. OpenCV reports no damage; the only check is
    that the JPEG has an end."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        found = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags) if info.whole else None
    except cv2.error:
        found = None
    if found is None or found.shape != (info.height, info.width, 3):
        raise UndecodableFrame("the JPEG is damaged or cut short, or of a kind that is not decoded")
    return np.asarray(found, np.uint8)


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """RGB `[height, width, 3]` as a JPEG without subsampling, for reading text."""
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="444")
    return jpeg


# --- PNG and WebP ---

_PNG = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks that make up the image. All others (profiles, texts, frames of an animation) are kept from the codec."""
_MOST_CHUNKS = 10_000
_STRIP = 256
"""Rows that are blended with white at a time, so that memory does not hold a large image several times."""


@dataclass(frozen=True, slots=True)
class StillImage:
    """A PNG or WebP whose headers were checked, not decoded yet."""

    width: int
    height: int
    data: bytes
    clear: int | None = None
    """The transparent level of a grey PNG that has one: OpenCV ignores it."""


def is_still(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG or WebP."""
    return data.startswith(_PNG) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def inspect_still(data: bytes, *, max_bytes: int, max_pixels: int) -> StillImage:
    """Reads the headers of a PNG or WebP.

    Raises:
        FrameTooLarge: more bytes or pixels than allowed.
        UndecodableFrame: it is damaged, cut short, or an animated WebP.
    """
    if len(data) > max_bytes:
        raise FrameTooLarge(f"the image has {len(data):,} bytes; at most {max_bytes:,} are taken (MAX_FRAME_BYTES)")
    return _png(data, max_pixels) if data.startswith(_PNG) else _webp(data, max_pixels)


def decode_still(still: StillImage) -> Pixels:
    """RGB uint8 `[h, w, 3]`: grey as three equal channels, 16 bits rounded to 8, transparency blended with white.

    Raises:
        UndecodableFrame: it is damaged.
    """
    try:
        found = cv2.imdecode(np.frombuffer(still.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UndecodableFrame(f"the image is damaged: {error.err}") from None
    if found is None:
        raise UndecodableFrame("the image is damaged or cut short")
    if found.shape[:2] != (still.height, still.width):
        raise UndecodableFrame("the image is damaged: its header gives another size than its data")
    if still.clear is not None and found.ndim == 2:
        found[found == still.clear] = 65_535 if found.dtype == np.uint16 else 255
    pixels = np.empty((still.height, still.width, 3), np.uint8)
    for top in range(0, still.height, _STRIP):
        pixels[top : top + _STRIP] = _rgb(found[top : top + _STRIP])
    return pixels


def _rgb(part: NDArray[Any]) -> Pixels:
    """Converts a strip as OpenCV decoded it: grey, BGR or BGRA."""
    if part.dtype == np.uint16:
        part = cv2.convertScaleAbs(part, alpha=1 / 257)
    if part.ndim == 2:
        return cv2.cvtColor(part, cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]
    if part.shape[2] == 3:
        return cv2.cvtColor(part, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
    colour, alpha = part[..., 2::-1].astype(np.uint16), part[..., 3:].astype(np.uint16)
    laid: Pixels = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return laid


def _png(data: bytes, max_pixels: int) -> StillImage:
    """Checks a PNG's chunks, and keeps those of the still image; in an animation, this is the image for viewers that do
    not animate (W3C PNG, 4.9 and 5)."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise UndecodableFrame("the PNG is damaged or cut short: its header does not come first")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    _check_size(width, height, max_pixels, "PNG")
    kept, at, count, has_image, clear = [_PNG], len(_PNG), 0, False, None
    while True:
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise UndecodableFrame("the PNG is cut short")
        count += 1
        if count > _MOST_CHUNKS:
            raise UndecodableFrame(f"the PNG has more than {_MOST_CHUNKS:,} chunks")
        if kind in _NEEDED:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise UndecodableFrame(f"the PNG is damaged: the checksum of its {kind.decode()} is wrong")
            kept.append(data[at:end])
            if kind == b"tRNS" and length == 2 and data[25] == 0:
                # A sample of up to 16 bits; the codec returns those of 1, 2 and 4 bits as 8 (W3C PNG, 11.3.1.1).
                clear = int.from_bytes(data[at + 8 : at + 10]) * (255 // ((1 << data[24]) - 1) if data[24] < 8 else 1)
        elif not kind[:1].islower():  # a critical chunk that the standard does not know
            raise UndecodableFrame("the PNG is damaged: it has a chunk that no decoder knows")
        has_image = has_image or kind == b"IDAT"
        if kind == b"IEND":
            break
        at = end
    if not has_image:
        raise UndecodableFrame("the PNG has no image in it")
    return StillImage(width, height, b"".join(kept), clear)


def _webp(data: bytes, max_pixels: int) -> StillImage:
    """Checks a WebP's headers (RFC 9649, 2.5 to 2.7). The size stands in the image's chunk, and in any VP8X."""
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise UndecodableFrame("the WebP is cut short")
    at, canvas = 12, None
    for _ in range(_MOST_CHUNKS):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 18]
        if len(body) < 10:
            break
        if kind == b"VP8X":
            if body[0] & 2:
                raise UndecodableFrame("the WebP is animated; want a single image")
            canvas = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
            _check_size(*canvas, max_pixels, "WebP")
        elif kind in (b"VP8 ", b"VP8L"):
            if kind == b"VP8 ":  # RFC 6386, 9.1: 14 bits each, the other two are scaling
                width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
            else:  # RFC 9649, 3.4: 14 bits each, less one
                bits = int.from_bytes(body[1:5], "little")
                width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
            _check_size(width, height, max_pixels, "WebP")
            if canvas not in (None, (width, height)):
                raise UndecodableFrame("the WebP is damaged: its headers give two sizes")
            return StillImage(width, height, data)
        at += 8 + length + length % 2
    raise UndecodableFrame("the WebP is damaged or cut short: there is no image in it")


def _check_size(width: int, height: int, max_pixels: int, kind: str) -> None:
    if not width or not height:
        raise UndecodableFrame(f"the {kind} is damaged: it is {width}x{height}")
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
