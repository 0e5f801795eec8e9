"""What `serve` does."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys

from fastapi import FastAPI

from app.auth import require_tokens
from app.inference.shared import end_with_parent, shared_triton
from app.logs import configure
from app.pipeline.opening import check
from app.server import Server, config, listen, share
from app.settings import Settings
from app.waiting import waiting_for

log = logging.getLogger(__name__)


def run() -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = Settings()
    configure(settings.server)
    signal.signal(signal.SIGTERM, _tell)  # until uvicorn puts its own in place
    try:
        check(settings)
        if settings.server.workers > 1:
            _serve_together(settings)
        else:
            _serve_alone(settings)
    except _Told:
        log.info("stopping: SIGTERM came while the service was starting")
        log.info("drained: nobody was served yet")
        log.info("ended")


class _Told(BaseException):
    """SIGTERM came before anybody was there to heed it."""


def _tell(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is the end in order
    raise _Told


def _serve_alone(settings: Settings) -> None:
    with waiting_for("the service's own modules"):
        from app.main import create_app

        app = create_app(settings)
    listener = listen(settings.server.host, settings.server.port)
    app.state.address = _announce(settings, listener.getsockname()[1])
    server = Server(config(settings, app))
    app.state.stopping = lambda: server.should_exit
    server.run([listener])
    if not server.started and not server.should_exit:
        sys.exit(1)


def _serve_together(settings: Settings) -> None:
    """Several processes on one port, with one embedded Triton between them."""
    from app import metrics
    from app.workers import Workers

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the supervisor heeds it as well
        signal.signal(signal.SIGINT, signal.default_int_handler)
    require_tokens(settings)
    shared = settings.server.state_dir / f"metrics-{os.getpid()}"
    metrics.share_between_workers(shared)
    listener = share(settings.server.host, settings.server.port)
    _announce(settings, listener.getsockname()[1])
    try:
        with shared_triton(settings.triton, settings.server.state_dir):
            workers = Workers(
                config(settings, "app.serving:worker", factory=True),
                [listener],
                start_s=settings.triton.triton_start_timeout_s,
                drain_s=settings.server.drain_timeout_s,
            )
            workers.run()
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    log.info("ended")
    if workers.failed:
        sys.exit(1)


def worker() -> FastAPI:
    """The service in one of several processes; uvicorn's factory, called in each."""
    from app.main import create_app

    settings = Settings()
    configure(settings.server)
    end_with_parent()
    return create_app(settings)


def _announce(settings: Settings, port: int) -> str:
    host = settings.server.host
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    log.info("starting on %s", address)
    return address
