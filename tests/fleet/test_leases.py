"""Leases over a real Redis: a camera has one worker at a time and results in order, even when a worker freezes."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import orjson
import pytest
import redis as redis_library
from prometheus_client import REGISTRY

from app.fleet.delivery import Delivery, FrameMessage, encode_value
from app.fleet.in_flight import InFlight
from app.fleet.leases import LOST, Leases, Selection
from app.fleet.streams import CameraFrame, FrameOrigin, Keys
from app.settings import RedisSettings, Settings
from app.sinks import open_sinks
from app.sinks.kafka import KafkaSink
from tests.fleet.lives import Begin, Life
from tests.fleet.work import GROUP, add_frames, eventually, pending, topic_values
from tests.support.kafka import Broker
from tests.support.redis import RedisServer

LEASE_MS = 150.0
"""Of a lease of those that are asked directly."""
DISCOVER_S = 0.4
"""Where nobody's lease is to end, on a machine that is busy with something else."""


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"sightline_{name}_total", labels) or 0.0


def some(*lives: Life) -> list[CameraFrame]:
    """Reads from each worker in turn until one has frames; each read also renews the worker's lease."""
    deadline = time.monotonic() + 20
    while True:
        for life in lives:
            if frames := life.read():
                return frames
        assert time.monotonic() < deadline


@pytest.fixture
def leases(redis: redis_library.Redis, redis_server: RedisServer) -> Iterator[dict[str, Leases]]:
    """The leases of two workers, `a` and `b`."""
    keys = Keys.of(RedisSettings())
    with ExitStack() as stack:
        clients = {name: stack.enter_context(redis_server.client()) for name in "ab"}
        yield {name: Leases(client, name, keys, LEASE_MS) for name, client in clients.items()}


def test_d5_leases_of_workers_that_were_killed_are_forgotten(
    redis: redis_library.Redis, leases: dict[str, Leases]
) -> None:
    key = Keys.of(RedisSettings()).leases
    leases["a"].keep()
    now_ms = time.time() * 1000
    redis.zadd(key, {"killed": now_ms - 7_200_000, "lately": now_ms - 1000})
    leases["a"].forget((), now_ms - 3_600_000)
    assert redis.zrange(key, 0, -1) == [b"lately", b"a"]


def test_d5_records_of_cameras_that_are_no_more_are_forgotten_whether_their_workers_released_them_or_were_killed(
    redis: redis_library.Redis, leases: dict[str, Leases]
) -> None:
    keys = Keys.of(RedisSettings())
    now_ms = round(time.time() * 1000)
    old_ms = now_ms - 7_200_000
    leases["a"].keep()
    redis.zadd(keys.leases, {"killed": old_ms, "killed-lately": now_ms - 1000})
    records = {f"frames:gone-{number}": f"{old_ms} killed" for number in range(2000)}
    records |= {"frames:released": f"{old_ms} ", "frames:known": f"{old_ms} killed", "frames:held": f"{old_ms} a"}
    records |= {"frames:new": f"{now_ms} killed", "frames:lately": f"{old_ms} killed-lately"}
    redis.hset(keys.holders, mapping=records)
    leases["a"].forget({"frames:known"}, now_ms - 3_600_000)
    assert set(redis.hkeys(keys.holders)) == {b"frames:known", b"frames:held", b"frames:new", b"frames:lately"}


def test_d5_a_camera_has_one_worker_and_its_epoch_grows_with_every_change(
    redis: redis_library.Redis, leases: dict[str, Leases]
) -> None:
    a, b = leases["a"], leases["b"]
    first = a.acquire(["x", "y"])
    assert first.keys() == {"x", "y"}
    assert a.acquire(["x"]) == {"x": first["x"]}
    assert b.acquire(["x", "y"]) == {}
    a.release([("x", first["x"])])
    second = b.acquire(["x", "y"])
    assert second.keys() == {"x"}
    assert second["x"] > first["x"]
    assert a.keep([("x", first["x"]), ("y", first["y"])]) == {("x", first["x"])}
    a.release([("x", first["x"])])  # not its own any more
    assert b.keep([("x", second["x"])]) == set()
    # Who is silent keeps what nobody else takes; by Redis' clock alone.
    time.sleep(2 * LEASE_MS / 1000)
    assert a.keep([("y", first["y"])]) == set()
    time.sleep(2 * LEASE_MS / 1000)
    third = b.acquire(["y"])
    assert third["y"] > first["y"]
    assert a.keep([("y", first["y"])]) == {("y", first["y"])}
    # Redis has lost everything: the epoch grows all the same.
    time.sleep(0.002)  # an epoch is at least Redis' clock in milliseconds, and grows by that alone here
    redis.flushall()
    assert a.acquire(["y"])["y"] > third["y"]


def test_d5_reading_and_acknowledging_are_refused_once_the_camera_is_anothers(
    redis: redis_library.Redis, leases: dict[str, Leases]
) -> None:
    a, b = leases["a"], leases["b"]
    entries = add_frames(redis, "x", [b"x"] * 3)
    redis.xgroup_create("frames:x", GROUP, id="0")
    (epoch,) = a.acquire(["frames:x"]).values()
    assert a.take([Selection("frames:x", epoch, "0-0", entries[0], entries[:1])]) == [0]
    time.sleep(2 * LEASE_MS / 1000)
    b.acquire(["frames:x"])
    assert a.take([Selection("frames:x", epoch, entries[0], entries[1], entries[1:2])]) == [LOST]
    assert redis.xinfo_groups("frames:x")[0]["last-delivered-id"].decode() == entries[0]
    origin = FrameOrigin("frames:x", entries[0], "x", None, time.time() * 1000, epoch)
    assert a.acknowledge([origin]) == {("frames:x", epoch)}
    assert pending(redis) == 1


def test_d5_what_a_worker_that_stood_still_had_in_hand_comes_before_newer_frames_and_not_from_it(
    redis: redis_library.Redis, begin: Begin
) -> None:
    entries = add_frames(redis, "cam", [b"x"] * 4)
    stopped = begin("a-stopped")
    held = some(stopped)
    assert [frame.origin.entry for frame in held] == entries
    stopped.answered(redis, held[:1])
    newer = add_frames(redis, "cam", [b"x"] * 3)
    other = begin("b-other")
    found: list[CameraFrame] = []
    while len(found) < 6:
        frames = some(other)
        found += frames
        other.answered(redis, frames)
    assert [frame.origin.entry for frame in found] == entries[1:] + newer
    assert {frame.origin.epoch for frame in found} == {found[0].origin.epoch}
    assert found[0].origin.epoch > held[0].origin.epoch
    (latest,) = add_frames(redis, "cam", [b"x"])
    # It is back, and has no more to say: not even while the camera is to be its own again.
    assert stopped.read() == []
    stopped.in_flight.acknowledged([frame.origin for frame in held])
    assert [frame.origin.entry for frame in some(other, stopped)] == [latest]


def test_d5_a_worker_that_joins_waits_for_what_the_other_has_in_hand(redis: redis_library.Redis, begin: Begin) -> None:
    cameras = [f"cam-{number}" for number in range(8)]
    for camera in cameras:
        add_frames(redis, camera, [b"x"] * 2)
    first = begin("first", fleet_discover_s=DISCOVER_S)
    held: list[CameraFrame] = []
    while len(held) < 16:
        held += some(first)
    second = begin("second", fleet_discover_s=DISCOVER_S)
    until = time.monotonic() + 6 * DISCOVER_S
    while time.monotonic() < until:
        assert first.read() + second.read() == []
    for camera in cameras:
        add_frames(redis, camera, [b"new"])
    read: dict[str, list[CameraFrame]] = {"first": [], "second": []}
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        read["first"] += first.read()
        read["second"] += second.read()
    # The second has none yet, and the first reads no more of those that it is to give away.
    assert read["second"] == []
    assert 0 < len(read["first"]) < 8
    first.answered(redis, held + read["first"])
    deadline = time.monotonic() + 20
    while len(read["second"]) + len(read["first"]) < 8:
        assert time.monotonic() < deadline
        for name, life in (("first", first), ("second", second)):
            frames = life.read()
            life.answered(redis, frames)
            read[name] += frames
    cameras_of = {name: {frame.origin.camera_id for frame in frames} for name, frames in read.items()}
    assert cameras_of["first"] | cameras_of["second"] == set(cameras)
    assert not cameras_of["first"] & cameras_of["second"]
    assert cameras_of["second"]
    assert all(not frame.claimed for frame in read["second"])


def test_d5_a_worker_that_leaves_holds_its_cameras_until_it_is_done_with_them(
    redis: redis_library.Redis, begin: Begin
) -> None:
    entries = add_frames(redis, "cam", [b"x"] * 3)
    leaving = begin("leaving", fleet_discover_s=DISCOVER_S)
    held = some(leaving)
    leaving.consumer.sign_off()
    (newer,) = add_frames(redis, "cam", [b"x"])
    other = begin("other")
    until = time.monotonic() + 4 * DISCOVER_S
    while time.monotonic() < until:
        leaving.keep()
        assert other.read() == []
    leaving.answered(redis, held)
    leaving.consumer.leave()
    assert [frame.origin.entry for frame in some(other)] == [newer]
    assert [frame.origin.entry for frame in held] == entries


def test_d5_answers_of_a_camera_that_was_lost_are_not_sent_and_counted(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, begin: Begin
) -> None:
    add_frames(redis, "lost", [b"x"] * 2)
    add_frames(redis, "kept", [b"x"] * 2)
    life = begin("old")
    frames: list[CameraFrame] = []
    while len(frames) < 4:
        frames += some(life)
    topic = f"fence-{uuid.uuid4().hex[:12]}"
    given = Settings(kafka_bootstrap_servers=kafka.bootstrap, kafka_topic=topic)
    sink = Delivery(
        "old",
        open_sinks(given, "fleet", ("kafka",)),
        RedisSettings(redis_url=redis_server.url),
        LEASE_MS,
        life.in_flight,
        life.counts,
        on_fatal=pytest.fail,
    )
    life.in_flight.analyzed(frames)
    redis.hset(Keys.of(RedisSettings()).holders, "frames:lost", f"{frames[0].origin.epoch + 1} new")
    fenced, dropped = (
        counted("fleet_fenced", refused="answer"),
        counted("frames_dropped", entry="fleet", reason="fenced"),
    )
    sink.start()
    for frame in frames:
        value = encode_value(frame.origin, None, None, worker="old", age_ms=1.0)
        assert orjson.loads(value)["epoch"] == frame.origin.epoch
        sink.send(FrameMessage(frame.origin, value))
    assert sink.close(20)
    assert {value["key"] for value in topic_values(kafka.bootstrap, topic)} == {"kept"}
    assert counted("fleet_fenced", refused="answer") - fenced == 2
    assert counted("frames_dropped", entry="fleet", reason="fenced") - dropped == 2
    assert pending(redis) == 2, "they are the other worker's to answer"


def test_d5_an_answer_that_was_sent_just_before_the_camera_was_lost_is_counted_as_sent_twice(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, begin: Begin
) -> None:
    add_frames(redis, "cam", [b"x"])
    life = begin("old")
    frames = some(life)
    topic = f"fence-{uuid.uuid4().hex[:12]}"
    given = Settings(kafka_bootstrap_servers=kafka.bootstrap, kafka_topic=topic)
    settings = RedisSettings(redis_url=redis_server.url)
    sink = Delivery(
        "old",
        open_sinks(given, "fleet", ("kafka",)),
        settings,
        60_000,
        life.in_flight,
        life.counts,
        on_fatal=pytest.fail,
    )
    life.in_flight.analyzed(frames)
    before = counted("fleet_fenced", refused="acknowledgement")
    redis.execute_command("ACL", "SETUSER", "default", "-xack")
    try:
        sink.start()
        sink.send(FrameMessage(frames[0].origin, b"{}"))
        eventually(lambda: topic_values(kafka.bootstrap, topic), lambda values: len(values) == 1)
        redis.hset(Keys.of(settings).holders, "frames:cam", f"{frames[0].origin.epoch + 1} new")
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+xack")
    assert sink.close(20)
    assert counted("fleet_fenced", refused="acknowledgement") - before == 1
    assert pending(redis) == 1


def test_d5_all_workers_that_were_silent_together_keep_their_cameras(redis: redis_library.Redis, begin: Begin) -> None:
    for number in range(8):
        add_frames(redis, f"cam-{number}", [b"x"])
    lives = [begin(name, fleet_discover_s=DISCOVER_S) for name in ("first", "second")]
    until = time.monotonic() + 8 * DISCOVER_S
    while time.monotonic() < until:
        for life in lives:
            life.answered(redis, life.read())
    before = [life.consumer.membership.streams for life in lives]
    epochs = redis.hgetall(Keys.of(RedisSettings()).holders)
    time.sleep(2.5)  # as where Redis stood still
    until = time.monotonic() + 4 * DISCOVER_S
    while time.monotonic() < until:
        for life in lives:
            life.answered(redis, life.read())
    assert [life.consumer.membership.streams for life in lives] == before
    assert redis.hgetall(Keys.of(RedisSettings()).holders) == epochs


def test_d5_an_answer_that_lay_in_kafkas_client_while_its_camera_was_lost_comes_late_with_the_lower_epoch(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, begin: Begin
) -> None:
    entries = add_frames(redis, "cam", [b"x"] * 2)
    topic = f"fence-{uuid.uuid4().hex[:12]}"
    life = begin("old")
    frames = some(life)
    assert len(frames) == 2
    settings = RedisSettings(redis_url=redis_server.url)
    newer = [dataclasses.replace(frame.origin, epoch=frame.origin.epoch + 1) for frame in frames]
    before = counted("fleet_fenced", refused="acknowledgement")

    def open_sink(name: str, in_flight: InFlight, **options: int) -> Delivery:
        given = Settings(kafka_bootstrap_servers=kafka.bootstrap, kafka_topic=topic, kafka_options=json.dumps(options))
        sink = Delivery(
            name, open_sinks(given, "fleet", ("kafka",)), settings, 60_000, in_flight, life.counts, on_fatal=pytest.fail
        )
        sink.start()
        return sink

    def send(sink: Delivery, origin: FrameOrigin, name: str) -> None:
        sink.send(FrameMessage(origin, encode_value(origin, None, None, worker=name, age_ms=1.0)))

    old = open_sink("old", life.in_flight, **{"linger.ms": 900_000})
    send(old, frames[0].origin, "old")
    (client,) = old.sinks
    assert isinstance(client, KafkaSink)
    eventually(lambda: len(client.producer), lambda queued: queued == 1)
    redis.hset(Keys.of(settings).holders, "frames:cam", f"{newer[0].epoch} new")
    theirs = InFlight(8)
    theirs.add(newer)
    new = open_sink("new", theirs)
    for origin in newer:
        send(new, origin, "new")
    assert new.close(20)
    client.producer.flush(20)  # as where its process goes on
    eventually(lambda: counted("fleet_fenced", refused="acknowledgement") - before, lambda refused: refused == 1)
    old.close(0)
    values = topic_values(kafka.bootstrap, topic)
    assert [(value["frame_id"], value["worker"]) for value in values] == [
        (entries[0], "new"),
        (entries[1], "new"),
        (entries[0], "old"),
    ]
    assert values[2]["epoch"] < values[1]["epoch"]
