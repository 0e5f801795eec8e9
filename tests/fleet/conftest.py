"""Fixtures of the fleet's tests: a real Redis, a real Kafka, and workers."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis as redis_library

from app.settings import FleetSettings, IngestSettings, KafkaSettings, RedisSettings
from tests.fleet.lives import Begin, Life
from tests.fleet.work import Fleet
from tests.support.kafka import Broker, running_kafka
from tests.support.redis import RedisServer, running_redis

Work = Callable[..., Fleet]


@pytest.fixture(scope="session", autouse=True)
def own_settings() -> Iterator[None]:
    """A developer's own settings must not change what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        for section in (FleetSettings, IngestSettings, KafkaSettings, RedisSettings):
            for name in section.model_fields:
                patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests that do not stop it."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[redis_library.Redis]:
    """A client of the shared server, which is empty at first. Its address: `redis_server.url`."""
    with redis_server.client() as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests; each writes to a topic of its own."""
    with running_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def work(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, canned_triton: str, tmp_path: Path
) -> Iterator[Work]:
    """Starts `fleet work` on the shared servers with the settings given; ends it with the test.

    `redis` is there so that the server is empty before, and still runs while the workers sign off.
    """
    topic = f"test-{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:

        def start(**settings: str) -> Fleet:
            defaults = {"REDIS_URL": redis_server.url, "TRITON_URL": canned_triton, "KAFKA_TOPIC": topic}
            defaults |= {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
            folder = tmp_path / uuid.uuid4().hex[:8]
            return stack.enter_context(Fleet.running(folder, {**defaults, **settings}))

        yield start


@pytest.fixture
def begin(redis: redis_library.Redis, redis_server: RedisServer) -> Iterator[Begin]:
    """Begins lives; `redis` is there so that the server is empty before."""
    with ExitStack() as stack:

        def start(name: str, **fleet) -> Life:
            life = Life(redis_server, name, **fleet)
            stack.callback(life.consumer.leave)
            return life

        yield start
