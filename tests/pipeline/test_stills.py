"""PNG and WebP for `POST /v1/frames`: every kind of them as one sees it, bombs and damage refused."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.errors import FrameTooLarge, UndecodableFrame
from app.pipeline.decode import decode_still, inspect_still, is_still
from tests.pipeline.test_exact import form, tensors
from tests.support.jpegs import encode, letterboxed, photo

PHOTO = photo(64, 48)
GREY = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)
ANY = {"max_bytes": 1 << 22, "max_pixels": 1 << 24}


def coded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    assert is_still(data)
    return decode_still(inspect_still(data, **ANY))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, colour: int, rows: bytes, depth: int = 8, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_e7_colours_are_kept(kind: str) -> None:
    assert (decoded(coded(Image.fromarray(PHOTO), kind, lossless=True)) == PHOTO).all()


def test_e7_every_kind_of_png_is_the_picture() -> None:
    image = Image.fromarray(PHOTO)
    grey = np.repeat(GREY[..., None], 3, axis=2)
    assert (decoded(coded(Image.fromarray(GREY))) == grey).all()
    palette = image.convert("P")
    assert (decoded(coded(palette)) == np.asarray(palette.convert("RGB"))).all()
    assert (decoded(coded(image.convert("1"))) == np.asarray(image.convert("1").convert("RGB"))).all()
    assert (decoded(coded(Image.fromarray(GREY.astype(np.uint16) * 257))) == grey).all()
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in PHOTO)
    assert (decoded(png(64, 48, 2, rows, depth=16)) == PHOTO).all()
    interlaced = decoded(coded(image, optimize=True))
    assert (interlaced == PHOTO).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_e7_what_is_transparent_is_laid_on_white(kind: str) -> None:
    alpha = np.linspace(0, 255, 64, dtype=np.uint8)[None].repeat(48, 0)
    found = decoded(coded(Image.fromarray(np.dstack([PHOTO, alpha])), kind, lossless=True, exact=True))
    share = alpha[..., None] / 255
    assert np.abs(found - (PHOTO * share + 255 * (1 - share))).max() <= 0.51
    if kind == "PNG":
        both = decoded(coded(Image.fromarray(np.dstack([GREY, alpha]), "LA")))
        assert np.abs(both - (GREY[..., None] * share + 255 * (1 - share))).max() <= 0.51


@pytest.mark.parametrize(("depth", "level"), [(1, 1), (2, 2), (4, 9), (8, 130), (16, 40_000)])
def test_e7_a_grey_level_that_is_transparent_is_laid_on_white(depth: int, level: int) -> None:
    bits = f"{level:0{depth}b}" + "0" * depth * 7  # eight samples a row: the first is that level, the others are black
    row = b"\0" + int(bits, 2).to_bytes(depth)
    found = decoded(png(8, 2, 0, row * 2, depth, chunk(b"tRNS", level.to_bytes(2))))
    assert (found[:, 0] == 255).all()
    assert (found[:, 1:] == 0).all()


def test_e7_an_animated_png_is_its_first_picture_and_an_animated_webp_is_refused() -> None:
    others = {"save_all": True, "append_images": [Image.fromarray(PHOTO[::-1])]}
    assert (decoded(coded(Image.fromarray(PHOTO), **others)) == PHOTO).all()
    with pytest.raises(UndecodableFrame, match="animated; want a single image"):
        decoded(coded(Image.fromarray(PHOTO), "WEBP", **others))


def bomb(kind: str) -> bytes:
    if kind == "PNG":
        return png(60_000, 60_000, 2, bytes(1 << 20))
    data = bytearray(coded(Image.fromarray(PHOTO), "WEBP", lossless=kind == "lossless"))
    at = data.index(b"VP8L") + 9 if kind == "lossless" else data.index(b"VP8 ") + 14
    data[at : at + 4] = b"\xff\xff\xff\x0f" if kind == "lossless" else b"\xff\x3f\xff\x3f"
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "lossy", "lossless"])
def test_e7_bombs_are_refused_by_their_headers(kind: str) -> None:
    began = time.thread_time()
    with pytest.raises(FrameTooLarge, match="MAX_PIXELS"):
        decoded(bomb(kind))
    assert time.thread_time() - began < 0.2


def test_e7_chunks_without_end_and_profiles_that_unfold_cost_nothing() -> None:
    began = time.thread_time()
    with pytest.raises(UndecodableFrame, match="more than 10,000 chunks"):
        decoded(png(64, 48, 2, b"", extra=chunk(b"tEXt", b"") * 100_000))
    profile = b"x\0\0" + zlib.compress(bytes(100 << 20))
    rows = b"".join(b"\0" + row.tobytes() for row in PHOTO)
    unfolding = png(64, 48, 2, rows, extra=chunk(b"iCCP", profile) + chunk(b"zTXt", profile) * 20)
    cpu = time.thread_time()
    assert (decoded(unfolding) == PHOTO).all()
    assert time.thread_time() - cpu < 0.3
    assert time.thread_time() - began < 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_e7_cut_short_is_refused(kind: str, tenths: int) -> None:
    data = coded(Image.fromarray(photo(300, 200)), kind)
    with pytest.raises(UndecodableFrame):
        decoded(data[: len(data) * tenths // 10])


def test_e7_a_checksum_that_is_wrong_is_said() -> None:
    data = bytearray(coded(Image.fromarray(PHOTO)))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(UndecodableFrame, match="the checksum of its IDAT is wrong"):
        decoded(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_e7_damaged_bytes_raise_nothing_else(kind: str) -> None:
    dice, data = np.random.default_rng(0), coded(Image.fromarray(PHOTO), kind)
    for _ in range(150):
        damaged = bytearray(data)
        for at in dice.integers(12, len(data), 3):
            damaged[at] = dice.integers(0, 256)
        try:
            decoded(bytes(damaged))
        except (UndecodableFrame, FrameTooLarge):
            continue


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_e7_a_still_is_prepared_as_a_jpeg_is_and_only_where_it_is_a_photo(kind: str) -> None:
    picture = photo(700, 301)
    data = coded(Image.fromarray(picture), kind, lossless=True)
    (found,) = tensors(data, form(640, 640), photo=True)
    assert (found == letterboxed(picture, 640, 640)).all()
    with pytest.raises(UndecodableFrame, match=f"is a {'PNG' if kind == 'PNG' else 'WebP'}; want a JPEG"):
        tensors(data, form(640, 640))
    (jpeg,) = tensors(encode(picture), form(640, 640), photo=True)
    assert jpeg.shape == (640, 640, 3)


def test_e7_what_is_no_picture_is_told_of_all_that_would_be() -> None:
    gif = coded(Image.fromarray(PHOTO), "GIF")
    with pytest.raises(UndecodableFrame, match="is a GIF; want a JPEG, PNG or WebP"):
        tensors(gif, form(640, 640), photo=True)
