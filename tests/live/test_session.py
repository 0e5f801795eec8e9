"""The live protocol as a client meets it: what is said, in which order, and what it means for the next frame."""

from __future__ import annotations

import base64
import socket
import time
from contextlib import suppress

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from app.pipeline.stages.pose import KEYPOINT_NAMES
from app.protocol import header, messages
from app.protocol.messages import Stages
from app.protocol.stages import STAGES
from tests.conftest import SLOW, Serve, photograph
from tests.support.live import adds_up, opened, ready, settle
from tests.support.service import Service, assert_adds_up

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def slow(serve: Serve) -> Service:
    return serve(**SLOW, CREDITS="4")


@pytest.fixture(scope="module")
def brisk(serve: Serve) -> Service:
    """All its clocks run fast."""
    return serve(PING_INTERVAL_S="0.2", IDLE_TIMEOUT_S="0.6", MAX_PAUSE_S="2", MAX_SESSION_S="3", INIT_TIMEOUT_S="0.5")


# --- saying hello ---


async def test_init_is_answered_by_ready_with_everything_a_client_needs(service: Service) -> None:
    async with ready(service) as live:
        welcome = live.welcome
    assert welcome["protocol"] == 1
    assert len(welcome["session_id"]) == 32
    assert welcome["credits"] == 2
    assert welcome["models"]["detect"]["name"] == "canned yolo"
    assert welcome["models"]["detect"]["classes"][0] == "person"
    assert welcome["models"]["pose"]["keypoints"] == list(KEYPOINT_NAMES)
    assert [5, 7] in welcome["models"]["pose"]["skeleton"]
    assert welcome["settings"] == {
        "mode": "realtime",
        "stages": {**{name: True for name, stage in STAGES.items() if stage.live}, "summary": False},
        "confidence": 0.35,
        "iou": 0.45,
        "classes": None,
        "motion_grid": False,
        "mask_rle": False,
        "max_age_ms": 2000.0,
        "summary_prompt": "default",
    }
    assert welcome["limits"]["max_frame_bytes"] == 2 * 1024 * 1024
    assert welcome["limits"]["max_pixels"] == 4096 * 4096
    assert welcome["limits"]["idle_timeout_s"] == 120


def test_the_schema_served_is_the_one_of_the_code(service: Service) -> None:
    served = httpx.get(f"{service.url}/schema.json").json()
    assert served == messages.schema()
    assert set(served["server"]) == {
        "queued",
        "ready",
        "settings",
        "result",
        "summary",
        "notice",
        "error",
        "ping",
        "bye",
    }
    assert set(served["client"]) == {"init", "update", "pause", "resume", "stop", "pong"}


async def test_a_bare_jpeg_is_enough(service: Service, jpeg: bytes) -> None:
    async with opened(service) as live:
        before = time.time() * 1000
        await live.frame(jpeg)
        assert (await live.receive())["type"] == "ready"
        result = await live.receive()
    assert result["type"] == "result"
    assert (result["frame_id"], result["seq"]) == (1, 1)
    assert before <= result["captured_at_ms"] <= time.time() * 1000


async def test_a_header_gives_the_client_its_own_number_and_time_back(service: Service, jpeg: bytes) -> None:
    async with ready(service) as live:
        await live.frame(jpeg, seq=4_000_000_000, captured_at_ms=1.75e12)
        result = await live.answer()
    assert (result["frame_id"], result["seq"], result["captured_at_ms"]) == (1, 4_000_000_000, 1.75e12)


async def test_a_result_has_what_was_seen_in_pixels_of_the_frame(service: Service, jpeg: bytes) -> None:
    async with ready(service) as live:
        await live.frame(jpeg)
        await live.answer()
        await live.frame(jpeg)
        result = await live.answer()
    assert result["session_id"] == live.welcome["session_id"]
    assert result["image"] == {"width": 640, "height": 480}
    # The canvas is 640x640 with the image in rows 80 to 560; see benchmarks.canned.
    assert [(o["class_name"], o["box"]) for o in result["objects"]] == [
        ("person", {"x1": 100.0, "y1": 40.0, "x2": 300.0, "y2": 440.0}),
        ("dog", {"x1": 400.0, "y1": 220.0, "x2": 560.0, "y2": 420.0}),
    ]
    person, dog = result["objects"]
    (pose,) = result["poses"]
    assert person["track_id"] != dog["track_id"]
    assert pose["track_id"] == person["track_id"]
    assert [point["name"] for point in pose["keypoints"]] == list(KEYPOINT_NAMES)
    assert (pose["keypoints"][0]["x"], pose["keypoints"][0]["y"]) == (200.0, 40.0)
    assert set(result["stages"]) == set(Stages()) - {"summary"}
    assert result["stages"]["detect"]["status"] == result["stages"]["motion"]["status"] == "ok"
    assert result["motion"]["score"] == pytest.approx(0, abs=1e-3)
    assert {"queue", "decode", "gate", "infer", "parse", "total"} <= set(result["timings_ms"])
    assert 0 < result["timings_ms"]["total"] <= result["age_ms"]


async def test_ping_wants_a_pong_and_gets_it(brisk: Service) -> None:
    async with ready(brisk) as live:
        ping = await live.until("ping")
        assert abs(ping["t"] - time.time() * 1000) < 60_000
        await live.say("pong", t=ping["t"])
        assert (await live.receive())["type"] == "ping"


# --- credits, newest wins, every frame ---


async def test_frames_within_the_credits_are_all_answered_also_in_one_piece(service: Service) -> None:
    small = photograph(64, 48)
    async with ready(service) as live:
        wire = live.connection.transport.get_extra_info("socket")
        for seq in range(1, 21, 2):
            # Both in one segment: the second must not supersede the first, which nobody has looked at yet.
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            await live.frame(small, seq)
            await live.frame(small, seq + 1)
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            assert [(await live.answer())["seq"] for _ in range(2)] == [seq, seq + 1]


async def test_realtime_answers_the_newest_and_counts_the_rest(slow: Service, jpeg: bytes) -> None:
    async with ready(slow) as live:
        for seq in range(1, 31):
            await live.frame(jpeg, seq)
        first, last = await live.answer(), await live.answer()
        bye = await live.stop()
    assert [first["seq"], last["seq"]] == [1, 30]
    assert first["dropped"]["total"] + last["dropped"]["since_last"] == 28 == last["dropped"]["total"]
    assert bye["report"]["dropped"] == {"superseded": 28}
    assert bye["report"]["processed"] == 2


async def test_lossless_answers_every_frame_in_order(slow: Service, jpeg: bytes) -> None:
    async with ready(slow, mode="lossless") as live:
        assert live.welcome["credits"] == 4
        for seq in range(1, 10):
            await live.frame(jpeg, seq)
        await live.say("stop")
        rest = await live.rest()
    assert [message["seq"] for message in rest if message["type"] == "result"] == [*range(1, 10)]
    assert rest[-1]["report"]["processed"] == rest[-1]["report"]["received"] == 9


async def test_a_frame_that_waited_too_long_is_refused_by_its_number(slow: Service, jpeg: bytes) -> None:
    async with ready(slow, max_age_ms=100.0) as live:
        await live.frame(jpeg, 7)
        await live.frame(jpeg, 8)
        assert (await live.answer())["seq"] == 7
        late = await live.answer()
        bye = await live.stop()
    assert (late["type"], late["code"], late["seq"], late["fatal"]) == ("error", "stale", 8, False)
    assert "max_age_ms is 100" in late["message"]
    assert bye["report"]["dropped"] == {"stale": 1}


# --- settings ---


@pytest.mark.parametrize(
    ("patch", "names"),
    [
        ({"confidence": 0.85}, ["person"]),
        ({"classes": ["dog"]}, ["dog"]),
        ({"classes": ["Person", 16]}, ["person", "dog"]),
        ({"classes": [1]}, []),
        ({"classes": []}, ["person", "dog"]),
        ({"stages": {"detect": False}}, []),
    ],
    ids=str,
)
async def test_an_update_is_answered_and_holds_from_the_next_frame_on(
    service: Service, jpeg: bytes, patch: dict[str, object], names: list[str]
) -> None:
    async with ready(service) as live:
        await live.say("update", **patch)
        settings = (await live.until("settings"))["settings"]
        await live.frame(jpeg)
        result = await live.answer()
    assert [detection["class_name"] for detection in result["objects"]] == names
    for name, value in patch.items():
        if name == "stages":
            assert settings[name] == {**live.welcome["settings"]["stages"], "detect": False}
        elif name == "classes":
            ids = {"person": 0, "dog": 16}
            assert settings[name] == ([ids.get(str(item).lower(), item) for item in value] or None)  # type: ignore[attr-defined]
        else:
            assert settings[name] == value


@pytest.mark.parametrize("stage", ["detect", "pose", "motion", "track", "ocr"])
async def test_a_stage_switched_off_says_so(service: Service, jpeg: bytes, stage: str) -> None:
    async with ready(service, stages={stage: False}) as live:
        await live.frame(jpeg)
        await live.answer()
        await live.frame(jpeg)
        result = await live.answer()
    assert result["stages"][stage] == {"status": "disabled", "reason": "off", "age_ms": None}
    assert {"detect": result["objects"], "pose": result["poses"], "motion": result["motion"]}.get(stage) in ([], None)


async def test_the_iou_asked_for_is_in_force(service: Service) -> None:
    async with ready(service, iou=0.7) as live:
        assert live.welcome["settings"]["iou"] == 0.7
        await live.say("update", iou=0.2, confidence=0.5, max_age_ms=50.5)
        settings = (await live.until("settings"))["settings"]
    assert (settings["iou"], settings["confidence"], settings["max_age_ms"]) == (0.2, 0.5, 50.5)


async def test_a_class_that_the_model_does_not_know_is_named_with_those_known(service: Service, jpeg: bytes) -> None:
    async with ready(service) as live:
        for wrong in ("unicorn", 80, -1):
            await live.say("update", classes=["person", wrong])
            error = await live.until("error")
            assert (error["code"], error["field"], error["seq"]) == ("invalid_value", "classes.1", None)
            assert repr(wrong) in error["message"]
            assert "person" in error["message"]
        await live.frame(jpeg)
        assert len((await live.answer())["objects"]) == 2  # nothing changed


async def test_the_flow_comes_as_a_grid_when_asked_for(service: Service, jpeg: bytes) -> None:
    async with ready(service, motion_grid=True) as live:
        await live.frame(jpeg)
        assert (await live.answer())["motion"] is None
        await live.frame(jpeg)
        grid = (await live.answer())["motion"]["grid"]
        await live.say("update", motion_grid=False)
        await live.frame(jpeg)
        assert (await live.answer())["motion"]["grid"] is None
    assert len(base64.b64decode(grid["data"])) == 2 * grid["columns"] * grid["rows"]


# --- coming to an end ---


async def test_stop_answers_what_is_in_flight_and_says_goodbye_with_a_report(slow: Service, jpeg: bytes) -> None:
    async with ready(slow) as live:
        await live.frame(jpeg, 1)
        await live.frame(jpeg, 2)
        await live.say("stop")
        rest = await live.rest()
    assert [(message["type"], message.get("seq")) for message in rest] == [("result", 1), ("result", 2), ("bye", None)]
    bye = rest[-1]
    assert (bye["reason"], live.connection.close_code) == ("stopped", 1000)
    report = bye["report"]
    assert adds_up(report)
    assert (report["received"], report["processed"], report["failed"]) == (2, 2, 0)
    assert report["bytes"] == 2 * (len(jpeg) + header.SIZE)
    assert report["stages"]["infer"]["p50_ms"] <= report["stages"]["infer"]["p95_ms"]
    assert set(report["stages"]) == set(rest[0]["timings_ms"]) | set(rest[1]["timings_ms"])


async def test_stop_gives_every_frame_in_flight_the_time_it_needs(serve: Serve, jpeg: bytes) -> None:
    patient = serve(**SLOW, CREDITS="8", SEND_TIMEOUT_S="0.5")  # for reading; not for all that is at the models
    async with ready(patient, mode="lossless") as live:
        for seq in range(1, 9):
            await live.frame(jpeg, seq)
        await live.say("stop")
        rest = await live.rest()
    assert [message["seq"] for message in rest if message["type"] == "result"] == [*range(1, 9)]
    assert rest[-1]["report"]["dropped"] == {}


async def test_frames_after_stop_go_with_the_session_and_supersede_nothing(slow: Service, jpeg: bytes) -> None:
    async with ready(slow) as live:
        await live.frame(jpeg, 1)
        await live.frame(jpeg, 2)
        wire = live.connection.transport.get_extra_info("socket")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # in one piece with the word
        await live.say("stop")
        await live.frame(jpeg, 3)
        await live.frame(jpeg, 4)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        rest = await live.rest()
    assert [message["seq"] for message in rest if message["type"] == "result"] == [1, 2]
    assert rest[-1]["report"]["dropped"] == {"stopped": 2}
    assert adds_up(rest[-1]["report"])


async def test_one_who_leaves_after_stop_is_not_waited_for(slow: Service, jpeg: bytes) -> None:
    before = slow.metrics().get('sightline_frames_dropped_total{entry="live",reason="stopped"}', 0)
    async with ready(slow, mode="lossless") as live:
        for seq in range(1, 5):
            await live.frame(jpeg, seq)
        await live.say("stop")
    settle(slow)
    after = slow.metrics()['sightline_frames_dropped_total{entry="live",reason="stopped"}']
    assert after > before


async def test_stop_before_anything_else_is_answered_at_once(service: Service) -> None:
    async with opened(service) as live:
        bye = await live.stop()
    assert (bye["reason"], bye["report"]["received"]) == ("stopped", 0)
    assert bye["report"]["duration_s"] < 5  # SEND_TIMEOUT_S: there is nothing in flight to be waited for


async def test_a_session_without_frames_ends_as_idle(brisk: Service, jpeg: bytes) -> None:
    async with ready(brisk) as live:
        await live.frame(jpeg)
        bye = await live.bye()
    assert (bye["reason"], live.connection.close_code) == ("idle", 4000)
    assert "0.6 seconds" in bye["message"]
    assert bye["report"]["duration_s"] >= 0.6


async def test_a_pause_stops_the_idle_clock_until_its_own_end(brisk: Service) -> None:
    async with ready(brisk) as live:
        await live.say("pause")
        bye = await live.bye()
    assert bye["reason"] == "idle"
    assert "paused" in bye["message"]
    assert bye["report"]["duration_s"] >= 2


async def test_resume_lets_the_idle_clock_go_on(brisk: Service) -> None:
    async with ready(brisk) as live:
        await live.say("pause")
        for _ in range(4):
            await live.until("ping")
        await live.say("resume")
        bye = await live.bye()
    assert "no frame for" in bye["message"]
    assert bye["report"]["duration_s"] >= 0.8 + 0.6


async def test_no_session_outlives_its_time(brisk: Service, jpeg: bytes) -> None:
    async with ready(brisk) as live:
        while (message := await live.receive())["type"] != "bye":
            if message["type"] == "ping":
                with suppress(ConnectionClosed):  # its `bye` is then still to be received
                    await live.frame(jpeg)
    assert message["reason"] == "max_session"
    assert message["report"]["duration_s"] >= 3
    assert adds_up(message["report"])


async def test_a_socket_that_says_nothing_is_closed(brisk: Service) -> None:
    async with opened(brisk) as live:
        bye = await live.bye()
    assert bye["reason"] == "idle"
    assert "0.5 seconds" in bye["message"]


async def test_every_frame_of_this_module_is_accounted_for(service: Service, slow: Service, brisk: Service) -> None:
    for server in (service, slow, brisk):
        counts = assert_adds_up(server)
        assert counts["processed"] > 0
        assert counts["failed"] == 0
        assert "Traceback" not in server.log
