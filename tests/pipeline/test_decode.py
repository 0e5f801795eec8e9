"""JPEGs of every kind into the canvas, against OpenCV's decoder and resizer; and what is refused."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from app.errors import FrameTooLarge, TooExpensive, UndecodableFrame
from app.pipeline.boxes import letterbox
from app.pipeline.decode import BORDER, decode_grey, decode_into, grey_size, inspect, small_grey

ANY = {"max_bytes": 1 << 24, "max_pixels": 1 << 24}


def photo(width, height):
    return cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_AREA)


def encode(pixels, mode="RGB", quality=80, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


PHOTO = photo(640, 480)
KINDS = {
    "4:4:4": encode(PHOTO, subsampling=0),
    "4:2:2": encode(PHOTO, subsampling=1),
    "4:2:0": encode(PHOTO, subsampling=2),
    "progressive": encode(PHOTO, progressive=True),
    "grey": encode(PHOTO, "L"),
    "cmyk": encode(PHOTO, "CMYK"),
    "restart markers": encode(PHOTO, restart_marker_rows=1),
}


def decoded(jpeg, size=(640, 640)):
    info = inspect(jpeg, **ANY)
    box = letterbox(info.width, info.height, *size)
    canvas = np.full((size[1], size[0], 3), 200, np.uint8)
    decode_into(jpeg, info, box, canvas)
    return canvas, box, info


def by_opencv(jpeg, box):
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)[..., ::-1]
    canvas = np.full((box.canvas_height, box.canvas_width, 3), BORDER, np.uint8)
    if pixels.shape[:2] != (box.height, box.width):
        pixels = cv2.resize(pixels, (box.width, box.height), interpolation=cv2.INTER_LINEAR)
    canvas[box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width] = pixels
    return canvas


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_jpeg_is_the_picture(kind):
    canvas, box, info = decoded(KINDS[kind])
    assert (info.width, info.height) == (640, 480)
    assert info.progressive == (kind == "progressive")
    assert info.colorspace == {"grey": "Gray", "cmyk": "CMYK"}.get(kind, "YCbCr")
    want = PHOTO if kind != "grey" else cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)[..., None]
    assert difference(canvas[80:560], want) < 6
    assert difference(canvas, by_opencv(KINDS[kind], box)) < 2
    assert (canvas[:80] == BORDER).all()
    assert (canvas[560:] == BORDER).all()


@pytest.mark.parametrize(
    "size",
    [(640, 480), (480, 640), (333, 517), (641, 427), (1280, 720), (1921, 1079), (2600, 1900), (64, 48)],
)
@pytest.mark.parametrize("canvas_size", [(640, 640), (416, 320)])
def test_letterboxed_as_opencv_does_it(size, canvas_size):
    jpeg = encode(photo(*size))
    canvas, box, _ = decoded(jpeg, canvas_size)
    outside = np.ones(canvas.shape[:2], bool)
    outside[box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width] = False
    assert (canvas[outside] == BORDER).all()
    # A codec that decodes smaller filters better than a bilinear step that skips pixels: not the same, but near.
    assert difference(canvas[~outside], by_opencv(jpeg, box)[~outside]) < (6 if max(size) > 1000 else 2)


def test_one_pixel():
    canvas, box, info = decoded(encode(np.full((1, 1, 3), (200, 40, 90), np.uint8), quality=100, subsampling=0))
    assert (info.width, info.height) == (1, 1)
    assert difference(canvas, np.broadcast_to((200, 40, 90), canvas.shape)) < 4
    assert small_grey(canvas, box).shape == (1, 1)


def test_an_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    canvas, _, info = decoded(encode(PHOTO, exif=exif))
    assert (info.width, info.height) == (640, 480)
    assert difference(canvas[80:560], PHOTO) < 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tenths", range(10))
def test_cut_short_is_refused(kind, tenths):
    jpeg = KINDS[kind][: len(KINDS[kind]) * tenths // 10]
    with pytest.raises(UndecodableFrame):
        decoded(jpeg)
    with pytest.raises(UndecodableFrame):
        decode_grey(jpeg, inspect(jpeg, **ANY))


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "grey"])
def test_cut_short_is_refused_though_an_end_is_put_on(kind):
    jpeg = KINDS[kind]
    with pytest.raises(UndecodableFrame, match="cut short"):
        decoded(jpeg[: len(jpeg) // 2] + b"\xff\xd9")


def test_a_single_missing_byte_is_refused_and_bytes_after_the_end_are_not():
    jpeg = KINDS["4:2:0"]
    with pytest.raises(UndecodableFrame):
        decoded(jpeg[:-1])
    assert (decoded(jpeg + bytes(100))[0] == decoded(jpeg)[0]).all()


def test_filling_before_the_end_as_cameras_write_it_is_accepted():
    jpeg = KINDS["4:2:0"]
    filled = jpeg[:-2] + bytes(6) + jpeg[-2:]
    assert (decoded(filled)[0] == decoded(jpeg)[0]).all()
    with pytest.raises(UndecodableFrame):
        decoded(filled[:-2])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a PNG; want a JPEG"),
        (b"GIF89a", "is a GIF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "is a WebP"),
        (b"\0\0\0\x20ftypisom", "an MP4, HEIC or AVIF"),
        (b"hello", "it starts with 68 65 6C 6C"),
        (b"\xff\xd8", "header is damaged"),
        (b"\xff\xd8\xff\xe0" + b"x" * 60, "header is damaged"),
    ],
)
def test_what_is_no_jpeg_is_named(data, says):
    with pytest.raises(UndecodableFrame, match=says):
        inspect(data, **ANY)


def with_size(jpeg, width, height):
    """The same JPEG with another size in its frame header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + height.to_bytes(2) + width.to_bytes(2) + jpeg[at + 4 :]


def test_too_many_bytes_or_pixels_are_refused_before_decoding():
    jpeg = KINDS["4:2:0"]
    with pytest.raises(FrameTooLarge, match=f"{len(jpeg):,} bytes; at most 1,024"):
        inspect(jpeg, max_bytes=1024, max_pixels=1 << 24)
    with pytest.raises(FrameTooLarge, match="60000x50000, 3,000,000,000 pixels; at most 16,777,216"):
        inspect(with_size(jpeg, 60000, 50000), **ANY)
    assert inspect(jpeg, max_bytes=len(jpeg), max_pixels=640 * 480).subsampling == "420"


def test_a_header_that_promises_more_than_there_is_is_refused():
    with pytest.raises(UndecodableFrame):
        decoded(with_size(KINDS["4:2:0"], 640, 960))


def test_a_progressive_jpeg_of_endless_scans_is_refused():
    jpeg = KINDS["progressive"]
    scan = jpeg.rindex(b"\xff\xda")
    with pytest.raises(TooExpensive, match="scans; at most 100"):
        inspect(jpeg[:-2] + jpeg[scan:-2] * 300 + b"\xff\xd9", max_bytes=1 << 26, max_pixels=1 << 24)


def test_damaged_bytes_raise_nothing_else():
    random = np.random.default_rng(0)
    jpeg = KINDS["4:2:0"]
    refused = 0
    for _ in range(150):
        damaged = bytearray(jpeg)
        for at in random.integers(2, len(jpeg) // 8, 3):
            damaged[at] = random.integers(0, 256)
        try:
            decoded(bytes(damaged))
        except (UndecodableFrame, FrameTooLarge):
            refused += 1
    assert 0 < refused < 150


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        ((640, 480), (160, 120)),
        ((1920, 1080), (160, 90)),
        ((480, 640), (120, 160)),
        ((100, 80), (100, 80)),
        ((1000, 50), (160, 16)),
        ((8000, 10), (160, 10)),
        ((1, 1), (1, 1)),
    ],
)
def test_the_grey_picture_has_one_size_whichever_way_it_comes(image, grey):
    assert grey_size(*image) == grey
    jpeg = encode(photo(*image))
    canvas, box, info = decoded(jpeg)
    ways = small_grey(canvas, box), decode_grey(jpeg, info)
    for picture in ways:
        assert picture.shape == grey[::-1]
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
    if min(image) > 100:
        assert difference(*ways) < 4


def test_the_grey_picture_is_the_mean_of_what_it_covers_and_keeps_nothing_of_the_canvas():
    canvas, box, _ = decoded(KINDS["4:2:0"])
    found = small_grey(canvas, box)
    want = cv2.resize(cv2.cvtColor(canvas[80:560], cv2.COLOR_RGB2GRAY), (160, 120), interpolation=cv2.INTER_AREA)
    assert difference(found, want) < 1
    before = found.copy()
    canvas[:] = 0
    assert (found == before).all()
