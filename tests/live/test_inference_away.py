"""Triton is killed under open sessions, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import TritonSettings
from benchmarks import canned
from tests.conftest import Serve
from tests.support.gateway import gateway
from tests.support.live import Live, Message, opened, ready
from tests.support.service import Service, assert_adds_up, require_environment, serving, wait_until
from tests.support.triton import Mortal, mortal

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("mortal")
    with mortal(canned.write(folder / "repository"), folder / "state") as one:
        yield one


@pytest.fixture(scope="module")
def bereft(triton: Mortal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"TRITON_URL": triton.url, "OCR": "off"}
    with serving(tmp_path_factory.mktemp("service"), settings) as service:
        yield service


async def frames_until(live: Live, jpeg: bytes, detect: str) -> tuple[Message, list[Message]]:
    """Sends frames until detection says this; that result, and the notices on the way."""
    notices = []
    while True:
        await asyncio.sleep(0.01)  # without a model to wait for it would be more than MAX_MESSAGES_PER_S
        await live.frame(jpeg)
        while (message := await live.until("result", "notice"))["type"] == "notice":
            notices.append(message)
        if message["stages"]["detect"]["status"] == detect:
            return message, notices


async def test_frames_are_answered_without_it_and_detection_comes_back_by_itself(
    bereft: Service, triton: Mortal, jpeg: bytes
) -> None:
    async with ready(bereft) as live, ready(bereft) as other:
        await frames_until(live, jpeg, "ok")
        triton.kill()
        result, notices = await frames_until(live, jpeg, "error")
        assert result["stages"]["detect"]["reason"] == "inference_unavailable"
        assert result["stages"]["pose"]["status"] == "error"
        assert result["stages"]["motion"]["status"] == "ok"
        assert (result["objects"], result["poses"]) == ([], [])
        notices = notices or [await live.until("notice")]
        assert notices[-1]["code"] == "inference_unavailable"
        assert (await other.until("notice"))["code"] == "inference_unavailable"
        gone = wait_until(bereft, "/health/ready", 503).json()
        assert (gone["status"], gone["inference"]["state"]) == ("unavailable", "unavailable")
        assert bereft.metrics()["sightline_inference_up"] == 0

        async with opened(bereft) as late:  # sessions are opened all the while
            await late.frame(jpeg)
            assert (await late.until("ready"))["type"] == "ready"
            assert (await late.answer())["type"] == "result"

        result, notices = await frames_until(live, jpeg, "ok")
        notices = notices or [await live.until("notice")]
        assert notices[-1]["code"] == "inference_restored"
        assert (await other.until("notice"))["code"] == "inference_restored"
        assert [detection["class_name"] for detection in result["objects"]] == ["person", "dog"]
        back = wait_until(bereft, "/health/ready").json()
        assert back["inference"]["shared_memory"] is True
        bye = await live.stop()
    assert bye["report"]["failed"] == 0
    assert bye["report"]["processed"] == bye["report"]["received"]


def test_a_single_picture_without_it_says_so(bereft: Service, triton: Mortal, jpeg: bytes) -> None:
    triton.kill()
    wait_until(bereft, "/health/ready", 503)
    answer = httpx.post(f"{bereft.url}/v1/frames", content=jpeg, timeout=20)
    assert answer.status_code == 200
    assert answer.json()["stages"]["detect"] == {"status": "error", "reason": "inference_unavailable", "age_ms": None}
    wait_until(bereft, "/health/ready")
    assert len(httpx.post(f"{bereft.url}/v1/frames", content=jpeg, timeout=20).json()["objects"]) == 2


def test_a_model_process_of_its_own_triton_that_dies_is_replaced(tmp_path: Path, jpeg: bytes) -> None:
    """Nobody else would notice: the server says that it is ready, and fails the frames."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    settings = {"TRITON_REPOSITORY": str(canned.write(tmp_path / "repository")), "OCR": "off"}
    with serving(tmp_path, settings) as service:

        def restarts() -> int:
            health = httpx.get(f"{service.url}/health/ready", timeout=20).json()
            return int(health["inference"]["embedded"]["restarts"])

        def objects() -> int:
            return len(httpx.post(f"{service.url}/v1/frames", content=jpeg, timeout=20).json()["objects"])

        assert (objects(), restarts()) == (2, 0)
        health = httpx.get(f"{service.url}/health/ready", timeout=20).json()
        server = psutil.Process(health["inference"]["embedded"]["pid"])
        (vision,) = [process for process in server.children() if "vision" in " ".join(process.cmdline())]
        vision.kill()
        deadline = time.monotonic() + 60
        while restarts() == 0 or objects() != 2:
            assert time.monotonic() < deadline, service.log[-4000:]
            time.sleep(0.1)
        assert restarts() == 1
        assert "of its model vision" in service.log


async def test_what_is_served_follows_the_server_without_a_frame(canned_triton: str, tmp_path: Path) -> None:
    async def models(service: Service) -> Message:
        async with httpx.AsyncClient(timeout=20) as http:
            answer: Message = (await http.get(f"{service.url}/v1/models")).json()
        return answer

    def health(service: Service, status: int) -> Coroutine[None, None, httpx.Response]:
        return asyncio.to_thread(wait_until, service, "/health/ready", status)

    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(gateway(canned_triton))
        settings = {"TRITON_URL": way.url, "OCR": "off"}
        service = stack.enter_context(serving(tmp_path, settings, ready=False))
        early = await stack.enter_async_context(ready(service))
        assert {"detect", "pose", "ocr"} <= early.welcome["models"].keys()
        assert {*early.welcome["models"].values()} == {None}
        assert (await early.receive())["code"] == "inference_unavailable"

        await way.open()
        assert (await early.until("notice"))["code"] == "inference_restored"
        async with ready(service, classes=["person"]) as live:  # no frame came yet
            assert live.welcome["models"]["detect"]["name"] == "canned yolo"
            assert live.welcome["models"]["pose"] is not None
            assert live.welcome["settings"]["classes"] == [0]
            await live.say("stop")
            assert [message["type"] for message in await live.rest()] == ["bye"]  # nothing is degraded
        assert (await models(service))["detect"]["classes"][0] == "person"

        await way.close()
        await health(service, 503)
        assert (await models(service))["detect"] is None
        async with ready(service, classes=["person"]) as live:
            assert {*live.welcome["models"].values()} == {None}
            assert (await live.receive())["code"] == "inference_unavailable"
        assert (await early.until("notice"))["code"] == "inference_unavailable"

        await way.open()
        assert (await early.until("notice"))["code"] == "inference_restored"
        assert (await models(service))["detect"]["name"] == "canned yolo"


async def test_a_session_that_begins_without_text_reading_is_told_so(serve: Serve, tmp_path: Path, jpeg: bytes) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    service = serve(OCR="on", OCR_PYTHON=str(broken))
    async with ready(service) as first:
        assert first.welcome["models"]["ocr"] is not None
        await first.frame(jpeg)
        assert (await first.until("notice"))["code"] == "ocr_unavailable"
        async with ready(service) as late:
            assert late.welcome["models"]["ocr"] is None
            notice = await late.receive()
    assert notice["code"] == "ocr_unavailable"
    assert "does not start" in notice["message"]


async def test_a_service_that_starts_before_its_triton_waits_for_it(tmp_path: Path, jpeg: bytes) -> None:
    settings = {"TRITON_URL": "127.0.0.1:9", "OCR": "off"}
    with serving(tmp_path, settings, ready=False) as service:
        async with ready(service) as live:
            assert live.welcome["models"]["detect"] is None
            await live.say("update", classes=["person"])
            error = await live.until("error")
            assert "no detection model is served now" in error["message"]
            await live.frame(jpeg)
            await live.answer()
            await live.frame(jpeg)
            result = await live.answer()
        assert result["stages"]["detect"]["reason"] == "inference_unavailable"
        assert result["stages"]["motion"]["status"] == "ok"


def test_everything_is_accounted_for(bereft: Service) -> None:
    counts = assert_adds_up(bereft)
    assert counts["failed"] == counts["dropped"] == 0
    assert "Traceback" not in bereft.log
