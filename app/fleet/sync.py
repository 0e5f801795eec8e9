"""The worker of mode `sync`: a plain blocking loop over a pool of threads, a frame a thread, no event loop.

For models on the CPU, where a batch gains nothing and threads are what runs in parallel.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from app.errors import ConfigurationError, ModelRejected, SightlineError
from app.fleet.batcher import Batcher, Limits
from app.fleet.frames import CameraFrame
from app.fleet.inhand import InHand
from app.fleet.roster import lasting_ms
from app.fleet.single import SingleAnalysis
from app.fleet.sink import Sink
from app.fleet.source import PATIENCE, Source, consumer_name
from app.fleet.tally import Tally
from app.fleet.vitals import Pulse
from app.fleet.worker import away, beat, publish
from app.inference.blocking import BlockingClient
from app.settings import Settings

log = logging.getLogger(__name__)

_ONE = Limits(1, 0.0)
_PATIENCE_S = 0.1
_BEAT_S = 1.0


class SyncWorker:
    """One worker, from its first read to its last acknowledgement.

    Raises:
        ConfigurationError: a setting is wrong, or not to be had in this mode.
    """

    def __init__(self, url: str, settings: Settings, pulse: Pulse) -> None:
        fleet = settings.fleet
        if "ocr" in fleet.fleet_stages:
            raise ConfigurationError(f"FLEET_STAGES='{','.join(fleet.fleet_stages)}': `ocr` wants FLEET_MODE=async")
        self._name = consumer_name()
        self._pulse = pulse
        self._threads = fleet.fleet_threads
        self._drain_s = settings.server.drain_timeout_s
        self._stopping = threading.Event()
        self._failure: str | None = None
        within_s = PATIENCE * fleet.frame_staleness_ms / 1000
        self._in_hand = InHand(2 * fleet.fleet_threads, least_frames=fleet.fleet_threads, within_s=within_s)
        self._tally = Tally()
        self._client = BlockingClient(url, settings.triton)
        self._analysis = SingleAnalysis(self._client, settings, self._tally.timed)
        self._source = Source(
            self._name,
            settings.redis,
            fleet,
            self._in_hand,
            self._tally,
            on_streams=self._analysis.forget,
            away=lambda: away(self._sink, inference=self._client.up),
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
        self._lines = Batcher()
        """Frames by camera: one of each at a time, as in the other mode."""
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Asks it to end; any thread, and signal handlers, may call it."""
        self._stopping.set()

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._stopping.set()

    def run(self) -> None:
        """Works until `stop`: then reads no more, finishes what is in hand, and leaves nothing pending.

        Raises:
            ConfigurationError: Redis is too old, or a model cannot be read.
            SightlineError: it could not go on.
        """
        self._source.check()
        try:
            self._analysis.load()
        except ModelRejected as error:
            raise ConfigurationError(str(error)) from None
        self._sink.start()
        try:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="frame") as pool:
                try:
                    self._read(pool)
                finally:
                    self._source.sign_off()
                self._analysis.stopping = True
                while self._left():  # the pool takes what follows from its own threads
                    time.sleep(0.01)
        finally:
            self._sink.close(self._drain_s)
            self._source.leave()
            self._client.close()
        if self._failure is not None:
            raise SightlineError(self._failure)

    def _read(self, pool: ThreadPoolExecutor) -> None:
        beaten = 0.0
        while not self._stopping.is_set():
            frames = self._source.read(self._in_hand.room(1, _PATIENCE_S))
            if frames:
                with self._lock:
                    self._lines.add(frames)
                self._submit(pool)
            if time.monotonic() - beaten >= _BEAT_S:
                beaten = time.monotonic()
                beat(self._pulse, self._source, self._sink, inference=self._client.up)

    def _left(self) -> bool:
        with self._lock:
            return len(self._lines) > 0

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        """Hands every frame to the pool whose camera has none at work."""
        with self._lock:
            while batch := self._lines.take(_ONE, time.perf_counter()):
                pool.submit(self._answer, pool, batch)

    def _answer(self, pool: ThreadPoolExecutor, batch: list[CameraFrame]) -> None:
        try:
            (frame,) = batch
            publish(self._sink, self._analysis.of(frame), self._name)
        except Exception as error:
            log.exception("an answer could not be handed on")
            self._fail(f"an answer could not be handed on: {type(error).__name__}: {error}")
        finally:
            self._in_hand.looked_at(batch)
            with self._lock:
                self._lines.done(batch)
            self._submit(pool)
