"""Connections to Redis, by address or by Sentinel; classification of Redis' errors; outages."""

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
from app.limits import backoff_s
from app.settings import RedisSettings

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
_SENTINEL_S = 1.0
"""Timeout of one Sentinel; short, because there are others to ask."""
_SENTINEL_PORT = 26_379
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_PAUSES_S = (0.05, 2.0)
_LEAST_VERSION = 7
"""From Redis 7 on, XCLAIM removes trimmed entries from the pending list, and XINFO GROUPS reports the lag."""

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
"""First words of errors that describe the server's own state: any other command would fail in the same way."""
_OF_A_CLUSTER = ("MOVED", "ASK", "CROSSSLOT")
ERROR_WORDS = ("", NO_ANSWER, *_OF_THE_SERVER, *_OF_A_CLUSTER, OTHER)
"""All results of `error_word`; empty: Redis answers. /health reports them as `redis_says`."""

WHEN_FULL = "#!lua flags=allow-oom\n"
"""First line of a script that a full Redis runs, although it refuses (`OOM`) every command that may need memory. Only
for the few bytes that assign cameras to workers: without them no worker would read the frames that fill Redis.
"""
_ANY_WHEN_FULL = WHEN_FULL + "return redis.pcall(unpack(ARGV))"

_ADDRESS = (
    "want redis://:password@host:6379, rediss:// for TLS, "
    "or redis+sentinel://user:password@host:26379,host:26379/service/0"
)
_IS_A_CLUSTER = (
    "REDIS_URL: the server is a node of a Redis Cluster, which the fleet cannot use: its scripts and "
    "transactions use the keys of many cameras at once. Want one Redis without `cluster-enabled`, or one behind "
    "Sentinel (redis+sentinel://host:26379,host:26379/service)"
)


class _SentinelClient(redis.Redis):
    """Closes its connections to the Sentinels as well."""

    def close(self) -> None:
        super().close()
        pool = self.connection_pool
        if isinstance(pool, SentinelConnectionPool):
            pool.sentinel_manager.close()


def connect(settings: RedisSettings) -> redis.Redis:
    """A new client; it connects with its first command. redis-py's own retries are off, because a script that ran twice
    would take frames that no caller ever sees.

    With Sentinel, every new connection asks for the master: `connection_pool.disconnect()` finds a new one.

    Raises:
        ConfigurationError: REDIS_URL is not a valid address.
    """
    url = settings.redis_url.get_secret_value().strip()
    try:
        parts = urlsplit(url)
        if parts.scheme in ("redis+sentinel", "rediss+sentinel"):
            return _sentinel_client(parts)
        return redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise ConfigurationError(f"REDIS_URL: {error}; {_ADDRESS}") from None


def _sentinel_client(parts: SplitResult) -> redis.Redis:
    """
    Raises:
        ValueError: a part of the URL is missing or wrong; the message says which, without a password.
    """
    account, _, hosts = parts.netloc.rpartition("@")
    username, _, password = account.partition(":")
    service, _, database = unquote(parts.path).strip("/").partition("/")
    if not service:
        raise ValueError("the service, which is the Sentinels' name of the master, is missing after the hosts")
    if not (database or "0").isdecimal():
        raise ValueError(f"the database is {database!r}; want a number from 0")
    tls = parts.scheme == "rediss+sentinel"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = (*_SENTINEL_OPTIONS, *(_TLS_OPTIONS if tls else ()))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"the option {unknown[0]!r} is unknown; the options are {', '.join(known)}")
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
        redis_class=_SentinelClient,
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
        raise ValueError(f"the Sentinel {text!r} is not host:port")
    return place.hostname, port or _SENTINEL_PORT


def error_word(error: Exception) -> str:
    """The first word of the server's error, one of `ERROR_WORDS`; `no answer` if the error did not come from the
    server.
    """
    if "previous master is now a slave" in str(error):  # an error of redis-py with Sentinel
        return "READONLY"
    if "user executing the script can't" in str(error):  # NOPERM within a script
        return "NOPERM"
    code = getattr(error, "status_code", None)
    if code not in ERROR_WORDS:
        # In a pipeline, redis-py puts the command in front of the error.
        found = re.match(r"[A-Z]+\b", str(error).rpartition("caused error: ")[2])
        code = found[0] if found else None
    if code in ERROR_WORDS:
        return str(code)
    return OTHER if isinstance(error, redis.ResponseError) else NO_ANSWER


def is_outage(error: object) -> bool:
    """Whether the server is unreachable or refuses because of its own state, so that any other command would fail as
    well. A key that the account may not access is not an outage.
    """
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return True
    return isinstance(error, redis.RedisError) and error_word(error) not in ("", OTHER) and not is_forbidden(error)


def is_forbidden(error: object) -> bool:
    """Whether the account may not access this key (NOPERM); it may access others."""
    return isinstance(error, redis.RedisError) and error_word(error) == "NOPERM" and "access" in str(error)


def refuse_cluster(error: Exception) -> None:
    """
    Raises:
        ConfigurationError: `error` is one that only a node of a Cluster returns.
    """
    if error_word(error) in _OF_A_CLUSTER:
        raise ConfigurationError(_IS_A_CLUSTER) from None


def check_server(client: redis.Redis, *, first: bool = False) -> None:
    """Checks that the server is a Redis of version 7 or later, and neither a node of a Cluster nor a Sentinel. If the
    account may not run INFO, the server is accepted.

    Args:
        first: whether the process is starting. Only then a wrong password, or a service that the Sentinels do not know,
            is a ConfigurationError.

    Raises:
        ConfigurationError: this server cannot be used.
        redis.RedisError: the server does not answer.
    """
    if first and isinstance(client.connection_pool, SentinelConnectionPool):
        _check_service(client.connection_pool)
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


def _check_service(pool: SentinelConnectionPool) -> None:
    known: set[str] = set()
    answered = False
    for sentinel in pool.sentinel_manager.sentinels:
        try:
            known.update(sentinel.sentinel_masters())
        except redis.AuthenticationError as error:
            raise ConfigurationError(
                f"REDIS_URL: a Sentinel refuses the login: {error}; want ?sentinel_password=… (and sentinel_username)"
            ) from None
        except redis.ResponseError as error:
            place = sentinel.connection_pool.connection_kwargs
            raise ConfigurationError(
                f"REDIS_URL: {place['host']}:{place['port']} is not a Sentinel ({error}); want the Sentinels' own ports"
            ) from None
        except redis.RedisError:
            continue
        answered = True
    if answered and pool.service_name not in known:
        raise ConfigurationError(
            f"REDIS_URL: the Sentinels know no service {pool.service_name!r}, only "
            f"{', '.join(sorted(known)) or 'none'}; want the name in their `sentinel monitor`"
        )


def check_redis(settings: RedisSettings) -> None:
    """Checks the server before the process starts anything else. An unreachable server is not an error, because the
    process waits for it.

    Raises:
        ConfigurationError: REDIS_URL is not a valid address, or the server cannot be used.
    """
    with connect(settings) as client:
        try:
            check_server(client, first=True)
        except redis.RedisError as error:
            refuse_cluster(error)


def execute_each(client: redis.Redis, commands: Iterable[Sequence[Any]]) -> list[Any]:
    """Executes commands that write a few bytes each, in one round trip; a full Redis takes a second one.

    Returns:
        The answer to each command, or its error.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    asked = list(commands)
    answers = _pipelined(client, asked)
    refused = [at for at, answer in enumerate(answers) if isinstance(answer, redis.exceptions.OutOfMemoryError)]
    retried = _pipelined(client, [("EVAL", _ANY_WHEN_FULL, 0, *asked[at]) for at in refused])
    for at, answer in zip(refused, retried, strict=True):
        answers[at] = answer
    return answers


def execute_all(client: redis.Redis, commands: Iterable[Sequence[Any]]) -> None:
    """Executes commands like `execute_each`, and raises the first error.

    Raises:
        redis.RedisError: Redis does not answer, or refuses a command.
    """
    for answer in execute_each(client, commands):
        if isinstance(answer, redis.RedisError):
            raise answer


def _pipelined(client: redis.Redis, commands: Sequence[Sequence[Any]]) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
    return pipe.execute(raise_on_error=False) if commands else []


class Outage:
    """Tracks whether Redis is unreachable or refuses: logs each error word once and the recovery once; paces the
    retries.
    """

    def __init__(self, what: str) -> None:
        """`what`: a plural noun for the log, for the items that wait while Redis is away."""
        self._what = what
        self._failures = 0
        self._next_try = 0.0
        self.word = ""
        """The last error word (`ERROR_WORDS`); empty: Redis answers."""
        self._logged: set[str] = set()

    @property
    def paused(self) -> bool:
        """Whether the next try is not due yet."""
        return time.monotonic() < self._next_try

    def failed(self, error: Exception) -> None:
        """Records one more failure."""
        word = error_word(error)
        if word not in self._logged:
            self._logged.add(word)
            state = "Redis is away" if word == NO_ANSWER else f"Redis refuses ({word})"
            log.warning("%s, %s wait: %s", state, self._what, error)
        self.word = word
        self._failures += 1
        self._next_try = time.monotonic() + backoff_s(self._failures, *_PAUSES_S) * random.uniform(0.5, 1.0)

    def recovered(self) -> None:
        """Records that Redis answered a command."""
        if self._failures:
            log.info("Redis is back")
            self._failures, self._next_try, self.word = 0, 0.0, ""
            self._logged.clear()
