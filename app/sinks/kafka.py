"""The sink `kafka`: each message to KAFKA_TOPIC, with its stream as the key, through one client (librdkafka).

The client delivers on its own threads; one thread of ours serves its callbacks, and sends again what it could not take.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app import metrics
from app.errors import ConfigurationError
from app.settings import KafkaSettings
from app.sinks.sink import STUCK_S, Done, Outcome, ResultSink, SinkHost, SinkMessage

log = logging.getLogger(__name__)

_POLL_S = 0.01
_LIBRARY_LOG = logging.getLogger("librdkafka")
_MESSAGE_TIMEOUT_MS = {"hold": 0, "ack": 5_000}
"""Milliseconds after which Kafka's client gives up a message, by KAFKA_FAILURE_POLICY. 0: never, because a message that
is given up and sent again would arrive after newer ones of its stream. The feeds limit the messages that wait.
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

_Entry = tuple[SinkMessage, Done]


class KafkaSink(ResultSink):
    """Delivers messages to Kafka. KAFKA_FAILURE_POLICY decides what happens while Kafka is away.

    Raises:
        ConfigurationError: KAFKA_OPTIONS or KAFKA_BOOTSTRAP_SERVERS are wrong.
    """

    name = "kafka"
    window = 2048

    def __init__(self, host: SinkHost) -> None:
        super().__init__(host)
        settings = host.settings.kafka
        self._topic = settings.kafka_topic
        self._holds = settings.kafka_failure_policy == "hold"
        self.producer = _producer(settings, client=f"sightline-{host.entry}", on_error=self._heard)
        """Kafka's client."""
        self._changed = threading.Condition()
        self._again: deque[_Entry] = deque()
        """Messages that Kafka's client could not deliver; sent before those of `_queue`."""
        self._queue: deque[_Entry] = deque()
        """Messages that Kafka's client did not take yet."""
        self._unfinished = 0
        """Messages that are not done."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="kafka-poll", daemon=True)
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
        stuck = time.monotonic() - self._moved > STUCK_S
        return not (self._undelivered or stuck or (self._down and self._unfinished))

    @property
    def error(self) -> str:
        if self.up:
            return ""
        return self._last_error or f"no message was delivered for {STUCK_S:g} s"

    @property
    def blocked(self) -> bool:
        return bool(self._queue or self._again) or (self._undelivered and self._holds)

    def start(self) -> None:
        self._thread.start()

    def send(self, message: SinkMessage, done: Done) -> None:
        with self._changed:
            self._queue.append((message, done))
            self._unfinished += 1
        self._produce()

    def close(self, timeout_s: float) -> None:
        with self._changed:
            finished = self._changed.wait_for(lambda: not self._unfinished, timeout_s)
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if finished:
            self.producer.flush(1)
        else:
            # Another process may deliver these results, so no message of this one may follow.
            self.producer.purge()

    def _produce(self) -> None:
        """Gives Kafka's client all messages that it takes, in their order."""
        finished: list[tuple[Done, Outcome]] = []
        with self._changed:
            while queue := self._again or self._queue:
                message, done = queue[0]
                try:
                    self.producer.produce(
                        self._topic,
                        value=message.value,
                        key=message.stream,
                        on_delivery=partial(self._delivered, message, done),
                    )
                except BufferError:  # the client's queue is full
                    break
                except KafkaException as error:
                    outcome = self._judged(message, error.args[0])
                    if outcome is None:
                        break
                    finished.append((done, outcome))
                queue.popleft()
        self._finish(finished)

    def _judged(self, message: SinkMessage, error: KafkaError) -> Outcome | None:
        """The outcome of a message that was not delivered; None: it is sent again."""
        if error.code() in _PERMANENT:
            self._report(error, f"a result of {message.stream} is rejected for good: {error.str()}")
            return "rejected"
        self._undelivered = True
        self._report(error, f"a result of {message.stream} could not be delivered: {error.str()}")
        return None if self._holds else "given_up"

    def _finish(self, finished: list[tuple[Done, Outcome]]) -> None:
        if not finished:
            return
        for done, outcome in finished:
            done(outcome)
        with self._changed:
            self._unfinished -= len(finished)
            if not self._unfinished:
                self._changed.notify_all()

    # --- the thread, and Kafka's callbacks, which run in it ---

    def _guarded(self) -> None:
        try:
            while not self._stopping.is_set():
                self.producer.poll(_POLL_S)
                if self._queue or self._again:
                    self._produce()
                if not self._unfinished:
                    self._moved = time.monotonic()
        except Exception as error:  # without this thread no result would be delivered, and no error would show it
            log.exception("delivering results failed")
            self.host.on_fatal(f"delivering results failed: {type(error).__name__}: {error}")

    def _delivered(self, message: SinkMessage, done: Done, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._moved = time.monotonic()
            if self._logged:
                self._recovered()
            self._finish([(done, "delivered")])
            return
        outcome = self._judged(message, error)
        if outcome is None:
            with self._changed:
                self._again.append((message, done))
        else:
            self._finish([(done, outcome)])

    def _heard(self, error: KafkaError) -> None:
        """Handles an error of the connection."""
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            self._down = True
        self._report(error, error.str())
        if error.fatal():
            self.host.on_fatal(f"Kafka's client cannot go on: {error.str()}")

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


# --- Kafka's client ---


def _producer(settings: KafkaSettings, *, client: str, on_error: Callable[[KafkaError], None]) -> Producer:
    """A new client of Kafka. Unreachable brokers are not an error, because the client waits for them.

    Args:
        client: its name in Kafka's logs.
        on_error: called, from `poll`, with errors of the connection: a broker is unreachable, a password is wrong.

    Raises:
        ConfigurationError: KAFKA_OPTIONS or KAFKA_BOOTSTRAP_SERVERS are wrong.
    """
    # The library logs a line for every attempt to connect; the same errors reach `on_error`.
    _LIBRARY_LOG.setLevel(logging.CRITICAL)
    options = {"client.id": client, **producer_options(settings), "error_cb": on_error}
    try:
        return Producer(options, logger=_LIBRARY_LOG)
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
