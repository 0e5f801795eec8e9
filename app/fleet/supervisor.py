"""The process of `fleet work`: one worker in this process, or several in processes of their own.

Worker processes are started by spawn, never by fork, and started again when one dies.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import uvloop
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from app import metrics, metrics_server
from app.addresses import bracketed
from app.auth import Hosts
from app.errors import SightlineError
from app.files import writable_folder
from app.fleet.connection import check_redis
from app.fleet.in_flight import ENTRY_POINT
from app.fleet.worker import DEFAULT_SINKS, Worker, WorkerHeartbeat, WorkerHeartbeats
from app.inference.embedded import shared_triton
from app.limits import backoff_s
from app.logging import configure
from app.pipeline.registry import fleet_stages, load
from app.pipeline.startup import open_pipeline
from app.process import SHUTDOWN_LOG, end_with_parent, freeze_gc, stopping_on_signals, tune
from app.settings import Settings
from app.sinks import sink_classes

log = logging.getLogger(__name__)

YOUNG = 5_000
"""New objects that trigger a garbage collection: those of a few batches, of which all but one are garbage by then."""
_PAUSES_S = (0.5, 30.0)
_STEADY_S = 60.0
"""A worker that ran this long is restarted after the shortest pause."""
_POLL_S = 0.2
_GRACE_S = 10.0
"""Seconds beyond DRAIN_TIMEOUT_S after which a worker process is killed."""


def run() -> None:
    """Works until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: a setting is wrong, or this Redis cannot be used.
        SightlineError: the worker could not go on.
    """
    settings = Settings()
    configure(settings.server)
    check_redis(settings.redis)
    load(settings)
    fleet_stages(settings.fleet)
    sink_classes(settings, DEFAULT_SINKS)  # so that a sink which cannot be loaded stops the start
    if settings.fleet.fleet_processes > 1:
        _run_several(settings)
        return
    heartbeats = WorkerHeartbeats(1)
    with _serving_metrics(settings, heartbeats):
        worker_main(settings, heartbeats.of(0))
        SHUTDOWN_LOG.drained()
    SHUTDOWN_LOG.ended()


@contextmanager
def _serving_metrics(settings: Settings, heartbeats: WorkerHeartbeats) -> Iterator[None]:
    host = settings.server.host
    with metrics_server.serve_metrics(host, settings.fleet.metrics_port, heartbeats.report, Hosts(settings)) as port:
        log.info("metrics on http://%s:%d/metrics", bracketed(host), port)
        yield


class _StartInterrupted(BaseException):
    """A signal came while Triton was starting, which may take minutes."""


def _run_several(settings: Settings) -> None:
    """Runs several worker processes with one endpoint for their metrics and one embedded Triton."""
    shared = writable_folder(settings.server.state_dir, "STATE_DIR") / f"fleet-metrics-{os.getpid()}"
    metrics.share_between_workers(shared)
    heartbeats = WorkerHeartbeats(settings.fleet.fleet_processes)
    supervisor = WorkerSupervisor(settings, heartbeats, shared)
    starting = True

    def stop() -> None:
        nonlocal starting
        if starting:
            starting = False  # a second signal must not interrupt the shutdown that the first one begins
            raise _StartInterrupted
        supervisor.stop()

    try:
        with (
            suppress(_StartInterrupted),
            stopping_on_signals(stop),
            _serving_metrics(settings, heartbeats),
            shared_triton(settings.triton, settings.server.state_dir),
        ):
            starting = False
            supervisor.run()
        SHUTDOWN_LOG.drained()
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    SHUTDOWN_LOG.ended()


# --- one worker in this process ---


def worker_main(settings: Settings, heartbeat: WorkerHeartbeat) -> None:
    """Runs one worker in this process until SIGTERM or Ctrl-C.

    Raises:
        SightlineError: the worker could not go on.
    """
    tune()
    uvloop.run(_run_worker(settings, heartbeat))


async def _run_worker(settings: Settings, heartbeat: WorkerHeartbeat) -> None:
    loop = asyncio.get_running_loop()
    running = asyncio.current_task()
    assert running is not None
    # Nothing is in flight until the worker exists, so the start is cancelled: an embedded Triton may take minutes.
    stop: Callable[[], object] = running.cancel

    def on_signal() -> None:
        loop.call_soon_threadsafe(lambda: stop())

    with stopping_on_signals(on_signal), suppress(asyncio.CancelledError):
        load(settings)
        async with open_pipeline(settings, used=fleet_stages(settings.fleet)) as service:
            worker = Worker(service.pipeline, settings, heartbeat)
            freeze_gc(threshold=YOUNG)
            stop = worker.stop
            await worker.run()


# --- several worker processes ---


@dataclass(slots=True)
class WorkerSlot:
    """A place for one worker process, which may be empty until a restart is due."""

    index: int
    process: SpawnProcess | None = None
    began: float = 0.0
    failures: int = 0
    """Processes in a row that ended before `_STEADY_S`."""
    due: float = 0.0


class WorkerSupervisor:
    """Keeps one worker process running in each slot.

    Args:
        metrics_dir: PROMETHEUS_MULTIPROC_DIR, where the workers write their metrics.
    """

    def __init__(self, settings: Settings, heartbeats: WorkerHeartbeats, metrics_dir: Path) -> None:
        self._metrics_dir = metrics_dir
        self._drain_s = settings.server.drain_timeout_s
        self._heartbeats = heartbeats
        # CUDA contexts and the threads of gRPC and librdkafka do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._stopping = threading.Event()
        self._slots = [WorkerSlot(index) for index in range(heartbeats.workers)]

    def stop(self) -> None:
        """Asks all workers to end; signal handlers may call it."""
        self._stopping.set()

    def run(self) -> None:
        """Returns when all workers have ended after `stop`."""
        try:
            while not self._stopping.is_set():
                for slot in self._slots:
                    self._check(slot)
                wait([slot.process.sentinel for slot in self._slots if slot.process is not None], timeout=_POLL_S)
        finally:
            self._end()

    def _check(self, slot: WorkerSlot) -> None:
        """Clears the slot of a process that has ended, and starts a process in an empty slot when it is due."""
        now = time.monotonic()
        if slot.process is not None and slot.process.exitcode is not None:
            steady = now - slot.began > _STEADY_S
            slot.failures = 0 if steady else slot.failures + 1
            pause_s = backoff_s(slot.failures + 1, *_PAUSES_S)
            slot.due = now + pause_s
            log.error(
                "worker %d (pid %s) ended with %s; starting another in %.1f s",
                slot.index,
                slot.process.pid,
                slot.process.exitcode,
                pause_s,
            )
            count_lost_frames(self._metrics_dir / f"counter_{slot.process.pid}.db")
            slot.process.close()
            slot.process = None
        if slot.process is None and now >= slot.due:
            heartbeat = self._heartbeats.of(slot.index)
            heartbeat.clear()
            slot.process = self._context.Process(
                target=_worker_process, args=(heartbeat,), name=f"fleet-worker-{slot.index}"
            )
            slot.process.start()
            slot.began = now

    def _end(self) -> None:
        running = [slot.process for slot in self._slots if slot.process is not None]
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


def _worker_process(heartbeat: WorkerHeartbeat) -> None:
    """Runs in the worker process, a fresh interpreter."""
    settings = Settings()
    configure(settings.server)
    end_with_parent()
    SHUTDOWN_LOG.mute()
    try:
        worker_main(settings, heartbeat)
    except SightlineError as error:
        log.critical("%s", error)
        raise SystemExit(1) from None


def count_lost_frames(counters: Path) -> None:
    """Counts a dead worker's frames in flight as dropped, in the worker's own file of counters.

    So received = processed + dropped + failed holds at once, before another process has the slot. A worker that claims
    such a frame counts it as received again.
    """
    if not counters.exists():  # the worker died before it counted anything
        return
    counts = {"received": 0.0, "processed": 0.0, "dropped": 0.0, "failed": 0.0}
    for metric in MultiProcessCollector.merge([str(counters)], accumulate=True):  # type: ignore[no-untyped-call]
        outcome = metric.name.removeprefix("sightline_frames_")
        for sample in metric.samples:
            if outcome in counts and sample.labels.get("entry") == ENTRY_POINT:
                counts[outcome] += sample.value
    lost = counts["received"] - counts["processed"] - counts["dropped"] - counts["failed"]
    if lost > 0:
        (dropped,) = metrics.FRAMES_DROPPED.describe()
        labels = ["entry", "reason"], [ENTRY_POINT, "worker_died"]
        key = mmap_key(dropped.name, f"{dropped.name}_total", *labels, dropped.documentation)
        with closing(MmapedDict(str(counters))) as written:  # type: ignore[no-untyped-call]
            before, _ = written.read_value(key)  # type: ignore[no-untyped-call]
            written.write_value(key, before + lost, 0.0)  # type: ignore[no-untyped-call]
