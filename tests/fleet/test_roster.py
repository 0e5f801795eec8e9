"""Which cameras are whose, over a real Redis: names that are no camera's, several fleets, who goes through the keys."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import redis as redis_library

from app.fleet.membership import Membership
from app.fleet.streams import Keys
from app.settings import FleetSettings, RedisSettings
from tests.fleet.work import add_frames

Sign = Callable[..., Membership]
CAMERAS = [f"cam-{number}" for number in range(20)]


@pytest.fixture
def sign(redis: redis_library.Redis) -> Sign:
    """Makes workers' views; a look signs them on."""

    def make(name: str, prefix: str = "frames:") -> Membership:
        keys = Keys.of(RedisSettings(fleet_stream_prefix=prefix))
        return Membership(redis, name, keys, FleetSettings(fleet_discover_s=60))

    return make


def scans(redis: redis_library.Redis) -> int:
    """SCAN commands so far."""
    return int(redis.info("commandstats").get("cmdstat_scan", {}).get("calls", 0))


def test_a_name_that_is_no_text_is_left_out_and_said_once(
    redis: redis_library.Redis, sign: Sign, caplog: pytest.LogCaptureFixture
) -> None:
    add_frames(redis, "good", [b"x"])
    redis.xadd(b"frames:\xff\xfe", {"frame": b"x"})
    redis.sadd("fleet:cameras", b"\xfd", "named")
    membership = sign("one")
    with caplog.at_level(logging.ERROR):
        membership.refresh()
        membership.refresh()
    assert membership.streams == {"frames:good", "frames:named"}
    assert caplog.text.count("2 streams or cameras are left out, their names are not UTF-8: b'\\xfd'") == 1


def test_fleets_of_other_prefixes_share_nothing(redis: redis_library.Redis, sign: Sign) -> None:
    for prefix in ("frames:", "a:", "b[1]:"):
        for camera in CAMERAS:
            redis.xadd(prefix + camera, {"frame": b"x"})
    for prefix, name in (("frames:", "one"), ("a:", "two"), ("b[1]:", "three")):
        membership = sign(name, prefix)
        membership.refresh()
        assert membership.streams == {prefix + camera for camera in CAMERAS}
        assert membership.workers == {name}


def test_one_worker_goes_through_the_keys_for_all(redis: redis_library.Redis, sign: Sign) -> None:
    first, second = sign("a-first"), sign("b-second")
    first.refresh()
    add_frames(redis, "late", [b"x"])
    for camera in CAMERAS:
        add_frames(redis, camera, [b"x"])
    first.refresh()
    before = scans(redis)
    second.refresh()
    assert scans(redis) == before
    first.refresh()
    assert scans(redis) > before
    every = {f"frames:{camera}" for camera in (*CAMERAS, "late")}
    assert first.streams | second.streams == every
    assert not first.streams & second.streams
    # The first leaves: the other has all cameras at its next look, and looks for new ones itself.
    first.leave()
    add_frames(redis, "later", [b"x"])
    second.refresh()
    assert second.streams == every | {"frames:later"}
    redis.delete("frames:later")
    second.refresh()
    assert second.streams == every


def test_two_groups_on_one_redis_share_no_key_of_their_workers() -> None:
    day, night = (Keys.of(RedisSettings(fleet_group=group)) for group in ("day", "night"))
    for name in ("workers", "away", "holders", "leases"):
        assert getattr(day, name) != getattr(night, name)
    assert day.cameras == night.cameras
