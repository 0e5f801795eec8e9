"""Worker processes join, leave, die and freeze while cameras send: order, losses and duplicates of results."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import psutil
import pytest
import redis as redis_library

from tests.fleet.conftest import Work
from tests.fleet.sending import SendingCameras
from tests.fleet.work import GROUP, Fleet, eventually, holders, pending
from tests.support.service import assert_adds_up

GIVEN = {"FLEET_DISCOVER_S": "1", "FLEET_STAGES": "detect,track", "FLEET_MAX_DELIVERIES": "9"}
# Answers lie in Kafka's client for a moment, and in `async` frames before they are a batch: a worker that ends or
# stands still has some of both as a rule.
LINGER = '{"linger.ms": %d}'
MODES = {"async": {"BATCH_SIZE": "16", "BATCH_TIMEOUT_MS": "300"}, "sync": {}}
HOLDERS = f"fleet:holders:{GROUP}"
RECLAIMED = "sightline_fleet_pending_reclaimed_total"
REFUSED = 'sightline_fleet_fenced_total{refused="acknowledgement"}'
UNDECODABLE = 'sightline_frames_dropped_total{entry="fleet",reason="undecodable"}'


def is_of(name: str, fleet: Fleet) -> bool:
    """Whether the process has the worker of this name."""
    return f"-{fleet.process.pid}-" in name


def answers_of(fleet: Fleet, *, since: int = 0) -> None:
    """Waits until a worker has written results of epoch `since` or later."""
    eventually(
        fleet.values,
        lambda values: any(is_of(value["worker"], fleet) and value["epoch"] >= since for value in values),
        fleet,
    )


def stand_still(fleet: Fleet, redis: redis_library.Redis) -> None:
    """Stops the process (SIGSTOP) while it has frames in flight."""

    def stopped_with_some() -> bool:
        fleet.process.send_signal(signal.SIGSTOP)
        process = psutil.Process(fleet.process.pid)
        eventually(process.status, lambda status: status == psutil.STATUS_STOPPED)
        if any(is_of(name, fleet) for name in holders(redis)):
            return True
        fleet.process.send_signal(signal.SIGCONT)
        return False

    eventually(stopped_with_some, bool, fleet)


def handed_over(redis: redis_library.Redis, gone: Fleet, heir: Fleet) -> None:
    """Waits until `gone` holds no camera and none of its frames is pending, because `heir` took them over."""
    eventually(
        lambda: [*redis.hvals(HOLDERS), *map(str.encode, holders(redis))],
        lambda names: not any(is_of(name.decode(), gone) for name in names),
        heir,
    )


def ids_of(values: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(value["key"], value["frame_id"]) for value in values}


def in_strict_order(values: list[dict[str, Any]]) -> tuple[list[tuple[str, str]], int]:
    """(camera, frame) of the results that a consumer keeps by the README's two rules (each frame once, in order),
    and the number of results that it discards for their epoch.
    """
    epochs: dict[str, int] = {}
    kept: dict[tuple[str, str], None] = {}
    late = 0
    for value in values:
        camera = value["key"]
        if value["epoch"] < epochs.get(camera, 0):
            late += 1
        else:
            epochs[camera] = value["epoch"]
            kept.setdefault((camera, value["frame_id"]))
    return [*kept], late


@pytest.mark.parametrize("mode", MODES)
def test_d5_workers_that_join_leave_die_and_stand_still_lose_nothing_and_keep_each_cameras_order(
    work: Work, redis: redis_library.Redis, jpeg: bytes, mode: str
) -> None:
    given = {**GIVEN, **MODES[mode], "FLEET_MODE": mode, "KAFKA_OPTIONS": LINGER % 200}
    cameras = SendingCameras(cameras=8, rate=2, every=8)
    counts: Counter[str] = Counter()
    with cameras.on(redis, jpeg):
        hanging, leaving = work(**{**given, "KAFKA_OPTIONS": LINGER % 1500}), work(**given)
        answers_of(hanging)
        answers_of(leaving)
        dying = work(**given)
        answers_of(dying)

        stand_still(hanging, redis)
        handed_over(redis, hanging, dying)
        taken = max(int(record.split()[0]) for record in redis.hvals(HOLDERS))
        hanging.process.send_signal(signal.SIGCONT)
        answers_of(hanging, since=taken + 1)

        counts.update(leaving.metrics())
        leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(60) == 0
        assert not any(is_of(name, leaving) for name in holders(redis))

        counts.update(dying.metrics())
        stand_still(dying, redis)
        dying.process.kill()
        dying.process.wait()
        handed_over(redis, dying, hanging)
        cameras.bad = [b"no picture"] * 2
        eventually(lambda: len(cameras.broken), lambda shown: shown == 2, hanging)

    eventually(lambda: ids_of(hanging.values()), cameras.frames.issubset, hanging)
    eventually(lambda: pending(redis), lambda left: left == 0, hanging)
    eventually(hanging.metrics, lambda samples: samples.get(UNDECODABLE) == len(cameras.broken), hanging)
    assert_adds_up(hanging, "fleet")
    counts.update(hanging.metrics())
    values = hanging.values()
    kept, late = in_strict_order(values)
    # Nothing is lost; each camera's in the order of capture.
    assert set(kept) == cameras.frames
    for camera in {camera for camera, _ in kept}:
        places = [tuple(map(int, entry.split("-"))) for of, entry in kept if of == camera]
        assert places == sorted(places), camera
    # A worker answers nothing twice; what comes twice was left pending by the one before.
    assert len({(value["key"], value["frame_id"], value["epoch"]) for value in values}) == len(values)
    assert len(values) - len(kept) <= counts[RECLAIMED]
    assert late <= counts[REFUSED]
    assert counts[RECLAIMED] > 0
