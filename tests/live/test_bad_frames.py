"""Frames that are none, and rare ones that are: what each is answered, and that the session goes on."""

from __future__ import annotations

import io
import math
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from skimage import data
from websockets.exceptions import ConnectionClosed

from app.protocol import header
from tests.conftest import Serve, photograph, pillow_jpeg
from tests.support.live import Live, Message, adds_up, opened, ready
from tests.support.service import Service, assert_adds_up

pytestmark = pytest.mark.anyio
PERSON_AND_DOG = ["person", "dog"]


@pytest.fixture(scope="module")
def strict(serve: Serve) -> Service:
    """One that takes few messages a second, and small frames."""
    return serve(MAX_MESSAGES_PER_S="5", MAX_FRAME_BYTES="65536")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((320, 240))


async def refusal(live: Live, frame: bytes) -> Message:
    """The error that a frame is answered with; a good frame right after it must be analysed."""
    await live.connection.send(frame)
    error = await live.answer()
    assert error["type"] == "error", error
    assert error["fatal"] is False
    await live.frame(photograph(64, 48))
    assert (await live.answer())["type"] == "result"
    return error


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "frame",
    [b"", b"\0", b"hello", b"\xff", b"GIF89a" + bytes(100), bytes(5000), b"\xd8\xff" + bytes(100)],
    ids=["nothing", "a zero", "text", "half a marker", "a GIF", "zeros", "the marker turned round"],
)
async def test_what_is_no_jpeg_is_undecodable(service: Service, frame: bytes) -> None:
    async with ready(service) as live:
        error = await refusal(live, frame)
    assert (error["code"], error["seq"]) == ("undecodable", 1)


async def test_a_png_is_named_behind_the_header_too(service: Service, image: Image.Image) -> None:
    async with ready(service) as live:
        bare = await refusal(live, png(image))
        packed = await refusal(live, header.pack(png(image), seq=77, captured_at_ms=0))
    assert (bare["code"], packed["code"], packed["seq"]) == ("undecodable", "undecodable", 77)
    assert "PNG" in packed["message"]


@pytest.mark.parametrize("tenth", range(10))
async def test_a_jpeg_cut_at_any_tenth_is_undecodable(service: Service, jpeg: bytes, tenth: int) -> None:
    async with ready(service) as live:
        error = await refusal(live, header.pack(jpeg[: len(jpeg) * tenth // 10], seq=5, captured_at_ms=0))
    assert (error["code"], error["seq"]) == ("undecodable", 5)


async def test_a_jpeg_with_flipped_bits_is_answered_one_way_or_the_other(service: Service, jpeg: bytes) -> None:
    random = np.random.default_rng(7)
    async with ready(service) as live:
        for seq in range(1, 41):
            damaged = bytearray(jpeg)
            for at in random.integers(0, len(jpeg), 8):
                damaged[at] ^= 1 << random.integers(0, 8)
            await live.frame(bytes(damaged), seq)
            answer = await live.answer()
            assert answer["seq"] == seq
            assert answer["type"] == "result" or answer["code"] in ("undecodable", "too_large")


@pytest.mark.parametrize("kind", ["progressive", "grey", "cmyk", "444", "optimised", "trailing bytes"])
async def test_rare_jpegs_are_analysed(service: Service, image: Image.Image, kind: str) -> None:
    frame = {
        "progressive": lambda: pillow_jpeg(image, progressive=True),
        "grey": lambda: pillow_jpeg(image.convert("L")),
        "cmyk": lambda: pillow_jpeg(image.convert("CMYK")),
        "444": lambda: pillow_jpeg(image, subsampling=0),
        "optimised": lambda: pillow_jpeg(image, optimize=True, quality=5),
        "trailing bytes": lambda: pillow_jpeg(image) + bytes(100),
    }[kind]()
    async with ready(service) as live:
        await live.frame(frame)
        result = await live.answer()
    assert result["type"] == "result"
    assert result["image"] == {"width": 320, "height": 240}
    assert [detection["class_name"] for detection in result["objects"]] == PERSON_AND_DOG


async def test_an_exif_orientation_is_not_applied(service: Service, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees for showing
    async with ready(service) as live:
        await live.frame(pillow_jpeg(image, exif=exif))
        assert (await live.answer())["image"] == {"width": 320, "height": 240}


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (17, 3)])
async def test_the_smallest_pictures_are_pictures(service: Service, width: int, height: int) -> None:
    async with ready(service) as live:
        for _ in range(2):  # the second has one before it to be compared with
            await live.frame(photograph(width, height))
            result = await live.answer()
    assert result["image"] == {"width": width, "height": height}
    for detection in result["objects"]:
        box = detection["box"]
        assert 0 <= box["x1"] <= box["x2"] <= width
        assert 0 <= box["y1"] <= box["y2"] <= height


async def test_changing_sizes_in_one_session_are_no_trouble(service: Service) -> None:
    sizes = [(640, 480), (64, 480), (1, 1), (481, 639), (640, 480)]
    async with ready(service) as live:
        for width, height in sizes:
            await live.frame(photograph(width, height))
            assert (await live.answer())["image"] == {"width": width, "height": height}


async def test_too_many_pixels_are_refused_before_decoding(service: Service) -> None:
    huge = pillow_jpeg(Image.new("RGB", (8000, 8000)), quality=5)
    assert len(huge) < 2 * 1024 * 1024
    async with ready(service) as live:
        error = await refusal(live, huge)
        bye = await live.stop()
    assert (error["code"], error["seq"]) == ("too_large", 1)
    assert "8000x8000" in error["message"]
    assert bye["report"]["dropped"] == {"too_large": 1}


async def test_too_many_bytes_are_refused_with_the_limit_by_the_clients_number(strict: Service) -> None:
    async with ready(strict) as live:
        error = await refusal(live, header.pack(b"\xff\xd8" + bytes(70_000), seq=99, captured_at_ms=0))
    assert (error["code"], error["seq"]) == ("too_large", 99)
    assert "65,536" in error["message"] or "65536" in error["message"]


@pytest.mark.parametrize("pieces", [1, 500])
async def test_a_message_of_50_mb_ends_the_connection_at_once(service: Service, pieces: int) -> None:
    piece = bytes(50_000_000 // pieces)
    async with ready(service) as live:
        with suppress(ConnectionClosed):  # in the middle of sending
            await live.connection.send(piece if pieces == 1 else [piece] * pieces)
        await live.rest()
        assert live.connection.close_code in (1009, 1006)  # 1006: what was sent meanwhile ran into the closed socket
    async with ready(service):
        pass  # others are served


# --- the header ---


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, -1.0, -1e308])
async def test_a_time_that_is_none_is_refused_by_the_frames_number(service: Service, jpeg: bytes, time: float) -> None:
    async with ready(service) as live:
        error = await refusal(live, header.pack(jpeg, seq=12, captured_at_ms=time))
    assert (error["code"], error["seq"]) == ("undecodable", 12)
    assert "captured_at_ms" in error["message"]


@pytest.mark.parametrize("size", range(4, header.SIZE))
async def test_a_header_cut_short_is_refused(service: Service, jpeg: bytes, size: int) -> None:
    async with ready(service) as live:
        error = await refusal(live, header.pack(jpeg, seq=3, captured_at_ms=1.0)[:size])
    assert (error["code"], error["seq"]) == ("undecodable", 3 if size >= 8 else 1)


async def test_a_header_without_a_frame_is_undecodable(service: Service) -> None:
    async with ready(service) as live:
        error = await refusal(live, header.pack(b"", seq=3, captured_at_ms=1.0))
    assert (error["code"], error["seq"]) == ("undecodable", 3)


async def test_a_repeated_and_a_falling_number_are_the_clients_business(service: Service, jpeg: bytes) -> None:
    async with ready(service) as live:
        for frame_id, seq in enumerate((9, 9, 9, 2, 0), 1):
            await live.frame(jpeg, seq)
            result = await live.answer()
            assert (result["seq"], result["frame_id"]) == (seq, frame_id)


async def test_the_smallest_and_the_largest_time_come_back_as_they_were(service: Service, jpeg: bytes) -> None:
    async with ready(service) as live:
        for time in (0.0, 5e-324, 1e300):
            await live.connection.send(b"SLF1" + struct.pack(">Id", 1, time) + jpeg)
            assert (await live.answer())["captured_at_ms"] == time


# --- too many ---


async def test_a_flood_of_frames_is_refused_frame_by_frame(strict: Service) -> None:
    small = photograph(64, 48)
    async with ready(strict) as live:
        for seq in range(1, 61):
            await live.frame(small, seq)
        refused = []
        while not refused or refused[-1]["seq"] < 60:
            refused.append(await live.answer())
        bye = await live.stop()
    limited = [answer for answer in refused if answer.get("code") == "rate_limited"]
    assert len(limited) == bye["report"]["dropped"]["rate_limited"] > 40
    assert "MAX_MESSAGES_PER_S=5" in limited[0]["message"]
    assert adds_up(bye["report"])


async def test_a_lossless_session_is_slowed_down_instead(strict: Service) -> None:
    small = photograph(64, 48)
    async with ready(strict, mode="lossless") as live:
        for seq in range(1, 16):
            await live.frame(small, seq)
        bye = await live.stop()
    assert bye["report"]["processed"] == 15
    assert bye["report"]["duration_s"] >= (15 - 10) / 5  # two seconds' worth at once, then 5 a second


async def test_a_frame_is_a_session_of_its_own_before_init(service: Service, jpeg: bytes) -> None:
    async with opened(service) as live:
        await live.connection.send(b"no frame at all")
        assert {(await live.receive())["type"] for _ in range(2)} == {"ready", "error"}
        await live.say("init")
        error = await live.until("error")
        assert (error["code"], error["field"]) == ("already_started", "type")
        await live.frame(jpeg)
        assert (await live.answer())["type"] == "result"


async def test_every_frame_of_this_module_is_accounted_for(service: Service, strict: Service) -> None:
    for server in (service, strict):
        counts = assert_adds_up(server)
        assert counts["dropped"] > 0
        assert counts["failed"] == 0
        assert "Traceback" not in server.log
