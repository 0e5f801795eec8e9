"""The sinks of a process, and the feeds through which its entry points give them results.

sinks = open_sinks(settings, "service", default=())     # raises ConfigurationError
sinks.start()
feed = sinks.feed("live", lossy=True)
feed.send(SinkMessage(session_id, f"{session_id}/{frame_id}", value))
...
sinks.close(timeout_s=5)
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from app import metrics
from app.errors import ConfigurationError
from app.plugins import find
from app.settings import Settings, starting
from app.sinks.jsonl import JsonLinesSink
from app.sinks.kafka import KafkaSink
from app.sinks.sink import Outcome, ResultSink, SinkHost, SinkMessage
from app.sinks.webhook import WebhookSink

log = logging.getLogger(__name__)

GROUP = "sightline.sinks"
"""The group of entry points by which installed packages add sinks."""
BUILT_IN: dict[str, type[ResultSink]] = {sink.name: sink for sink in (KafkaSink, JsonLinesSink, WebhookSink)}
MOST_WAITING = 1024
"""Messages of a lossy feed that wait in front of a sink; then the oldest give way to newer ones."""
MOST_WAITING_BYTES = 64 * 1024 * 1024
"""Bytes of these messages; the newest message stays in any case."""
_ENDS_WITHIN_S = 2.0
"""Seconds that a sink may take to end after the time that it was given."""

Outcomes = Mapping[str, Outcome]
"""What became of a message, by the name of the sink."""


def open_sinks(
    settings: Settings, entry: str, default: Sequence[str] = (), on_fatal: Callable[[str], None] | None = None
) -> Sinks:
    """Makes the sinks that RESULT_SINKS names, without starting them.

    Args:
        entry: see `SinkHost`.
        default: names of sinks where RESULT_SINKS is unset.
        on_fatal: see `SinkHost`; by default the reason is only logged.

    Raises:
        ConfigurationError: a name is unknown, a plug-in cannot be loaded, or a setting of a sink is wrong.
    """
    host = SinkHost(settings, entry, on_fatal or partial(log.critical, "%s"))
    sinks = []
    for name, kind in sink_classes(settings, default).items():
        with starting(f"sink {name!r}"):
            sinks.append(kind(host))
    return Sinks(sinks)


def sink_classes(settings: Settings, default: Sequence[str] = ()) -> dict[str, type[ResultSink]]:
    """The classes of the sinks that RESULT_SINKS names, or of `default`, by name.

    Raises:
        ConfigurationError: a name is unknown, or a plug-in cannot be loaded.
    """
    names = settings.sinks.result_sinks or tuple(default)
    known = dict(BUILT_IN)
    if settings.sinks.result_sinks:
        known |= find(GROUP, ResultSink, settings.server.plugins, taken=tuple(BUILT_IN))  # type: ignore[type-abstract]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"RESULT_SINKS={','.join(names)!r}: {name!r} should be one of {', '.join(known)}")
    return {name: known[name] for name in names}


class Sinks:
    """All sinks of a process. Every message goes to each of them."""

    def __init__(self, sinks: Sequence[ResultSink]) -> None:
        self._sinks = tuple(sinks)
        self._feeds: list[Feed] = []

    def __len__(self) -> int:
        return len(self._sinks)

    def __iter__(self) -> Iterator[ResultSink]:
        return iter(self._sinks)

    def feed(self, entry: str, *, lossy: bool = False) -> Feed:
        """A feed of one entry point.

        Args:
            entry: the metrics' label, such as `live`.
            lossy: the oldest messages give way to newer ones where a sink is too slow; otherwise all wait, and the
                entry point bounds them.
        """
        feed = Feed(self._sinks, entry, lossy=lossy)
        self._feeds.append(feed)
        return feed

    def start(self) -> None:
        """Starts the sinks' threads."""
        for sink in self._sinks:
            sink.start()
            log.info("results go to %s", sink.name)

    def errors(self) -> dict[str, str]:
        """Why a sink takes no messages now, by the names of those that are down."""
        return {sink.name: error for sink in self._sinks if (error := sink.error)}

    @property
    def blocked(self) -> bool:
        """Whether entry points that can wait should read no more frames: see `ResultSink.blocked`."""
        return any(sink.blocked for sink in self._sinks)

    def close(self, timeout_s: float) -> None:
        """Delivers what waits, within `timeout_s` for all sinks together; the rest is counted as `left`. Blocks."""
        threads = [threading.Thread(target=sink.close, args=(timeout_s,), daemon=True) for sink in self._sinks]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s + _ENDS_WITHIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for feed in self._feeds:
            feed.leave()


class Feed:
    """The way of one entry point's messages to all sinks. Any thread may use it."""

    def __init__(self, sinks: Sequence[ResultSink], entry: str, *, lossy: bool) -> None:
        self._lanes = [_Lane(sink, entry, lossy=lossy) for sink in sinks]

    def __bool__(self) -> bool:
        """Whether there is a sink at all."""
        return bool(self._lanes)

    def send(self, message: SinkMessage, done: Callable[[Outcomes], None] | None = None) -> None:
        """Sends a message to all sinks; never waits.

        Args:
            done: called once, from any thread, when no sink has anything to do for the message any more.
        """
        sending = _Sending(message, len(self._lanes), done)
        for lane in self._lanes:
            lane.add(sending)

    def leave(self) -> None:
        """Counts every message that is not done as `left`. Nothing is sent after this."""
        for lane in self._lanes:
            lane.leave()


class _Sending:
    """A message on its way to all sinks."""

    def __init__(self, message: SinkMessage, sinks: int, done: Callable[[Outcomes], None] | None) -> None:
        self.message = message
        self._left = sinks
        self._done = done
        self._lock = threading.Lock()
        self._outcomes: dict[str, Outcome] = {}

    def ended(self, sink: str, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[sink] = outcome
            self._left -= 1
            last = self._left == 0
        if last and self._done is not None:
            self._done(self._outcomes)


class _Lane:
    """One entry point's messages to one sink, in order: some at the sink, the others in front of it."""

    def __init__(self, sink: ResultSink, entry: str, *, lossy: bool) -> None:
        self._sink = sink
        self._lossy = lossy
        self._lock = threading.Lock()
        self._waiting: deque[_Sending] = deque()
        self._waiting_bytes = 0
        self._at_sink: dict[int, _Sending] = {}
        self._pumping = False
        self._left = False
        self._counters = {
            outcome: metrics.SINK_MESSAGES.labels(sink.name, entry, outcome)
            for outcome in ("offered", "delivered", "rejected", "given_up", "dropped", "left")
        }
        self._gauge = metrics.SINK_WAITING.labels(sink.name, entry)

    def add(self, sending: _Sending) -> None:
        self._counters["offered"].inc()
        self._gauge.inc()
        dropped: list[_Sending] = []
        with self._lock:
            left = self._left
            if not left:
                self._waiting.append(sending)
                self._waiting_bytes += len(sending.message.value)
                while self._lossy and self._is_full():
                    dropped.append(self._take())
        if left:
            self._end(sending, "left")
        for oldest in dropped:
            self._end(oldest, "dropped")
        self._pump()

    def _is_full(self) -> bool:
        if len(self._at_sink) < self._sink.window:
            return False  # the next one goes to the sink at once
        too_many, too_large = len(self._waiting) > MOST_WAITING, self._waiting_bytes > MOST_WAITING_BYTES
        return too_many or (too_large and len(self._waiting) > 1)

    def _take(self) -> _Sending:
        """Removes the message that waits for the longest time."""
        sending = self._waiting.popleft()
        self._waiting_bytes -= len(sending.message.value)
        return sending

    def _pump(self) -> None:
        """Gives waiting messages to the sink. One thread at a time does so, so that their order is kept."""
        with self._lock:
            if self._pumping:
                return
            self._pumping = True
        while True:
            with self._lock:
                if self._left or not self._waiting or len(self._at_sink) >= self._sink.window:
                    self._pumping = False
                    return
                sending = self._take()
                self._at_sink[id(sending)] = sending
            try:
                self._sink.send(sending.message, partial(self._finished, sending))
            except Exception:  # a fault of a sink that others wrote: it costs this message
                log.exception("sink %s did not take message %s", self._sink.name, sending.message.id)
                metrics.SINK_ERRORS.labels(self._sink.name, "internal").inc()
                self._finished(sending, "rejected")

    def _finished(self, sending: _Sending, outcome: Outcome) -> None:
        """The sink is done with a message; a second call for it is ignored."""
        with self._lock:
            if self._at_sink.pop(id(sending), None) is None:
                return
        self._end(sending, outcome)
        self._pump()

    def _end(self, sending: _Sending, outcome: Outcome) -> None:
        self._counters[outcome].inc()
        self._gauge.dec()
        sending.ended(self._sink.name, outcome)

    def leave(self) -> None:
        with self._lock:
            self._left = True
            rest = [*self._at_sink.values(), *self._waiting]
            self._at_sink.clear()
            self._waiting.clear()
            self._waiting_bytes = 0
        if rest:
            log.warning("sink %s: %d messages were not delivered before the end", self._sink.name, len(rest))
        for sending in rest:
            self._end(sending, "left")
