"""What every sink can rely on, and every entry point: order, repetition, bounds, outcomes, counters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.settings import Settings
from app.sinks import BatchSink, Done, MessageRejected, ResultSink, SinkMessage, SinkUnavailable, open_sinks
from app.sinks.feed import MOST_WAITING, MOST_WAITING_BYTES
from tests.sinks.sending import Counted, host, message, opened, until


class Scripted(BatchSink):
    """Fails as it is told, then takes everything."""

    name = "scripted"

    def __init__(self, *script: Exception, bad: Callable[[SinkMessage], Exception | None] = lambda _: None, **settings):
        super().__init__(host(**settings))
        self.script = [*script]
        self.bad = bad
        self.written: list[SinkMessage] = []
        self.gate = threading.Event()
        self.gate.set()
        self.finished = False

    def write(self, messages: Sequence[SinkMessage]) -> None:
        self.gate.wait()
        if self.script:
            raise self.script.pop(0)
        for error in filter(None, map(self.bad, messages)):
            raise error
        self.written += messages

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sinks.sink.PAUSES_S", (0.01, 0.05))


def test_messages_reach_the_sink_in_their_order_and_each_is_counted() -> None:
    counted, sink = Counted("scripted"), Scripted()
    with opened(sink) as (_, sender):
        sender.send(*map(message, range(1000)))
        sender.wait(1000)
    assert sink.written == [message(number) for number in range(1000)]
    assert set(sender.of("scripted")) == {"delivered"}
    assert counted.grown() == {"offered": 1000, "delivered": 1000}
    assert counted.waiting == 0
    assert sink.finished


def test_a_sink_that_is_away_gets_the_same_messages_again_and_nothing_is_lost() -> None:
    counted = Counted("scripted")
    sink = Scripted(*[SinkUnavailable("away")] * 7, ConnectionResetError("gone"))
    with opened(sink) as (sinks, sender):
        sink.gate.clear()
        sender.send(*map(message, range(5)))
        sink.gate.set()
        sender.wait(5)
        assert sinks.errors() == {}
        assert not sinks.blocked
    assert [each.id for each in sink.written] == [f"gate/{number}" for number in range(5)]
    assert counted.grown() == {"offered": 5, "delivered": 5}


def test_while_it_is_away_it_says_why_and_holds_entry_points_that_can_wait() -> None:
    sink = Scripted(*[SinkUnavailable("no route")] * 10_000)
    with opened(sink, close_s=0.0) as (sinks, sender):
        sender.send(message(1))
        until(lambda: sinks.errors() == {"scripted": "no route"})
        assert sinks.blocked
        sink.script.clear()
        sender.wait(1)
        until(lambda: not sinks.blocked)


def test_with_drop_results_are_given_up_after_five_attempts_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sinks.sink.PAUSES_S", (0.01, 0.3))
    counted = Counted("scripted")
    sink = Scripted(*[SinkUnavailable("away")] * 6, sink_failure_policy="drop")
    with opened(sink) as (sinks, sender):
        sink.gate.clear()
        sender.send(*map(message, range(200)))
        sink.gate.set()
        sender.wait(200)  # after the fifth attempt all that wait are given up
        sender.send(message(200))
        assert sender.outcomes["gate/200"] == {"scripted": "given_up"}, "at once, because the next attempt is not due"
        time.sleep(0.2)
        sender.send(message(201))  # the sixth attempt
        sender.wait(202)
        time.sleep(0.35)
        sender.send(message(202))
        sender.wait(203)
        assert not sinks.blocked
    assert sender.of("scripted") == ["given_up"] * 202 + ["delivered"]
    assert counted.grown() == {"offered": 203, "given_up": 202, "delivered": 1}


@pytest.mark.parametrize("error", [MessageRejected("too large"), KeyError("a bug")])
def test_one_message_that_cannot_be_delivered_costs_no_other(error: Exception) -> None:
    counted = Counted("scripted")
    sink = Scripted(bad=lambda each: error if each.id in ("gate/3", "gate/33") else None)
    with opened(sink) as (sinks, sender):
        sink.gate.clear()
        sender.send(*map(message, (*range(8), 33)))
        sink.gate.set()
        until(lambda: counted.waiting == 0)
        assert sinks.errors() == {}
        assert not sinks.blocked, "the last message was such a one, and no other would end the wait"
    delivered = {name for name, outcomes in sender.outcomes.items() if outcomes["scripted"] == "delivered"}
    assert delivered == {f"gate/{number}" for number in range(8)} - {"gate/3"}
    assert sender.outcomes["gate/3"] == {"scripted": "rejected"}
    assert counted.grown() == {"offered": 9, "delivered": 7, "rejected": 2}


def test_in_front_of_a_sink_that_stands_still_live_results_give_way_to_newer_ones() -> None:
    counted, sink = Counted("scripted"), Scripted()
    with opened(sink, lossy=True) as (_, sender):
        sink.gate.clear()
        total = sink.window + MOST_WAITING + 100
        sender.send(*map(message, range(total)))
        assert sender.of("scripted") == ["dropped"] * 100
        sink.gate.set()
        sender.wait(total)
    kept = [int(each.id.partition("/")[2]) for each in sink.written]
    assert kept == [*range(sink.window), *range(sink.window + 100, total)]
    assert counted.grown() == {"offered": total, "delivered": total - 100, "dropped": 100}


def test_what_waits_in_front_of_a_sink_is_bounded_in_bytes_too() -> None:
    counted, sink = Counted("scripted"), Scripted()
    large = MOST_WAITING_BYTES // 4 + 1
    with opened(sink, lossy=True) as (_, sender):
        sink.gate.clear()
        sender.send(*map(message, range(sink.window)))
        sender.send(*(SinkMessage("gate", f"gate/large {number}", bytes(large)) for number in range(10)))
        assert counted.grown()["dropped"] == 7
        sender.send(SinkMessage("gate", "gate/largest", bytes(MOST_WAITING_BYTES + 1)))
        assert counted.grown()["dropped"] == 10
        sink.gate.set()
        sender.wait(sink.window + 11)
    assert [each.id for each in sink.written[sink.window :]] == ["gate/largest"]


def test_what_does_not_arrive_before_the_end_is_counted_as_left() -> None:
    counted, sink = Counted("scripted"), Scripted(*[SinkUnavailable("away")] * 10_000)
    with opened(sink, close_s=0.1) as (_, sender):
        sender.send(*map(message, range(400)))
    assert sender.of("scripted") == ["left"] * 400
    assert counted.grown() == {"offered": 400, "left": 400}
    assert counted.waiting == 0
    sender.send(message(401))
    assert sender.outcomes["gate/401"] == {"scripted": "left"}


def test_a_sink_whose_call_never_returns_does_not_hold_up_the_end() -> None:
    sink = Scripted()
    with opened(sink, close_s=0.1) as (_, sender):
        sink.gate.clear()
        sender.send(message(1))
    assert sender.of("scripted") == ["left"]
    sink.gate.set()
    until(lambda: sink.written)
    assert sender.of("scripted") == ["left"], "what comes of it later changes nothing"


def test_a_message_is_done_once_every_sink_is_done_with_it() -> None:
    quick, slow = Scripted(), Scripted()
    slow.name = "slow"  # type: ignore[misc]
    with opened(quick, slow) as (_, sender):
        slow.gate.clear()
        sender.send(message(1))
        until(lambda: quick.written)
        assert sender.outcomes == {}
        slow.gate.set()
        sender.wait(1)
    assert sender.outcomes == {"gate/1": {"scripted": "delivered", "slow": "delivered"}}


def test_a_sink_that_refuses_a_message_by_an_exception_costs_that_message_alone() -> None:
    class Direct(ResultSink):
        name = "direct"

        def send(self, each: SinkMessage, done: Done) -> None:
            if each.id == "gate/1":
                raise TypeError("a bug")
            done("delivered")
            done("delivered")  # twice by mistake

    with opened(Direct(host())) as (_, sender):
        sender.send(*map(message, range(3000)))
        sender.wait(3000)
    assert sender.outcomes["gate/1"] == {"direct": "rejected"}
    assert sender.of("direct").count("delivered") == 2999


# --- which sinks there are ---


def test_without_the_setting_there_are_those_of_the_entry_point() -> None:
    assert [sink.name for sink in open_sinks(Settings(), "service")] == []
    assert [sink.name for sink in open_sinks(Settings(), "fleet", ("kafka",))] == ["kafka"]
    assert [sink.name for sink in open_sinks(Settings(result_sinks=""), "fleet", ("kafka",))] == ["kafka"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"result_sinks": "smoke"}, "RESULT_SINKS='smoke': 'smoke' should be one of kafka, jsonl, webhook"),
        ({"result_sinks": "jsonl"}, "JSONL_PATH is unset"),
        ({"result_sinks": "webhook"}, "WEBHOOK_URL is unset"),
        ({"webhook_url": "sight.example"}, "WEBHOOK_URL=a secret: should be a web address"),
        ({"webhook_secret": "hunter2"}, "WEBHOOK_SECRET=a secret: should be `whsec_`"),
        ({"result_sinks": "kafka", "kafka_options": "["}, "KAFKA_OPTIONS"),
    ],
)
def test_a_setting_that_is_wrong_is_named(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        open_sinks(Settings(**settings), "service")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('no licence')", "cannot be loaded: RuntimeError: no licence"),
        ("from app.sinks import BatchSink\nclass Mine(BatchSink):\n    name = 'mine'\n", "should define write"),
    ],
)
def test_a_sink_that_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        open_sinks(Settings(result_sinks="mine", plugins=tmp_path), "service")
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


SINK = """
from pydantic import Field
from app.sinks import BatchSink
from app.settings import Section

class MineSettings(Section):
    mine_port: int = Field(1, ge=1)

class Mine(BatchSink):
    name = "mine"

    def __init__(self, host):
        super().__init__(host)
        self.port = MineSettings().mine_port
        if self.port == 7:
            raise OSError("no such port")

    def write(self, messages):
        pass
"""


@pytest.mark.parametrize(
    ("port", "said"),
    [
        ("0", "MINE_PORT='0': should be greater than or equal to 1"),
        ("7", "sink 'mine' cannot be started: OSError: no such port"),
    ],
)
def test_what_a_sink_raises_at_the_start_names_the_setting_or_the_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(SINK)
    monkeypatch.setenv("MINE_PORT", port)
    with pytest.raises(ConfigurationError) as caught:
        open_sinks(Settings(result_sinks="mine", plugins=tmp_path), "service")
    assert str(caught.value) == said
