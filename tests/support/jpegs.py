"""JPEGs put together marker by marker (ITU-T T.81), as no encoder writes them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

SOI, EOI = b"\xff\xd8", b"\xff\xd9"


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2) + payload


DQT = segment(0xDB, b"\0" + b"\1" * 64)
DHT = segment(0xC4, b"\x00\x01" + bytes(16)) + segment(0xC4, b"\x10\x01" + bytes(16))
"""Tables of one code each: a bit, no difference, and an end of the block. A byte of zeros goes a long way."""


def sof(marker: int, width: int, height: int, sampling: Sequence[int] = (0x11, 0x11, 0x11), bits: int = 8) -> bytes:
    components = b"".join(bytes([number, factors, 0]) for number, factors in enumerate(sampling, 1))
    return segment(marker, bytes([bits]) + height.to_bytes(2) + width.to_bytes(2) + bytes([len(sampling)]) + components)


def sos(components: Sequence[int], first: int = 0, last: int = 63, bits: int = 0) -> bytes:
    return segment(
        0xDA,
        bytes([len(components)])
        + b"".join(bytes([component, 0]) for component in components)
        + bytes([first, last, bits]),
    )


def scans(count: int, *, marker: int = 0xC0, side: int = 1024, coded: bytes = b"?\0", before: bytes = b"") -> bytes:
    """A JPEG of so many scans, one component each, that hold next to nothing.

    Args:
        before: what stands between SOI and the rest.
    """
    progressive = marker in (0xC2, 0xCA)
    coded_scans = [sos([1 + number % 3], 0, 0 if progressive else 63) + coded for number in range(count)]
    return SOI + before + DQT + sof(marker, side, side) + DHT + b"".join(coded_scans) + EOI


def photo(width: int, height: int) -> NDArray[np.uint8]:
    """skimage's astronaut, RGB."""
    return cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def encode(pixels: NDArray[np.uint8], mode: str = "RGB", quality: int = 80, **options: Any) -> bytes:
    """By Pillow, that is libjpeg-turbo."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def by_opencv(jpeg: bytes) -> NDArray[np.uint8] | None:
    """RGB as OpenCV decodes it, not turned; None where it does not."""
    found = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if found is None else found[..., ::-1]  # type: ignore[return-value]


def letterboxed(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """As Ultralytics' `LetterBox(auto=False, center=True, scaleup=True)` does it (ultralytics/data/augment.py, 8.3)."""
    shape = pixels.shape[:2]
    ratio = min(height / shape[0], width / shape[1])
    new = max(1, round(shape[1] * ratio)), max(1, round(shape[0] * ratio))
    dw, dh = (width - new[0]) / 2, (height - new[1]) / 2
    if shape[::-1] != new:
        pixels = cv2.resize(pixels, new, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    top, bottom, left, right = round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1)
    return cv2.copyMakeBorder(  # type: ignore[return-value]
        np.ascontiguousarray(pixels), top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114)
    )
