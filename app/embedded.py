"""What `triton` does: the embedded Triton alone."""

from __future__ import annotations

import asyncio
import signal

from app.folders import writable
from app.inference.local import LocalTriton
from app.logs import configure
from app.settings import Settings


def run() -> None:
    """Runs until SIGTERM or Ctrl-C; prints the addresses once it is ready.

    Raises:
        SightlineError: it cannot be started.
    """
    settings = Settings()
    configure(settings.server)
    asyncio.run(_triton(settings))


async def _triton(settings: Settings) -> None:
    triton = LocalTriton(settings.triton, writable(settings.server.state_dir, "STATE_DIR"))
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        starting = asyncio.ensure_future(triton.start())
        waiting = asyncio.ensure_future(stopped.wait())
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            print(f"gRPC     {starting.result()}     TRITON_URL={starting.result()}")
            print(f"HTTP     {triton.http_url}")
            print(f"metrics  {triton.metrics_url}", flush=True)
            await waiting
        else:
            starting.cancel()
    finally:
        await triton.stop()
