"""Several worker processes: started by spawn, never by fork, and started again when one dies."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from app import metrics
from app.errors import SightlineError
from app.fleet.one import work
from app.fleet.tally import DOOR
from app.fleet.vitals import Pulse, Vitals
from app.inference.shared import end_with_parent
from app.logging import configure
from app.process import SHUTDOWN_LOG
from app.settings import Settings

log = logging.getLogger(__name__)

_PAUSES_S = (0.5, 30.0)
_STEADY_S = 60.0
_POLL_S = 0.2
_GRACE_S = 10.0


@dataclass(slots=True)
class Seat:
    """A worker's place: who has it, or when it is filled again."""

    index: int
    process: SpawnProcess | None = None
    began: float = 0.0
    pause_s: float = _PAUSES_S[0]
    due: float = 0.0


class Crew:
    """
    Args:
        accounts: PROMETHEUS_MULTIPROC_DIR, where the workers' metrics are.
    """

    def __init__(self, settings: Settings, vitals: Vitals, accounts: Path) -> None:
        self._accounts = accounts
        self._drain_s = settings.server.drain_timeout_s
        self._vitals = vitals
        # CUDA contexts, gRPC's threads and librdkafka's do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._stopping = threading.Event()
        self._seats = [Seat(index) for index in range(vitals.workers)]

    def stop(self) -> None:
        """Asks all to end; signal handlers may call it."""
        self._stopping.set()

    def run(self) -> None:
        """Returns when all have ended after `stop`."""
        try:
            while not self._stopping.is_set():
                for seat in self._seats:
                    self._see_to(seat)
                wait([seat.process.sentinel for seat in self._seats if seat.process is not None], timeout=_POLL_S)
        finally:
            self._end()

    def _see_to(self, seat: Seat) -> None:
        now = time.monotonic()
        if seat.process is not None and seat.process.exitcode is not None:
            steady = now - seat.began > _STEADY_S
            seat.pause_s = _PAUSES_S[0] if steady else min(_PAUSES_S[1], 2 * seat.pause_s)
            seat.due = now + seat.pause_s
            log.error(
                "worker %d (pid %s) ended with %s; starting another in %.1f s",
                seat.index,
                seat.process.pid,
                seat.process.exitcode,
                seat.pause_s,
            )
            close_account(self._accounts / f"counter_{seat.process.pid}.db")
            seat.process.close()
            seat.process = None
        if seat.process is None and now >= seat.due:
            pulse = self._vitals.pulse(seat.index)
            pulse.clear()
            seat.process = self._context.Process(target=_work, args=(pulse,), name=f"fleet-worker-{seat.index}")
            seat.process.start()
            seat.began = now

    def _end(self) -> None:
        running = [seat.process for seat in self._seats if seat.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._drain_s + _GRACE_S
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                log.error("worker pid %s does not end; killed", process.pid)
                process.kill()
                process.join()
            process.close()


def _work(pulse: Pulse) -> None:
    """The child: a fresh interpreter."""
    settings = Settings()
    configure(settings.server)
    end_with_parent()
    SHUTDOWN_LOG.mute()
    try:
        work(settings, pulse)
    except SightlineError as error:
        log.critical("%s", error)
        raise SystemExit(1) from None


def close_account(account: Path) -> None:
    """What a worker had in hand when it died counts as dropped, in its own counters' file: the counts add up at once,
    not only when another worker has its seat. Whoever claims a frame counts it as received again.
    """
    if not account.exists():  # it died before it counted anything
        return
    counts = {"received": 0.0, "processed": 0.0, "dropped": 0.0, "failed": 0.0}
    for metric in MultiProcessCollector.merge([str(account)], accumulate=True):  # type: ignore[no-untyped-call]
        word = metric.name.removeprefix("sightline_frames_")
        for sample in metric.samples:
            if word in counts and sample.labels.get("door") == DOOR:
                counts[word] += sample.value
    left = counts["received"] - counts["processed"] - counts["dropped"] - counts["failed"]
    if left > 0:
        (dropped,) = metrics.FRAMES_DROPPED.describe()
        labels = ["door", "reason"], [DOOR, "worker_died"]
        key = mmap_key(dropped.name, f"{dropped.name}_total", *labels, dropped.documentation)
        with closing(MmapedDict(str(account))) as written:  # type: ignore[no-untyped-call]
            before, _ = written.read_value(key)  # type: ignore[no-untyped-call]
            written.write_value(key, before + left, 0.0)  # type: ignore[no-untyped-call]
