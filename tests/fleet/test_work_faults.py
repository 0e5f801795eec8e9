"""Workers that die, streams that are trimmed, frames that always fail, a Redis that returns empty."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import redis as redis_library

from tests.conftest import SLOW
from tests.fleet.conftest import Work
from tests.fleet.work import GROUP, add_frames, eventually, group_of, holders, left_by_the_dead, pending
from tests.support.redis import running_redis

QUICK = {"FLEET_RECLAIM_IDLE_MS": "800"}


def ids_of(values: list[dict[str, object]]) -> set[tuple[object, object]]:
    return {(value["key"], value["frame_id"]) for value in values}


def test_what_a_killed_worker_had_in_hand_comes_out_of_another(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    first, second = work(**SLOW, **QUICK), work(**SLOW, **QUICK)
    given = set()
    for number in range(12):
        given |= {(f"cam-{number}", entry) for entry in add_frames(redis, f"cam-{number}", [jpeg] * 4)}
    eventually(lambda: holders(redis), lambda names: len(names) == 2, first)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert pending(redis) > 0
    values = eventually(second.values, lambda values: ids_of(values) >= given, second)
    assert ids_of(values) == given
    eventually(lambda: pending(redis), lambda count: count == 0, second)
    assert second.counted(1)["dropped"] == 0
    assert second.metrics()["sightline_fleet_pending_reclaimed_total"] > 0


def test_left_behind_frames_are_answered_trimmed_ones_counted_and_poison_is_buried(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    hour_ago_ms = (time.time() - 3600) * 1000
    for camera in ("plain", "cut", "poison"):
        add_frames(redis, camera, [jpeg] * 3, captured_at_ms=hour_ago_ms)
        group_of(redis, camera)
        left_by_the_dead(redis, camera, 3)
    redis.xtrim("frames:cut", maxlen=1, approximate=False)
    (poison, *_) = [entry["message_id"] for entry in redis.xpending_range("frames:poison", GROUP, "-", "+", 3)]
    redis.xclaim("frames:poison", GROUP, "long-gone", 0, [poison], retrycount=3)
    time.sleep(0.9)
    fleet = work(**QUICK, FRAME_STALENESS_MS="30000")  # which a claimed frame is always past
    values = fleet.values_once(6)
    eventually(lambda: pending(redis), lambda count: count == 0, fleet)
    assert sorted(value["key"] for value in values) == ["cut", "plain", "plain", "plain", "poison", "poison"]
    assert fleet.counted(9) == {"received": 9, "processed": 6, "dropped": 3, "failed": 0}
    samples = fleet.metrics()
    assert samples['sightline_frames_dropped_total{entry="fleet",reason="trimmed"}'] == 2
    assert samples['sightline_frames_dropped_total{entry="fleet",reason="dead_letter"}'] == 1
    assert samples["sightline_fleet_pending_reclaimed_total"] == 6
    assert samples["sightline_fleet_dead_letters_total"] == 1
    ((_, letter),) = redis.xrange("frames:dead")
    assert letter[b"stream"] == b"frames:poison"
    assert letter[b"entry_id"] == poison
    assert letter[b"deliveries"] == b"4"
    assert letter[b"frame"] == jpeg
    assert b"FLEET_MAX_DELIVERIES=3" in letter[b"error"]


def test_a_frame_in_hand_for_long_is_not_claimed_by_others(work: Work, redis: redis_library.Redis, jpeg: bytes) -> None:
    # One camera, 0.3 s a frame, and 0.8 s until a frame counts as left behind: most wait longer than that.
    add_frames(redis, "cam", [jpeg] * 16)
    first = work(**SLOW, **QUICK, BATCH_SIZE="2")
    work(**SLOW, **QUICK)
    values = first.values_once(16)
    eventually(lambda: pending(redis), lambda count: count == 0, first)
    assert len(values) == len(ids_of(values)) == 16


def test_redis_restarted_empty_is_met_with_new_groups(work: Work, jpeg: bytes, tmp_path: Path) -> None:
    with running_redis(tmp_path / "own") as server:
        fleet = work(REDIS_URL=server.url)
        with server.client() as client:
            add_frames(client, "cam", [jpeg] * 5)
        fleet.values_once(5)
        server.stop(signal.SIGKILL)
        eventually(lambda: fleet.log, lambda text: "Redis is away" in text, fleet)
        server.start()
        with server.client() as client:
            add_frames(client, "cam", [jpeg] * 5)
            assert len(fleet.values_once(10)) == 10
            eventually(lambda: pending(client), lambda count: count == 0, fleet)
        assert fleet.counted(10)["processed"] == 10
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(30) == 0


def test_redis_killed_in_the_middle_and_back_with_what_it_had_saved_loses_nothing_of_it(
    work: Work, jpeg: bytes, tmp_path: Path
) -> None:
    with running_redis(tmp_path / "own") as server, server.client() as client:
        fleet = work(**SLOW, **QUICK, REDIS_URL=server.url, BATCH_SIZE="2")
        given = {
            (f"cam-{number}", entry) for number in range(4) for entry in add_frames(client, f"cam-{number}", [jpeg] * 5)
        }
        eventually(lambda: pending(client), lambda count: count >= 4, fleet)
        client.save()  # of what is in hand, some will be answered and acknowledged, which this file will not know
        eventually(fleet.values, lambda values: len(values) >= 4, fleet)
        server.stop(signal.SIGKILL)
        eventually(lambda: fleet.log, lambda text: "Redis is away" in text, fleet)
        server.start()
        values = eventually(fleet.values, lambda values: ids_of(values) >= given, fleet)
        assert ids_of(values) == given
        eventually(lambda: pending(client), lambda count: count == 0, fleet)
        counts = fleet.counted(len(given))
        assert counts["received"] == counts["processed"] >= len(fleet.values())
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(30) == 0


def test_a_dead_process_of_several_is_replaced_and_the_counts_still_add_up(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    redis.sadd("fleet:cameras", *(f"cam-{number}" for number in range(6)))
    fleet = work(**SLOW, **QUICK, FLEET_PROCESSES="2", BATCH_SIZE="2")
    # Frames that are there before would all be the first one's.
    eventually(lambda: fleet.log.count("reads 3 cameras; workers signed on: 2"), lambda said: said == 2, fleet)
    for number in range(6):
        add_frames(redis, f"cam-{number}", [jpeg] * 3)
    eventually(lambda: holders(redis), lambda names: len(names) == 2, fleet)
    workers = [
        child for child in psutil.Process(fleet.process.pid).children() if "spawn_main" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    victim = workers[0]
    victim.kill()
    values = eventually(fleet.values, lambda values: len(ids_of(values)) == 18, fleet)
    eventually(lambda: pending(redis), lambda count: count == 0, fleet)
    assert f"(pid {victim.pid}) ended with -9; starting another" in fleet.log
    counts = fleet.counted(18)
    assert counts["processed"] >= 18
    assert len(values) >= 18
    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.process.wait(30) == 0
    assert not [worker for worker in workers if worker.is_running()]
