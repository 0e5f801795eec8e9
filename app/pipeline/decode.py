"""JPEG to pixels: looked at before decoding, then straight into a model's canvas. The codec frees the GIL.

An EXIF orientation is not applied: coordinates refer to the picture as it was sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.errors import FrameTooLarge, UndecodableFrame
from app.pipeline.boxes import Letterbox

Pixels = NDArray[np.uint8]

BORDER = 114
"""Grey of the canvas around the picture, as the models were trained with."""
LONGEST = 160
"""Longest side of the grey picture that motion is measured on."""
SHORTEST = 16
"""Its shorter side is not made smaller than this: dense flow needs that much."""
_HARMLESS = ("extraneous bytes", "Invalid SOS parameters")
"""What libjpeg warns of though the picture is whole; cameras' MJPEG is full of it."""
MAX_SCANS = 100
"""Of a progressive JPEG. Encoders write about ten; thousands of empty ones are an attack on the decoder's time."""

_SOI, _EOI, _SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
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


@dataclass(frozen=True, slots=True)
class JpegInfo:
    """What a JPEG's header says."""

    width: int
    height: int
    colorspace: str
    """`YCbCr`, `Gray`, `RGB`, `CMYK` or `YCCK`."""
    subsampling: str
    """`420`, `422`, `444`, ..."""
    progressive: bool


def inspect(jpeg: bytes, *, max_bytes: int, max_pixels: int) -> JpegInfo:
    """Reads the header alone, some microseconds.

    Raises:
        FrameTooLarge: more bytes or pixels than allowed.
        UndecodableFrame: not a JPEG, or its header is damaged; or so many scans that they are meant to hurt.
    """
    if len(jpeg) > max_bytes:
        raise FrameTooLarge(f"the frame has {len(jpeg):,} bytes; at most {max_bytes:,} are taken")
    if jpeg[:2] != _SOI:
        raise UndecodableFrame(f"the frame is {_kind(jpeg)}; want a JPEG")
    try:
        height, width, colorspace, subsampling = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise UndecodableFrame(f"the JPEG's header is damaged, cut short or of a rare kind: {error}") from None
    if width * height > max_pixels:
        raise _too_many_pixels(width, height, max_pixels)
    progressive = _is_progressive(jpeg)
    if progressive and (scans := jpeg.count(_SOS)) > MAX_SCANS:
        raise UndecodableFrame(f"the progressive JPEG has {scans:,} scans; at most {MAX_SCANS} are decoded")
    return JpegInfo(width, height, colorspace, subsampling, progressive)


def decode_into(jpeg: bytes, info: JpegInfo, box: Letterbox, canvas: Pixels, *, border: bool = True) -> None:
    """Decodes into a canvas, letterboxed: RGB uint8 `[canvas height, canvas width, 3]`, C-contiguous.

    What the canvas held before does not matter; with `border` False, it is the border already around the picture.
    Only the picture is written then, also of a frame that turns out to be damaged. A frame that fits its rows is
    decoded in place; a frame at least twice too large is made smaller by the codec (fewer DCT coefficients), the
    rest bilinear.

    Raises:
        UndecodableFrame: damaged or cut short. The canvas then holds anything.
    """
    picture = picture_of(canvas, box)
    if border:
        _border(canvas, box)
    in_place = box.width == box.canvas_width and (box.width, box.height) == _reduced(info, box.width, box.height)
    pixels = _decode(jpeg, info, "RGB", box.width, box.height, buffer=picture if in_place else None)
    if in_place:
        return
    if pixels.shape == picture.shape:
        picture[:] = pixels
    else:
        cv2.resize(pixels, (box.width, box.height), dst=picture, interpolation=cv2.INTER_LINEAR)


def described(pixels: Pixels, *, max_pixels: int) -> JpegInfo:
    """What `inspect` says of a JPEG, of a picture that came decoded: RGB uint8 `[h, w, 3]`.

    Raises:
        FrameTooLarge: more pixels than allowed.
    """
    height, width = pixels.shape[:2]
    if width * height > max_pixels:
        raise _too_many_pixels(width, height, max_pixels)
    return JpegInfo(width, height, "RGB", "444", progressive=False)


def _too_many_pixels(width: int, height: int, most: int) -> FrameTooLarge:
    return FrameTooLarge(f"the frame is {width}x{height}, {width * height:,} pixels; at most {most:,} are taken")


def lay_into(pixels: Pixels, box: Letterbox, canvas: Pixels, *, border: bool = True) -> None:
    """`decode_into` for a picture that came decoded: RGB uint8 `[h, w, 3]`."""
    picture = picture_of(canvas, box)
    if border:
        _border(canvas, box)
    if pixels.shape == picture.shape:
        picture[:] = pixels
        return
    # Halved first where it is at least twice too large: bilinear alone would skip pixels.
    while pixels.shape[0] >= 2 * box.height and pixels.shape[1] >= 2 * box.width:
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    if pixels.shape == picture.shape:
        picture[:] = pixels
    else:
        cv2.resize(pixels, (box.width, box.height), dst=picture, interpolation=cv2.INTER_LINEAR)


def grey_of(pixels: Pixels, longest: int = LONGEST) -> Pixels:
    """`decode_grey` for a picture that came decoded: RGB uint8 `[h, w, 3]`."""
    height, width = pixels.shape[:2]
    return _shrink(pixels, *grey_size(width, height, longest))


def small_grey(canvas: Pixels, box: Letterbox, longest: int = LONGEST) -> Pixels:
    """The frame in a canvas, small and grey: uint8 `[h, w]` of `grey_size`. The pixels are copied."""
    return _shrink(picture_of(canvas, box), *grey_size(box.image_width, box.image_height, longest))


def decode_grey(jpeg: bytes, info: JpegInfo, longest: int = LONGEST) -> Pixels:
    """The same without a canvas: the codec leaves colour out and decodes smaller.

    Raises:
        UndecodableFrame: damaged or cut short.
    """
    width, height = grey_size(info.width, info.height, longest)
    return _shrink(_decode(jpeg, info, "GRAY", width, height)[..., 0], width, height)


def grey_size(image_width: int, image_height: int, longest: int = LONGEST) -> tuple[int, int]:
    """Width and height of a frame's small grey picture: its proportions, except that no side gets under `SHORTEST`.

    Never larger than the frame.
    """
    scale = min(1.0, longest / max(image_width, image_height))
    width, height = (min(side, max(SHORTEST, round(side * scale))) for side in (image_width, image_height))
    return width, height


def _shrink(picture: Pixels, width: int, height: int) -> Pixels:
    """To grey of that size, in steps of at most 2 on the longer side.

    Bilinear at half size is the mean of 2x2, and OpenCV's fastest path; one step over more would skip pixels.
    Three times as fast as one step of `INTER_AREA`.
    """
    if picture.ndim == 3:
        # First, though it is four times the pixels: one channel is halved faster than three, by a fifth in all.
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)  # type: ignore[assignment]
    halvings = 0
    while max(picture.shape[1] / width, picture.shape[0] / height) > 2 << halvings:
        halvings += 1
    for step in range(halvings, -1, -1):
        size = (width << step, height << step)
        if size != picture.shape[1::-1]:
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return np.ascontiguousarray(picture)


def picture_of(canvas: Pixels, box: Letterbox) -> Pixels:
    """The frame's own part of a canvas: a view `[box.height, box.width, 3]`."""
    return canvas[box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width]


def _border(canvas: Pixels, box: Letterbox) -> None:
    bottom, right = box.pad_y + box.height, box.pad_x + box.width
    canvas[: box.pad_y] = BORDER
    canvas[bottom:] = BORDER
    if box.width < box.canvas_width:
        canvas[box.pad_y : bottom, : box.pad_x] = BORDER
        canvas[box.pad_y : bottom, right:] = BORDER


def _factor(info: JpegInfo, width: int, height: int) -> int:
    """8, 4, 2 or 1: how much smaller the codec may decode and still be no smaller than wanted.

    Only these have fast code in libjpeg-turbo; at 3/8 it takes longer than at 1/2.
    """
    return next((f for f in (8, 4, 2) if info.width >= f * width and info.height >= f * height), 1)


def _reduced(info: JpegInfo, width: int, height: int) -> tuple[int, int]:
    factor = _factor(info, width, height)
    return -(-info.width // factor), -(-info.height // factor)


def _decode(
    jpeg: bytes, info: JpegInfo, colorspace: str, width: int, height: int, *, buffer: Pixels | None = None
) -> Pixels:
    """Pixels of at least that size, `[h, w, 3 or 1]`. A picture that is not whole is refused."""
    min_width, min_height = _reduced(info, width, height)
    options: dict[str, Any] = {"min_width": min_width, "min_height": min_height, "buffer": buffer}
    options |= {"fastdct": True, "fastupsample": True}
    try:
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(jpeg, colorspace, **options)
        except ValueError as error:
            # The decoder tells its first warning only: that the data goes on to the end is checked here.
            whole = jpeg.rfind(_EOI) > jpeg.rfind(_SOS)
            if not (whole and any(words in str(error) for words in _HARMLESS)):
                raise
            pixels = simplejpeg.decode_jpeg(jpeg, colorspace, strict=False, **options)
    except ValueError as error:
        raise UndecodableFrame(f"the JPEG is damaged or cut short: {error}") from None
    return pixels


def _is_progressive(jpeg: bytes) -> bool:
    """Walks the segments to the frame header (ITU-T T.81, B.1.1): SOF2 is the progressive one."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker == 0xC2
        if marker == 0xFF:
            at += 1
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return False


def _kind(data: bytes) -> str:
    """What it is instead, as far as its first bytes tell."""
    if not data:
        return "empty"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP"
    if data[4:8] == b"ftyp":
        return "an MP4, HEIC or AVIF file"
    named = next((name for start, name in _KINDS if data.startswith(start)), None)
    return named or f"no JPEG (it starts with {data[:4].hex(' ').upper()})"
