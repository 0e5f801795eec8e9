"""JPEG to pixels, straight into a model's canvas where it fits. The codec frees the GIL.

`exact` gives what OpenCV gives, to the level: `cv2.imdecode`, then `cv2.resize` with `INTER_LINEAR` from the full size,
as Ultralytics prepares a picture. Fast is up to 37 levels beside it: libjpeg's quick DCT and upsampling, and a picture
at least twice too large is made smaller by the codec.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.errors import UndecodableFrame
from app.pipeline.boxes import Letterbox
from app.pipeline.jpeg import JpegInfo, too_many_pixels

Pixels = NDArray[np.uint8]
Coded = bytes | bytearray
"""A JPEG's bytes; a bytearray where it may be spoilt while it is decoded, so that the codec comes to an end."""

BORDER = 114
"""Grey of the canvas around the picture, as the models were trained with."""
LONGEST = 160
"""Longest side of the grey picture that motion is measured on."""
SHORTEST = 16
"""Its shorter side is not made smaller than this: dense flow needs that much."""
_HARMLESS = (
    "extraneous bytes",
    "Invalid SOS parameters",
    "bad ICC marker",
    "unknown JFIF revision",
    "Unknown Adobe color transform",
)
"""What libjpeg warns of though the picture is whole; cameras' MJPEG is full of the first two."""


def decode_into(
    jpeg: Coded, info: JpegInfo, box: Letterbox, canvas: Pixels, *, border: bool = True, exact: bool = True
) -> None:
    """Decodes into a canvas, letterboxed: RGB uint8 `[canvas height, canvas width, 3]`, C-contiguous.

    What the canvas held before does not matter; with `border` False, it is the border already around the picture.
    Only the picture is written then, also of a frame that turns out to be damaged. A frame that fits its rows is
    decoded in place.

    Raises:
        UndecodableFrame: damaged or cut short. The canvas then holds anything.
    """
    if border:
        _border(canvas, box)
    picture = picture_of(canvas, box)
    if fits(info, box) if exact else _fits_reduced(info, box):
        _decode(jpeg, info, "RGB", box.width, box.height, buffer=picture, exact=exact)
    else:
        _resize(_decode(jpeg, info, "RGB", box.width, box.height, exact=exact), box, picture)


def decode_whole(jpeg: Coded, info: JpegInfo, *, exact: bool = True) -> Pixels:
    """The picture at its full size, as it is coded: RGB uint8 `[h, w, 3]`.

    Raises:
        UndecodableFrame: damaged or cut short.
    """
    return _decode(jpeg, info, "RGB", info.width, info.height, exact=exact)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turns and mirrors a picture as its EXIF orientation asks for, 1 to 8. C-contiguous, as a copy; 1: as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    # By OpenCV's flip: 0 upside down, 1 left and right, -1 both.
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)  # type: ignore[return-value]


def fits(info: JpegInfo, box: Letterbox) -> bool:
    """Whether the frame is as large as its place in the canvas, whose rows it fills: `exact` decodes in place."""
    return (box.width, box.height) == (info.width, info.height) and box.width == box.canvas_width


def described(pixels: Pixels, *, max_pixels: int) -> JpegInfo:
    """What `inspect` says of a JPEG, of a picture that came decoded: RGB uint8 `[h, w, 3]`.

    Raises:
        FrameTooLarge: more pixels than allowed.
    """
    height, width = pixels.shape[:2]
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
    return JpegInfo(width, height, "RGB", "444", progressive=False)


def lay_into(pixels: Pixels, box: Letterbox, canvas: Pixels, *, border: bool = True, exact: bool = True) -> None:
    """`decode_into` for a picture that came decoded: RGB uint8 `[h, w, 3]`."""
    picture = picture_of(canvas, box)
    if border:
        _border(canvas, box)
    # Halved first where it is at least twice too large: bilinear alone would skip pixels.
    while not exact and pixels.shape[0] >= 2 * box.height and pixels.shape[1] >= 2 * box.width:
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    _resize(pixels, box, picture)


def _resize(pixels: Pixels, box: Letterbox, picture: Pixels) -> None:
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


def decode_grey(jpeg: Coded, info: JpegInfo, longest: int = LONGEST) -> Pixels:
    """The same without a canvas: the codec leaves colour out and decodes smaller. Never exact: no model sees it.

    Raises:
        UndecodableFrame: damaged or cut short.
    """
    width, height = grey_size(info.width, info.height, longest)
    if _rare(info):
        return _shrink(_by_opencv(jpeg, info), width, height)
    return _shrink(_decode(jpeg, info, "GRAY", width, height, exact=False)[..., 0], width, height)


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
    # A strip of 65500x16 is halved along its length alone, and not first blown up across it.
    widest, highest = max(width, 2 * picture.shape[1]), max(height, 2 * picture.shape[0])
    for step in range(halvings, -1, -1):
        size = (min(width << step, widest), min(height << step, highest))
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
    """Pixels, `[h, w, 3 or 1]`: of the full size where exact, else at least as large. What is not whole is refused."""
    pixels: Pixels
    if _rare(info):
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
            # The decoder tells its first warning only: that the data goes on to the end was seen before.
            if not (info.whole and any(words in str(error) for words in _HARMLESS)):
                raise
            pixels = simplejpeg.decode_jpeg(jpeg, colorspace, strict=False, **options)
    except ValueError as error:
        raise UndecodableFrame(f"the JPEG is damaged or cut short: {error}") from None
    return pixels


def _rare(info: JpegInfo) -> bool:
    """Whether it is subsampled in a way that TurboJPEG does not know, and OpenCV does."""
    return info.subsampling == "other"


def _by_opencv(jpeg: Coded, info: JpegInfo) -> Pixels:
    """RGB of the full size. OpenCV does not say what is damaged in it: only that it ends is sure."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        found = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags) if info.whole else None
    except cv2.error:
        found = None
    if found is None or found.shape != (info.height, info.width, 3):
        raise UndecodableFrame("the JPEG is damaged or cut short, or of a kind that is not decoded")
    return np.asarray(found, np.uint8)
