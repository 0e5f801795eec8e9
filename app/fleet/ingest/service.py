"""The process of `fleet ingest`: starts and stops one thread per camera, adapts their rates, and shows a table."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import redis
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from app import metrics, metrics_server
from app.addresses import bracketed
from app.auth import Hosts
from app.errors import ConfigurationError
from app.fleet.connection import TIMEOUT_S, check_redis, connect, error_word
from app.fleet.ingest.camera import STATES, IngestCamera, adapt_rate
from app.fleet.ingest.outbox import Outbox
from app.fleet.ingest.sources import CameraSource, SourceList
from app.fleet.streams import Keys, StreamInspector
from app.logging import configure
from app.process import SHUTDOWN_LOG, stopping_on_signals
from app.settings import Settings

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""Seconds between two checks of the streams' lag."""
SILENT_S = 30.0
"""A process without a check for this long counts as hanging, and /health reports `silent`."""
STOP_S = 6.0
"""Seconds that stopping may take: a read from a source without data times out after 5."""
_COLOURS = {"running": "green", "connecting": "cyan", "retrying": "red", "ended": "dim"}


def run(settings: Settings, arguments: Sequence[str], *, loop: bool = False) -> None:
    """Reads all sources until SIGTERM or Ctrl-C, or until the last recording named on the command line has ended.

    Args:
        arguments: files, folders, URLs, camera numbers, each also as `NAME=SOURCE`; names of YAML files; or `redis` for
            the hash `fleet:sources`, which an empty list means as well.
        loop: recordings start over at their end.

    Raises:
        ConfigurationError: a setting, a source or a YAML file is wrong, or this Redis cannot be used.
    """
    configure(settings.server)
    sources = SourceList(arguments, Keys.of(settings.redis).sources, loop=loop)
    stop = threading.Event()
    check_redis(settings.redis)
    with ExitStack() as stack:
        stack.enter_context(stopping_on_signals(stop.set))
        ingest = stack.enter_context(Ingest(settings, sources))
        stack.enter_context(_serving_metrics(settings, ingest.report))
        stack.enter_context(_showing_table(ingest.cameras, ingest.outbox))
        ingest.until(stop)
        SHUTDOWN_LOG.stopping("nothing is left to read")  # unless a signal came first
    SHUTDOWN_LOG.drained()
    SHUTDOWN_LOG.ended()


class Ingest:
    """All cameras and the outbox to Redis; a context manager that stops them all."""

    def __init__(self, settings: Settings, sources: SourceList) -> None:
        self.cameras: dict[str, IngestCamera] = {}
        self._settings = settings.ingest
        self._max_pixels = settings.live.max_pixels
        self._sources = sources
        self._client = connect(settings.redis)
        keys = Keys.of(settings.redis)
        self._inspector = StreamInspector(keys)
        self.outbox = Outbox(
            connect(settings.redis),
            keys,
            maxlen=self._settings.ingest_maxlen,
            register_s=self._settings.ingest_refresh_s,
        )
        self._problems: set[str] = set()
        self._checked = 0.0
        self._lag_error = ""
        """The error word of the last read of the streams' lags."""

    def __enter__(self) -> Ingest:
        self.outbox.start()
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + STOP_S
        for camera in self.cameras.values():
            camera.stop()
        hanging = [
            name for name, camera in self.cameras.items() if not camera.join(max(0.0, deadline - time.monotonic()))
        ]
        if hanging:
            log.warning("sources that did not end in %g s: %s", STOP_S, ", ".join(sorted(hanging)))
        if not self.outbox.close(TIMEOUT_S):
            log.warning("Redis did not take the last frames in %g s", TIMEOUT_S)
        self._client.close()

    def until(self, stop: threading.Event) -> None:
        """Reads sources and checks lags until `stop` is set, or until all recordings have ended and no source can come.

        Raises:
            ConfigurationError: this Redis cannot be used.
        """
        refreshed = float("-inf")
        while not stop.is_set():
            if time.monotonic() - refreshed >= self._settings.ingest_refresh_s:
                refreshed = time.monotonic()
                self._refresh()
            self._adapt()
            if self.outbox.unfit:
                raise ConfigurationError(self.outbox.unfit)
            self._checked = time.monotonic()
            states = Counter(camera.state for camera in self.cameras.values())
            for state in STATES:
                metrics.INGEST_SOURCES.labels(state).set(states[state])
            if not self._sources.may_change and states["ended"] == len(self.cameras):
                return
            stop.wait(CHECK_S)

    def report(self) -> dict[str, Any]:
        """The body of /health. `state`: ok, starting, degraded (Redis takes no frames, or the sources or lags cannot be
        read; `redis_says` is its error word) or silent (this thread hangs)."""
        age_s = time.monotonic() - self._checked
        word = self.outbox.redis_error or self._sources.redis_error or self._lag_error
        state = "starting" if self._checked == 0.0 else "degraded" if word else "ok"
        cameras = Counter(camera.state for camera in list(self.cameras.values()))
        return {
            "state": "silent" if self._checked and age_s > SILENT_S else state,
            "redis": not word,
            "redis_says": word or None,
            "sources": {camera_state: cameras[camera_state] for camera_state in STATES},
        }

    def _refresh(self) -> None:
        """Starts new sources, stops removed ones, and restarts changed ones."""
        wanted, problems = self._sources.read(self._client)
        for problem in problems:
            if problem not in self._problems:
                log.error("%s", problem)
        self._problems = set(problems)
        leaving = [camera for name, camera in self.cameras.items() if wanted.get(name) != camera.source]
        for camera in leaving:
            camera.stop()
        for camera in leaving:
            self._remove(camera, wanted.get(camera.source.camera_id))
        for name, source in wanted.items():
            if name not in self.cameras:
                camera = IngestCamera(source, self._settings, self.outbox, max_pixels=self._max_pixels)
                self.cameras[name] = camera
                camera.start()
                log.info("source %s: %s", name, source.shown)

    def _remove(self, camera: IngestCamera, successor: CameraSource | None) -> None:
        name = camera.source.camera_id
        if not camera.join(STOP_S):
            log.warning("source %s did not end in %g s; it will end with its next frame", name, STOP_S)
        del self.cameras[name]
        if successor is None:
            self.outbox.remove(name)
            log.info("source %s is no longer listed", name)

    def _adapt(self) -> None:
        running = [name for name, camera in self.cameras.items() if camera.state == "running"]
        try:
            if self.outbox.redis_error:
                self._client.connection_pool.disconnect()  # another server may be the master by now
            streams = self._inspector.read(self._client, running) if running else {}
            self._lag_error = ""
        except redis.RedisError as error:
            streams, self._lag_error = {}, error_word(error)
            self._client.connection_pool.disconnect()
        for name in running:
            camera = self.cameras[name]
            before, camera.lag = camera.lag, streams[name].lag if name in streams else None
            camera.sampler.fps = adapt_rate(camera.sampler.fps, camera.lag, before, camera.settings)


@contextmanager
def _serving_metrics(settings: Settings, report: metrics_server.HealthReport) -> Iterator[None]:
    """Serves `/metrics` and `/health` on METRICS_PORT, or on any free port if a worker on this machine uses it."""
    host, port = settings.server.host, settings.fleet.metrics_port
    with ExitStack() as stack:
        try:
            bound = stack.enter_context(metrics_server.serve_metrics(host, port, report, Hosts(settings)))
        except ConfigurationError as error:
            bound = stack.enter_context(metrics_server.serve_metrics(host, 0, report, Hosts(settings)))
            log.warning("%s", error)
        log.info("metrics on http://%s:%d/metrics", bracketed(host), bound)
        yield


# --- the table in the terminal ---


@contextmanager
def _showing_table(cameras: Mapping[str, IngestCamera], outbox: Outbox) -> Iterator[None]:
    """Shows a table twice a second while the block runs, with log lines above it; nothing if stdout is no terminal."""
    console = Console()
    if not console.is_terminal:
        yield
        return
    logger = logging.getLogger()
    before = logger.handlers[:]
    logger.handlers[:] = [RichHandler(console=console, show_path=False, markup=False)]
    table = _CameraTable(cameras, outbox)
    try:
        with Live(get_renderable=table.render, console=console, refresh_per_second=2):
            yield
    finally:
        logger.handlers[:] = before


class _CameraTable:
    """One row per camera; rates are measured over at least a second."""

    def __init__(self, cameras: Mapping[str, IngestCamera], outbox: Outbox) -> None:
        self._cameras = cameras
        self._outbox = outbox
        self._before: dict[str, tuple[float, int, float]] = {}
        """For each camera: the time of the last measurement, frames sent by then, and frames per second."""

    def render(self) -> Table:
        states = [camera.state for camera in self._cameras.values()]
        title = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no sources yet"
        table = Table(
            title=f"{title}{'' if self._outbox.up else f' – Redis takes no frames: {self._outbox.redis_error}'}",
            title_justify="left",
        )
        for column in ("camera", "source", "state"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for column in ("fps", "wanted", "lag", "sent", "dropped"):
            table.add_column(column, justify="right")
        for name, camera in sorted(self._cameras.items()):
            table.add_row(
                Text(name),
                Text(camera.problem or camera.source.shown),
                Text(camera.state, style=_COLOURS[camera.state]),
                f"{self._rate(name):.1f}",
                f"{camera.sampler.fps:.1f}",
                "–" if camera.lag is None else str(camera.lag),
                str(self._outbox.sent.get(name, 0)),
                str(self._outbox.dropped.get(name, 0)),
            )
        return table

    def _rate(self, name: str) -> float:
        now, sent = time.monotonic(), self._outbox.sent.get(name, 0)
        then, before, rate = self._before.get(name, (now, sent, 0.0))
        if now - then >= 1 or name not in self._before:
            rate = (sent - before) / (now - then) if now > then else 0.0
            self._before[name] = (now, sent, rate)
        return rate
