"""The Python client, `app.client`, against a real service."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from app.client import LiveSession, Refused, SessionEnded, address, connect, to_supervision
from app.errors import ConfigurationError
from app.protocol.messages import Error, Result, SettingsInForce
from app.settings import ROOT
from tests.conftest import SLOW, Serve, photograph
from tests.support.live import adds_up_report, settle
from tests.support.service import Service, assert_adds_up

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def slow(serve: Serve) -> Service:
    return serve(**SLOW, IDLE_TIMEOUT_S="1", CREDITS="4")


@pytest.fixture(scope="module")
def locked(serve: Serve) -> Service:
    return serve(AUTH_TOKENS="secret", MAX_SESSIONS="1", MAX_WAITING="1")


async def collected(session: LiveSession, frames: list[bytes]) -> list[Result]:
    return [result async for result in session.stream(frames)]


async def test_a_stream_gives_a_typed_result_for_every_frame_then_the_report(service: Service, jpeg: bytes) -> None:
    async with connect(service.url, mode="lossless") as session:
        assert session.ready.models.detect is not None
        assert session.ready.models.detect.classes[0] == "person"
        results = await collected(session, [jpeg] * 20)
    assert [result.seq for result in results] == [*range(1, 21)]
    assert results[-1].frame.objects[0].class_name == "person"
    assert results[-1].frame.objects[0].box.x2 == 300.0
    assert session.bye is not None
    assert session.bye.reason == "stopped"
    assert session.bye.report.processed == 20
    assert adds_up_report(session.bye.report)


async def test_frames_may_come_from_an_asynchronous_source(service: Service, jpeg: bytes) -> None:
    async def camera() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0)
            yield jpeg

    async with connect(service.url) as session:
        results = [result.seq async for result in session.stream(camera())]
    assert results == [1, 2, 3]


async def test_no_frames_are_no_results_and_a_report(service: Service) -> None:
    async with connect(service.url) as session:
        assert await collected(session, []) == []
    assert session.bye is not None
    assert session.bye.report.received == 0


async def test_frames_that_the_service_cannot_use_are_told_apart(service: Service, jpeg: bytes) -> None:
    frames = [jpeg, b"no jpeg", jpeg[:500], jpeg, b"\x89PNG\r\n\x1a\n"]
    async with connect(service.url, mode="lossless") as session:
        results = await collected(session, frames)
    assert [result.seq for result in results] == [1, 4]
    assert [(refusal.seq, refusal.code) for refusal in session.refused] == [
        (2, "undecodable"),
        (3, "undecodable"),
        (5, "undecodable"),
    ]
    assert session.bye is not None
    assert session.bye.report.dropped == {"undecodable": 3}


async def test_it_keeps_to_its_credits(slow: Service, jpeg: bytes) -> None:
    most = sent = answered = 0

    def source() -> Iterator[bytes]:
        nonlocal sent, most
        for _ in range(8):
            sent += 1  # asked for only when the one before is on its way
            most = max(most, sent - 1 - answered)
            yield jpeg

    async with connect(slow.url, mode="lossless") as session:
        assert session.ready.credits == 4
        async for _ in session.stream(source()):
            answered += 1
    assert (answered, most) == (8, 4)


async def test_in_realtime_an_answer_returns_the_credits_of_those_superseded(slow: Service, jpeg: bytes) -> None:
    async with connect(slow.url) as session:
        results = await collected(session, [jpeg] * 12)
    assert session.bye is not None
    report = session.bye.report
    assert results[-1].seq == report.received == 12
    assert len(results) == report.processed
    assert report.dropped == {"superseded": 12 - len(results)}


async def test_wishes_are_in_force(service: Service, jpeg: bytes) -> None:
    wishes = {"detect": True, "pose": False, "motion": False}
    async with connect(
        service.url, stages=wishes, confidence=0.1, iou=0.9, classes=["dog"], motion_grid=True, max_age_ms=77.0
    ) as session:
        settings = session.ready.settings
        (result,) = await collected(session, [jpeg])
    assert (settings.confidence, settings.iou, settings.classes) == (0.1, 0.9, (16,))
    assert (settings.motion_grid, settings.max_age_ms, settings.stages.pose) == (True, 77.0, False)
    assert [detection.class_name for detection in result.frame.objects] == ["dog"]
    assert result.frame.poses == []


async def test_an_update_on_the_way(service: Service, jpeg: bytes) -> None:
    async with connect(service.url) as session:
        await session.update(confidence=0.85)
        answer = await session.receive()
        assert isinstance(answer, SettingsInForce)
        assert answer.settings.confidence == 0.85
        await session.send_frame(jpeg, captured_at_ms=123.0)
        result = await session.receive()
        assert isinstance(result, Result)
        assert (result.captured_at_ms, len(result.frame.objects)) == (123.0, 1)


async def test_to_supervision_has_its_shapes(service: Service, jpeg: bytes) -> None:
    async with connect(service.url) as session:
        results = await collected(session, [jpeg] * 3)
        detections, keypoints = to_supervision(results[-1].frame)
    assert detections.xyxy.shape == (2, 4)
    np.testing.assert_allclose(detections.xyxy[0], [100, 40, 300, 440])
    assert detections.class_id is not None
    assert detections.class_id.tolist() == [0, 16]
    assert detections.data["class_name"].tolist() == ["person", "dog"]
    assert detections.tracker_id is not None
    assert (detections.tracker_id > 0).all()
    assert keypoints.xy.shape == (1, 17, 2)


# --- what goes wrong ---


async def test_a_wrong_wish_is_refused_with_its_field(service: Service) -> None:
    with pytest.raises(Refused, match=r"unicorn.* is no class") as refused:
        async with connect(service.url, classes=["unicorn"]):
            pass
    assert refused.value.error.field == "classes.0"


async def test_a_wrong_update_is_refused_in_the_stream(service: Service, jpeg: bytes) -> None:
    async with connect(service.url) as session:
        await session.update(confidence="high")
        with pytest.raises(Refused, match="confidence"):
            await collected(session, [jpeg])


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_without_the_token_the_session_ends_with_the_services_word(locked: Service, token: str | None) -> None:
    with pytest.raises(SessionEnded, match="token") as ended:
        async with connect(locked.url, token=token):
            pass
    assert ended.value.bye is not None
    assert ended.value.bye.reason == "unauthorized"


async def test_it_waits_in_the_line_and_is_told_when_there_is_none(locked: Service, jpeg: bytes) -> None:
    async def second() -> int:
        async with connect(locked.url, token="secret") as session:
            return len(await collected(session, [jpeg]))

    async with connect(locked.url, token="secret"):
        waiting = asyncio.create_task(second())
        await asyncio.to_thread(settle, locked, "sightline_sessions_waiting", 1)
        with pytest.raises(SessionEnded, match="waiting room is full") as ended:
            async with connect(locked.url, token="secret"):
                pass
        assert ended.value.bye is not None
        assert ended.value.bye.retry_after_s is not None
        assert not waiting.done()
    assert await waiting == 1


async def test_a_service_that_falls_silent_is_given_up(slow: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.client.SILENCE_S", 0.3)
    async with connect(slow.url) as session:
        with pytest.raises(SessionEnded, match=r"sent nothing for 0\.3 seconds"):
            await session.receive()
        with pytest.raises(SessionEnded, match="sent nothing"):
            await session.send_frame(b"")


async def test_a_refusal_on_arrival_returns_one_credit(serve: Serve, jpeg: bytes) -> None:
    """It comes before the answer to an older frame, which is still at the models: that one keeps its credit."""
    service = serve(**SLOW, MAX_FRAME_BYTES="65536", CREDITS="2")
    async with connect(service.url, mode="lossless") as session:
        await session.send_frame(jpeg)
        await session.send_frame(jpeg + bytes(65536))
        first = await session.receive()
        assert isinstance(first, Error)
        assert (first.code, first.seq) == ("too_large", 2)
        await session.send_frame(jpeg)
        waiting = asyncio.create_task(session.send_frame(jpeg))
        await asyncio.sleep(0)
        assert not waiting.done()
        second = await session.receive()
        assert isinstance(second, Result)
        assert second.seq == 1
        assert await waiting == 4


async def test_nobody_there_is_said_with_the_address() -> None:
    with pytest.raises(SessionEnded, match=r"http://127\.0\.0\.1:9: "):
        async with connect("http://127.0.0.1:9"):
            pass


def other_protocol(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-nothing_for_us\r\n")
    writer.close()


async def test_what_is_no_service_is_said_to_be_none(service: Service) -> None:
    with pytest.raises(SessionEnded, match="HTTP 404"):
        async with connect(f"{service.url}/elsewhere"):
            pass
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        server = await asyncio.start_server(other_protocol, sock=mute)
        with pytest.raises(SessionEnded, match=str(port)):
            async with connect(f"http://127.0.0.1:{port}"):
                pass
        server.close()


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "127.0.0.1", "udp://127.0.0.1:9", "http:///ws/inference", "http://[::1", "http://a..b", ""],
)
async def test_what_is_no_address_is_refused_before_anything_is_tried(url: str) -> None:
    shown = "http://…" if url == "http://[::1" else url  # what cannot be taken apart may hold a secret anywhere
    with pytest.raises(ConfigurationError, match=re.escape(f"{shown}: should be an address such as http://")):
        async with connect(url):
            pass


@pytest.mark.parametrize(
    ("url", "socket_url"),
    [
        ("http://host:8000", "ws://host:8000/ws/inference"),
        ("HTTPS://host/", "wss://host/ws/inference"),
        ("http://host/cameras/", "ws://host/cameras/ws/inference"),
        ("wss://host/ws/inference", "wss://host/ws/inference"),
        ("http://[::1]:8000/?way=1", "ws://[::1]:8000/ws/inference?way=1"),
    ],
)
def test_an_address_becomes_that_of_the_socket(url: str, socket_url: str) -> None:
    assert address(url) == socket_url


@pytest.mark.parametrize(
    "form", ["ws://127.0.0.1:{port}", "http://127.0.0.1:{port}/", "ws://127.0.0.1:{port}/ws/inference"]
)
async def test_the_address_may_be_written_in_several_ways(service: Service, form: str) -> None:
    async with connect(form.format(port=service.port)) as session:
        assert session.ready.protocol == 1


async def test_the_service_ending_the_session_ends_the_stream(slow: Service, jpeg: bytes) -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield jpeg
        await asyncio.sleep(60)

    results = []
    async with connect(slow.url) as session:
        with pytest.raises(SessionEnded, match="no frame for 1 seconds") as ended:
            results += [result async for result in session.stream(stalls())]
    assert len(session.bye.report.stages) > 0  # type: ignore[union-attr]
    assert ended.value.bye is session.bye


async def test_a_source_that_fails_is_told_once_the_rest_is_answered(service: Service, jpeg: bytes) -> None:
    def source() -> Iterator[bytes]:
        yield jpeg
        yield jpeg
        raise OSError("the camera is gone")

    results: list[int] = []

    async def stream(session: LiveSession) -> None:
        async for result in session.stream(source()):
            results.append(result.seq)  # noqa: PERF401  what came before the error counts

    async with connect(service.url) as session:
        with pytest.raises(OSError, match="the camera is gone"):
            await stream(session)
    assert results == [1, 2]


async def test_sending_into_a_session_that_is_over_says_so(service: Service, jpeg: bytes) -> None:
    async with connect(service.url) as session:
        await session.stop()
        with pytest.raises(SessionEnded, match="stopped"):
            await session.receive()
        with pytest.raises(SessionEnded, match="stopped"):
            await session.send_frame(jpeg)
        with pytest.raises(SessionEnded):
            await session.update(confidence=0.5)


async def test_a_sender_that_waits_for_a_credit_is_told_of_the_end(slow: Service, jpeg: bytes) -> None:
    async with connect(slow.url) as session:
        for _ in range(4):
            await session.send_frame(jpeg)
        waiting = asyncio.create_task(session.send_frame(jpeg))
        await asyncio.sleep(0)
        session._socket.transport.abort()  # the network breaks
        with pytest.raises(SessionEnded):
            await session.receive()
        with pytest.raises(SessionEnded):
            await asyncio.wait_for(waiting, 5)


async def test_leaving_a_stream_early_leaves_the_service_well(service: Service, jpeg: bytes) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield jpeg

    async with connect(service.url) as session:
        async for result in session.stream(endless()):
            if result.seq == 5:
                break
    async with connect(service.url) as session:
        assert len(await collected(session, [photograph(64, 48)])) == 1


async def test_everything_is_accounted_for(service: Service, slow: Service) -> None:
    for running in (service, slow):
        assert assert_adds_up(running)["processed"] > 0
        assert "Traceback" not in running.log


def test_a_process_that_imports_only_the_client_reads_results_as_dataclasses() -> None:
    """The stages declare the types of their parts; something has to import them."""
    program = """
from app.client import decode
text = '''{"type": "result", "session_id": "a", "frame_id": 1, "seq": 1, "age_ms": 1, "captured_at_ms": 0,
"image": {"width": 2, "height": 2}, "objects": [{"class_id": 0, "class_name": "person", "confidence": 0.5,
"box": {"x1": 0, "y1": 0, "x2": 1, "y2": 1},
"track_id": null}], "poses": [], "texts": [], "motion": null, "stages": {}, "timings_ms": {},
"dropped": {"since_last": 0, "total": 0}}'''
print(type(decode(text).frame.objects[0]).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "Detection\n", ran.stderr
