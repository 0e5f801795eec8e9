"""The contract of sinks: what a sink gets, what it is asked, and how it reports what became of each message.

A sink of an own package or of a file in PLUGINS inherits from `BatchSink`, which needs one method, `write`.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from app import metrics
from app.errors import SightlineError, shortened
from app.limits import Latch, backoff_s
from app.settings import Settings

log = logging.getLogger(__name__)

STUCK_S = 30.0
"""If messages wait and none was delivered for this long, the sink counts as down."""
ATTEMPTS = 5
"""Attempts after which a message is given up that SINK_FAILURE_POLICY=drop allows to lose, or that makes a sink raise
an error of its own program."""
PAUSES_S = (0.5, 30.0)
"""Seconds before the second attempt, and the longest pause between two."""
_LONGEST_S = 3600.0
"""Most seconds that a server's `Retry-After` may ask for."""


@dataclass(frozen=True, slots=True)
class SinkMessage:
    """One frame's result on its way to the sinks."""

    stream: str
    """The camera, the live session or the video. The messages of a stream reach each sink in their order."""
    id: str
    """Names the message among those of all streams. A message that is delivered twice has the same id both times."""
    value: bytes
    """A JSON object, UTF-8, without a line end. Its field `schema` says what it is."""


Outcome = Literal["delivered", "rejected", "given_up", "dropped", "left"]
"""`delivered`: the sink has it. `rejected`: the sink will never take it. `given_up`: the sink was down, and its policy
allows the loss. `dropped`: newer messages took its place (live only). `left`: the process ended before."""
Done = Callable[[Outcome], None]
"""Called once for each message, from any thread."""


@dataclass(frozen=True, slots=True)
class SinkHost:
    """What a sink may use of the process that it is in."""

    settings: Settings
    entry: str
    """`service` (live sessions and recorded video), `fleet` or `segments`."""
    on_fatal: Callable[[str], None]
    """Ends the process, or what corresponds to it, with a reason: the sink can never send again."""


class SinkUnavailable(SightlineError):
    """The sink does not take messages now. The same messages are tried again."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: seconds that the other side asks to wait; at most an hour is waited."""
        super().__init__(reason)
        self.retry_after_s = None if retry_after_s is None else min(max(0.0, retry_after_s), _LONGEST_S)


class MessageRejected(SightlineError):
    """The sink will never take this message. Of several messages, each is tried alone."""


class ResultSink(ABC):
    """Takes messages and delivers each at least once. One object for each process, from `start` to `close`.

    `__init__` opens no connection, so that a wrong setting stops the start, but an unreachable server does not.

    Raises (`__init__`):
        ConfigurationError: a setting of the sink is wrong.
    """

    name: ClassVar[str]
    """As RESULT_SINKS and the metrics call it."""
    window: ClassVar[int] = 256
    """Most messages of one entry point at the sink at once; further ones wait in front of it."""

    def __init__(self, host: SinkHost) -> None:
        self.host = host

    def start(self) -> None:  # noqa: B027 - a sink may have nothing to start
        """Starts threads, if there are any."""

    @abstractmethod
    def send(self, message: SinkMessage, done: Done) -> None:
        """Takes a message; returns within microseconds, because event loops call it too. Any thread may call it."""

    @property
    def error(self) -> str:
        """Why the sink takes no messages now; empty while it does."""
        return ""

    @property
    def blocked(self) -> bool:
        """Whether entry points that can wait should read no more frames, because the sink is down and loses nothing."""
        return False

    def close(self, timeout_s: float) -> None:  # noqa: B027 - a sink may have nothing to close
        """Delivers what it has within `timeout_s`, then ends. Messages without a `done` by then count as `left`."""


class BatchSink(ResultSink):
    """A sink that delivers messages in batches, from one thread of its own.

    A batch that cannot be delivered is tried again after a pause that doubles, PAUSES_S; newer messages wait behind it.
    With SINK_FAILURE_POLICY=hold this never ends. With `drop`, ATTEMPTS failures in a row give up all messages that
    wait, and those that come before the next attempt is due. An error other than SinkUnavailable and OSError is taken
    for a bug that a message causes: after ATTEMPTS it counts as rejected, so that it does not hold up the rest.
    """

    batch: ClassVar[int] = 64
    """Most messages in one call of `write`."""
    batch_bytes: ClassVar[int] = 1024 * 1024
    """Most bytes of them; a larger message comes alone."""

    def __init__(self, host: SinkHost) -> None:
        super().__init__(host)
        self._holds = host.settings.sinks.sink_failure_policy == "hold"
        self._changed = threading.Condition()
        self._queue: deque[tuple[SinkMessage, Done]] = deque()
        self._ends_at: float | None = None
        """Monotonic time at which `close` gives up; None before `close`."""
        self._thread = threading.Thread(target=self._run, name=f"sink-{self.name}", daemon=True)
        self._error = ""
        self._writing_since: float | None = None
        self._failures = 0
        """Attempts in a row that failed."""
        self._gives_up_until = 0.0
        """Monotonic time until which messages are given up at once."""
        self._latch = Latch()

    @abstractmethod
    def write(self, messages: Sequence[SinkMessage]) -> None:
        """Delivers all messages, in their order, before it returns. Only the sink's thread calls it.

        Raises:
            SinkUnavailable, OSError: not now; the same messages are tried again, those that arrived, too.
            MessageRejected: one of the messages can never be delivered.
        """

    def finish(self) -> None:
        """Closes what `write` opened; called last, in the sink's thread."""

    def start(self) -> None:
        self._thread.start()

    def send(self, message: SinkMessage, done: Done) -> None:
        if time.monotonic() < self._gives_up_until:
            done("given_up")
            return
        with self._changed:
            self._queue.append((message, done))
            if len(self._queue) == 1:
                self._changed.notify_all()

    @property
    def error(self) -> str:
        since = self._writing_since
        if not self._error and since is not None and time.monotonic() - since > STUCK_S:
            return f"no message was delivered for {STUCK_S:g} s"
        return self._error

    @property
    def blocked(self) -> bool:
        return self._holds and bool(self.error)

    def close(self, timeout_s: float) -> None:
        with self._changed:
            self._ends_at = time.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1)  # a `write` that never returns is left behind
        if self._thread.is_alive():
            log.warning("sink %s: a call still runs; it ends with the process", self.name)

    # --- in the sink's thread ---

    def _run(self) -> None:
        try:
            while batch := self._next():
                self._deliver(batch)
        finally:
            try:
                self.finish()
            except Exception:
                log.exception("sink %s could not be closed", self.name)

    def _next(self) -> list[tuple[SinkMessage, Done]]:
        """Waits for messages and removes a batch; empty if the sink is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ends_at is not None)
            if self._is_over():
                return []
            batch: list[tuple[SinkMessage, Done]] = []
            left = self.batch_bytes
            while self._queue and len(batch) < self.batch:
                left -= len(self._queue[0][0].value)
                if left < 0 and batch:
                    break
                batch.append(self._queue.popleft())
            return batch

    def _is_over(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _deliver(self, batch: list[tuple[SinkMessage, Done]], bugs: int = 0) -> None:
        """Delivers a batch, however often it has to try; a batch with a rejected message is delivered one by one.

        Args:
            bugs: attempts so far that raised an error of the sink's own program.
        """
        while True:
            retry_after_s = 0.0
            self._writing_since = time.monotonic()
            try:
                self.write([message for message, _ in batch])
            except MessageRejected as error:
                metrics.SINK_ERRORS.labels(self.name, "rejected").inc()
                self._reject(batch, error, bugs=0)
                return
            except (SinkUnavailable, OSError) as error:
                retry_after_s = (isinstance(error, SinkUnavailable) and error.retry_after_s) or 0.0
                self._fails("unavailable", error)
            except Exception as error:
                bugs += 1
                self._fails("internal", error)
                if bugs >= ATTEMPTS:
                    log.error("sink %s: an error of its own program", self.name, exc_info=error)
                    self._reject(batch, error, bugs=ATTEMPTS - 1)
                    return
            else:
                self._recovered()
                _finish(batch, "delivered")
                return
            finally:
                self._writing_since = None
            self._failures += 1
            pause_s = max(backoff_s(self._failures, *PAUSES_S), retry_after_s)
            if self._failures >= ATTEMPTS and not self._holds:
                self._give_up(batch, pause_s)
                return
            if not self._wait(pause_s):
                return

    def _give_up(self, batch: list[tuple[SinkMessage, Done]], pause_s: float) -> None:
        """Gives up a batch, the messages behind it, and those that come within `pause_s`."""
        self._gives_up_until = time.monotonic() + pause_s
        with self._changed:
            batch += self._queue
            self._queue.clear()
        _finish(batch, "given_up")

    def _reject(self, batch: list[tuple[SinkMessage, Done]], error: Exception, *, bugs: int) -> None:
        """Delivers the messages of a batch of which one cannot be delivered one by one; rejects a single one."""
        if len(batch) == 1:
            log.warning("sink %s: message %s is rejected: %s", self.name, batch[0][0].id, shortened(str(error)))
            self._recovered()  # the next message may be taken, and entry points must not wait for this one
            _finish(batch, "rejected")
            return
        for entry in batch:
            if self._is_over():
                return
            self._deliver([entry], bugs)

    def _wait(self, pause_s: float) -> bool:
        """Waits before the next attempt; returns False if the sink ends first."""
        until = time.monotonic() + pause_s
        with self._changed:
            while (left := until - time.monotonic()) > 0:
                if self._ends_at is not None:
                    left = min(left, self._ends_at - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return not self._is_over()

    def _fails(self, reason: str, error: Exception) -> None:
        metrics.SINK_ERRORS.labels(self.name, reason).inc()
        self._error = shortened(str(error) or type(error).__name__)
        if self._latch.begins(self._error):
            log.warning("sink %s: %s", self.name, self._error)

    def _recovered(self) -> None:
        self._error = ""
        self._failures = 0
        if self._latch.ends():
            log.info("sink %s takes messages again", self.name)


def _finish(batch: list[tuple[SinkMessage, Done]], outcome: Outcome) -> None:
    for _, done in batch:
        done(outcome)
