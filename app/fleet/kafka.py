"""Results to Kafka and acknowledgements to Redis: an entry is acknowledged once Kafka has its result (at least once).

One thread asks Redis whether the results' cameras are still this worker's, and hands those results to Kafka's client;
another thread serves the client's callbacks and acknowledges. The analysis only hands results over.
"""

from __future__ import annotations

import json
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
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app import metrics
from app.errors import ConfigurationError
from app.fleet.connection import Outage, connect
from app.fleet.in_flight import InFlight, MetricsBuffer
from app.fleet.leases import Leases
from app.fleet.streams import FrameOrigin, Keys
from app.protocol.result import FrameResult
from app.settings import KafkaSettings, RedisSettings

log = logging.getLogger(__name__)

SCHEMA = "sightline.frame.v1"
_POLL_S = 0.01
_RENEWALS = 6
"""How often a lease is renewed within its own duration."""
_RETRY_S = 0.01
"""Seconds before a result is offered again to Kafka's client when its queue was full."""
_STUCK_S = 30.0
"""If results wait and none was delivered for this long, Kafka is down, whatever its client reports of the brokers."""
_ACK_PERIOD_S = 0.02
_MANY_ACKS = 128
_MOST_ACKS = 1024
_LIBRARY_LOG = logging.getLogger("librdkafka")
_MESSAGE_TIMEOUT_MS = {"hold": 0, "ack": 5_000}
"""Milliseconds after which Kafka's client gives up a message, by KAFKA_FAILURE_POLICY. 0: never, because a message that
is given up and sent again would arrive after newer ones of its camera. `InFlight` limits the messages that wait.
"""
_PERMANENT = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
    }
)
"""Errors of a message that Kafka will never take."""
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
    """The value of one frame's Kafka message, as JSON. The key is the camera's id.

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
class KafkaMessage:
    """One frame's message, and the stage under which the frame counts as failed once the message is delivered."""

    origin: FrameOrigin
    value: bytes
    failed_stage: str | None = None
    """None: the frame counts as processed."""


# --- the sink ---


class KafkaSink:
    """Delivers messages and acknowledges their frames, from `start` to `close`.

    Args:
        name: the worker's name.
        lease_ms: how long a lease lasts.
        on_fatal: called from one of the sink's threads when it can never send again; the worker has to end.

    Raises:
        ConfigurationError: the settings of Kafka or Redis are wrong.
    """

    def __init__(
        self,
        name: str,
        kafka: KafkaSettings,
        settings: RedisSettings,
        lease_ms: float,
        in_flight: InFlight,
        counts: MetricsBuffer,
        *,
        on_fatal: Callable[[str], None],
    ) -> None:
        self._topic = kafka.kafka_topic
        self._holds = kafka.kafka_failure_policy == "hold"
        self._in_flight = in_flight
        self._counts = counts
        self.producer = _producer(kafka, on_error=self._heard)
        """Kafka's client."""
        self._on_fatal = on_fatal
        keys = Keys.of(settings)
        self._client, ack_client = connect(settings), connect(settings)
        self._leases = Leases(self._client, name, keys, lease_ms)
        self._lease_s = lease_ms / 1000
        self._renewal_s = self._lease_s / _RENEWALS
        self._acks = Acknowledgements(ack_client, Leases(ack_client, name, keys, lease_ms), in_flight)
        self._outage = Outage("results")
        self._changed = threading.Condition()
        self._new: deque[KafkaMessage] = deque()
        """Messages that were not offered to Kafka's client yet."""
        self._queue: deque[KafkaMessage] = deque()
        """Messages that Kafka's client could not take yet, or could not deliver; sent before newer ones."""
        self._pausing = False
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._send,), name="kafka-send", daemon=True),
            threading.Thread(target=self._guarded, args=(self._serve,), name="kafka-poll", daemon=True),
        ]
        self._undelivered = False
        """Whether a message could not be delivered, and none was delivered since."""
        self._down = False
        """Whether no broker could be reached, or Kafka refused the login, and no message was delivered since."""
        self._moved = time.monotonic()
        """When a message was last delivered, or none waited."""
        self._last_error = ""
        """The last error of Kafka's client; empty after a delivery."""
        self._logged: set[str] = set()
        """Errors logged since the last delivery: during an outage several alternate, every second or two."""

    @property
    def up(self) -> bool:
        """Whether Kafka takes messages; True if there were none to deliver."""
        stuck = time.monotonic() - self._moved > _STUCK_S
        return not (self._undelivered or stuck or (self._down and len(self._in_flight)))

    @property
    def redis_error(self) -> str:
        """The last error word (`connection.ERROR_WORDS`) of a lease or an acknowledgement; empty: Redis answers."""
        return self._outage.word or self._acks.redis_error

    @property
    def error(self) -> str:
        """The last error of Kafka's client; empty while `up`."""
        if self.up:
            return ""
        return self._last_error or f"no message was delivered for {_STUCK_S:g} s"

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def send(self, message: KafkaMessage) -> None:
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
        if done:
            self.producer.flush(1)
        else:
            # The next worker of these cameras publishes the remaining frames, so no message of this one may follow.
            self.producer.purge()
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
        while not self._stopping.is_set():
            self.producer.poll(_POLL_S)
            if not len(self.producer):
                self._moved = time.monotonic()
            self._acks.flush()
            self._counts.tick()

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
            self._update_pause()

    def _send_held(self, messages: list[KafkaMessage]) -> bool:
        """Renews the lease, and gives Kafka's client the messages whose cameras are still this worker's. Returns False
        if Redis could not be asked.
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
            elif time.clock_gettime(time.CLOCK_BOOTTIME) - asked > self._lease_s or not self._produce(message):
                break  # this process stood still after it asked Redis, so it asks again; or the client's queue is full
            self._queue.popleft()
        return True

    def _update_pause(self) -> None:
        """Pauses reading while a message waits for Kafka's client, or could not be delivered."""
        pausing = bool(self._queue) or (self._undelivered and self._holds)
        if pausing != self._pausing:
            self._pausing = pausing
            self._in_flight.pause(pausing)

    def _produce(self, message: KafkaMessage) -> bool:
        """Returns whether Kafka's client took the message, or it is dropped."""
        try:
            self.producer.produce(
                self._topic,
                value=message.value,
                key=message.origin.camera_id,
                on_delivery=partial(self._delivered, message),
            )
        except BufferError:
            return False
        except KafkaException as error:
            return not self._retries(message, error.args[0])
        return True

    def _retries(self, message: KafkaMessage, error: KafkaError) -> bool:
        """Decides about a message that was not delivered: returns whether it is sent again; else counts it."""
        if error.code() in _PERMANENT:
            self._reject(message, error)
            return False
        self._undelivered = True
        self._report(error, f"a result of camera {message.origin.camera_id} could not be delivered: {error.str()}")
        if not self._holds:
            self.drop(message.origin, "kafka_unavailable")
        return self._holds

    def _delivered(self, message: KafkaMessage, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._moved = time.monotonic()
            if self._logged:
                self._recovered()
            if message.failed_stage is None:
                self._counts.processed(max(0.0, time.time() - message.origin.captured_at_ms / 1000))
            else:
                self._counts.failed(message.failed_stage)
            self._acks.add(message.origin, delivered=True)
        elif self._retries(message, error):
            self._queue.append(message)
            self._update_pause()

    def _reject(self, message: KafkaMessage, error: KafkaError) -> None:
        """Counts a message that Kafka will never take as failed, and acknowledges its frame."""
        self._report(error, f"a result of camera {message.origin.camera_id} is rejected for good: {error.str()}")
        self._counts.failed("kafka")
        self._acks.add(message.origin, delivered=False)

    def _heard(self, error: KafkaError) -> None:
        """Handles an error of the connection."""
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            self._down = True
        self._report(error, error.str())
        if error.fatal():
            self._on_fatal(f"Kafka's client cannot go on: {error.str()}")

    def _report(self, error: KafkaError, text: str) -> None:
        """Counts the error; logs each kind once until the next delivery."""
        self._last_error = error.str()
        metrics.KAFKA_ERRORS.labels(error.name().lstrip("_").lower()).inc()
        if error.name() not in self._logged:
            self._logged.add(error.name())
            log.warning("Kafka: %s", text)

    def _recovered(self) -> None:
        log.info("Kafka takes results again")
        self._undelivered = self._down = False
        self._last_error = ""
        self._logged.clear()
        self._update_pause()


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
        """Queues the acknowledgement of a frame. `delivered`: Kafka has its result."""
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


# --- Kafka's client ---


def _producer(settings: KafkaSettings, *, on_error: Callable[[KafkaError], None]) -> Producer:
    """A new client of Kafka. Unreachable brokers are not an error, because the client waits for them.

    Args:
        on_error: called, from `poll`, with errors of the connection: a broker is unreachable, a password is wrong.

    Raises:
        ConfigurationError: KAFKA_OPTIONS or KAFKA_BOOTSTRAP_SERVERS are wrong.
    """
    # The library logs a line for every attempt to connect; the same errors reach `on_error`.
    _LIBRARY_LOG.setLevel(logging.CRITICAL)
    try:
        return Producer({**producer_options(settings), "error_cb": on_error}, logger=_LIBRARY_LOG)
    except (KafkaException, ValueError) as error:
        raise ConfigurationError(
            f"KAFKA_BOOTSTRAP_SERVERS={settings.kafka_bootstrap_servers!r} with KAFKA_OPTIONS: {error}"
        ) from None


def producer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of librdkafka: idempotent, lz4, batches gathered for a few milliseconds; KAFKA_OPTIONS overrides them.

    Raises:
        ConfigurationError: KAFKA_OPTIONS is not a JSON object.
    """
    return {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": "sightline-fleet",
        "enable.idempotence": True,
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.timeout.ms": _MESSAGE_TIMEOUT_MS[settings.kafka_failure_policy],
        "retry.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        "log.connection.close": False,
        **_own_options(settings),
    }


def _own_options(settings: KafkaSettings) -> dict[str, Any]:
    wanted = 'want a JSON object of librdkafka options, for example {"security.protocol": "SASL_SSL"}'
    try:
        options = json.loads(settings.kafka_options.get_secret_value() or "{}")
    except ValueError as error:
        raise ConfigurationError(f"KAFKA_OPTIONS: {error}; {wanted}") from None
    if not isinstance(options, dict):
        raise ConfigurationError(f"KAFKA_OPTIONS: a {type(options).__name__}; {wanted}")
    return options
