"""`fleet ingest`: many sources in, one Redis stream a camera out."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import redis

from app import metrics, metrics_server
from app.addresses import bracketed
from app.auth import Hosts
from app.errors import ConfigurationError
from app.fleet.connection import TIMEOUT_S, connect, require_redis, says
from app.fleet.ingest_camera import STATES, Camera
from app.fleet.ingest_listing import Listing
from app.fleet.ingest_outbox import Outbox
from app.fleet.ingest_table import shown_live
from app.fleet.keys import Keys
from app.fleet.lag import Looks
from app.fleet.sampling import adapt
from app.fleet.sources import Source
from app.logging import configure
from app.process import SHUTDOWN_LOG, stopping_on_signals
from app.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at the streams' lag."""
SILENT_S = 30.0
"""Without a look for so long it hangs: /health says so."""
STOP_S = 6.0
"""What ending may take: a source that says nothing is given up after 5."""


def run(settings: Settings, sources: Sequence[str], *, loop: bool = False) -> None:
    """Reads all sources until SIGTERM or Ctrl-C, or until the last recording named on the command line is over.

    `sources`: files, folders, URLs, camera numbers, each also as `NAME=SOURCE`; names of YAML files; `redis`, the hash
    `fleet:sources`, which none at all means as well. `loop`: recordings start over at their end.

    Raises:
        ConfigurationError: a setting, a source or a YAML file is wrong, or this Redis will not do.
    """
    configure(settings.server)
    listing = Listing(sources, Keys.of(settings.redis).sources, loop=loop)
    stop = threading.Event()
    require_redis(settings.redis)
    with ExitStack() as stack:
        stack.enter_context(stopping_on_signals(stop.set))
        ingest = stack.enter_context(Ingest(settings, listing))
        stack.enter_context(_pages_served(settings, ingest.report))
        stack.enter_context(shown_live(ingest.cameras, ingest.outbox))
        ingest.until(stop)
        SHUTDOWN_LOG.stopping("nothing is left to be read")  # unless a signal came
    SHUTDOWN_LOG.drained()
    SHUTDOWN_LOG.ended()


class Ingest:
    """All cameras and the way to Redis; a context that ends them all."""

    def __init__(self, settings: Settings, listing: Listing) -> None:
        self.cameras: dict[str, Camera] = {}
        self._settings = settings.ingest
        self._max_pixels = settings.live.max_pixels
        self._listing = listing
        self._client = connect(settings.redis)
        keys = Keys.of(settings.redis)
        self._looks = Looks(keys)
        self.outbox = Outbox(
            connect(settings.redis),
            keys,
            maxlen=self._settings.ingest_maxlen,
            register_s=self._settings.ingest_refresh_s,
        )
        self._problems: set[str] = set()
        self._looked = 0.0
        self._lags_say = ""
        """What Redis said instead of the streams' lags."""

    def __enter__(self) -> Ingest:
        self.outbox.start()
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + STOP_S
        for camera in self.cameras.values():
            camera.stop()
        hanging = [name for name, one in self.cameras.items() if not one.join(max(0.0, deadline - time.monotonic()))]
        if hanging:
            log.warning("sources that did not end in %g s: %s", STOP_S, ", ".join(sorted(hanging)))
        if not self.outbox.close(TIMEOUT_S):
            log.warning("Redis did not take the last frames in %g s", TIMEOUT_S)
        self._client.close()

    def until(self, stop: threading.Event) -> None:
        """Looks for sources and at lags until `stop` is set, or nothing is left to read and nothing can come.

        Raises:
            ConfigurationError: this Redis will never do.
        """
        refreshed = float("-inf")
        while not stop.is_set():
            if time.monotonic() - refreshed >= self._settings.ingest_refresh_s:
                refreshed = time.monotonic()
                self._refresh()
            self._adapt()
            if self.outbox.unfit:
                raise ConfigurationError(self.outbox.unfit)
            self._looked = time.monotonic()
            states = Counter(camera.state for camera in self.cameras.values())
            for state in STATES:
                metrics.INGEST_SOURCES.labels(state).set(states[state])
            if not self._listing.may_change and states["ended"] == len(self.cameras):
                return
            stop.wait(LOOK_S)

    def report(self) -> dict[str, Any]:
        """What /health says. `state`: ok, starting, degraded (Redis takes no frames, or does not
        tell the sources or the lags; `redis_says` is its word) or silent (it looks no more)."""
        age_s = time.monotonic() - self._looked
        word = self.outbox.says or self._listing.says or self._lags_say
        state = "starting" if self._looked == 0.0 else "degraded" if word else "ok"
        sources = Counter(camera.state for camera in list(self.cameras.values()))
        return {
            "state": "silent" if self._looked and age_s > SILENT_S else state,
            "redis": not word,
            "redis_says": word or None,
            "sources": {one: sources[one] for one in STATES},
        }

    def _refresh(self) -> None:
        """Starts what is new, ends what is gone, starts anew what is changed."""
        wanted, problems = self._listing.look(self._client)
        for problem in problems:
            if problem not in self._problems:
                log.error("%s", problem)
        self._problems = set(problems)
        leaving = [one for name, one in self.cameras.items() if wanted.get(name) != one.source]
        for camera in leaving:
            camera.stop()
        for camera in leaving:
            self._leave(camera, wanted.get(camera.source.camera_id))
        for name, source in wanted.items():
            if name not in self.cameras:
                self.cameras[name] = camera = Camera(source, self._settings, self.outbox, max_pixels=self._max_pixels)
                camera.start()
                log.info("source %s: %s", name, source.shown)

    def _leave(self, camera: Camera, successor: Source | None) -> None:
        name = camera.source.camera_id
        if not camera.join(STOP_S):
            log.warning("source %s did not end in %g s; it will with its next frame", name, STOP_S)
        del self.cameras[name]
        if successor is None:
            self.outbox.remove(name)
            log.info("source %s is no longer listed", name)

    def _adapt(self) -> None:
        running = [name for name, camera in self.cameras.items() if camera.state == "running"]
        try:
            if self.outbox.says:
                self._client.connection_pool.disconnect()  # another server may be the master by then
            looks = self._looks.read(self._client, running) if running else {}
            self._lags_say = ""
        except redis.RedisError as error:
            looks, self._lags_say = {}, says(error)
            self._client.connection_pool.disconnect()
        for name in running:
            camera = self.cameras[name]
            before, camera.lag = camera.lag, looks[name].lag if name in looks else None
            camera.sampler.fps = adapt(camera.sampler.fps, camera.lag, before, camera.settings)


@contextmanager
def _pages_served(settings: Settings, report: metrics_server.HealthReport) -> Iterator[None]:
    """`/metrics` and `/health` on METRICS_PORT. A worker on the same machine may have it: then on any free port."""
    host, port = settings.server.host, settings.fleet.metrics_port
    with ExitStack() as stack:
        try:
            found = stack.enter_context(metrics_server.serve_metrics(host, port, report, Hosts(settings)))
        except ConfigurationError as error:
            found = stack.enter_context(metrics_server.serve_metrics(host, 0, report, Hosts(settings)))
            log.warning("%s", error)
        log.info("metrics on http://%s:%d/metrics", bracketed(host), found)
        yield
