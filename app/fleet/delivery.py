"""Results to the sinks and acknowledgements to Redis: a frame is acknowledged once every sink has its result.

Delivery is at least once. The analysis only hands results over; `Delivery` has the threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import redis

from app import metrics
from app.fleet.connection import Outage, connect
from app.fleet.in_flight import ENTRY_POINT, InFlight, MetricsBuffer
from app.fleet.leases import Leases
from app.fleet.streams import FrameOrigin, Keys
from app.protocol.result import FrameResult
from app.settings import RedisSettings
from app.sinks import Outcomes, SinkMessage, Sinks

log = logging.getLogger(__name__)

SCHEMA = "sightline.frame.v1"
_POLL_S = 0.01
_RENEWALS = 6
"""How often a lease is renewed within its own duration."""
_RETRY_S = 0.01
"""Seconds before Redis is asked again whether a camera is still this worker's."""
_ACK_PERIOD_S = 0.02
_MANY_ACKS = 128
_MOST_ACKS = 1024
_FENCED_RESULT = metrics.FLEET_FENCED.labels("answer")
_FENCED_ACK = metrics.FLEET_FENCED.labels("acknowledgement")


# --- the value of a message ---


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a frame has no complete result."""

    code: str
    """`inference` (a model failed or timed out), `inference_unavailable`, or `internal`."""
    message: str


def encode_value(
    origin: FrameOrigin, result: FrameResult | None, failure: Failure | None, *, worker: str, age_ms: float
) -> bytes:
    """The value of one frame's message, as JSON.

    An analysed frame has the fields of its `FrameResult` and `error: null`. A failed frame has `error` with `code` and
    `message`, and the fields of its result that exist.

    `frame_id` is the entry's id in Redis: unique within its camera and increasing. Delivery is at least once; consumers
    recognise a duplicate by camera and `frame_id`. `epoch` grows whenever another worker takes the camera: a message
    with a lower epoch than one seen before comes from a worker that has lost the camera, and may be discarded.
    """
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "camera_id": origin.camera_id,
        "camera_type": origin.camera_type,
        "frame_id": origin.entry,
        "epoch": origin.epoch,
        "captured_at_ms": origin.captured_at_ms,
        "age_ms": round(age_ms, 3),
        "worker": worker,
        "error": failure,
    }
    if result is not None:
        value |= result.values()
    return orjson.dumps(value)


@dataclass(frozen=True, slots=True)
class FrameMessage:
    """One frame's message for the sinks, and the stage under which the frame counts as failed once it is delivered."""

    origin: FrameOrigin
    value: bytes
    failed_stage: str | None = None
    """None: the frame counts as processed."""


# --- delivery ---


class Delivery:
    """Delivers messages to the sinks and acknowledges their frames, from `start` to `close`.

    One thread asks Redis whether the results' cameras are still this worker's, and hands those results to the sinks;
    another acknowledges.

    Args:
        name: the worker's name.
        sinks: not started yet; `close` closes them.
        lease_ms: how long a lease lasts.
        on_fatal: called from one of the threads when nothing can be delivered any more; the worker has to end.

    Raises:
        ConfigurationError: the settings of Redis are wrong.
    """

    def __init__(
        self,
        name: str,
        sinks: Sinks,
        settings: RedisSettings,
        lease_ms: float,
        in_flight: InFlight,
        counts: MetricsBuffer,
        *,
        on_fatal: Callable[[str], None],
    ) -> None:
        self.sinks = sinks
        self._feed = sinks.feed(ENTRY_POINT)
        self._in_flight = in_flight
        self._counts = counts
        self._on_fatal = on_fatal
        keys = Keys.of(settings)
        self._client, ack_client = connect(settings), connect(settings)
        self._leases = Leases(self._client, name, keys, lease_ms)
        self._lease_s = lease_ms / 1000
        self._renewal_s = self._lease_s / _RENEWALS
        self._acks = Acknowledgements(ack_client, Leases(ack_client, name, keys, lease_ms), in_flight)
        self._outage = Outage("results")
        self._changed = threading.Condition()
        self._new: deque[FrameMessage] = deque()
        """Messages whose cameras were not checked yet."""
        self._queue: deque[FrameMessage] = deque()
        """Messages that wait because Redis did not answer."""
        self._held_up = False
        """Whether `_queue` was not empty after the last check."""
        self._pausing = False
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._send,), name="delivery-send", daemon=True),
            threading.Thread(target=self._guarded, args=(self._serve,), name="delivery-acknowledge", daemon=True),
        ]

    @property
    def redis_error(self) -> str:
        """The last error word (`connection.ERROR_WORDS`) of a lease or an acknowledgement; empty: Redis answers."""
        return self._outage.word or self._acks.redis_error

    def start(self) -> None:
        self.sinks.start()
        for thread in self._threads:
            thread.start()

    def send(self, message: FrameMessage) -> None:
        """Hands a message over; takes microseconds. Any thread may call it, but only one at a time for a camera."""
        with self._changed:
            self._new.append(message)
            if len(self._new) == 1:
                self._changed.notify_all()

    def drop(self, origin: FrameOrigin, reason: str) -> None:
        """Counts a frame without a message as dropped, and acknowledges it."""
        self._counts.dropped(reason)
        self._acks.add(origin, delivered=False)

    def close(self, timeout_s: float) -> bool:
        """Waits until everything is delivered and acknowledged; returns False if it was not within `timeout_s`.

        Frames that are left stay pending in Redis, and another worker claims them.
        """
        done = self._in_flight.wait_until_empty(timeout_s)
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self.sinks.close(1.0 if done else 0.0)
        if not done:
            self._acks.flush(last=True)
            self._count_left()
        self._acks.close()
        self._client.close()
        self._counts.flush()
        return done

    def _count_left(self) -> None:
        """Counts the frames that are left as dropped. Those that only lack the acknowledgement were counted before."""
        if unacknowledged := len(self._acks):
            log.warning(
                "%d frames stay pending in Redis, because Redis did not take their acknowledgements", unacknowledged
            )
        if (left := len(self._in_flight) - unacknowledged) > 0:
            log.warning("%d frames stay pending in Redis, because their results could not be delivered in time", left)
            self._counts.dropped("left_pending", left)

    # --- the threads ---

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # without this thread no result would be delivered, and no error would show it
            log.exception("delivering results failed")
            self._on_fatal(f"delivering results failed: {type(error).__name__}: {error}")

    def _serve(self) -> None:
        while not self._stopping.wait(_POLL_S):
            self._acks.flush()
            self._counts.tick()
            # Reading pauses while a message waits for Redis, or a sink is down and holds its messages.
            pausing = self._held_up or self.sinks.blocked
            if pausing != self._pausing:
                self._pausing = pausing
                self._in_flight.pause(pausing)

    def _send(self) -> None:
        renewed = time.monotonic()
        while True:
            with self._changed:
                if not self._new:
                    self._changed.wait(_RETRY_S if self._queue else self._renewal_s)
                if self._stopping.is_set():
                    return
                self._queue += self._new
                self._new.clear()
                messages = list(self._queue)
            if messages or time.monotonic() - renewed >= self._renewal_s:
                if self._outage.paused:
                    time.sleep(_RETRY_S)
                elif self._send_held(messages):
                    renewed = time.monotonic()
            self._held_up = bool(self._queue)

    def _send_held(self, messages: list[FrameMessage]) -> bool:
        """Renews the lease, and gives the sinks the messages whose cameras are still this worker's. Returns False if
        Redis could not be asked.
        """
        holds = {(message.origin.stream, message.origin.epoch) for message in messages}
        try:
            asked = time.clock_gettime(time.CLOCK_BOOTTIME)
            lost = self._leases.keep(holds)
        except redis.RedisError as error:
            self._outage.failed(error)
            self._client.connection_pool.disconnect()
            return False
        self._outage.recovered()
        for message in messages:
            origin = message.origin
            if (origin.stream, origin.epoch) in lost:
                _FENCED_RESULT.inc()
                self._counts.dropped("fenced")
                self._in_flight.acknowledged([origin])
            elif time.clock_gettime(time.CLOCK_BOOTTIME) - asked > self._lease_s:
                break  # this process stood still after it asked Redis, so it asks again
            else:
                name = f"{origin.camera_id}/{origin.entry}"
                self._feed.send(SinkMessage(origin.camera_id, name, message.value), partial(self._done, message))
            self._queue.popleft()
        return True

    def _done(self, message: FrameMessage, outcomes: Outcomes) -> None:
        """Counts and acknowledges a frame once no sink has anything to do for its message any more."""
        origin, reached = message.origin, set(outcomes.values())
        if "left" in reached:
            return  # it stays pending, and another worker delivers it
        if "delivered" in reached:
            if message.failed_stage is None:
                self._counts.processed(max(0.0, time.time() - origin.captured_at_ms / 1000))
            else:
                self._counts.failed(message.failed_stage)
            self._acks.add(origin, delivered=True)
            return
        sink, outcome = next(iter(outcomes.items()))
        if outcome == "rejected":
            self._counts.failed(sink)
            self._acks.add(origin, delivered=False)
        else:
            self.drop(origin, f"{sink}_unavailable")


class Acknowledgements:
    """Acknowledges frames in Redis, many in one command. Any thread may add; one thread flushes.

    Acknowledgements that Redis does not take are kept and sent later.
    """

    def __init__(self, client: redis.Redis, leases: Leases, in_flight: InFlight) -> None:
        """`client`: the client of `leases`; `close` closes it."""
        self._client = client
        self._leases = leases
        self._in_flight = in_flight
        self._outage = Outage("acknowledgements")
        self._lock = threading.Lock()
        self._waiting: list[tuple[FrameOrigin, bool]] = []
        self._flushed = 0.0

    def __len__(self) -> int:
        """Entries that are not acknowledged yet."""
        return len(self._waiting)

    @property
    def redis_error(self) -> str:
        """The last error word (`connection.ERROR_WORDS`); empty: Redis took the last acknowledgements."""
        return self._outage.word

    def add(self, origin: FrameOrigin, *, delivered: bool) -> None:
        """Queues the acknowledgement of a frame. `delivered`: a sink has its result."""
        with self._lock:
            self._waiting.append((origin, delivered))

    def flush(self, *, last: bool = False) -> None:
        """Sends the waiting acknowledgements if the last flush was long enough ago, if many wait, or if `last`."""
        if not self._waiting or (self._outage.paused and not last):
            return
        if len(self._waiting) < _MANY_ACKS and time.monotonic() - self._flushed < _ACK_PERIOD_S and not last:
            return
        with self._lock:
            sending, self._waiting = self._waiting[:_MOST_ACKS], self._waiting[_MOST_ACKS:]
        try:
            lost = self._leases.acknowledge(origin for origin, _ in sending)
        except redis.RedisError as error:  # unreachable, or READONLY and the like, for example during a failover
            self._retry_later(sending, error)
            return
        self._flushed = time.monotonic()
        # If another worker has taken the camera, it publishes the frame once more.
        _FENCED_ACK.inc(sum(delivered and (origin.stream, origin.epoch) in lost for origin, delivered in sending))
        self._in_flight.acknowledged([origin for origin, _ in sending])
        self._outage.recovered()

    def _retry_later(self, sending: list[tuple[FrameOrigin, bool]], error: Exception) -> None:
        self._outage.failed(error)
        self._client.connection_pool.disconnect()  # the address may mean another server by now
        with self._lock:
            self._waiting[:0] = sending

    def close(self) -> None:
        self._client.close()
