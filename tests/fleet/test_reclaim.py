"""Reclaimed frames over a real Redis: a frame on its last delivery comes alone, so that a crash is its own."""

from __future__ import annotations

import math
import time

import pytest
import redis as redis_library
from prometheus_client import REGISTRY

from app.fleet.leases import Leases
from app.fleet.streams import CameraFrame, Keys
from app.settings import RedisSettings
from tests.fleet.lives import IDLE_MS, Begin, Life
from tests.fleet.work import GROUP, add_frames, pending


def some(life: Life) -> list[CameraFrame]:
    """The next frames."""
    deadline = time.monotonic() + 20
    while not (frames := life.read()):
        assert time.monotonic() < deadline
    return frames


def trimmed() -> float:
    labels = {"entry": "fleet", "reason": "trimmed"}
    return REGISTRY.get_sample_value("sightline_frames_dropped_total", labels) or 0.0


def left_twice(redis: redis_library.Redis, begin: Begin, count: int) -> list[str]:
    """Frames of camera `a` that two workers had in flight when they ended."""
    entries = add_frames(redis, "a", [b"old"] * count)
    for name in ("first", "second"):
        life, seen = begin(name), 0
        while seen < count:
            seen += len(some(life))
    return entries


@pytest.mark.parametrize("most", [2, 3, 5])
def test_of_all_that_was_in_hand_only_the_frame_that_ends_processes_is_buried(
    redis: redis_library.Redis, begin: Begin, most: int
) -> None:
    given = [
        ("frames:" + camera, entry) for camera in ("a", "b") for entry in add_frames(redis, camera, [b"fine"] * 40)
    ]
    (poison,) = add_frames(redis, "b", [b"poison"])
    answered: list[tuple[str, str]] = []
    deaths = 0
    life = begin("life-0", fleet_max_deliveries=most)
    deadline = time.monotonic() + 40
    while len(answered) < len(given) or pending(redis):
        assert time.monotonic() < deadline, (len(answered), redis.xpending("frames:b", GROUP))
        frames = life.read()
        if any(frame.jpeg == b"poison" for frame in frames):
            deaths += 1  # with all that came with it
            life = begin(f"life-{deaths}", fleet_max_deliveries=most)
            continue
        life.answered(redis, frames)
        answered += [(frame.origin.stream, frame.origin.entry) for frame in frames]
    assert sorted(answered) == sorted(given)
    assert deaths == most
    ((_, letter),) = redis.xrange("frames:dead")
    assert letter[b"frame"] == b"poison"
    assert letter[b"entry_id"] == poison.encode()
    assert letter[b"deliveries"] == str(most + 1).encode()


def test_suspects_come_one_by_one_before_their_cameras_newer_frames_and_other_cameras_meanwhile(
    redis: redis_library.Redis, begin: Begin
) -> None:
    entries = left_twice(redis, begin, 3)
    life = begin("third")
    first = some(life)
    (newer,) = add_frames(redis, "a", [b"new"])
    add_frames(redis, "b", [b"other"] * 4)
    others: list[CameraFrame] = []
    until = time.monotonic() + 1.5 * IDLE_MS / 1000
    while len(others) < 4 or time.monotonic() < until:
        others += life.read()
    assert [frame.origin.entry for frame in first] == entries[:1]
    assert [frame.jpeg for frame in others] == [b"other"] * 4
    life.answered(redis, first + others)
    for entry in entries[1:]:
        found = some(life)
        assert [frame.origin.entry for frame in found] == [entry]
        assert found[0].claimed
        life.answered(redis, found)
    assert [frame.origin.entry for frame in some(life)] == [newer]


def test_what_was_trimmed_in_the_hands_of_one_that_lives_is_its_own(redis: redis_library.Redis, begin: Begin) -> None:
    before = trimmed()
    add_frames(redis, "a", [b"x"] * 50)
    leaving = begin("one")
    held = some(leaving)
    assert len(held) == 50
    redis.xtrim("frames:a", maxlen=0, approximate=False)
    leaving.consumer.sign_off()  # as a worker that finishes its frames in flight while others have its cameras
    other = begin("other")
    until = time.monotonic() + IDLE_MS / 2000
    while time.monotonic() < until:
        leaving.keep()
        assert other.read() == []
    other.counts.flush()
    assert trimmed() == before
    leaving.answered(redis, held)


def test_a_suspect_that_was_trimmed_meanwhile_is_counted_and_the_next_one_follows(
    redis: redis_library.Redis, begin: Begin
) -> None:
    before = trimmed()
    entries = left_twice(redis, begin, 3)
    life = begin("third")
    life.answered(redis, some(life))
    redis.xdel("frames:a", entries[1])
    third = some(life)
    assert [frame.origin.entry for frame in third] == entries[2:]
    life.answered(redis, third)
    assert pending(redis) == 0
    life.counts.flush()
    assert trimmed() - before == 1


def test_what_comes_after_a_suspect_in_its_camera_waits_for_it_though_it_was_delivered_less(
    redis: redis_library.Redis, begin: Begin
) -> None:
    entries = add_frames(redis, "a", [b"old"] * 3)
    assert len(some(begin("first"))) == 3
    second = begin("second")
    deadline = time.monotonic() + 20
    while not (found := second.read(2)):  # it ends before it has claimed the third
        assert time.monotonic() < deadline
    assert [frame.origin.entry for frame in found] == entries[:2]
    third = begin("third")
    came: list[str] = []
    while len(came) < 3:
        frames = some(third)
        came += [frame.origin.entry for frame in frames]
        third.answered(redis, frames)
    assert came == entries


def lost_before_it_claims(redis: redis_library.Redis, begin: Begin) -> Life:
    """A worker that took camera `a` over and then froze, so that it lost the camera before it claimed any frame."""
    life = begin("stood-still")
    deadline = time.monotonic() + 20
    while "frames:a" not in life.consumer.epochs:
        assert time.monotonic() < deadline
        life.read(0)
    epoch = life.consumer.epochs["frames:a"]
    keys = Keys.of(RedisSettings())
    redis.hset(keys.holders, "frames:a", f"{epoch + 1} another")
    redis.zadd(keys.leases, {"another": time.time() * 1000 + 3_600_000})
    life.consumer.next_refresh = math.inf  # where it would find out
    return life


def test_a_worker_that_has_lost_its_camera_claims_nothing_of_it(redis: redis_library.Redis, begin: Begin) -> None:
    add_frames(redis, "a", [b"x"] * 3)
    assert len(some(begin("first"))) == 3
    life = lost_before_it_claims(redis, begin)
    for _ in range(5):
        assert life.read() == []
    left = redis.xpending_range("frames:a", GROUP, "-", "+", 10)
    assert [(entry["consumer"], entry["times_delivered"]) for entry in left] == [(b"first", 1)] * 3


@pytest.mark.parametrize("when", ["before it claims", "before it buries"])
def test_a_worker_that_has_lost_its_camera_buries_nothing_of_it(
    redis: redis_library.Redis, begin: Begin, when: str
) -> None:
    (entry,) = add_frames(redis, "a", [b"x"])
    some(begin("first"))
    redis.xclaim("frames:a", GROUP, "first", 0, [entry], retrycount=3)
    life = lost_before_it_claims(redis, begin)
    if when == "before it claims":
        for _ in range(5):
            assert life.read() == []
    else:
        leases = Leases(redis, life.consumer.name, Keys.of(RedisSettings()), 60_000)
        epoch = life.consumer.epochs["frames:a"]
        assert not leases.dead_letter("frames:a", epoch, entry.encode(), {b"frame": b"x"}, 1000)
    assert redis.xlen("frames:dead") == 0
    assert pending(redis) == 1
