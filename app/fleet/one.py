"""One worker in this process, in the mode that FLEET_MODE says, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress

import uvloop

from app.fleet.analysis import ocr_settings
from app.fleet.sync import SyncWorker
from app.fleet.vitals import Pulse
from app.fleet.worker import Worker
from app.inference.shared import shared_triton
from app.pipeline.opening import opened
from app.process import SHUTDOWN_LOG, freeze_gc, tune
from app.settings import Settings

YOUNG = 5_000
"""New objects from which the garbage collector looks at them: some batches' worth, all but one of which are gone."""


def work(settings: Settings, pulse: Pulse) -> None:
    """One worker in this process.

    Raises:
        SightlineError: it could not go on.
    """
    tune()
    if settings.fleet.fleet_mode == "sync":
        with shared_triton(settings.triton, settings.server.state_dir) as url:
            worker = SyncWorker(url, settings, pulse)
            on_signals(worker.stop)
            worker.run()
    else:
        uvloop.run(_async(settings, pulse))


async def _async(settings: Settings, pulse: Pulse) -> None:
    loop = asyncio.get_running_loop()
    running = asyncio.current_task()
    assert running is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        # Nothing is in hand yet: an embedded Triton may take minutes.
        loop.add_signal_handler(number, _heeding(number, running.cancel))
    with suppress(asyncio.CancelledError):
        stages = settings.fleet.fleet_stages
        faces = settings.fleet if "face" in stages else None
        async with opened(settings, ocr_settings(settings), faces=faces, tracking="track" in stages) as one:
            worker = Worker(one.pipeline, settings, pulse)
            freeze_gc(threshold=YOUNG)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, _heeding(number, worker.stop))
            await worker.run()


def _heeding(number: signal.Signals, stop: Callable[[], object]) -> Callable[[], None]:
    def heed() -> None:
        SHUTDOWN_LOG.stopping(f"{number.name} came")
        stop()

    return heed


def on_signals(stop: Callable[[], None]) -> None:
    def heed(number: int, _: object) -> None:
        SHUTDOWN_LOG.stopping(f"{signal.Signals(number).name} came")
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, heed)
