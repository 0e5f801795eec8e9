"""An overloaded worker over a real Redis: equal shares, the newest frames first, and every frame counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import redis as redis_library
from prometheus_client import REGISTRY

from app.fleet.streams import CameraFrame
from tests.fleet.lives import Begin, Life
from tests.fleet.work import GROUP, add_frames, group_of, pending

STALENESS_MS = 2000.0
ROUND_S = 0.04
EMPTY = 20
"""Reads in a row that bring nothing, after which nothing is left: one asks 32 cameras."""


def jain(shares: list[int]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one of n has it all."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"sightline_{name}_total", labels) or 0.0


def books() -> dict[str, float]:
    return {
        "received": counted("frames_received", entry="fleet"),
        "stale": counted("frames_dropped", entry="fleet", reason="stale"),
        "trimmed": counted("frames_dropped", entry="fleet", reason="trimmed"),
        "skipped": counted("fleet_skipped"),
    }


def since(before: dict[str, float], life: Life) -> dict[str, float]:
    life.counts.flush()
    return {name: count - before[name] for name, count in books().items()}


def overloaded(
    life: Life,
    redis: redis_library.Redis,
    cameras: Callable[[int], list[str]],
    *,
    rounds: int,
    able: int,
) -> tuple[list[list[CameraFrame]], int]:
    """Rounds: each camera sends a frame for each time that it is named, and the worker processes `able` frames.

    A round takes ROUND_S at least: on a fast machine nothing would lag otherwise.
    """
    seen: list[list[CameraFrame]] = []
    sent = 0
    began = time.monotonic()
    for number in range(rounds):
        time.sleep(max(0.0, began + number * ROUND_S - time.monotonic()))
        pipe = redis.pipeline(transaction=False)
        for camera in cameras(number):
            now_ms = f"{time.time() * 1000:.3f}"
            pipe.xadd(f"frames:{camera}", {"captured_at_ms": now_ms, "frame": b"x" * 100}, maxlen=100)
            sent += 1
        pipe.execute()
        looked: list[CameraFrame] = []
        empty = 0
        while len(looked) < able and empty < EMPTY:
            frames = life.read(min(able - len(looked), 32))
            empty = 0 if frames else empty + 1
            life.answered(redis, frames)
            looked += frames
        seen.append(looked)
    return seen, sent


def drained(life: Life, redis: redis_library.Redis) -> list[CameraFrame]:
    """Processes the remaining frames after the cameras have stopped."""
    found: list[CameraFrame] = []
    empty = 0
    while empty < EMPTY:
        frames = life.read(32)
        life.answered(redis, frames)
        empty = 0 if frames else empty + 1
        found += frames
    return found


def test_d4_a_hundred_cameras_at_twice_what_a_worker_can_have_equal_shares_of_their_newest_frames(
    redis: redis_library.Redis, begin: Begin
) -> None:
    names = [f"cam-{number}" for number in range(100)]
    for name in names:
        group_of(redis, name)
    before = books()
    life = begin("one", frame_staleness_ms=STALENESS_MS, fleet_discover_s=0.5)
    life.read(0)
    seen, sent = overloaded(life, redis, lambda _: names + names, rounds=50, able=100)
    frames = [frame for looked in seen for frame in looked]
    shares = Counter(frame.origin.camera_id for frame in frames)
    assert jain([shares[name] for name in names]) >= 0.99
    assert max(shares.values()) - min(shares.values()) <= 8
    # Whoever is looked at is looked at again within two rounds, by the number of frames.
    at = {name: [n for n, frame in enumerate(frames) if frame.origin.camera_id == name] for name in names}
    assert all(later - earlier <= 250 for places in at.values() for earlier, later in pairwise(places))
    for name in names:
        ids = [tuple(map(int, frame.origin.entry.split("-"))) for frame in frames if frame.origin.camera_id == name]
        assert ids == sorted(set(ids))
    rest = drained(life, redis)
    found = since(before, life)
    assert found["received"] == sent == 50 * 200
    assert found["skipped"] == found["stale"] == sent - len(frames) - len(rest) > 0.2 * sent
    assert pending(redis) == 0
    for name in names:
        (group,) = redis.xinfo_groups(f"frames:{name}")
        assert group["lag"] == 0
        assert group["entries-read"] == 100


def test_d4_slow_and_fast_cameras_and_one_that_bursts_each_have_what_is_theirs(
    redis: redis_library.Redis, begin: Begin
) -> None:
    fast, slow = [f"fast-{number}" for number in range(20)], [f"slow-{number}" for number in range(20)]
    before = books()
    life = begin("one", frame_staleness_ms=STALENESS_MS, fleet_discover_s=0.5)
    for name in (*fast, *slow, "burst"):
        group_of(redis, name)
    life.read(0)

    def cameras(number: int) -> list[str]:
        return 3 * fast + (slow if number % 4 == 0 else []) + (["burst"] * 60 if number == 30 else [])

    seen, sent = overloaded(life, redis, cameras, rounds=60, able=30)
    shares = Counter(frame.origin.camera_id for looked in seen for frame in looked)
    rest = drained(life, redis)
    assert jain([shares[name] for name in fast]) >= 0.95
    # Who films less than the even share has all of it looked at, whatever the others do.
    every = shares + Counter(frame.origin.camera_id for frame in rest)
    assert all(every[name] >= 13 for name in slow), every
    assert every["burst"] >= 1
    found = since(before, life)
    assert found["received"] == sent
    assert found["skipped"] == sent - sum(every.values())


def test_d4_five_hundred_cameras_that_come_and_go_are_all_in_the_books(
    redis: redis_library.Redis, begin: Begin
) -> None:
    names = [f"cam-{number}" for number in range(500)]
    before = books()
    life = begin("one", frame_staleness_ms=STALENESS_MS, fleet_discover_s=0.05)

    def cameras(number: int) -> list[str]:
        return 2 * (names if 3 <= number < 9 else names[:250])

    seen, sent = overloaded(life, redis, cameras, rounds=12, able=250)
    while life.consumer.membership.streams != {f"frames:{name}" for name in names}:
        life.read(0)
    frames = [frame for looked in seen for frame in looked]
    rest = drained(life, redis)
    found = since(before, life)
    assert found["received"] == sent == sum(redis.xinfo_stream(f"frames:{name}")["entries-added"] for name in names)
    assert found["skipped"] == sent - len(frames) - len(rest)


def test_d4_a_burst_that_can_be_caught_up_with_loses_nothing(redis: redis_library.Redis, begin: Begin) -> None:
    given = [
        (f"cam-{camera}", entry) for camera in range(4) for entry in add_frames(redis, f"cam-{camera}", [b"x"] * 25)
    ]
    life = begin("one", frame_staleness_ms=60_000, fleet_discover_s=0.5)
    frames = drained(life, redis)
    assert sorted((frame.origin.camera_id, frame.origin.entry) for frame in frames) == sorted(given)


def test_d4_what_redis_dropped_unread_is_in_the_books(redis: redis_library.Redis, begin: Begin) -> None:
    life = begin("one", fleet_discover_s=0.5)
    redis.sadd("fleet:cameras", "cam")
    life.read(0)
    add_frames(redis, "cam", [b"x"] * 30)
    redis.xtrim("frames:cam", maxlen=5, approximate=False)
    before = books()
    frames = drained(life, redis)
    assert len(frames) == 5
    time.sleep(0.6)
    life.read(0)
    found = since(before, life)
    assert (found["received"], found["trimmed"]) == (30, 25)
    (group,) = redis.xinfo_groups("frames:cam")
    assert (group["lag"], group["entries-read"]) == (0, 30)


def test_d4_a_camera_whose_frames_come_late_is_not_taken_for_one_that_lags(
    redis: redis_library.Redis, begin: Begin
) -> None:
    life = begin("one", frame_staleness_ms=10_000, fleet_discover_s=0.5)
    add_frames(redis, "cam", [b"x"] * 40, captured_at_ms=time.time() * 1000 - 6000)
    assert len(drained(life, redis)) == 40


def test_d4_a_camera_whose_clock_is_ahead_lags_like_any_other(redis: redis_library.Redis, begin: Begin) -> None:
    life = begin("one", frame_staleness_ms=1000, fleet_discover_s=0.5)
    group_of(redis, "cam")
    life.read(0)
    before = books()
    entries = add_frames(redis, "cam", [b"x"] * 40, captured_at_ms=time.time() * 1000 + 3_600_000)
    time.sleep(0.3)  # more than a quarter
    frames = drained(life, redis)
    assert frames[-1].origin.entry == entries[-1]
    assert len(frames) == 32, "one look's worth"
    assert since(before, life)["skipped"] == 8


def test_d4_ids_that_are_no_times_are_not_taken_for_old(redis: redis_library.Redis, begin: Begin) -> None:
    life = begin("one", frame_staleness_ms=10_000, fleet_discover_s=0.5)
    for number in range(1, 41):
        redis.xadd("frames:cam", {"captured_at_ms": time.time() * 1000, "frame": b"x"}, id=f"{number}-1")
    assert len(drained(life, redis)) == 40


def test_d4_a_group_that_somebody_moved_is_followed(redis: redis_library.Redis, begin: Begin) -> None:
    add_frames(redis, "cam", [b"x"] * 3)
    life = begin("one", fleet_discover_s=0.05)
    assert len(drained(life, redis)) == 3
    add_frames(redis, "cam", [b"x"] * 3)
    redis.xgroup_setid("frames:cam", GROUP, "$")
    (newer,) = add_frames(redis, "cam", [b"new"])
    frames: list[CameraFrame] = []
    deadline = time.monotonic() + 20
    while not frames:
        assert time.monotonic() < deadline
        frames = life.read()
    assert [frame.origin.entry for frame in frames] == [newer]
    life.answered(redis, frames)
