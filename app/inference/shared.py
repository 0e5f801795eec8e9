"""What several worker processes share: one embedded Triton, and the end of the process that started them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.files import writable_folder
from app.inference.local import LocalTriton
from app.process import log_while_waiting
from app.settings import TritonSettings


@contextmanager
def shared_triton(settings: TritonSettings, state_dir: Path) -> Iterator[str]:
    """Triton's address; an embedded one for as long as the block lasts where TRITON_URL is not set.

    Worker processes are told by that variable. Supervised from a thread of its own, since the one that calls waits for
    its processes.

    Raises:
        SightlineError: it cannot be started.
    """
    if settings.triton_url is not None:
        yield settings.triton_url
        return
    triton = LocalTriton(settings, writable_folder(state_dir, "STATE_DIR"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="triton", daemon=True)
    thread.start()
    starting: asyncio.Task[str] | None = None

    async def start() -> str:
        nonlocal starting
        starting = asyncio.create_task(triton.start())
        return await starting

    async def stop() -> None:
        if starting is not None and not starting.done():  # told to end before it was ready
            starting.cancel()
            await asyncio.wait({starting})
        await triton.stop()

    try:
        with log_while_waiting("the embedded Triton and its models"):
            url = asyncio.run_coroutine_threadsafe(start(), loop).result()
        os.environ["TRITON_URL"] = url
        yield url
    finally:
        os.environ.pop("TRITON_URL", None)
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def end_with_parent() -> None:
    """Sees to it that this worker process gets SIGTERM once its parent is gone.

    A parent that was killed can end nobody: its workers would go on for good, and hold the port.
    """
    threading.Thread(target=_wait_for_the_end, name="end-with-parent", daemon=True).start()


def _wait_for_the_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
