"""The load itself, in this process, against a stand-in that answers as it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from app.loadtest import client
from app.loadtest.client import Target
from app.loadtest.metrics import AgeHistogram, LoadStats, compute_figures
from app.loadtest.plan import LoadPlan
from app.loadtest.runner import run_plan
from app.protocol import header

Talk = Callable[[ServerConnection], None]


@contextmanager
def talking(talk: Talk) -> Iterator[str]:
    """A WebSocket server in threads of its own; yields its URL. A connection is over when `talk` returns."""

    def guarded(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            talk(connection)
        with contextlib.suppress(OSError):  # nobody waits for goodbyes that the other end does not read
            connection.socket.shutdown(socket.SHUT_RDWR)

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    with serve(guarded, sock=listening, compression=None, ping_interval=None, close_timeout=0.1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws/inference"
        finally:
            server.shutdown()
            thread.join()


def say(connection: ServerConnection, kind: str, **fields: object) -> None:
    connection.send(orjson.dumps({"type": kind, **fields}).decode())


def answer_at_once(connection: ServerConnection, at_first: Callable[[], None] = lambda: None) -> None:
    """A perfect service.

    Args:
        at_first: called when the first frame is there.
    """
    connection.recv()
    say(connection, "ready")
    for count, message in enumerate(connection):
        if isinstance(message, str):
            report = {"received": count, "processed": count, "dropped": {}, "failed": 0}
            say(connection, "bye", reason="stopped", report=report)
            return
        at_first()
        say(connection, "result", seq=header.seq_of(message), stages={})


def test_a_stall_is_in_the_age_of_every_frame_that_was_due_in_it() -> None:
    """Coordinated omission: one that counts from when it sent sees one long answer here, and all others short."""
    stalls = iter([0.6])

    def stall(at: float, stats: LoadStats) -> None:
        time.sleep(next(stalls, 0))  # in the load's own event loop

    plan = LoadPlan(sessions=1, fps=50, ramp=0, duration=2)
    with talking(answer_at_once) as url:
        stats = run_plan(plan, Target(url, [b"frame"]), on_progress=stall)
    found = compute_figures(plan, stats)
    assert found.due == 100  # what is due is not put off
    assert found.disagreements == []
    # 30 frames were due in the stall, one after the other: the first 16 of them waited for 280 ms and more.
    oldest = AgeHistogram.merged(second.ages for second in stats.seconds.values()).quantile(0.88)
    assert oldest is not None
    assert oldest >= 280
    assert found.late_p99_ms is not None
    assert found.late_p99_ms >= 500


def test_frames_that_the_socket_does_not_take_are_blocked() -> None:
    """What the service does not read is not sent, and counts as due."""
    full = threading.Event()

    def read_nothing(connection: ServerConnection) -> None:
        if full.is_set():
            answer_at_once(connection)
        else:
            say(connection, "ready")
            full.wait(60)

    def on_progress(at: float, stats: LoadStats) -> None:
        if any(second.unsent["blocked"] >= 5 for second in stats.seconds.values()):
            full.set()

    plan = LoadPlan(sessions=1, fps=100, ramp=0, duration=4)
    with talking(read_nothing) as url:
        stats = run_plan(plan, Target(url, [bytes(100_000)]), on_progress=on_progress)
    found = compute_figures(plan, stats)
    assert full.is_set()
    assert found.reasons["blocked"] >= 5
    assert found.due == 400
    assert sum(second.sent + second.unsent.total() for second in stats.seconds.values()) == 400


def test_a_slow_reader_is_not_ended_by_our_own_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(url: str, **options: Any) -> Any:
        return websockets.asyncio.client.connect(url, **{"ping_interval": 0.1, "ping_timeout": 0.1} | options)

    monkeypatch.setattr(client, "connect", connect)
    monkeypatch.setattr(client, "BYE_TIMEOUT_S", 0.1)
    plan = LoadPlan(sessions=1, fps=50, ramp=0, duration=3, slow_readers=1)
    with talking(answer_at_once) as url:
        stats = run_plan(plan, Target(url, [b"frame"]))
    found = compute_figures(plan, stats).slow
    assert (found.sessions, found.due) == (1, 150)
    assert found.results >= 1
    assert found.reasons.get("no_session", 0) < 75  # ended after the second ping, it could send nothing from then on


def test_a_service_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE_S", 0.3)
    first = iter([True])

    def fall_silent(connection: ServerConnection) -> None:
        if not next(first, False):
            answer_at_once(connection)
            return
        say(connection, "ready")
        for _ in connection:
            pass

    plan = LoadPlan(sessions=1, fps=50, ramp=0, duration=3)
    with talking(fall_silent) as url:
        found = compute_figures(plan, run_plan(plan, Target(url, [b"frame"])))
    assert found.outcomes["lost"] >= 1
    assert found.results > 0


@pytest.mark.parametrize("word", ["hello", "[]", "{}"])
def test_another_protocol_is_said_to_be_one(word: str) -> None:
    def talk(connection: ServerConnection) -> None:
        connection.send(word)
        connection.recv()

    with talking(talk) as url:
        stats = run_plan(LoadPlan(sessions=4, fps=5, ramp=0, duration=300), Target(url, [b"frame"]))
    trouble = stats.trouble()
    assert trouble is not None
    assert "given up" in trouble
    assert f"it sent '{word}', which is not the live protocol" in trouble


def test_one_who_may_wait_is_not_given_up() -> None:
    def no_place(connection: ServerConnection) -> None:
        connection.recv()
        say(connection, "queued")
        say(connection, "bye", reason="rejected", message="too many")

    with talking(no_place) as url:
        stats = run_plan(LoadPlan(sessions=8, fps=5, ramp=0, duration=2), Target(url, [b"frame"]))
    assert not stats.given_up
    assert stats.trouble() == "no session was ever ready (rejected: too many)"


def test_a_service_that_let_one_in_is_not_given_up_when_it_refuses_others() -> None:
    first, served = iter([True]), threading.Event()

    def one_only(connection: ServerConnection) -> None:
        if not next(first, False):
            served.wait(60)
            return
        answer_at_once(connection, served.set)

    with talking(one_only) as url:
        stats = run_plan(LoadPlan(sessions=5, fps=20, ramp=0, duration=3), Target(url, [b"frame"]))
    found = compute_figures(LoadPlan(duration=3), stats)
    assert stats.refusals >= 3
    assert not stats.given_up
    assert stats.trouble() is None
    assert found.fairness == pytest.approx(1 / 5, abs=0.01)


def test_what_clients_are_compared_by_is_what_is_measured() -> None:
    plan = LoadPlan(sessions=2, fps=20, ramp=0, warm_up=1.3, duration=1.5)
    with talking(answer_at_once) as url:
        stats = run_plan(plan, Target(url, [b"frame"]))
    found = compute_figures(plan, stats)
    assert found.due == 60
    assert sum(client_stats.due for client_stats in stats.clients.values()) == found.due
    assert sum(client_stats.results for client_stats in stats.clients.values()) == found.results
    assert len(stats.sessions) == 2
    assert found.results < sum(session.results for session in stats.sessions)
