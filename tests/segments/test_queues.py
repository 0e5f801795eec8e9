"""Queues: the same in SQS (moto's) and in the local database."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from app.segments.local import LocalDatabase, LocalQueue
from app.segments.ports import MessageGone, Queue
from tests.support.aws import Aws
from tests.support.segments import estate

HIDDEN_S = 1


@pytest.fixture(params=["sqs", "local"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Queue:
    if request.param == "local":
        return LocalQueue(LocalDatabase(tmp_path / "state.db"), "segments", visibility_s=HIDDEN_S)
    from app.segments.aws import SqsQueue

    aws: Aws = request.getfixturevalue("aws")
    sqs = aws.client("sqs")
    url = sqs.create_queue(QueueName=f"queue-{time.monotonic_ns()}")["QueueUrl"]
    return SqsQueue(sqs, url, "segments", visibility_s=HIDDEN_S)


def test_what_is_deleted_does_not_come_again(queue: Queue) -> None:
    assert queue.receive(0) is None
    queue.send("one")
    message = queue.receive(0)
    assert message is not None
    assert (message.body, message.deliveries) == ("one", 1)
    assert queue.receive(0) is None, "hidden"
    queue.delete(message)
    assert queue.receive(HIDDEN_S + 0.5) is None


def test_what_is_sent_to_come_later_comes_later(queue: Queue) -> None:
    queue.send("late", delay_s=5)
    queue.send("now")
    first = queue.receive(0)
    assert first is not None
    assert first.body == "now"
    queue.delete(first)
    clock = time.monotonic()
    late = queue.receive(20)
    assert late is not None
    assert late.body == "late"
    assert time.monotonic() - clock > 0.5


def test_what_is_not_deleted_comes_again_and_is_another_s(queue: Queue) -> None:
    queue.send("one")
    first = queue.receive(0)
    again = queue.receive(HIDDEN_S + 5)
    assert first is not None
    assert again is not None
    assert (again.id, again.body, again.deliveries) == (first.id, "one", 2)
    queue.delete(again)
    with pytest.raises(MessageGone):
        queue.extend(first, 30)


def test_what_is_worked_on_stays_hidden(queue: Queue) -> None:
    queue.send("one")
    message = queue.receive(0)
    assert message is not None
    queue.extend(message, 30)
    assert queue.receive(HIDDEN_S + 0.5) is None
    queue.release(message)
    again = queue.receive(1)
    assert again is not None
    assert again.deliveries == 2


def test_what_is_given_back_later_waits(queue: Queue) -> None:
    queue.send("one")
    message = queue.receive(0)
    assert message is not None
    queue.release(message, 2)
    assert queue.receive(0.5) is None
    assert queue.receive(5) is not None


def test_a_delivery_that_has_run_out_is_told(queue: Queue) -> None:
    queue.send("one")
    message = queue.receive(0)
    assert message is not None
    queue.delete(message)
    with pytest.raises(MessageGone):
        queue.extend(message, 30)


def test_who_waits_is_woken(queue: Queue) -> None:
    threading.Timer(0.3, queue.send, ["one"]).start()
    message = queue.receive(20)
    assert message is not None
    assert message.body == "one"


def test_many_readers_have_each_message_once(queue: Queue) -> None:
    for number in range(20):
        queue.send(str(number))
    got: list[str] = []

    def read() -> None:
        while (message := queue.receive(0)) is not None:
            got.append(message.body)
            queue.delete(message)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got, key=int) == [str(number) for number in range(20)]


@pytest.mark.parametrize("kind", ["sqs", "local"])
def test_a_word_is_sent_once(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    queue: Queue = LocalQueue(LocalDatabase(tmp_path / "state.db"), "reassembly", visibility_s=30)
    if kind == "sqs":
        queue = estate(request.getfixturevalue("aws")).resources().reassembly
    for _ in range(3):
        queue.send("clip", once="clip.0")
    message = queue.receive(1)
    assert message is not None
    queue.delete(message)
    if kind == "local":  # moto forgets the word with the message, SQS after five minutes
        queue.send("clip", once="clip.0")
    assert queue.receive(0.5) is None
    queue.send("clip", once="clip.1")
    queue.send("another")
    bodies = []
    while (message := queue.receive(0.5)) is not None:
        bodies.append(message.body)
        queue.delete(message)
    assert sorted(bodies) == ["another", "clip"]


def test_queues_of_one_database_are_apart(tmp_path: Path) -> None:
    database = LocalDatabase(tmp_path / "state.db")
    segments, events = (LocalQueue(database, name, visibility_s=30) for name in ("segments", "events"))
    segments.send("x")
    assert events.receive(0) is None
    other = LocalQueue(LocalDatabase(tmp_path / "state.db"), "segments", visibility_s=30)
    message = other.receive(0)
    assert message is not None, "another process sees it, too"
    assert segments.receive(0) is None
