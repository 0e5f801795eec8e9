"""Sinks in this process, and the messages that go to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.settings import Settings
from app.sinks import Feed, Outcomes, SinkHost, SinkMessage, Sinks, open_sinks

WAIT_S = 20.0


def host(**settings: Any) -> SinkHost:
    return SinkHost(Settings(**settings), "service", pytest.fail)


def message(number: int, stream: str = "gate") -> SinkMessage:
    return SinkMessage(stream, f"{stream}/{number}", b'{"n":%d}' % number)


class Sender:
    """Sends messages and remembers what became of each."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._changed = threading.Condition()
        self.outcomes: dict[str, Outcomes] = {}

    def send(self, *messages: SinkMessage) -> None:
        for each in messages:
            self._feed.send(each, lambda outcomes, name=each.id: self._done(name, outcomes))  # type: ignore[misc]

    def _done(self, name: str, outcomes: Outcomes) -> None:
        with self._changed:
            assert name not in self.outcomes, "done is called once"
            self.outcomes[name] = outcomes
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outcomes) >= count, WAIT_S), self.outcomes

    def of(self, sink: str) -> list[str]:
        return [outcomes[sink] for outcomes in self.outcomes.values()]


@contextmanager
def opened(*sinks: Any, lossy: bool = False, close_s: float = 5.0, **settings: Any) -> Iterator[tuple[Sinks, Sender]]:
    """Sinks at work: those given, or those that the settings name."""
    all_sinks = Sinks(sinks) if sinks else open_sinks(Settings(**settings), "service")
    sender = Sender(all_sinks.feed("live", lossy=lossy))
    all_sinks.start()
    try:
        yield all_sinks, sender
    finally:
        all_sinks.close(close_s)


class Counted:
    """The growth of the counters of one sink since this object was made."""

    def __init__(self, sink: str, entry: str = "live") -> None:
        self._labels = {"sink": sink, "entry": entry}
        self._before: dict[str, float] = {}
        for outcome in ("offered", "delivered", "rejected", "given_up", "dropped", "left"):
            self._before[outcome] = self._now(outcome)

    def _now(self, outcome: str) -> float:
        return REGISTRY.get_sample_value("sightline_sink_messages_total", {**self._labels, "outcome": outcome}) or 0.0

    def grown(self) -> dict[str, int]:
        """By outcome, those that grew."""
        found = {outcome: int(self._now(outcome) - before) for outcome, before in self._before.items()}
        return {outcome: count for outcome, count in found.items() if count}

    @property
    def waiting(self) -> float:
        return REGISTRY.get_sample_value("sightline_sink_waiting", self._labels) or 0.0


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)
    return found
