"""What `serve` does."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys

from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from app.auth import require_tokens
from app.inference.shared import end_with_parent, shared_triton
from app.logs import configure
from app.pipeline.opening import check
from app.server import Server, config, listen, share
from app.settings import Settings

log = logging.getLogger(__name__)


def run() -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = Settings()
    configure(settings.server)
    check(settings)
    if settings.server.workers > 1:
        _run_workers(settings)
        return
    from app.main import create_app

    app = create_app(settings)
    listener = listen(settings.server.host, settings.server.port)
    app.state.address = _announce(settings, listener.getsockname()[1])
    server = Server(config(settings, app))
    app.state.stopping = lambda: server.should_exit
    server.run([listener])
    if not server.started:
        sys.exit(1)


class _Told(BaseException):
    """SIGTERM came before there were workers to hand it on to."""


def _tell(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is the end in order
    raise _Told


def _run_workers(settings: Settings) -> None:
    """Several processes on one port, with one embedded Triton between them."""
    signal.signal(signal.SIGTERM, _tell)  # until uvicorn puts its own in place
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; uvicorn will heed it as well
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _serve_together(settings)
    except _Told:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)


def _serve_together(settings: Settings) -> None:
    from app import metrics

    require_tokens(settings)
    shared = settings.server.state_dir / f"metrics-{os.getpid()}"
    metrics.share_between_workers(shared)
    listener = share(settings.server.host, settings.server.port)
    _announce(settings, listener.getsockname()[1])
    try:
        with shared_triton(settings.triton, settings.server.state_dir):
            Multiprocess(config(settings, "app.serving:worker", factory=True), sockets=[listener]).run()
    finally:
        shutil.rmtree(shared, ignore_errors=True)


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
