"""PNG and WebP to pixels, for the door that takes single pictures. Looked over before anything is decoded."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import FrameTooLarge, UndecodableFrame
from app.pipeline.jpeg import too_many_pixels

Pixels = NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks that make the picture. The others - profiles, texts, an animation's frames - do not reach the codec."""
_MOST_CHUNKS = 10_000
_STRIP = 256
"""Rows that are laid on white at a time: a large picture is not held several times."""


@dataclass(frozen=True, slots=True)
class Still:
    """A picture that was looked over, and not decoded yet."""

    width: int
    height: int
    data: bytes
    clear: int | None = None
    """The level that is transparent, of a grey PNG with such a one: OpenCV leaves it as it is."""


def is_still(data: bytes) -> bool:
    """Whether its first bytes are a PNG's or a WebP's."""
    return data.startswith(_PNG) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def inspect_still(data: bytes, *, max_bytes: int, max_pixels: int) -> Still:
    """Reads the headers of a PNG or WebP.

    Raises:
        FrameTooLarge: more bytes or pixels than allowed.
        UndecodableFrame: damaged, cut short, or an animated WebP.
    """
    if len(data) > max_bytes:
        raise FrameTooLarge(f"the picture has {len(data):,} bytes; at most {max_bytes:,} are taken (MAX_FRAME_BYTES)")
    return _png(data, max_pixels) if data.startswith(_PNG) else _webp(data, max_pixels)


def decode_still(still: Still) -> Pixels:
    """RGB uint8 `[h, w, 3]`: grey as three like channels, 16 bits rounded to 8, transparency laid on white.

    Raises:
        UndecodableFrame: damaged.
    """
    try:
        found = cv2.imdecode(np.frombuffer(still.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UndecodableFrame(f"the picture is damaged: {error.err}") from None
    if found is None:
        raise UndecodableFrame("the picture is damaged or cut short")
    if found.shape[:2] != (still.height, still.width):
        raise UndecodableFrame("the picture is damaged: its header gives another size than its data")
    if still.clear is not None and found.ndim == 2:
        found[found == still.clear] = 65_535 if found.dtype == np.uint16 else 255
    pixels = np.empty((still.height, still.width, 3), np.uint8)
    for top in range(0, still.height, _STRIP):
        pixels[top : top + _STRIP] = _rgb(found[top : top + _STRIP])
    return pixels


def _rgb(part: NDArray[Any]) -> Pixels:
    """A strip as OpenCV decoded it: grey, BGR or BGRA."""
    if part.dtype == np.uint16:
        part = cv2.convertScaleAbs(part, alpha=1 / 257)
    if part.ndim == 2:
        return cv2.cvtColor(part, cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]
    if part.shape[2] == 3:
        return cv2.cvtColor(part, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
    colour, alpha = part[..., 2::-1].astype(np.uint16), part[..., 3:].astype(np.uint16)
    laid: Pixels = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return laid


def _png(data: bytes, max_pixels: int) -> Still:
    """The picture alone: of an animation the one that is shown where animations are not (W3C PNG, 4.9 and 5)."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise UndecodableFrame("the PNG is damaged or cut short: its header does not come first")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    _check_size(width, height, max_pixels, "PNG")
    kept, at, count, pictured, clear = [_PNG], len(_PNG), 0, False, None
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
                # A sample of up to 16 bits; those of 1, 2 and 4 come out of the codec as 8 (W3C PNG, 11.3.1.1).
                clear = int.from_bytes(data[at + 8 : at + 10]) * (255 // ((1 << data[24]) - 1) if data[24] < 8 else 1)
        elif not kind[:1].islower():  # critical, and unknown to the standard
            raise UndecodableFrame("the PNG is damaged: it has a chunk that no decoder knows")
        pictured = pictured or kind == b"IDAT"
        if kind == b"IEND":
            break
        at = end
    if not pictured:
        raise UndecodableFrame("the PNG has no picture in it")
    return Still(width, height, b"".join(kept), clear)


def _webp(data: bytes, max_pixels: int) -> Still:
    """RFC 9649, 2.5 to 2.7: the size is in the header of the picture's own chunk, and in VP8X where there is one."""
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
                raise UndecodableFrame("the WebP is animated; want a single picture")
            canvas = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
            _check_size(*canvas, max_pixels, "WebP")
        elif kind in (b"VP8 ", b"VP8L"):
            if kind == b"VP8 ":  # RFC 6386, 9.1: 14 bits each, the rest is scaling
                width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
            else:  # RFC 9649, 3.4: 14 bits each, less one
                bits = int.from_bytes(body[1:5], "little")
                width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
            _check_size(width, height, max_pixels, "WebP")
            if canvas not in (None, (width, height)):
                raise UndecodableFrame("the WebP is damaged: its headers give two sizes")
            return Still(width, height, data)
        at += 8 + length + length % 2
    raise UndecodableFrame("the WebP is damaged or cut short: there is no picture in it")


def _check_size(width: int, height: int, max_pixels: int, kind: str) -> None:
    if not width or not height:
        raise UndecodableFrame(f"the {kind} is damaged: it is {width}x{height}")
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
