"""What `fleet work` does: one worker in this process, or several in processes of their own."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from app import metrics, pages
from app.fleet.crew import Crew
from app.fleet.one import on_signals, work
from app.fleet.vitals import Vitals
from app.inference.shared import shared_triton
from app.logs import configure
from app.settings import Settings

log = logging.getLogger(__name__)


def run() -> None:
    """Works until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: a setting is wrong.
        SightlineError: it could not go on.
    """
    settings = Settings()
    configure(settings.server)
    if settings.fleet.fleet_processes > 1:
        _run_several(settings)
        return
    vitals = Vitals(1)
    with _serving(settings, vitals):
        work(settings, vitals.pulse(0))


@contextmanager
def _serving(settings: Settings, vitals: Vitals) -> Iterator[None]:
    host = settings.server.host
    with pages.serving(host, settings.fleet.metrics_port, vitals.report) as port:
        log.info("metrics on http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
        yield


def _run_several(settings: Settings) -> None:
    """Several processes, one endpoint for all, one embedded Triton between them."""
    shared = settings.server.state_dir / f"fleet-metrics-{os.getpid()}"
    metrics.share_between_workers(shared)
    vitals = Vitals(settings.fleet.fleet_processes)
    crew = Crew(settings, vitals, shared)
    on_signals(crew.stop)
    try:
        with _serving(settings, vitals), shared_triton(settings.triton, settings.server.state_dir):
            crew.run()
    finally:
        shutil.rmtree(shared, ignore_errors=True)
