"""What `serve` does."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from app.inference.local import LocalTriton
from app.logs import configure
from app.server import config, listen
from app.settings import Settings

log = logging.getLogger(__name__)


def run() -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    settings = Settings()
    configure(settings.server)
    if settings.server.workers > 1:
        _run_workers(settings)
        return
    from app.main import create_app

    app = create_app(settings)
    listener = listen(settings.server.host, settings.server.port)
    app.state.address = _announce(settings, listener.getsockname()[1])
    server = uvicorn.Server(config(settings, app))
    server.run([listener])
    if not server.started:
        sys.exit(1)


def _run_workers(settings: Settings) -> None:
    """Several processes on one listening socket, with one embedded Triton between them."""
    from app import metrics
    from app.main import require_tokens

    require_tokens(settings)
    shared = settings.server.state_dir / f"metrics-{os.getpid()}"
    metrics.share_between_workers(shared)
    listener = listen(settings.server.host, settings.server.port)
    _announce(settings, listener.getsockname()[1])
    try:
        with _shared_triton(settings):
            Multiprocess(config(settings, "app.serving:worker", factory=True), sockets=[listener]).run()
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def worker() -> FastAPI:
    """The service in one of several processes; uvicorn's factory, called in each."""
    from app.main import create_app

    settings = Settings()
    configure(settings.server)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    return create_app(settings)


def _end_with_parent() -> None:
    """A parent that was killed can end nobody: its workers would go on serving, and hold the port."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _shared_triton(settings: Settings) -> Iterator[None]:
    """An embedded Triton for all workers, supervised from a thread since the main one waits for them."""
    if settings.triton.triton_url is not None:
        yield
        return
    triton = LocalTriton(settings.triton, settings.server.state_dir)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="triton", daemon=True)
    thread.start()
    try:
        os.environ["TRITON_URL"] = asyncio.run_coroutine_threadsafe(triton.start(), loop).result()
        yield
    finally:
        asyncio.run_coroutine_threadsafe(triton.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _announce(settings: Settings, port: int) -> str:
    host = settings.server.host
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    log.info("starting on %s", address)
    return address
