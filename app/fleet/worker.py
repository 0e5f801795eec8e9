"""The worker of mode `async`: frames from the reader's thread, batches to the pipeline, answers to the sink."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable

from app.errors import SightlineError
from app.fleet.analysis import Analysis, Outcome, stream_settings
from app.fleet.batcher import Batcher, Limits, fitting, spans
from app.fleet.frames import CameraFrame
from app.fleet.inhand import InHand
from app.fleet.message import Failure, encode
from app.fleet.reader import Reader
from app.fleet.roster import lasting_ms
from app.fleet.sink import Answer, Sink
from app.fleet.source import PATIENCE, Source, consumer_name
from app.fleet.tally import Tally
from app.fleet.vitals import Pulse
from app.pipeline.multimodal import Pipeline
from app.settings import FleetSettings, Settings

log = logging.getLogger(__name__)

_BEAT_S = 1.0


def frames_in_hand(settings: FleetSettings) -> int:
    """Frames that a worker takes at most: those in batches at work, and as many again that wait for their turn."""
    _, high = spans(settings)
    return 2 * high.size * settings.fleet_batches_in_flight


def publish(sink: Sink, outcome: Outcome, worker: str) -> None:
    """Hands on what became of a frame: a value for Kafka, or only its acknowledgement where there is nothing to say."""
    origin = outcome.frame.origin
    if outcome.dropped is not None:
        sink.give_up(origin, outcome.dropped)
        return
    age_ms = max(0.0, time.time() * 1000 - origin.captured_at_ms)
    value = encode(origin, outcome.result, outcome.failure, worker=worker, age_ms=age_ms)
    sink.send(Answer(origin, value, _stage(outcome.failure)))


def beat(pulse: Pulse, source: Source, sink: Sink, *, inference: bool) -> None:
    """Says that the worker is at work, and what answers it."""
    pulse.beat(redis_says=source.says or sink.redis_says, kafka=sink.up, inference=inference)


def away(sink: Sink, *, inference: bool) -> dict[str, str]:
    """What `fleet top` is told: what the worker cannot reach, by name, each with why."""
    found = {"Kafka": sink.trouble, "Triton": "" if inference else "it does not answer"}
    return {name: why for name, why in found.items() if why}


def _stage(failure: Failure | None) -> str | None:
    """The stage that FRAMES_FAILED counts it under."""
    if failure is None:
        return None
    return "pipeline" if failure.code == "internal" else "inference"


class Worker:
    """One worker, from its first read to its last acknowledgement. Made inside a running event loop.

    Raises:
        ConfigurationError: settings of Redis or Kafka are no good.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, pulse: Pulse) -> None:
        fleet = settings.fleet
        self._name = consumer_name()
        self._pipeline = pipeline
        self._pulse = pulse
        self._most_batches = fleet.fleet_batches_in_flight
        self._drain_s = settings.server.drain_timeout_s
        self._low, self._high = spans(fleet)
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._moved = asyncio.Event()
        self._failure: str | None = None
        most = frames_in_hand(fleet)
        within_s = PATIENCE * fleet.frame_staleness_ms / 1000
        self._in_hand = InHand(most, least_frames=self._low.size, within_s=within_s)
        self._tally = Tally()
        self._analysis = Analysis(pipeline, fleet, stream_settings(fleet, settings.pipeline), self._tally.timed)
        self._source = Source(
            self._name,
            settings.redis,
            fleet,
            self._in_hand,
            self._tally,
            on_streams=lambda streams: self._soon(self._analysis.forget, streams),
            away=lambda: away(self._sink, inference=self._pipeline.client.up),
        )
        self._sink = Sink(
            self._name,
            settings.kafka,
            settings.redis,
            lasting_ms(fleet),
            self._in_hand,
            self._tally,
            on_fatal=self._fail,
        )
        self._reader = Reader(
            self._source,
            self._in_hand,
            least=max(1, most // 4),
            deliver=lambda frames: self._soon(self._arrived, frames),
            on_failure=self._fail,
        )
        self._batcher = Batcher()
        self._at_work = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Asks it to end; called in the event loop's thread."""
        self._stopping.set()

    def _fail(self, reason: str) -> None:
        """It cannot go on; called from any thread."""
        self._failure = reason
        self._soon(self._stopping.set)

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        """Calls it in the event loop's thread, in the order of these calls."""
        self._loop.call_soon_threadsafe(call, *arguments)

    async def run(self) -> None:
        """Works until `stop`: then reads no more, finishes what is in hand, and leaves nothing pending.

        Raises:
            ConfigurationError: Redis is too old, or the password wrong.
            SightlineError: it could not go on.
        """
        await asyncio.to_thread(self._source.check)
        self._sink.start()
        self._reader.start()
        beating = asyncio.create_task(self._beat(), name="beat")
        try:
            await self._stopping.wait()
        finally:
            await asyncio.shield(self._end(beating))
        if self._failure is not None:
            raise SightlineError(self._failure)

    async def _end(self, beating: asyncio.Task[None]) -> None:
        await asyncio.to_thread(self._reader.stop)
        await asyncio.to_thread(self._source.sign_off)
        self._analysis.stopping = True
        self._low = self._high = Limits(self._high.size, 0.0)  # nothing more comes: no batch waits for others
        self._pump()
        while self._at_work or len(self._batcher):
            self._moved.clear()
            await self._moved.wait()
        await asyncio.to_thread(self._sink.close, self._drain_s)
        await asyncio.to_thread(self._source.leave)
        beating.cancel()

    # --- in the event loop ---

    def _arrived(self, frames: list[CameraFrame]) -> None:
        self._batcher.add(frames)
        self._pump()

    def _pump(self) -> None:
        """Begins every batch that is due and has a place; sees to it that the next one is begun in time."""
        limits = fitting(self._low, self._high, len(self._batcher) + self._source.lag, self._most_batches)
        while self._at_work < self._most_batches:
            # A batch that the models were too small for is not tried again and again.
            size = min(limits.size, self._pipeline.most_together)
            batch = self._batcher.take(dataclasses.replace(limits, size=size), time.perf_counter())
            if not batch:
                break
            self._at_work += 1
            self._tally.batch(len(batch) / self._high.size)
            task = asyncio.create_task(self._answer(batch))
            self._tasks.add(task)  # the loop itself keeps no hard reference
            task.add_done_callback(self._tasks.discard)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._batcher.due(limits)
        if due is not None and self._at_work < self._most_batches:
            self._timer = self._loop.call_later(max(0.0, due - time.perf_counter()), self._pump)

    async def _answer(self, batch: list[CameraFrame]) -> None:
        try:
            for outcome in await self._analysis.of(batch):
                publish(self._sink, outcome, self._name)
        except Exception as error:  # an answer that cannot be written down: ours to mend, and no frame may be lost
            log.exception("answers could not be handed on")
            self._fail(f"answers could not be handed on: {type(error).__name__}: {error}")
        finally:
            self._at_work -= 1
            self._in_hand.looked_at(batch)
            self._batcher.done(batch)
            self._pump()
            self._moved.set()

    async def _beat(self) -> None:
        while True:
            beat(self._pulse, self._source, self._sink, inference=self._pipeline.client.up)
            await asyncio.sleep(_BEAT_S)
