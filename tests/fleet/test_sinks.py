"""The fleet with several sinks: a frame is acknowledged once each of them has its result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest
import redis as redis_library

from tests.fleet.conftest import Work
from tests.fleet.work import add_frames, eventually, pending
from tests.support.receiving import Receiver, answers, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def test_every_result_reaches_every_sink(
    work: Work, redis: redis_library.Redis, receiver: Receiver, jpeg: bytes, tmp_path: Path
) -> None:
    for camera in ("a", "b"):
        add_frames(redis, camera, [jpeg] * 10)
    path = tmp_path / "results.jsonl"
    fleet = work(RESULT_SINKS="kafka,jsonl,webhook", JSONL_PATH=str(path), WEBHOOK_URL=receiver.url)
    values = fleet.values_once(20)
    eventually(lambda: pending(redis), lambda count: count == 0, fleet)
    for value in values:
        assert value.pop("key") == value["camera_id"]
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    for camera in ("a", "b"):
        expected = [value for value in values if value["camera_id"] == camera]
        assert len(expected) == 10
        assert [value for value in lines if value["camera_id"] == camera] == expected
        assert [value for value in receiver.values() if value["camera_id"] == camera] == expected
    counts = fleet.counted(20)
    assert counts["received"] == counts["processed"] == 20


def test_while_a_webhook_is_away_frames_stay_pending_and_no_more_are_read(
    work: Work, redis: redis_library.Redis, receiver: Receiver, jpeg: bytes
) -> None:
    receiver.usual = answers(500)
    add_frames(redis, "cam", [jpeg] * 5)
    fleet = work(RESULT_SINKS="webhook", WEBHOOK_URL=receiver.url)
    eventually(lambda: len(receiver.requests), lambda count: count >= 2, fleet)
    health = eventually(
        lambda: httpx.get(f"{fleet.url}/health").json()["workers"][0], lambda found: not found["sinks"], fleet
    )
    assert (health["state"], health["kafka"], health["redis"]) == ("degraded", True, True)
    waiting = pending(redis)
    assert waiting > 0
    add_frames(redis, "cam", [jpeg] * 5)
    assert pending(redis) == waiting
    receiver.usual = answers(204)
    eventually(lambda: {value["frame_id"] for value in receiver.values()}, lambda found: len(found) == 10, fleet)
    eventually(lambda: pending(redis), lambda count: count == 0, fleet)
    counts = fleet.counted(10)
    assert counts["received"] == counts["processed"] == 10


def test_a_worker_that_is_killed_while_a_webhook_is_away_loses_no_frame(
    work: Work, redis: redis_library.Redis, receiver: Receiver, jpeg: bytes
) -> None:
    receiver.usual = answers(503)
    entries = add_frames(redis, "cam", [jpeg] * 5)
    settings = {"RESULT_SINKS": "webhook", "WEBHOOK_URL": receiver.url, "FLEET_RECLAIM_IDLE_MS": "500"}
    fleet = work(**settings)
    eventually(lambda: len(receiver.requests), lambda count: count >= 1, fleet)
    fleet.process.kill()
    fleet.process.wait()
    receiver.requests.clear()
    receiver.usual = answers(204)
    second = work(**settings)
    eventually(lambda: {value["frame_id"] for value in receiver.values()}, lambda found: found == {*entries}, second)
    eventually(lambda: pending(redis), lambda count: count == 0, second)


def test_with_drop_frames_go_on_without_the_webhook_and_are_counted(
    work: Work, redis: redis_library.Redis, receiver: Receiver, jpeg: bytes
) -> None:
    receiver.usual = answers(503)
    add_frames(redis, "cam", [jpeg] * 5)
    fleet = work(RESULT_SINKS="webhook", WEBHOOK_URL=receiver.url, SINK_FAILURE_POLICY="drop")
    eventually(lambda: fleet.frames("fleet"), lambda counts: counts["dropped"] == 5, fleet)
    add_frames(redis, "cam", [jpeg] * 5)
    counts = fleet.counted(10)
    assert counts["dropped"] == 10, "they are given up at once while it is known to be away"
    assert pending(redis) == 0
    assert fleet.metrics()['sightline_frames_dropped_total{entry="fleet",reason="webhook_unavailable"}'] == 10
