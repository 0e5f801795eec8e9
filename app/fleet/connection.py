"""Connections to Redis, and its outages told once each."""

from __future__ import annotations

import logging
import random
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.errors import ConfigurationError
from app.settings import RedisSettings

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
_PAUSES_S = (0.05, 2.0)
_LEAST_VERSION = 7
"""XAUTOCLAIM tells what was trimmed while pending, and XINFO GROUPS the lag, from Redis 7 on."""

AWAY = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError)


def connect(settings: RedisSettings) -> redis.Redis:
    """A client of its own; nothing is sent yet. Commands are never repeated behind our back: a repeated XREADGROUP
    would read frames that nobody ever sees.

    Raises:
        ConfigurationError: REDIS_URL is no address.
    """
    try:
        return redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigurationError(
            f"REDIS_URL: {error}; want redis://:password@host:6379, or rediss:// for TLS"
        ) from None


def require_version(client: redis.Redis) -> None:
    """Redis 7 or later is wanted.

    Raises:
        ConfigurationError: the server is too old.
        redis.RedisError: it cannot be asked.
    """
    version = str(client.info("server")["redis_version"])
    if int(version.partition(".")[0]) < _LEAST_VERSION:
        raise ConfigurationError(
            f"REDIS_URL: the server is Redis {version}; the fleet wants {_LEAST_VERSION}.0 or later"
        )


class Outage:
    """Says once that Redis is away, and once that it is back; knows how long to wait before the next try."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pause_s = 0.0
        self._next_try = 0.0

    @property
    def over(self) -> bool:
        return self._pause_s == 0.0

    @property
    def resting(self) -> bool:
        """Whether the next try is not due yet."""
        return time.monotonic() < self._next_try

    def again(self, error: Exception) -> None:
        """One more failure."""
        if self.over:
            log.warning("Redis is away, %s wait: %s", self._what, error)
        first, longest = _PAUSES_S
        self._pause_s = min(longest, max(first, 2 * self._pause_s))
        self._next_try = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)

    def ended(self) -> None:
        """A command was answered."""
        if not self.over:
            log.info("Redis is back")
            self._pause_s = self._next_try = 0.0
