"""What `segments work` does: a worker on AWS, with its pages, until it is told to stop."""

from __future__ import annotations

import logging

from app import metrics_server
from app.addresses import bracketed
from app.auth import Hosts
from app.logging import configure
from app.process import SHUTDOWN_LOG, stopping_on_signals
from app.segments.parts import on_aws
from app.segments.worker import Worker
from app.settings import Settings

log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Works until SIGTERM or Ctrl-C. `/metrics` and `/health` are on METRICS_PORT.

    Raises:
        ConfigurationError: a setting is wrong, or one is missing.
        SightlineError: it could not go on.
    """
    configure(settings.server)
    tokens = settings.access.auth_tokens
    parts = on_aws(settings.segments, settings.aws, token=tokens[0].get_secret_value() if tokens else None)
    worker = Worker(parts, settings.segments)
    host = settings.server.host
    with (
        metrics_server.serve_metrics(host, settings.fleet.metrics_port, worker.report, Hosts(settings)) as port,
        stopping_on_signals(worker.stop),
    ):
        log.info("metrics on http://%s:%d/metrics", bracketed(host), port)
        log.info("working on %s with backend %s", parts.input_bucket, parts.backend.name)
        worker.run(settings.server.drain_timeout_s)
        SHUTDOWN_LOG.drained()
    SHUTDOWN_LOG.ended()
