"""What dead workers left, over a real Redis: whose last delivery it is comes one by one, so one alone is to blame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis as redis_library
from prometheus_client import REGISTRY

from app.fleet.frames import CameraFrame
from app.fleet.inhand import InHand
from app.fleet.source import Source
from app.fleet.tally import Tally
from app.settings import FleetSettings, RedisSettings
from tests.fleet.work import GROUP, film, pending
from tests.support.redis import RedisServer

IDLE_MS = 1000
ROOM = 128


class Life:
    """A worker's source, from its start until its process is gone."""

    def __init__(self, server: RedisServer, name: str, **fleet) -> None:
        chosen = {"fleet_discover_s": 0.05, "fleet_reclaim_s": 0.1, "fleet_reclaim_idle_ms": IDLE_MS}
        self.in_hand = InHand(ROOM)
        self.tally = Tally()
        settings = RedisSettings(redis_url=server.url), FleetSettings(**{**chosen, **fleet})
        self.source = Source(name, *settings, self.in_hand, self.tally)

    def read(self) -> list[CameraFrame]:
        return self.source.read(self.in_hand.room(1, 0.1))

    def answered(self, client: redis_library.Redis, frames: list[CameraFrame]) -> None:
        for frame in frames:
            client.xack(frame.origin.stream, GROUP, frame.origin.entry)
        self.in_hand.looked_at(len(frames))
        self.in_hand.settle([frame.origin for frame in frames])


Begin = Callable[..., Life]


@pytest.fixture
def begin(redis: redis_library.Redis, redis_server: RedisServer) -> Iterator[Begin]:
    """Begins lives; `redis` is there so that the server is empty before."""
    with ExitStack() as stack:

        def start(name: str, **fleet) -> Life:
            life = Life(redis_server, name, **fleet)
            stack.callback(life.source.leave)
            return life

        yield start


def some(life: Life) -> list[CameraFrame]:
    """The next frames."""
    deadline = time.monotonic() + 20
    while not (frames := life.read()):
        assert time.monotonic() < deadline
    return frames


def trimmed() -> float:
    labels = {"door": "fleet", "reason": "trimmed"}
    return REGISTRY.get_sample_value("sightline_frames_dropped_total", labels) or 0.0


def left_twice(redis: redis_library.Redis, begin: Begin, count: int) -> list[str]:
    """Frames of camera `a` that two workers had in hand when they ended."""
    entries = film(redis, "a", [b"old"] * count)
    for name in ("first", "second"):
        life, seen = begin(name), 0
        while seen < count:
            seen += len(some(life))
    return entries


@pytest.mark.parametrize("most", [2, 3, 5])
def test_of_all_that_was_in_hand_only_the_frame_that_ends_processes_is_buried(
    redis: redis_library.Redis, begin: Begin, most: int
) -> None:
    given = [("frames:" + camera, entry) for camera in ("a", "b") for entry in film(redis, camera, [b"fine"] * 40)]
    (poison,) = film(redis, "b", [b"poison"])
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


def test_suspects_come_one_by_one_and_new_frames_meanwhile(redis: redis_library.Redis, begin: Begin) -> None:
    entries = left_twice(redis, begin, 3)
    life = begin("third")
    first = some(life)
    film(redis, "a", [b"new"] * 4)
    other, fresh = begin("other"), []
    until = time.monotonic() + 1.5 * IDLE_MS / 1000  # what is not kept alive is claimed by then
    while len(fresh) < 4 or time.monotonic() < until:
        fresh += life.read() + other.read()
    assert [frame.origin.entry for frame in first] == entries[:1]
    assert [frame.jpeg for frame in fresh] == [b"new"] * 4
    life.answered(redis, first)
    second = some(life)
    assert [frame.origin.entry for frame in second] == entries[1:2]
    assert second[0].claimed


def test_what_was_trimmed_in_the_hands_of_one_that_lives_is_its_own(redis: redis_library.Redis, begin: Begin) -> None:
    before = trimmed()
    film(redis, "a", [b"x"] * 50)
    one = begin("one")
    held = some(one)
    assert len(held) == 50
    redis.xtrim("frames:a", maxlen=0, approximate=False)
    one.source.sign_off()  # as one that finishes what is in hand, whose cameras others have by now
    other = begin("other")
    until = time.monotonic() + IDLE_MS / 2000
    while time.monotonic() < until:
        assert other.read() == []
    other.tally.flush()
    assert trimmed() == before
    one.answered(redis, held)


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
    life.tally.flush()
    assert trimmed() - before == 1
