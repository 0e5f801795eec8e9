"""A real Redis for the fleet's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis as redis_library

from tests.support.redis import RedisServer, running_redis


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
