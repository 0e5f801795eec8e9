"""`fleet top`: the cameras and workers of a fleet, live in the terminal.

`FleetObserver` reads the whole fleet from Redis and from workers' metrics; the rest prints it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import orjson
import redis
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.errors import SightlineError
from app.fleet.connection import NO_ANSWER, check_server, connect, error_word, is_outage, refuse_cluster
from app.fleet.in_flight import ENTRY_POINT
from app.fleet.streams import Keys, StreamInspector, StreamStatus, split_camera_ids
from app.process import handling_signals
from app.settings import RedisSettings, Settings

_METRICS_S = 2.0
"""Timeout of one worker's metrics."""
_STALE_S = 5.0
"""The age of a camera that sent nothing for so long is red."""

Wait = Callable[[], bool]
"""Waits until the next update is due; returns False if the command ends."""


class RedisAway(SightlineError):
    """Redis does not answer, or refuses."""


def run(
    settings: Settings,
    *,
    once: bool = False,
    as_json: bool = False,
    interval_s: float = 1.0,
    metrics: Sequence[str] = (),
) -> None:
    """Shows the fleet until Ctrl-C.

    Args:
        once: reads the fleet twice, because rates need two states, and prints the second.
        as_json: prints a JSON object for each update, one a line, instead of tables.
        interval_s: seconds between two updates.
        metrics: `host:port` of workers' metrics, which count the outcomes of frames.

    Raises:
        RedisAway: Redis does not answer; if the table is live, only the first read raises it.
        ConfigurationError: REDIS_URL is not a valid address, or this Redis cannot be used.
    """
    console = Console()
    with connect(settings.redis) as client:
        observer = FleetObserver(client, settings.redis, metrics)
        try:
            check_server(client, first=True)
        except redis.RedisError as error:
            raise _away(error) from None
        overview = _look(observer)
        with _until_interrupted(interval_s) as wait:
            if once or as_json or not console.is_terminal:
                _print(observer, console, wait, once=once, as_json=as_json)
            else:
                _live(observer, console, overview, wait)


def _look(observer: FleetObserver) -> Overview:
    try:
        return observer.look()
    except redis.RedisError as error:
        raise _away(error) from None


def _away(error: redis.RedisError) -> RedisAway:
    """
    Raises:
        ConfigurationError: this Redis is a node of a Cluster.
    """
    refuse_cluster(error)
    return RedisAway(f"REDIS_URL: {_describe(error)}")


def _describe(error: redis.RedisError) -> str:
    word = error_word(error)
    if word == NO_ANSWER:
        return f"Redis does not answer ({error}); is it running, and is this its address?"
    return f"Redis is there and refuses ({word}): {error}"


@contextmanager
def _until_interrupted(interval_s: float) -> Iterator[Wait]:
    """Ctrl-C takes effect between two updates, because during one a library's clean-up could swallow it."""
    over = threading.Event()
    with handling_signals(lambda *_: over.set(), signal.SIGINT):
        yield lambda: not over.wait(interval_s)


def _print(observer: FleetObserver, console: Console, wait: Wait, *, once: bool, as_json: bool) -> None:
    while wait():
        overview = _look(observer)
        if as_json:
            sys.stdout.write(orjson.dumps(overview).decode() + "\n")
            sys.stdout.flush()
        else:
            console.print(render(overview, len(overview.cameras)))
        if once:
            return


def _live(observer: FleetObserver, console: Console, overview: Overview, wait: Wait) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(_fitting(overview, console), refresh=True)
        while wait():
            shown: RenderableType
            try:
                shown = _fitting(observer.look(), console)
            except redis.RedisError as error:
                observer.reconnect()
                shown = Text(_describe(error), style="red")
            live.update(shown, refresh=True)


def _fitting(overview: Overview, console: Console) -> Group:
    """The tables, with as many cameras as the terminal's height allows."""
    # The other rows are for the workers' table, and for the titles and borders of both tables.
    rows = console.height - len(overview.workers) - len(overview.services) - 14
    return render(overview, max(3, rows))


# --- what is observed ---


@dataclass(frozen=True, slots=True)
class CameraState:
    camera_id: str
    fps_in: float | None
    """Frames per second added since the last call of `look`; None at the first."""
    fps_out: float | None
    """Frames per second that workers read since the last call of `look`; None at the first."""
    lag: int | None
    """Frames that no worker has read yet; None: the stream has no group of workers yet."""
    pending: int
    """Frames read and not acknowledged yet."""
    held: int
    """Frames in Redis."""
    unread: int
    """Frames that Redis dropped before a worker read them."""
    age_s: float
    """Seconds since its last frame."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    name: str
    cameras: int
    """Streams in which the worker has a consumer."""
    pending: int
    idle_s: float | None
    """Seconds since it last asked for frames, of the stream that it asked last; None: it never asked."""
    signed_on: bool
    """False: the worker is gone; other workers claim its pending frames."""
    away: dict[str, str] = field(default_factory=dict)
    """The services that it cannot reach, `Kafka` or `Triton`, with the reason."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A worker process as its own /metrics describe it."""

    address: str
    fps: float = 0.0
    received: int = 0
    processed: int = 0
    failed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    problem: str | None = None
    """Why its metrics could not be read."""


@dataclass(frozen=True, slots=True)
class Overview:
    at_ms: float
    """Epoch milliseconds by Redis' clock."""
    cameras: list[CameraState]
    workers: list[WorkerState]
    services: list[ServiceState]
    dead_letters: int
    """Frames in the dead-letter stream."""


class FleetObserver:
    """Reads the state of the fleet repeatedly; rates are means between two calls of `look`."""

    def __init__(self, client: redis.Redis, settings: RedisSettings, metrics: Sequence[str] = ()) -> None:
        """`metrics`: `host:port`, or whole URLs, of workers' metrics."""
        self._client = client
        self._keys = Keys.of(settings)
        self._inspector = StreamInspector(self._keys)
        self._metrics = metrics
        self._before: tuple[float, Mapping[str, StreamStatus]] | None = None

    def look(self) -> Overview:
        """The fleet now.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        seconds, microseconds = self._client.time()
        now_ms, now = seconds * 1000 + microseconds / 1000, time.monotonic()
        streams = self._inspector.read(self._client, self._camera_ids())
        since, before = self._before or (now, {})
        self._before = now, streams
        return Overview(
            at_ms=now_ms,
            cameras=[
                _camera_state(camera, status, before.get(camera), now - since, now_ms)
                for camera, status in sorted(streams.items())
            ],
            workers=self._worker_states(streams, now_ms),
            services=[_service_state(address) for address in self._metrics],
            dead_letters=self._client.xlen(self._keys.dead),
        )

    def reconnect(self) -> None:
        """Closes the connection, because the address may mean another server at the next read."""
        self._client.connection_pool.disconnect()

    def _camera_ids(self) -> set[str]:
        """The cameras that ingest has registered, and all other streams with the fleet's prefix."""
        keys = self._keys
        named = cast("set[bytes]", self._client.smembers(keys.cameras))
        streams = self._client.scan_iter(match=keys.pattern, count=1000, _type="stream")
        return split_camera_ids(named | keys.cameras_of(streams))[0]

    def _worker_states(self, cameras: Iterable[str], now_ms: float) -> list[WorkerState]:
        pipe = self._client.pipeline(transaction=False)
        pipe.zrange(self._keys.workers, 0, -1, withscores=True)
        pipe.hgetall(self._keys.away)
        for camera in cameras:
            pipe.xinfo_consumers(self._keys.stream(camera), self._keys.group)
        members, away, *answers = pipe.execute(raise_on_error=False)
        for answer in (members, away, *answers):
            if isinstance(answer, redis.RedisError) and (is_outage(answer) or answer is members or answer is away):
                raise answer
        reported = {name.decode(errors="replace"): _parse_away(value) for name, value in away.items()}
        signed_on = {cast("bytes", name).decode(errors="replace") for name, until_ms in members if until_ms >= now_ms}
        consumers: dict[str, list[dict[str, Any]]] = {name: [] for name in signed_on}
        for answer in answers:
            for consumer in [] if isinstance(answer, Exception) else answer:  # the stream may have no group yet
                consumers.setdefault(consumer["name"].decode(errors="replace"), []).append(consumer)
        return [
            WorkerState(
                name,
                cameras=len(of_worker),
                pending=sum(consumer["pending"] for consumer in of_worker),
                idle_s=min((consumer["idle"] / 1000 for consumer in of_worker), default=None),
                signed_on=name in signed_on,
                away=reported.get(name, {}) if name in signed_on else {},
            )
            for name, of_worker in sorted(consumers.items())
        ]


def _parse_away(value: bytes) -> dict[str, str]:
    try:
        away = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return {str(name): str(why) for name, why in away.items()} if isinstance(away, dict) else {}


def _camera_state(
    camera_id: str, status: StreamStatus, before: StreamStatus | None, seconds: float, now_ms: float
) -> CameraState:
    def rate(now: int, then: int) -> float:
        return max(0.0, (now - then) / seconds)

    measured = before is not None and seconds > 0
    return CameraState(
        camera_id,
        fps_in=rate(status.added, before.added) if before is not None and measured else None,
        fps_out=rate(status.read, before.read) if before is not None and measured else None,
        lag=status.lag,
        pending=status.pending,
        held=status.length,
        unread=status.unread,
        age_s=max(0.0, now_ms - status.last_ms) / 1000,
    )


def _service_state(address: str) -> ServiceState:
    url = address if "://" in address else f"http://{address}/metrics"
    try:
        response = httpx.get(url, timeout=_METRICS_S, trust_env=False).raise_for_status()
        families = list(text_string_to_metric_families(response.text))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return ServiceState(address, problem=str(error) or type(error).__name__)
    samples = [sample for family in families for sample in family.samples if sample.labels.get("entry") == ENTRY_POINT]

    def total(name: str) -> int:
        return round(sum(sample.value for sample in samples if sample.name == f"sightline_{name}"))

    dropped = {
        sample.labels["reason"]: round(sample.value)
        for sample in samples
        if sample.name == "sightline_frames_dropped_total"
    }
    return ServiceState(
        address,
        fps=sum(sample.value for sample in samples if sample.name == "sightline_pipeline_fps"),
        received=total("frames_received_total"),
        processed=total("frames_processed_total"),
        failed=total("frames_failed_total"),
        dropped=dropped,
    )


# --- the tables ---


def render(overview: Overview, rows: int) -> Group:
    """Tables of the fleet, with at most `rows` cameras: those with the largest lag first."""
    present = sum(worker.signed_on for worker in overview.workers)
    parts: list[RenderableType] = [
        Text(_headline(overview)),
        *(Text(line, style="red") for line in _outages(overview.workers)),
        _camera_table(overview, rows) if overview.cameras else Text("`sightline fleet ingest` brings them in"),
        Text(_count(present, "worker") if present else "no worker is here; `sightline fleet work` starts one"),
    ]
    if overview.workers:
        parts.append(_worker_table(overview.workers))
    if overview.services:
        parts += [Text("processes, by their metrics"), _service_table(overview.services)]
    return Group(*parts)


def _headline(overview: Overview) -> str:
    def total(value: Callable[[CameraState], float | None]) -> str:
        return f"{sum(value(camera) or 0 for camera in overview.cameras):,.0f}"

    rates = f"{total(lambda camera: camera.fps_in)} frames a second in, {total(lambda camera: camera.fps_out)} out"
    lost = f"{total(lambda camera: camera.unread)} dropped unread, {overview.dead_letters:,} dead letters"
    return f"{_count(len(overview.cameras), 'camera')}: {rates}, lag {total(lambda camera: camera.lag)}, {lost}"


def _outages(workers: Sequence[WorkerState]) -> list[str]:
    """One line for each service that workers cannot reach."""
    lines = []
    present = [worker for worker in workers if worker.signed_on]
    for name in sorted({name for worker in present for name in worker.away}):
        reasons = [worker.away[name] for worker in present if name in worker.away]
        of_all = f"{len(reasons)} of {_count(len(present), 'worker')}"
        lines.append(f"{name} is away: {of_all} cannot reach it ({reasons[0]})")
    return lines


def _camera_table(overview: Overview, rows: int) -> Table:
    cameras = overview.cameras
    table = _table("camera", "in/s", "out/s", "lag", "pending", "held", "unread", "age")
    shown = sorted(cameras, key=lambda camera: (-(camera.lag or 0), -camera.pending, camera.camera_id))[:rows]
    for camera in shown:
        table.add_row(
            Text(camera.camera_id),
            _number(camera.fps_in, 1),
            _number(camera.fps_out, 1),
            _number(camera.lag),
            *map(str, (camera.pending, camera.held, camera.unread)),
            Text(f"{camera.age_s:.1f} s", style="red" if camera.age_s > _STALE_S else ""),
        )
    if len(shown) < len(cameras):
        table.caption = f"and {len(cameras) - len(shown)} more with less lag"
    return table


def _worker_table(workers: list[WorkerState]) -> Table:
    table = _table("worker", "cameras", "pending", "idle", "state")
    for worker in workers:
        idle = "–" if worker.idle_s is None else f"{worker.idle_s:.1f} s"
        state = Text("here") if worker.signed_on else Text("gone", style="red")
        if worker.away:
            state = Text(f"here, {' and '.join(sorted(worker.away))} away", style="red")
        table.add_row(Text(worker.name), str(worker.cameras), str(worker.pending), idle, state)
    return table


def _service_table(services: list[ServiceState]) -> Table:
    table = _table("process", "fps", "received", "processed", "failed", "dropped")
    for service in services:
        if service.problem is not None:
            table.add_row(Text(service.address), Text(service.problem, style="red"))
            continue
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(service.dropped.items())) or "0"
        counts = (f"{count:,}" for count in (service.received, service.processed, service.failed))
        table.add_row(Text(service.address), f"{service.fps:.1f}", *counts, Text(dropped))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first, overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
