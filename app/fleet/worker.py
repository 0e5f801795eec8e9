"""One worker: frames from the consumer's thread, batches through the pipeline, results to the sinks.

FLEET_MODE=sync is the same worker with batches of one frame, FLEET_THREADS of them at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.errors import SightlineError
from app.fleet.analysis import Analysis, FrameOutcome, stream_settings
from app.fleet.batcher import BatchLimits, MicroBatcher, batch_limits, fit_limits
from app.fleet.connection import ERROR_WORDS
from app.fleet.consumer import LAG_SHARE, Consumer, ConsumerThread, consumer_name
from app.fleet.delivery import Delivery, Failure, FrameMessage, encode_value
from app.fleet.in_flight import InFlight, MetricsBuffer
from app.fleet.membership import lease_ms
from app.fleet.streams import CameraFrame
from app.pipeline.multimodal import Pipeline
from app.settings import Settings
from app.sinks import open_sinks

log = logging.getLogger(__name__)

SILENT_S = 15.0
"""A worker without a heartbeat for this long counts as hanging."""
_BEAT_S = 1.0
_FIELDS = 5
_TITLES = {"kafka": "Kafka"}
DEFAULT_SINKS = ("kafka",)
"""The fleet's sinks where RESULT_SINKS is unset."""


class Worker:
    """One worker, from its first read to its last acknowledgement. Created inside a running event loop.

    Raises:
        ConfigurationError: the settings of Redis or of a sink are wrong.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, heartbeat: WorkerHeartbeat) -> None:
        fleet = settings.fleet
        self._name = consumer_name()
        self._pipeline = pipeline
        self._heartbeat = heartbeat
        if fleet.fleet_mode == "sync":
            self._low = self._high = BatchLimits(1, 0.0)
            self._most_batches = least_frames = fleet.fleet_threads
        else:
            self._low, self._high = batch_limits(fleet)
            self._most_batches, least_frames = fleet.fleet_batches_in_flight, self._low.size
        # The frames in batches at work, and as many again that wait for their turn.
        most_frames = 2 * self._high.size * self._most_batches
        self._drain_s = settings.server.drain_timeout_s
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._moved = asyncio.Event()
        self._failure: str | None = None
        within_s = LAG_SHARE * fleet.frame_staleness_ms / 1000
        self.in_flight = InFlight(most_frames, least_frames=least_frames, within_s=within_s)
        self._counts = MetricsBuffer()
        self._analysis = Analysis(pipeline, fleet, stream_settings(fleet, settings.pipeline), self._counts.timed)
        self._consumer = Consumer(
            self._name,
            settings.redis,
            fleet,
            self.in_flight,
            self._counts,
            on_streams=lambda streams: self._soon(self._analysis.keep_only, streams),
            away=self._away,
        )
        self._sinks = open_sinks(settings, "fleet", DEFAULT_SINKS, on_fatal=self._fail)
        self._delivery = Delivery(
            self._name,
            self._sinks,
            settings.redis,
            lease_ms(fleet),
            self.in_flight,
            self._counts,
            on_fatal=self._fail,
        )
        self._thread = ConsumerThread(
            self._consumer,
            self.in_flight,
            least=max(1, most_frames // 4),
            deliver=lambda frames: self._soon(self._arrived, frames),
            on_failure=self._fail,
        )
        self._batcher = MicroBatcher()
        self._at_work = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Asks the worker to end; called in the event loop's thread."""
        self._stopping.set()

    def _fail(self, reason: str) -> None:
        """Ends the worker with an error; called from any thread."""
        self._failure = reason
        self._soon(self._stopping.set)

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        """Calls it in the event loop's thread, in the order of these calls."""
        self._loop.call_soon_threadsafe(call, *arguments)

    def _away(self) -> dict[str, str]:
        """The services that this worker cannot reach, with the reason, for `fleet top`."""
        services = {_TITLES.get(sink, sink): error for sink, error in self._sinks.errors().items()}
        if not self._pipeline.client.up:
            services["Triton"] = "it does not answer"
        return services

    async def run(self) -> None:
        """Works until `stop`; then reads no more, finishes the frames in flight, and leaves nothing pending.

        Raises:
            ConfigurationError: Redis is too old, or its password is wrong.
            SightlineError: the worker could not go on.
        """
        await asyncio.to_thread(self._consumer.check)
        self._delivery.start()
        self._thread.start()
        beating = asyncio.create_task(self._beat(), name="heartbeat")
        try:
            await self._stopping.wait()
        finally:
            await asyncio.shield(self._end(beating))
        if self._failure is not None:
            raise SightlineError(self._failure)

    async def _end(self, beating: asyncio.Task[None]) -> None:
        await asyncio.to_thread(self._thread.stop)
        await asyncio.to_thread(self._consumer.sign_off)
        self._analysis.stopping = True
        self._low = self._high = BatchLimits(self._high.size, 0.0)  # no batch waits, because no more frames come
        self._pump()
        while self._at_work or len(self._batcher):
            self._moved.clear()
            await self._moved.wait()
        await asyncio.to_thread(self._delivery.close, self._drain_s)
        await asyncio.to_thread(self._consumer.leave)
        beating.cancel()

    # --- in the event loop ---

    def _arrived(self, frames: list[CameraFrame]) -> None:
        self._batcher.add(frames)
        self._pump()

    def _pump(self) -> None:
        """Starts all batches that are due, up to the limit of running batches, and sets the timer for the next one."""
        limits = fit_limits(self._low, self._high, len(self._batcher) + self._consumer.lag, self._most_batches)
        while self._at_work < self._most_batches:
            # `most_together` is the largest batch that the models have not refused.
            size = min(limits.size, self._pipeline.most_together)
            batch = self._batcher.take(dataclasses.replace(limits, size=size), time.perf_counter())
            if not batch:
                break
            self._at_work += 1
            self._counts.batch(len(batch) / self._high.size)
            task = asyncio.create_task(self._analyze(batch))
            self._tasks.add(task)  # the event loop keeps no hard reference
            task.add_done_callback(self._tasks.discard)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._batcher.due(limits)
        if due is not None and self._at_work < self._most_batches:
            self._timer = self._loop.call_later(max(0.0, due - time.perf_counter()), self._pump)

    async def _analyze(self, batch: list[CameraFrame]) -> None:
        try:
            for outcome in await self._analysis.analyze(batch):
                self._publish(outcome)
        except Exception as error:  # a result that cannot be encoded is a bug: the worker ends, and no frame is lost
            log.exception("results could not be handed on")
            self._fail(f"results could not be handed on: {type(error).__name__}: {error}")
        finally:
            self._at_work -= 1
            self.in_flight.analyzed(batch)
            self._batcher.done(batch)
            self._pump()
            self._moved.set()

    def _publish(self, outcome: FrameOutcome) -> None:
        """Sends a frame's result to the sinks; a dropped frame is only acknowledged."""
        origin = outcome.frame.origin
        if outcome.dropped is not None:
            self._delivery.drop(origin, outcome.dropped)
            return
        age_ms = max(0.0, time.time() * 1000 - origin.captured_at_ms)
        value = encode_value(origin, outcome.result, outcome.failure, worker=self._name, age_ms=age_ms)
        self._delivery.send(FrameMessage(origin, value, _failed_stage(outcome.failure)))

    async def _beat(self) -> None:
        while True:
            down = self._sinks.errors()
            self._heartbeat.beat(
                redis_error=self._consumer.redis_error or self._delivery.redis_error,
                kafka="kafka" not in down,
                sinks=not down,
                inference=self._pipeline.client.up,
            )
            await asyncio.sleep(_BEAT_S)


def _failed_stage(failure: Failure | None) -> str | None:
    """The label `stage` of FRAMES_FAILED."""
    if failure is None:
        return None
    return "pipeline" if failure.code == "internal" else "inference"


# --- heartbeats ---


class WorkerHeartbeats:
    """The last heartbeat of each worker, for /health. Shared by a parent and its worker processes, which get it at
    their start.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        context = multiprocessing.get_context("spawn")
        # Each worker writes its own cells, one double at a time, so that no lock is needed.
        self._cells: Any = context.Array("d", _FIELDS * workers, lock=False)

    def of(self, worker: int) -> WorkerHeartbeat:
        return WorkerHeartbeat(self._cells, worker)

    def report(self) -> dict[str, Any]:
        """The body of /health. `state`: ok, starting, degraded (a service cannot be reached) or silent (a worker hangs,
        or has ended).
        """
        workers = [self._worker(index) for index in range(self.workers)]
        states = [worker["state"] for worker in workers]
        worst = max(states, key=("ok", "degraded", "starting", "silent").index)
        return {"state": worst, "workers": workers}

    def _worker(self, index: int) -> dict[str, Any]:
        at, word, kafka, sinks, inference = self._cells[_FIELDS * index : _FIELDS * (index + 1)]
        redis_error = ERROR_WORDS[int(word)]
        reached = {
            "redis": at > 0 and not redis_error,
            "kafka": bool(kafka),
            "sinks": bool(sinks),
            "inference": bool(inference),
        }
        age_s = time.monotonic() - at
        if at == 0.0:
            state = "starting"
        elif age_s > SILENT_S:
            state = "silent"
        else:
            state = "ok" if all(reached.values()) else "degraded"
        return {"state": state, "age_s": round(age_s, 1) if at else None, **reached, "redis_says": redis_error or None}


@dataclass(frozen=True, slots=True)
class WorkerHeartbeat:
    """One worker's cells: the time, the number of Redis' error word, whether Kafka, all sinks and inference work."""

    cells: Any
    worker: int

    def beat(self, *, redis_error: str = "", kafka: bool, inference: bool, sinks: bool = True) -> None:
        """Records that the worker is alive, and which services it reaches.

        Args:
            redis_error: one of `connection.ERROR_WORDS`; empty: Redis answers.
            kafka: whether Kafka takes results; True if it is no sink.
            sinks: whether all sinks do.
        """
        start, word = _FIELDS * self.worker, float(ERROR_WORDS.index(redis_error))
        # `time.monotonic` is the same clock in all processes of a machine (CLOCK_MONOTONIC).
        self.cells[start : start + _FIELDS] = [time.monotonic(), word, float(kafka), float(sinks), float(inference)]

    def clear(self) -> None:
        """Records that the worker is being started."""
        start = _FIELDS * self.worker
        self.cells[start : start + _FIELDS] = [0.0] * _FIELDS
