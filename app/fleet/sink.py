"""Answers into Kafka, acknowledgements into Redis: an entry is acknowledged once Kafka has its answer (at least once).

One thread asks Redis whether answers' cameras are still this worker's, and gives those to Kafka's client; another one
serves the client's callbacks and acknowledges. Whoever analyses only hands answers over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import redis
from confluent_kafka import KafkaError, KafkaException, Message

from app import metrics
from app.fleet import producer
from app.fleet.acks import Acks
from app.fleet.connection import Outage, connect
from app.fleet.frames import Origin
from app.fleet.inhand import InHand
from app.fleet.keys import Keys
from app.fleet.leases import Leases
from app.fleet.tally import Tally
from app.settings import KafkaSettings, RedisSettings

log = logging.getLogger(__name__)

_POLL_S = 0.01
_RENEWALS = 6
"""Times that a lease is renewed while it lasts."""
_AGAIN_S = 0.01
"""Before Kafka's client, which was full, is given an answer again."""
_STUCK_S = 30.0
"""Answers wait, and none was delivered for so long: Kafka takes none, whatever its client says of the brokers."""


_NOT_SENT = metrics.FLEET_FENCED.labels("answer")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes to Kafka for one frame, and how the frame is counted once it is there."""

    origin: Origin
    value: bytes
    failed_stage: str | None = None
    """None: processed."""


class Sink:
    """Open from `start` to `close`.

    Args:
        name: the worker's.
        lasting_ms: how long a lease lasts.
        on_fatal: called from one of the sink's threads once it can never send again; the worker has to end.

    Raises:
        ConfigurationError: the settings of Kafka or Redis are no good.
    """

    def __init__(
        self,
        name: str,
        kafka: KafkaSettings,
        settings: RedisSettings,
        lasting_ms: float,
        in_hand: InHand,
        tally: Tally,
        *,
        on_fatal: Callable[[str], None],
    ) -> None:
        self._topic = kafka.kafka_topic
        self._holds = kafka.kafka_failure_policy == "hold"
        self._in_hand = in_hand
        self._tally = tally
        self._producer = producer.make(kafka, on_error=self._heard)
        self._on_fatal = on_fatal
        keys, clients = Keys.of(settings), (connect(settings), connect(settings))
        self._asking, telling = clients
        self._leases = Leases(self._asking, name, keys, lasting_ms)
        self._lasting_s = lasting_ms / 1000
        self._renewal_s = self._lasting_s / _RENEWALS
        self._acks = Acks(telling, Leases(telling, name, keys, lasting_ms), in_hand)
        self._outage = Outage("answers")
        self._changed = threading.Condition()
        self._next: deque[Answer] = deque()
        """What Kafka's client was not given yet."""
        self._again: deque[Answer] = deque()
        """What Kafka's client could not take yet, or could not deliver; sent before anything newer."""
        self._weighed = False
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._send,), name="answers", daemon=True),
            threading.Thread(target=self._guarded, args=(self._serve,), name="kafka", daemon=True),
        ]
        self._in_trouble = False
        """An answer could not be delivered, and none has been since."""
        self._down = False
        """No broker could be reached, and nothing has been delivered since."""
        self._moved = time.monotonic()
        """When an answer was delivered, or none waited, last."""
        self._heard_last = ""
        """What Kafka's client said last, until all was well again."""
        self._said: set[str] = set()
        """Troubles told since all was well: an outage is several, by turns, every second or two."""

    @property
    def up(self) -> bool:
        """Whether Kafka takes what it is given, as far as it was given anything."""
        stuck = time.monotonic() - self._moved > _STUCK_S
        return not (self._in_trouble or stuck or (self._down and len(self._in_hand)))

    @property
    def redis_says(self) -> str:
        """What Redis says where a lease is kept or an entry acknowledged (`connection.WORDS`); empty: it answers."""
        return self._outage.says or self._acks.says

    @property
    def trouble(self) -> str:
        """What is wrong with Kafka, in its client's words; empty while `up`."""
        if self.up:
            return ""
        return self._heard_last or f"no answer was delivered for {_STUCK_S:g} s"

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def send(self, answer: Answer) -> None:
        """Hands an answer over; takes microseconds. Any thread may call it, one at a time for a camera."""
        with self._changed:
            self._next.append(answer)
            if len(self._next) == 1:
                self._changed.notify_all()

    def give_up(self, origin: Origin, reason: str) -> None:
        """The frame gets no answer; it is counted as dropped and acknowledged."""
        self._tally.dropped(reason)
        self._acks.add(origin, answered=False)

    def close(self, timeout_s: float) -> bool:
        """Waits until everything is delivered and acknowledged, or until time is up; whether all was.

        What was not stays pending in Redis, where another worker claims it.
        """
        done = self._in_hand.until_empty(timeout_s)
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        if done:
            self._producer.flush(1)
        else:
            # Whoever has its cameras next answers what is left: nothing may come after that.
            self._producer.purge()
            self._acks.flush(last=True)
            self._leave()
        self._acks.close()
        self._asking.close()
        self._tally.flush()
        return done

    def _leave(self) -> None:
        """Counts what is given up. Whoever waits for its acknowledgement alone has been counted already."""
        if told := len(self._acks):
            log.warning("%d frames stay pending in Redis, which could not be told that they are done with", told)
        if (left := len(self._in_hand) - told) > 0:
            log.warning("%d frames stay pending in Redis: their answers could not be delivered in time", left)
            self._tally.dropped("left_pending", left)

    # --- the threads ---

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # nothing would be delivered any more, and nobody would know
            log.exception("handing on answers failed")
            self._on_fatal(f"handing on answers failed: {type(error).__name__}: {error}")

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(_POLL_S)
            if not len(self._producer):
                self._moved = time.monotonic()
            self._acks.flush()
            self._tally.tick()

    def _send(self) -> None:
        renewed = time.monotonic()
        while True:
            with self._changed:
                if not self._next:
                    self._changed.wait(_AGAIN_S if self._again else self._renewal_s)
                if self._stopping.is_set():
                    return
                self._again += self._next
                self._next.clear()
                answers = list(self._again)
            if answers or time.monotonic() - renewed >= self._renewal_s:
                if self._outage.resting:
                    time.sleep(_AGAIN_S)
                elif self._fence(answers):
                    renewed = time.monotonic()
            self._weigh()

    def _fence(self, answers: list[Answer]) -> bool:
        """Renews the lease; gives to Kafka's client those answers whose cameras are still this worker's. Whether Redis
        could be asked.
        """
        holds = {(one.origin.stream, one.origin.epoch) for one in answers}
        try:
            asked = time.clock_gettime(time.CLOCK_BOOTTIME)
            lost = self._leases.keep(holds)
        except redis.RedisError as error:
            self._outage.again(error)
            self._asking.connection_pool.disconnect()
            return False
        self._outage.ended()
        for answer in answers:
            origin = answer.origin
            if (origin.stream, origin.epoch) in lost:
                _NOT_SENT.inc()
                self._tally.dropped("fenced")
                self._in_hand.settle([origin])
            elif time.clock_gettime(time.CLOCK_BOOTTIME) - asked > self._lasting_s or not self._produce(answer):
                break  # this process stood still in between, and Redis is asked again; or the client is full
            self._again.popleft()
        return True

    def _weigh(self) -> None:
        """Nothing more is read while something waits to be sent, or could not be delivered."""
        held_up = bool(self._again) or (self._in_trouble and self._holds)
        if held_up != self._weighed:
            self._weighed = held_up
            self._in_hand.hold_up(held_up)

    def _produce(self, answer: Answer) -> bool:
        """Whether Kafka's client took it."""
        try:
            self._producer.produce(
                self._topic,
                value=answer.value,
                key=answer.origin.camera_id,
                on_delivery=partial(self._delivered, answer),
            )
        except BufferError:
            return False
        except KafkaException as error:
            return not self._keeps(answer, error.args[0])
        return True

    def _keeps(self, answer: Answer, error: KafkaError) -> bool:
        """What becomes of an answer that was not delivered: whether it is to be sent again."""
        if error.code() in producer.HOPELESS:
            self._refuse(answer, error)
            return False
        self._in_trouble = True
        self._tell(error, f"an answer of camera {answer.origin.camera_id} could not be delivered: {error.str()}")
        if not self._holds:
            self.give_up(answer.origin, "kafka_unavailable")
        return self._holds

    def _delivered(self, answer: Answer, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._moved = time.monotonic()
            if self._said:
                self._recovered()
            if answer.failed_stage is None:
                self._tally.processed(max(0.0, time.time() - answer.origin.captured_at_ms / 1000))
            else:
                self._tally.failed(answer.failed_stage)
            self._acks.add(answer.origin, answered=True)
        elif self._keeps(answer, error):
            self._again.append(answer)
            self._weigh()

    def _refuse(self, answer: Answer, error: KafkaError) -> None:
        """Kafka will never take this one."""
        self._tell(error, f"an answer of camera {answer.origin.camera_id} is refused for good: {error.str()}")
        self._tally.failed("kafka")
        self._acks.add(answer.origin, answered=False)

    def _heard(self, error: KafkaError) -> None:
        """What concerns the connection, not one answer."""
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            self._down = True
        self._tell(error, error.str())
        if error.fatal():
            self._on_fatal(f"Kafka's client cannot go on: {error.str()}")

    def _tell(self, error: KafkaError, text: str) -> None:
        """Counts it; says each kind once until all is well again."""
        self._heard_last = error.str()
        metrics.KAFKA_ERRORS.labels(error.name().lstrip("_").lower()).inc()
        if error.name() not in self._said:
            self._said.add(error.name())
            log.warning("Kafka: %s", text)

    def _recovered(self) -> None:
        log.info("Kafka takes answers again")
        self._in_trouble = self._down = False
        self._heard_last = ""
        self._said.clear()
        self._weigh()
