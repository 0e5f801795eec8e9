"""What `fleet work` does: one worker in this process, or several in processes of their own."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from app import metrics, metrics_server
from app.addresses import bracketed
from app.auth import Hosts
from app.files import writable_folder
from app.fleet.connection import require_redis
from app.fleet.crew import Crew
from app.fleet.one import on_signals, work
from app.fleet.vitals import Vitals
from app.inference.shared import shared_triton
from app.logging import configure
from app.process import SHUTDOWN_LOG
from app.settings import Settings

log = logging.getLogger(__name__)


def run() -> None:
    """Works until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: a setting is wrong, or this Redis will not do.
        SightlineError: it could not go on.
    """
    settings = Settings()
    configure(settings.server)
    require_redis(settings.redis)
    if settings.fleet.fleet_processes > 1:
        _run_several(settings)
        return
    vitals = Vitals(1)
    with _serving(settings, vitals):
        work(settings, vitals.pulse(0))
        SHUTDOWN_LOG.drained()
    SHUTDOWN_LOG.ended()


@contextmanager
def _serving(settings: Settings, vitals: Vitals) -> Iterator[None]:
    host = settings.server.host
    with metrics_server.serve_metrics(host, settings.fleet.metrics_port, vitals.report, Hosts(settings)) as port:
        log.info("metrics on http://%s:%d/metrics", bracketed(host), port)
        yield


class _GivenUp(BaseException):
    """A signal came while Triton started, which may take minutes."""


def _give_up_the_start() -> None:
    on_signals(lambda: None)  # once is enough: what follows is the end in order
    raise _GivenUp


def _run_several(settings: Settings) -> None:
    """Several processes, one endpoint for all, one embedded Triton between them."""
    shared = writable_folder(settings.server.state_dir, "STATE_DIR") / f"fleet-metrics-{os.getpid()}"
    metrics.share_between_workers(shared)
    vitals = Vitals(settings.fleet.fleet_processes)
    crew = Crew(settings, vitals, shared)
    on_signals(_give_up_the_start)
    try:
        with (
            suppress(_GivenUp),
            _serving(settings, vitals),
            shared_triton(settings.triton, settings.server.state_dir),
        ):
            on_signals(crew.stop)
            crew.run()
        SHUTDOWN_LOG.drained()
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    SHUTDOWN_LOG.ended()
