"""`sightline triton`: the embedded Triton alone."""

from __future__ import annotations

import asyncio

from app.settings import Settings


def triton() -> None:
    """Run the embedded Triton alone, until Ctrl-C; prints its addresses. Other services use it by TRITON_URL."""
    from app.logging import configure

    settings = Settings()
    configure(settings.server)
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    """Runs Triton until SIGTERM or SIGINT.

    Raises:
        SightlineError: Triton cannot be started.
    """
    from app.files import writable_folder
    from app.inference.embedded import EmbeddedTriton
    from app.process import handling_signals

    server = EmbeddedTriton(settings.triton, writable_folder(settings.server.state_dir, "STATE_DIR"))
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    with handling_signals(lambda *_: loop.call_soon_threadsafe(stopped.set)):
        try:
            starting = asyncio.ensure_future(server.start())
            waiting = asyncio.ensure_future(stopped.wait())
            await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                print(f"gRPC     {starting.result()}     TRITON_URL={starting.result()}")
                print(f"HTTP     {server.http_url}")
                print(f"metrics  {server.metrics_url}", flush=True)
                await waiting
            else:
                starting.cancel()
        finally:
            await server.stop()
