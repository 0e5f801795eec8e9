"""Connections to Redis, by address or by Sentinel; what an error says of the server; its outages told once each."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from app.errors import ConfigurationError
from app.settings import RedisSettings

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
_SENTINEL_S = 1.0
"""What one Sentinel may take: there are others to ask."""
_SENTINEL_PORT = 26_379
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_PAUSES_S = (0.05, 2.0)
_LEAST_VERSION = 7
"""XAUTOCLAIM tells what was trimmed while pending, and XINFO GROUPS the lag, from Redis 7 on."""

NO_ANSWER, OTHER = "no answer", "another error"
_OF_THE_SERVER = (
    "READONLY",
    "NOREPLICAS",
    "MISCONF",
    "LOADING",
    "NOPERM",
    "NOAUTH",
    "WRONGPASS",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "OOM",
    "TRYAGAIN",
    "BUSY",
    "UNKILLABLE",
)
"""What Redis begins an error with that speaks of its own state, not of the command: it would say so to any other."""
_OF_A_CLUSTER = ("MOVED", "ASK", "CROSSSLOT")
WORDS = ("", NO_ANSWER, *_OF_THE_SERVER, *_OF_A_CLUSTER, OTHER)
"""All that `says` may be; empty: Redis answers."""

WHEN_FULL = "#!lua flags=allow-oom\n"
"""How a script begins that a Redis is to run which is full, and refuses (`OOM`) whatever might need memory. For a few
bytes of who works on what: without them nobody would read the frames that fill it.
"""
_ANY_WHEN_FULL = WHEN_FULL + "return redis.pcall(unpack(ARGV))"

_ADDRESS = (
    "want redis://:password@host:6379, rediss:// for TLS, "
    "or redis+sentinel://user:password@host:26379,host:26379/service/0"
)
_IS_A_CLUSTER = (
    "REDIS_URL: the server is a node of a Redis Cluster, which the fleet cannot use: its scripts and transactions "
    "speak of many cameras' keys at once. Want one Redis without `cluster-enabled`, or one behind Sentinel "
    "(redis+sentinel://host:26379,host:26379/service)"
)


class _ByName(redis.Redis):
    """Closes its connections to the Sentinels, too."""

    def close(self) -> None:
        super().close()
        pool = self.connection_pool
        if isinstance(pool, SentinelConnectionPool):
            pool.sentinel_manager.close()


def connect(settings: RedisSettings) -> redis.Redis:
    """A client of its own; nothing is sent yet. Commands are never repeated behind our back: a repeated XREADGROUP
    would read frames that nobody ever sees.

    By Sentinel, every new connection asks who the master is: `connection_pool.disconnect()` finds a new one.

    Raises:
        ConfigurationError: REDIS_URL is no address.
    """
    url = settings.redis_url.get_secret_value().strip()
    try:
        parts = urlsplit(url)
        if parts.scheme in ("redis+sentinel", "rediss+sentinel"):
            return _by_sentinel(parts)
        return redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise ConfigurationError(f"REDIS_URL: {error}; {_ADDRESS}") from None


def _by_sentinel(parts: SplitResult) -> redis.Redis:
    """
    Raises:
        ValueError: something is missing or wrong; the message says what, without a password.
    """
    account, _, hosts = parts.netloc.rpartition("@")
    username, _, password = account.partition(":")
    service, _, database = unquote(parts.path).strip("/").partition("/")
    if not service:
        raise ValueError("no service, the name that the Sentinels know the master by, follows the hosts")
    if not (database or "0").isdecimal():
        raise ValueError(f"the database is {database!r}, a number from 0 on is wanted")
    tls = parts.scheme == "rediss+sentinel"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = (*_SENTINEL_OPTIONS, *(_TLS_OPTIONS if tls else ()))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"nothing is known of the option {unknown[0]!r}, only of {', '.join(known)}")
    secured: dict[str, object] = {name: options[name] for name in _TLS_OPTIONS if name in options}
    if tls:
        secured["ssl"] = True
    retry = Retry(NoBackoff(), 0)
    asked = {name.removeprefix("sentinel_"): options[name] for name in _SENTINEL_OPTIONS if name in options}
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [_host(host) for host in hosts.split(",")],
        sentinel_kwargs={
            "socket_timeout": _SENTINEL_S,
            "socket_connect_timeout": _SENTINEL_S,
            "retry": retry,
            **asked,
            **secured,
        },
    )
    client: redis.Redis = sentinels.master_for(  # type: ignore[no-untyped-call]
        service,
        redis_class=_ByName,
        db=int(database or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=retry,
        **secured,
    )
    return client


def _host(text: str) -> tuple[str, int]:
    place = urlsplit(f"//{text.strip()}")
    try:
        port = place.port
    except ValueError:
        raise ValueError(f"the Sentinel {text!r} has no port from 1 to 65535") from None
    if not place.hostname or port == 0:
        raise ValueError(f"the Sentinel {text!r} is no host:port")
    return place.hostname, port or _SENTINEL_PORT


def says(error: Exception) -> str:
    """The word that the server's error begins with, one of `WORDS`; `no answer` where it is none of the server's."""
    if "previous master is now a slave" in str(error):  # redis-py's, by Sentinel
        return "READONLY"
    if "user executing the script can't" in str(error):  # how a script puts NOPERM
        return "NOPERM"
    code = getattr(error, "status_code", None)
    if code not in WORDS:
        # A pipeline puts the command in front.
        found = re.match(r"[A-Z]+\b", str(error).rpartition("caused error: ")[2])
        code = found[0] if found else None
    if code in WORDS:
        return str(code)
    return OTHER if isinstance(error, redis.ResponseError) else NO_ANSWER


def is_outage(error: object) -> bool:
    """Whether it is the server's, or there is no server: any other command would meet the same. A key that the account
    may not touch is that key's alone.
    """
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return True
    return isinstance(error, redis.RedisError) and says(error) not in ("", OTHER) and not is_barred(error)


def is_barred(error: object) -> bool:
    """Whether the account may not touch this key (NOPERM), whatever it may do to others."""
    return isinstance(error, redis.RedisError) and says(error) == "NOPERM" and "access" in str(error)


def refuse_cluster(error: Exception) -> None:
    """
    Raises:
        ConfigurationError: only a node of a Cluster says this.
    """
    if says(error) in _OF_A_CLUSTER:
        raise ConfigurationError(_IS_A_CLUSTER) from None


def require_fit(client: redis.Redis, *, first: bool = False) -> None:
    """One Redis of version 7 or later is wanted: no node of a Cluster, no Sentinel. An account that may not ask is
    believed.

    Args:
        first: at the start of a process. By Sentinel, the service must be known.

    Raises:
        ConfigurationError: this will not do.
        redis.RedisError: the server cannot be asked.
    """
    if first and isinstance(client.connection_pool, SentinelConnectionPool):
        _require_service(client.connection_pool)
    try:
        facts = client.info("server")
    except redis.exceptions.NoPermissionError:
        return
    except redis.AuthenticationError as error:
        if first:
            raise ConfigurationError(f"REDIS_URL: {error}; want redis://user:password@host:6379") from None
        raise
    mode, version = facts.get("redis_mode"), str(facts["redis_version"])
    if mode == "cluster":
        raise ConfigurationError(_IS_A_CLUSTER)
    if mode == "sentinel":
        raise ConfigurationError(
            "REDIS_URL: the server is a Sentinel, which holds no data; want redis+sentinel://host:26379/service"
        )
    if int(version.partition(".")[0]) < _LEAST_VERSION:
        raise ConfigurationError(
            f"REDIS_URL: the server is Redis {version}; the fleet wants {_LEAST_VERSION}.0 or later"
        )


def _require_service(pool: SentinelConnectionPool) -> None:
    known: set[str] = set()
    answered = False
    for sentinel in pool.sentinel_manager.sentinels:
        try:
            known.update(sentinel.sentinel_masters())
        except redis.AuthenticationError as error:
            raise ConfigurationError(
                f"REDIS_URL: a Sentinel refuses us: {error}; want ?sentinel_password=… (and sentinel_username)"
            ) from None
        except redis.ResponseError as error:
            place = sentinel.connection_pool.connection_kwargs
            raise ConfigurationError(
                f"REDIS_URL: {place['host']}:{place['port']} is no Sentinel ({error}); want the Sentinels' own ports"
            ) from None
        except redis.RedisError:
            continue
        answered = True
    if answered and pool.service_name not in known:
        raise ConfigurationError(
            f"REDIS_URL: the Sentinels know no service {pool.service_name!r}, only "
            f"{', '.join(sorted(known)) or 'none'}; want the name in their `sentinel monitor`"
        )


def require_redis(settings: RedisSettings) -> None:
    """Asks the server who it is, before anything else is begun. One that is away is no error: it is waited for.

    Raises:
        ConfigurationError: REDIS_URL is no address, or what is there will not do.
    """
    with connect(settings) as client:
        try:
            require_fit(client, first=True)
        except redis.RedisError as error:
            refuse_cluster(error)


def answers_of(client: redis.Redis, commands: Iterable[Sequence[Any]]) -> list[Any]:
    """What Redis answers to each, or the error that it is, in one round trip; where it is full in another one. They are
    to write a few bytes each, of who works on what.

    Raises:
        redis.RedisError: it does not answer.
    """
    asked = list(commands)
    answers = _asked_together(client, asked)
    refused = [at for at, answer in enumerate(answers) if isinstance(answer, redis.exceptions.OutOfMemoryError)]
    again = _asked_together(client, [("EVAL", _ANY_WHEN_FULL, 0, *asked[at]) for at in refused])
    for at, answer in zip(refused, again, strict=True):
        answers[at] = answer
    return answers


def write(client: redis.Redis, commands: Iterable[Sequence[Any]]) -> None:
    """The same, where each is to be done.

    Raises:
        redis.RedisError: one was not.
    """
    for answer in answers_of(client, commands):
        if isinstance(answer, redis.RedisError):
            raise answer


def _asked_together(client: redis.Redis, commands: Sequence[Sequence[Any]]) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
    return pipe.execute(raise_on_error=False) if commands else []


class Outage:
    """Says once that Redis is away, or refuses, and once that it is back; knows how long to wait until the next try."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pause_s = 0.0
        self._next_try = 0.0
        self.says = ""
        """The server's word (`WORDS`); empty: it answers."""
        self._told: set[str] = set()

    @property
    def over(self) -> bool:
        return self._pause_s == 0.0

    @property
    def resting(self) -> bool:
        """Whether the next try is not due yet."""
        return time.monotonic() < self._next_try

    def again(self, error: Exception) -> None:
        """One more failure."""
        word = says(error)
        if word not in self._told:
            self._told.add(word)
            state = "Redis is away" if word == NO_ANSWER else f"Redis refuses ({word})"
            log.warning("%s, %s wait: %s", state, self._what, error)
        self.says = word
        first, longest = _PAUSES_S
        self._pause_s = min(longest, max(first, 2 * self._pause_s))
        self._next_try = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)

    def ended(self) -> None:
        """A command was answered."""
        if not self.over:
            log.info("Redis is back")
            self._pause_s = self._next_try = 0.0
            self.says = ""
            self._told.clear()
