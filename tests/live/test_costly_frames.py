"""Frames that cost too much, through the whole service: refused, counted, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import io
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.support.jpegs import encode, photo, scans
from tests.support.live import adds_up, ready
from tests.support.service import Service, assert_adds_up, serving

pytestmark = pytest.mark.anyio
COSTLY = encode(photo(4000, 3000), quality=70, progressive=True)
"""Some 150 ms of CPU time."""
HOSTILE = [
    scans(1000, side=4096),
    scans(883, marker=0xC2, before=b"\xff\x01"),
    scans(500, marker=0xCA, side=2000),
    scans(40, marker=0xC2, side=4096),
]


async def test_a1_a3_hostile_frames_are_errors_and_the_books_are_exact(service: Service, jpeg: bytes) -> None:
    async with ready(service, mode="lossless", stages={"ocr": False}) as live:
        for seq, hostile in enumerate(HOSTILE, 1):
            await live.frame(hostile, seq=seq)
            error = await live.until("error")
            assert (error["code"], error["seq"]) == ("too_expensive", seq)
        await live.frame(jpeg, seq=9)
        assert (await live.until("result"))["seq"] == 9
        await live.say("stop")
        report = (await live.until("bye"))["report"]
    assert report["dropped"] == {"too_expensive": len(HOSTILE)}
    assert adds_up(report)
    assert_adds_up(service)


async def test_a1_a_hostile_picture_by_http_is_a_413(service: Service) -> None:
    before = service.metrics().get('sightline_frames_dropped_total{entry="http",reason="too_expensive"}', 0)
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{service.url}/v1/frames", content=HOSTILE[0], timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_expensive")
    assert service.metrics()['sightline_frames_dropped_total{entry="http",reason="too_expensive"}'] == before + 1
    assert_adds_up(service, "http")


async def test_a3_sessions_over_the_budget_hold_up_no_other_and_the_stop_keeps_its_time(
    canned_triton: str, tmp_path: Path, jpeg: bytes
) -> None:
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "DECODE_BUDGET_MS": "40", "DRAIN_TIMEOUT_S": "5"}
    with serving(tmp_path, settings) as service:
        stop = asyncio.Event()

        async def costly() -> int:
            refused = 0
            async with ready(service, mode="lossless", stages={"ocr": False}) as live:
                while not stop.is_set():
                    await live.frame(COSTLY, seq=refused + 1)
                    error = await live.until("error")
                    assert error["code"] == "too_expensive", error
                    refused += 1
            return refused

        attackers = [asyncio.create_task(costly()) for _ in range(2)]
        async with ready(service, mode="lossless", stages={"ocr": False}) as live:
            for seq in range(1, 11):
                await live.frame(jpeg, seq=seq)
                assert (await live.until("result"))["seq"] == seq
        stop.set()
        assert sum(await asyncio.gather(*attackers)) > 1
        assert_adds_up(service)
        assert "sightline_decode_given_up" in service.metrics()
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{service.url}/v1/frames", content=COSTLY, timeout=30)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_expensive")
        async with ready(service, mode="lossless", stages={"ocr": False}) as live:
            await live.frame(COSTLY, seq=1)
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.process.wait, 30) == 0
        assert time.monotonic() - began < 20


async def test_e7_png_and_webp_are_taken_and_c9_an_exif_orientation_is_applied(service: Service) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo(320, 200)
    bodies = {"png": still(image, "PNG"), "webp": still(image, "WEBP"), "jpeg": encode(image, exif=exif)}
    async with httpx.AsyncClient() as http:
        for kind, body in bodies.items():
            answer = await http.post(f"{service.url}/v1/frames", content=body, timeout=30)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            width, height = (200, 320) if kind == "jpeg" else (320, 200)
            assert found["image"] == {"width": width, "height": height}
            assert [detection["class_name"] for detection in found["objects"]] == ["person", "dog"]
    assert_adds_up(service, "http")
    async with ready(service, mode="lossless", stages={"ocr": False}) as live:
        await live.frame(bodies["jpeg"], seq=1)
        assert (await live.until("result"))["image"] == {"width": 320, "height": 200}
        await live.frame(bodies["png"], seq=2)
        assert (await live.until("error"))["code"] == "undecodable"


def still(image: NDArray[np.uint8], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()
