"""The whole fleet at one moment: its cameras and workers as Redis knows them, and what workers say of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import orjson
import redis
from prometheus_client.parser import text_string_to_metric_families

from app.fleet.connection import is_outage
from app.fleet.keys import Keys, camera_ids
from app.fleet.lag import Look, Looks
from app.settings import RedisSettings

_METRICS_S = 2.0


@dataclass(frozen=True, slots=True)
class CameraState:
    camera_id: str
    fps_in: float | None
    """Frames a second that came in since the last look; None at the first."""
    fps_out: float | None
    """The same that workers were given."""
    lag: int | None
    """Frames that no worker was given yet; None: the workers' group has not met the camera."""
    pending: int
    """Frames given out and not acknowledged yet."""
    held: int
    """Frames in Redis."""
    unread: int
    """Frames that Redis dropped before any worker was given them."""
    age_s: float
    """Since its last frame came."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    name: str
    cameras: int
    """Streams that it has read."""
    pending: int
    idle_s: float | None
    """Since it last asked for frames, by the stream that it asked last; None: it never did."""
    signed_on: bool
    """False: it is gone; what it left pending others take over."""
    away: dict[str, str] = field(default_factory=dict)
    """What it says that it cannot reach, `Kafka` or `Triton`, each with why."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A worker process by its own /metrics."""

    address: str
    fps: float = 0.0
    received: int = 0
    processed: int = 0
    failed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    problem: str | None = None
    """Why nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Overview:
    at_ms: float
    """Epoch milliseconds, by Redis' clock."""
    cameras: list[CameraState]
    workers: list[WorkerState]
    services: list[ServiceState]
    dead_letters: int
    """Frames in `frames:dead`."""


class Observer:
    """Looks again and again; rates are those between two looks."""

    def __init__(self, client: redis.Redis, settings: RedisSettings, metrics: Sequence[str] = ()) -> None:
        """`metrics`: `host:port`, or whole URLs, of workers' metrics."""
        self._client = client
        self._keys = Keys.of(settings)
        self._looks = Looks(self._keys)
        self._metrics = metrics
        self._before: tuple[float, Mapping[str, Look]] | None = None

    def look(self) -> Overview:
        """
        Raises:
            redis.RedisError: Redis does not answer.
        """
        seconds, microseconds = self._client.time()
        now_ms, now = seconds * 1000 + microseconds / 1000, time.monotonic()
        looks = self._looks.read(self._client, self._cameras())
        since, before = self._before or (now, {})
        self._before = now, looks
        return Overview(
            at_ms=now_ms,
            cameras=[_camera(one, look, before.get(one), now - since, now_ms) for one, look in sorted(looks.items())],
            workers=self._workers(looks, now_ms),
            services=[_service(address) for address in self._metrics],
            dead_letters=self._client.xlen(self._keys.dead),
        )

    def reconnect(self) -> None:
        """The next look is by a new connection: the address may stand for another server by then."""
        self._client.connection_pool.disconnect()

    def _cameras(self) -> set[str]:
        """Those that ingest names, and whatever streams there are besides."""
        keys = self._keys
        named = cast("set[bytes]", self._client.smembers(keys.cameras))
        streams = self._client.scan_iter(match=keys.pattern, count=1000, _type="stream")
        return camera_ids(named | keys.cameras_among(streams))[0]

    def _workers(self, cameras: Iterable[str], now_ms: float) -> list[WorkerState]:
        pipe = self._client.pipeline(transaction=False)
        pipe.zrange(self._keys.workers, 0, -1, withscores=True)
        pipe.hgetall(self._keys.away)
        for camera in cameras:
            pipe.xinfo_consumers(self._keys.stream(camera), self._keys.group)
        roster, away, *answers = pipe.execute(raise_on_error=False)
        for answer in (roster, away, *answers):
            if isinstance(answer, redis.RedisError) and (is_outage(answer) or answer is roster or answer is away):
                raise answer
        told = {name.decode(errors="replace"): _away(value) for name, value in away.items()}
        signed_on = {cast("bytes", name).decode(errors="replace") for name, until_ms in roster if until_ms >= now_ms}
        streams: dict[str, list[dict[str, Any]]] = {name: [] for name in signed_on}
        for answer in answers:
            for consumer in [] if isinstance(answer, Exception) else answer:  # no group there yet
                streams.setdefault(consumer["name"].decode(errors="replace"), []).append(consumer)
        return [
            WorkerState(
                name,
                cameras=len(found),
                pending=sum(one["pending"] for one in found),
                idle_s=min((one["idle"] / 1000 for one in found), default=None),
                signed_on=name in signed_on,
                away=told.get(name, {}) if name in signed_on else {},
            )
            for name, found in sorted(streams.items())
        ]


def _away(value: bytes) -> dict[str, str]:
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return {str(name): str(why) for name, why in found.items()} if isinstance(found, dict) else {}


def _camera(name: str, look: Look, before: Look | None, seconds: float, now_ms: float) -> CameraState:
    def rate(now: int, then: int) -> float:
        return max(0.0, (now - then) / seconds)

    known = before is not None and seconds > 0
    return CameraState(
        name,
        fps_in=rate(look.added, before.added) if before is not None and known else None,
        fps_out=rate(look.read, before.read) if before is not None and known else None,
        lag=look.lag,
        pending=look.pending,
        held=look.length,
        unread=look.unread,
        age_s=max(0.0, now_ms - look.last_ms) / 1000,
    )


def _service(address: str) -> ServiceState:
    url = address if "://" in address else f"http://{address}/metrics"
    try:
        answer = httpx.get(url, timeout=_METRICS_S, trust_env=False).raise_for_status()
        families = list(text_string_to_metric_families(answer.text))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return ServiceState(address, problem=str(error) or type(error).__name__)
    samples = [one for family in families for one in family.samples if one.labels.get("entry") == "fleet"]

    def total(name: str) -> int:
        return round(sum(one.value for one in samples if one.name == f"sightline_{name}"))

    dropped = {
        one.labels["reason"]: round(one.value) for one in samples if one.name == "sightline_frames_dropped_total"
    }
    return ServiceState(
        address,
        fps=sum(one.value for one in samples if one.name == "sightline_pipeline_fps"),
        received=total("frames_received_total"),
        processed=total("frames_processed_total"),
        failed=total("frames_failed_total"),
        dropped=dropped,
    )
