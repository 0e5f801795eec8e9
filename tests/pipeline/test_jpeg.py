"""A JPEG's markers: what it would cost is known before it is decoded, whatever it is made of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import product

import pytest
from PIL import Image

from app.errors import FrameError, FrameTooLarge, TooExpensive, UndecodableFrame
from app.pipeline.decode import MAX_SCANS, MAX_SEGMENTS, check_packet, decode_whole, exif_orientation, inspect, work_of
from tests.support.jpegs import DHT, DQT, EOI, SOI, encode, photo, scans, segment, sof, sos

ANY = {"max_bytes": 1 << 21, "max_pixels": 1 << 24}
MOST_S = 0.3
"""CPU seconds that looking a JPEG over may take, under a sanitizer's load too; each of these took 3 to 14 to decode."""


def refused(jpeg: bytes, error: type[FrameError] = TooExpensive) -> str:
    began = time.thread_time()
    with pytest.raises(error) as caught:
        inspect(jpeg, **ANY)
    assert time.thread_time() - began < MOST_S
    return str(caught.value)


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xC9, 0xCA])
@pytest.mark.parametrize("count", [200, 1000, 20_000])
def test_a1_empty_scans_are_counted_whatever_the_process(marker: int, count: int) -> None:
    refused(scans(count, marker=marker, side=4096, coded=b"\0"))


def test_a1_a_sequential_jpeg_has_a_scan_a_component_at_most() -> None:
    assert inspect(scans(3), **ANY).scans == 3
    assert "more scans than its 3 components" in refused(scans(4))


BETWEEN = {
    "fill bytes": b"\xff" * 7,
    "TEM": b"\xff\x01",
    "RST": b"\xff\xd3\xff\xd0",
    "junk": b"junk \xff\x00 junk",
    "a comment": segment(0xFE, b"hello"),
    "a comment of length 0": b"\xff\xfe\0\0",
    "DNL": segment(0xDC, b"\0\1"),
    "DRI": segment(0xDD, b"\0\1"),
    "tables": DHT,
    "a marker of no meaning": b"\xff\x42",
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("marker", [0xC0, 0xC2])
def test_a1_scans_are_counted_whatever_stands_between_them(between: str, marker: int) -> None:
    filling = BETWEEN[between]
    refused(scans(900, marker=marker, coded=b"?\0" + filling))
    refused(scans(900, marker=marker, coded=filling))
    assert inspect(scans(3, marker=marker, coded=b"?\0" + filling), **ANY).scans == 3


@pytest.mark.parametrize(
    "before", [b"\xff\x01", b"\xff\xd0", b"\xff\xd7\xff\x01", b"\xff\xff\xff", b"\xff\xfe\0\0", b"xx"]
)
def test_a2_nothing_after_soi_hides_that_it_is_progressive(before: bytes) -> None:
    assert inspect(scans(2, marker=0xC2, before=before), **ANY).progressive
    assert f"at most {MAX_SCANS}" in refused(scans(883, marker=0xC2, before=before))


def test_a1_pixels_times_scans_are_bounded() -> None:
    assert inspect(scans(99, marker=0xC2, side=1024), **ANY).scans == 99
    assert inspect(scans(30, marker=0xC2, side=4096), **ANY).work == 30 << 24
    assert "samples in all" in refused(scans(40, marker=0xC2, side=4096))
    interleaved = SOI + DQT + sof(0xC2, 4096, 4096) + DHT + (sos([1, 2, 3], 0, 0) + b"?\0") * 12 + EOI
    assert "samples in all" in refused(interleaved)
    assert "weighed by their coding" in refused(SOI + DQT + sof(0xC9, 4096, 4096) + sos([1, 2, 3]) + bytes(9) + EOI)


def test_a1_what_a_payload_or_a_thumbnail_holds_is_no_scan() -> None:
    """A telephone's photograph: previews in its EXIF, and whole pictures behind its end."""
    small = encode(photo(160, 120), progressive=True)
    exif, jpeg = segment(0xE1, b"Exif\0\0" + small), encode(photo(640, 480), progressive=True)
    carrying = jpeg[:2] + exif * 9 + segment(0xFE, sos([1]) * 300) + jpeg[2:] + small * 20
    plain, found = inspect(jpeg, **ANY), inspect(carrying, **ANY)
    assert (found.scans, found.work, found.whole) == (plain.scans, plain.work, True)
    assert 5 < plain.scans < 20
    assert (decode_whole(carrying, found) == decode_whole(jpeg, plain)).all()


FLOODS = {
    "fill bytes": b"\xff" * 2_000_000,
    "stuffed bytes": b"\xff\0" * 1_000_000,
    "TEM": b"\xff\x01" * 1_000_000,
    "RST": b"\xff\xd4" * 1_000_000,
    "APP": b"\xff\xe5\0\2" * 500_000,
    "COM of no length": b"\xff\xfe\0\0" * 500_000,
    "DNL": segment(0xDC, b"\0\1") * 300_000,
    "DQT": DQT * 29_000,
    "DHT": DHT * 47_000,
    "DRI": segment(0xDD, b"\0\1") * 300_000,
    "SOF": sof(0xC0, 4096, 4096) * 100_000,
    "SOI": SOI * 1_000_000,
    "EOI": EOI * 1_000_000,
    "zeros": bytes(2_000_000),
}


@pytest.mark.parametrize(("flood", "place"), [*product(FLOODS, ("header", "scan"))])
def test_a1_a_flood_of_anything_costs_no_more_than_its_bytes(flood: str, place: str) -> None:
    head, tail = SOI + DQT + sof(0xC0, 64, 64) + DHT, sos([1, 2, 3]) + b"\0"
    jpeg = (head + FLOODS[flood] + tail if place == "header" else head + tail + FLOODS[flood]) + EOI
    began = time.thread_time()
    with contextlib.suppress(UndecodableFrame):
        decode_whole(jpeg, inspect(jpeg, max_bytes=1 << 22, max_pixels=1 << 24))
    assert time.thread_time() - began < 3 * MOST_S


def test_many_segments_are_refused_and_as_many_as_a_photograph_has_are_not() -> None:
    jpeg = encode(photo(64, 64))
    assert f"more than {MAX_SEGMENTS:,}" in refused(SOI + segment(0xE3, b"x") * 1100 + jpeg[2:], UndecodableFrame)
    assert inspect(SOI + segment(0xE2, bytes(8000)) * 200 + jpeg[2:], **ANY).width == 64


@pytest.mark.parametrize(
    ("jpeg", "says"),
    [
        (SOI + DQT + sof(0xC3, 64, 64) + sos([1, 2, 3], 1, 0) + EOI, "lossless"),
        (SOI + DQT + sof(0xC5, 64, 64) + sos([1, 2, 3]) + EOI, "hierarchical"),
        (SOI + DQT + segment(0xDE, sof(0xC0, 64, 64)[4:]) + sof(0xC0, 64, 64) + sos([1]) + EOI, "hierarchical"),
        (SOI + DQT + sof(0xC1, 64, 64, bits=12) + sos([1, 2, 3]) + EOI, "12 bits a sample"),
        (SOI + DQT + sof(0xC0, 64, 0) + sos([1, 2, 3]) + EOI, "64x0"),
        (SOI + DQT + sof(0xC0, 64, 64, [0x11, 0x11]) + sos([1, 2]) + EOI, "2 components"),
        (SOI + DQT + sof(0xC0, 64, 64, [0x51]) + sos([1]) + EOI, "sampling factor"),
        (SOI + DQT + sof(0xC0, 64, 64) + sof(0xC0, 64, 64) + sos([1]) + EOI, "two frame headers"),
        (SOI + DQT + sos([1]) + EOI, "a scan before the frame header"),
        (SOI + DQT + sof(0xC0, 64, 64)[:12], "another length"),
        (SOI + DQT + sof(0xC0, 64, 64) + EOI, "no image follows"),
    ],
)
def test_what_nobody_decodes_is_refused_by_name(jpeg: bytes, says: str) -> None:
    assert says in refused(jpeg, UndecodableFrame)


def test_a1_sides_of_65500_are_a_picture_as_any_other() -> None:
    info = inspect(encode(photo(65500, 16)), **ANY)
    assert decode_whole(encode(photo(65500, 16)), info).shape == (16, 65500, 3)
    assert "65500x65500" in refused(SOI + DQT + sof(0xC0, 65500, 65500) + sos([1, 2, 3]) + EOI, FrameTooLarge)


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"progressive": True, "subsampling": 0}, {"mode": "CMYK", "progressive": True}],
)
def test_any_ordinary_jpeg_up_to_max_pixels_passes(options: dict[str, object]) -> None:
    jpeg = encode(photo(4096, 4096), quality=40, **options)  # type: ignore[arg-type]
    assert inspect(jpeg, **ANY).work < 28 << 24


def test_planning_looks_at_the_header_alone_where_it_is_sequential() -> None:
    jpeg = encode(photo(640, 480))
    assert work_of(jpeg) == inspect(jpeg, **ANY).work == 640 * 480 * 3 // 2
    assert work_of(jpeg[:1000]) == work_of(jpeg)
    assert work_of(SOI + segment(0xE2, bytes(60_000)) * 9 + jpeg[2:]) == work_of(jpeg)
    progressive = encode(photo(640, 480), progressive=True)
    assert work_of(progressive) == inspect(progressive, **ANY).work > 4 * work_of(jpeg)
    assert work_of(b"no") == work_of(SOI) == work_of(scans(1000, marker=0xC2)) == 0  # they will be refused


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["big", "little"])
def test_c9_the_orientation_is_read_as_cameras_write_it(orientation: int, order: str) -> None:
    exif = Image.Exif()
    exif.endian = ">" if order == "big" else "<"
    exif[0x010F], exif[0x0112] = "a camera", orientation
    assert inspect(encode(photo(64, 48), exif=exif.tobytes()), **ANY).orientation == orientation


@pytest.mark.parametrize(
    "exif",
    [b"", b"II", b"II*\0\xff\xff\xff\xff", b"XX*\0\x08\0\0\0\1\0" + bytes(12), b"II*\0\x08\0\0\0\xff\xff" + bytes(40)]
    + [b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + bytes([value, 0, 0, 0]) for value in (0, 9)],
)
def test_c9_an_orientation_that_makes_no_sense_is_none(exif: bytes) -> None:
    assert exif_orientation(exif) == 1


@pytest.mark.parametrize("make", [lambda: scans(900, marker=0xC2), lambda: scans(900, coded=segment(0xDC, b"\0\1"))])
def test_a1_packets_of_motion_jpeg_are_bounded(make: Callable[[], bytes]) -> None:
    field = encode(photo(640, 240), progressive=True)
    check_packet(field + field, max_pixels=640 * 480)
    with pytest.raises(TooExpensive, match="scans; at most"):
        check_packet(make(), max_pixels=1 << 24)
    with pytest.raises(TooExpensive, match="frame headers"):
        check_packet(SOI + sof(0xC0, 4096, 4096) * 500 + sos([1]) + EOI, max_pixels=1 << 24)
    with pytest.raises(TooExpensive, match="times MAX_PIXELS"):
        check_packet(scans(60, marker=0xC2, side=4096), max_pixels=1 << 24)


@pytest.mark.parametrize("place", ["header", "scan", "between scans"])
def test_a1_planning_in_the_event_loop_is_bounded_whatever_floods_it(place: str) -> None:
    flood, head, scan = b"\xff" * 2_000_000, SOI + DQT + sof(0xC2, 64, 64) + DHT, sos([1, 2, 3], 0, 0) + b"\0"
    jpeg = {"header": SOI + flood, "scan": head + scan + flood, "between scans": head + (scan + flood[:9000]) * 90}[
        place
    ]
    began = time.thread_time()
    assert work_of(jpeg + EOI) >= 1 << 40
    assert time.thread_time() - began < 0.05
    long = encode(photo(1600, 1200), quality=95, progressive=True)
    assert len(long) > 1 << 17
    assert work_of(long) >= 1 << 40


def test_a1_a_marker_that_lies_across_two_steps_of_the_search_is_found() -> None:
    head = SOI + DQT + sof(0xC2, 64, 64) + DHT + sos([1, 2, 3], 0, 0)
    for size in range(65_530, 65_542):
        jpeg = head + bytes(size) + sos([1], 1, 63) + bytes(size) + EOI
        found = inspect(jpeg, **ANY)
        assert (found.scans, found.whole) == (2, True)
