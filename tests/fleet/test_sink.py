"""Results go to Kafka before the acknowledgement goes to Redis, even when either is down."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import orjson
import pytest
import redis as redis_library
from prometheus_client import REGISTRY

from app.errors import ConfigurationError
from app.fleet.connection import connect
from app.fleet.delivery import Delivery, Failure, FrameMessage, encode_value
from app.fleet.in_flight import InFlight, MetricsBuffer
from app.fleet.streams import CameraFrame, FrameOrigin
from app.protocol.result import OK, FrameResult, Image
from app.settings import KafkaSettings, RedisSettings, Settings
from app.sinks import open_sinks
from app.sinks.kafka import producer_options
from tests.fleet.work import add_frames, eventually, group_of, left_by_the_dead, pending, topic_values
from tests.support.kafka import Broker
from tests.support.redis import RedisServer, free_port

NOWHERE = '{"message.timeout.ms": 300, "socket.connection.setup.timeout.ms": 1000}'
LEASE_MS = 6000.0
Open = Callable[..., tuple[Delivery, InFlight, str]]


@pytest.fixture
def opened(redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker) -> Iterator[Open]:
    """A sink on the shared servers; closed without waiting at the end."""
    with ExitStack() as stack:

        def make(**kafka_settings: object) -> tuple[Delivery, InFlight, str]:
            topic = f"sink-{uuid.uuid4().hex[:12]}"
            given = {"kafka_bootstrap_servers": kafka.bootstrap, "kafka_topic": topic, **kafka_settings}
            in_flight = InFlight(100)
            sink = Delivery(
                "worker",
                open_sinks(Settings(**given), "fleet", ("kafka",)),
                RedisSettings(redis_url=redis_server.url),
                LEASE_MS,
                in_flight,
                MetricsBuffer(),
                on_fatal=lambda reason: pytest.fail(reason),
            )
            sink.start()
            stack.callback(sink.close, 0.0)
            return sink, in_flight, topic

        yield make


def read(redis: redis_library.Redis, in_flight: InFlight, count: int) -> list[FrameOrigin]:
    """Reads frames of camera `cam` as a worker, so that they are in flight."""
    add_frames(redis, "cam", [b"x"] * count)
    group_of(redis, "cam")
    now_ms = time.time() * 1000
    origins = [FrameOrigin("frames:cam", entry, "cam", None, now_ms) for entry in left_by_the_dead(redis, "cam", count)]
    in_flight.add(origins)
    in_flight.analyzed([CameraFrame(origin, b"x", time.perf_counter()) for origin in origins])
    return origins


def counted(outcome: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"sightline_frames_{outcome}_total", {"entry": "fleet", **labels}) or 0.0


def test_with_hold_kafkas_client_never_gives_an_answer_up() -> None:
    """A result that is sent again would come behind newer ones of its camera, which wait in the client's queue."""
    assert producer_options(KafkaSettings(kafka_failure_policy="hold"))["message.timeout.ms"] == 0
    assert producer_options(KafkaSettings(kafka_failure_policy="ack"))["message.timeout.ms"] > 0


def test_an_entry_is_acknowledged_once_kafka_has_its_answer(opened: Open, redis: redis_library.Redis) -> None:
    sink, in_flight, _ = opened()
    origins = read(redis, in_flight, 5)
    processed, failed = counted("processed"), counted("failed", stage="inference")
    for number, origin in enumerate(origins):
        sink.send(FrameMessage(origin, orjson.dumps({"n": number}), "inference" if number == 4 else None))
    assert sink.close(10)
    assert pending(redis) == 0
    assert len(in_flight) == 0
    assert counted("processed") - processed == 4
    assert counted("failed", stage="inference") - failed == 1


def test_kafka_away_with_hold_keeps_entries_pending_and_reads_no_more(opened: Open, redis: redis_library.Redis) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    sink, in_flight, _ = opened(kafka_bootstrap_servers=nowhere, kafka_options=NOWHERE)
    for origin in read(redis, in_flight, 3):
        sink.send(FrameMessage(origin, b"{}"))
    eventually(lambda: in_flight.room(1, 0.0), lambda room: room == 0)
    assert "kafka" in sink.sinks.errors()
    assert pending(redis) == 3
    assert not sink.close(0.1)
    assert pending(redis) == 3, "another worker claims them"


def test_kafka_away_with_ack_gives_frames_up_and_counts_them(opened: Open, redis: redis_library.Redis) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    sink, in_flight, _ = opened(kafka_bootstrap_servers=nowhere, kafka_options=NOWHERE, kafka_failure_policy="ack")
    before = counted("dropped", reason="kafka_unavailable")
    for origin in read(redis, in_flight, 3):
        sink.send(FrameMessage(origin, b"{}"))
    assert sink.close(20)
    assert pending(redis) == 0
    assert counted("dropped", reason="kafka_unavailable") - before == 3


def test_an_answer_that_kafka_never_takes_does_not_hold_up_the_others(opened: Open, redis: redis_library.Redis) -> None:
    sink, in_flight, _ = opened(kafka_options='{"message.max.bytes": 1500}')
    before = counted("failed", stage="kafka")
    first, second = read(redis, in_flight, 2)
    sink.send(FrameMessage(first, b'"' + b"x" * 5000 + b'"'))
    sink.send(FrameMessage(second, b'{"n": 2}'))
    assert sink.close(20)
    assert pending(redis) == 0
    assert counted("failed", stage="kafka") - before == 1


def test_what_is_given_up_is_acknowledged_without_an_answer(
    opened: Open, redis: redis_library.Redis, kafka: Broker
) -> None:
    sink, in_flight, topic = opened()
    for origin in read(redis, in_flight, 2):
        sink.drop(origin, "stale")
    assert sink.close(10)
    assert pending(redis) == 0
    assert topic_values(kafka.bootstrap, topic) == []


def test_redis_away_keeps_acknowledgements_for_later(
    opened: Open, redis: redis_library.Redis, redis_server: RedisServer
) -> None:
    sink, in_flight, _ = opened()
    origins = read(redis, in_flight, 2)
    redis_server.stop()
    try:
        for origin in origins:
            sink.send(FrameMessage(origin, b"{}"))
        time.sleep(0.3)
        assert len(in_flight) == 2
    finally:
        redis_server.start()
    assert sink.close(20)


def test_a_redis_that_takes_no_writes_is_told_later(opened: Open, redis: redis_library.Redis) -> None:
    sink, in_flight, _ = opened()
    origins = read(redis, in_flight, 2)
    redis.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))  # as in a failover
    try:
        for origin in origins:
            sink.send(FrameMessage(origin, b"{}"))
        time.sleep(0.3)
        assert len(in_flight) == 2
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")
    eventually(lambda: len(in_flight), lambda left: left == 0)
    assert pending(redis) == 0


def test_a_stream_that_is_something_else_by_now_holds_nobody_up(opened: Open, redis: redis_library.Redis) -> None:
    sink, in_flight, _ = opened()
    (origin,) = read(redis, in_flight, 1)
    redis.delete("frames:cam")
    redis.set("frames:cam", "no stream")
    sink.send(FrameMessage(origin, b"{}"))
    assert sink.close(20)


def test_frames_that_only_lack_their_acknowledgement_are_not_counted_twice(
    opened: Open, redis: redis_library.Redis
) -> None:
    sink, in_flight, _ = opened()
    origins = read(redis, in_flight, 3)
    reasons = ("stale", "left_pending")
    before = counted("processed"), *(counted("dropped", reason=reason) for reason in reasons)
    redis.execute_command("ACL", "SETUSER", "default", "-xack")
    try:
        sink.send(FrameMessage(origins[0], b"{}"))
        sink.drop(origins[1], "stale")
        time.sleep(1)  # Kafka has the one answer
        assert not sink.close(0.1)
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+xack")
    after = counted("processed"), *(counted("dropped", reason=reason) for reason in reasons)
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]


def test_a_topic_that_cannot_be_is_given_up_with_ack(opened: Open, redis: redis_library.Redis) -> None:
    options = '{"message.timeout.ms": 300, "topic.metadata.propagation.max.ms": 100}'
    sink, in_flight, _ = opened(kafka_topic="no such topic", kafka_failure_policy="ack", kafka_options=options)
    before = counted("dropped", reason="kafka_unavailable")
    for number, origin in enumerate(read(redis, in_flight, 2)):
        sink.send(FrameMessage(origin, b"{}"))  # the second one is refused at once: the client knows by then
        eventually(lambda: len(in_flight), lambda left, number=number: left == 1 - number)  # type: ignore[misc]
    assert sink.close(20)
    assert pending(redis) == 0
    assert counted("dropped", reason="kafka_unavailable") - before == 2


def test_a_value_says_what_failed_and_what_there_is(redis: redis_library.Redis) -> None:
    origin = FrameOrigin("frames:gate 7", "1700000000000-3", "gate 7", "dome", 1.7e12)
    result = FrameResult(image=Image(640, 480), stages={"detect": OK})
    value = orjson.loads(encode_value(origin, result, Failure("inference", "yolo: no"), worker="w", age_ms=12.3456))
    assert value["error"] == {"code": "inference", "message": "yolo: no"}
    assert value["image"] == {"width": 640, "height": 480}
    assert (value["camera_id"], value["camera_type"], value["frame_id"]) == ("gate 7", "dome", "1700000000000-3")
    assert (value["captured_at_ms"], value["age_ms"], value["worker"]) == (1.7e12, 12.346, "w")
    without = orjson.loads(encode_value(origin, None, Failure("internal", "bug"), worker="w", age_ms=1))
    assert "image" not in without


@pytest.mark.parametrize("options", ["{", "[]", '{"no.such.option": 1}', '{"compression.type": "zip"}'])
def test_options_that_librdkafka_does_not_know_are_named(opened: Open, options: str) -> None:
    with pytest.raises(ConfigurationError, match="KAFKA_OPTIONS"):
        opened(kafka_options=options)


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        connect(RedisSettings(redis_url="http://127.0.0.1"))
