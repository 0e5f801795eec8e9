"""The store: the same in DynamoDB (moto's) and in the local database."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigurationError
from app.segments.aws import DynamoStore
from app.segments.keys import SegmentId, SegmentKey
from app.segments.local import LocalDatabase, LocalStore
from app.segments.ports import Completion, Invocation, Job, Store
from app.settings import SegmentSettings
from tests.support.aws import Aws
from tests.support.segments import estate

SEGMENT = SegmentKey("clip", 3, "annotate")
JOB = Job("clip", "annotate", "Clip of a cat.mp4", 1234.5678)


@pytest.fixture(params=["dynamo", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(LocalDatabase(tmp_path / "state.db"))
    aws: Aws = request.getfixturevalue("aws")
    return DynamoStore(aws.client("dynamodb"), estate(aws).settings)


def invocation(name: str = "a" * 32, segment: SegmentKey = SEGMENT) -> Invocation:
    return Invocation(name, segment, "s3://in/x", "s3://out/y", called_at=time.time())


def at_once(store: Store, calls: list[Callable[[], object]]) -> list[object]:
    """What each answers, all begun together."""
    if isinstance(store, DynamoStore):
        return [call() for call in calls]  # moto, unlike DynamoDB, lets two conditional writes pass at once
    barrier, answers = threading.Barrier(len(calls)), []

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        answers.append(call())

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_job_from_its_beginning_to_its_end(store: Store) -> None:
    assert store.job("clip") is None
    store.put_job(JOB)
    assert store.job("clip") == JOB
    store.put_job(replace(JOB, source="another"))
    assert store.job("clip") == JOB, "put twice it stays"
    assert store.waiting_jobs() == []
    store.chunking_complete("clip", 4)
    assert store.job("clip") == replace(JOB, status="chunking_complete", total=4)
    assert store.waiting_jobs() == ["clip"]
    store.mark("clip", "done")
    store.chunking_complete("clip", 4)
    store.mark("clip", "failed", "a segment that came twice")
    assert store.job("clip") == replace(JOB, status="done", total=4), "what is done stays done"
    assert store.waiting_jobs() == []


def test_a_failed_job_and_its_next_round(store: Store) -> None:
    store.put_job(JOB)
    assert store.fail(SEGMENT, "one", "no room") == 1
    assert store.fail(SEGMENT.id, "two", "no room") == 2
    store.mark("clip", "failed", "segment 3: no room")
    assert store.job("clip") == replace(JOB, status="failed", reason="segment 3: no room")
    store.chunking_complete("clip", 4)
    assert store.job("clip") == replace(JOB, status="failed", total=4, reason="segment 3: no room")
    store.trigger_once("clip", 60)
    store.complete(Completion(SEGMENT.id, "s3://out/3", 5.5))
    store.reopen("clip")
    assert store.job("clip") == replace(JOB, total=4, round=1)
    assert store.waiting_jobs() == []
    store.chunking_complete("clip", 4)
    assert store.job("clip") == replace(JOB, status="chunking_complete", total=4, round=1)
    assert store.failures(SEGMENT) == 0
    assert store.trigger_once("clip", 60) == "taken"
    assert store.completion(SEGMENT.id) is not None
    store.reopen("nobody's")
    assert store.job("nobody's") is None


def test_a_job_of_which_many_segments_failed_is_reopened(aws: Aws) -> None:
    client, settings = aws.client("dynamodb"), estate(aws).settings
    store, jobs = DynamoStore(client, settings), settings.jobs_table_name
    store.put_job(JOB)
    failures = {f"failures_{index:05d}": {"SS": ["one"]} for index in range(640)}
    item = client.get_item(TableName=jobs, Key={"job_id": {"S": "clip"}})["Item"]
    client.put_item(TableName=jobs, Item=item | failures)
    store.mark("clip", "failed", "segment 3: no room")
    assert store.failures(SegmentId("clip", 639)) == 1
    longest: list[int] = []  # moto takes what DynamoDB refuses: an expression of more than 4 KiB

    def measure(params: dict[str, str], **_: object) -> None:
        longest.append(len(params["UpdateExpression"]))

    client.meta.events.register("before-parameter-build.dynamodb.UpdateItem", measure)
    try:
        store.reopen("clip")
    finally:
        client.meta.events.unregister("before-parameter-build.dynamodb.UpdateItem", measure)
    assert max(longest) < 4096
    assert store.job("clip") == replace(JOB, round=1)
    assert [store.failures(SegmentId("clip", index)) for index in (0, 500, 639)] == [0, 0, 0]


def test_a_job_that_is_reopened_before_its_total_is_known(store: Store) -> None:
    store.put_job(JOB)
    store.mark("clip", "failed")
    store.reopen("clip")
    assert store.job("clip") == replace(JOB, round=1)


def test_a_job_that_is_done_is_not_reopened(store: Store) -> None:
    store.put_job(JOB)
    store.mark("clip", "done")
    store.reopen("clip")
    assert store.job("clip") == replace(JOB, status="done")


def test_a_new_job_has_no_trigger_and_one_that_is_there_keeps_its(store: Store) -> None:
    assert store.trigger_once("clip", 60) == "taken"  # an earlier job's, which has expired
    store.trigger_sent("clip")
    store.put_job(JOB)
    assert store.trigger_once("clip", 60) == "taken"
    store.put_job(JOB)
    assert store.trigger_once("clip", 60) == "held"


def test_what_happens_to_a_job_that_nobody_recorded(store: Store) -> None:
    store.mark("clip", "failed", "why")
    store.chunking_complete("clip", 4)
    assert store.fail(SEGMENT, "one", "why") == 1
    assert store.job("clip") is None
    store.put_job(JOB)
    assert store.job("clip") == JOB


def test_a_failure_counts_once(store: Store) -> None:
    assert store.failures(SEGMENT) == 0
    assert [store.fail(SEGMENT, word, "why") for word in ("a", "b", "a", "b", "c")] == [1, 2, 2, 2, 3]
    assert store.failures(SegmentId("clip", 4)) == 0
    assert store.failures(SegmentId("clip2", 3)) == 0
    assert store.failures(SEGMENT.id) == 3


def test_refusals_are_counted_apart_and_forgotten_with_the_failures(store: Store) -> None:
    store.put_job(JOB)
    assert [store.refuse(SEGMENT, word) for word in ("a", "b", "a")] == [1, 2, 2]
    assert store.fail(SEGMENT, "a", "why") == 1
    assert (store.failures(SEGMENT), store.refusals(SEGMENT), store.refusals(SegmentId("clip", 4))) == (1, 2, 0)
    store.mark("clip", "failed")
    store.reopen("clip")
    assert (store.failures(SEGMENT), store.refusals(SEGMENT)) == (0, 0)


def test_completions_in_any_order_and_twice(store: Store) -> None:
    made = {index: Completion(SegmentId("clip", index), f"s3://out/{index}", 7.25 + index) for index in range(12)}
    order = [11, 0, 10, 9, 1, 2, 8, 3, 4, 7, 5, 6]
    assert all(store.complete(made[index]) for index in order)
    assert not any(store.complete(replace(made[index], output_uri="another")) for index in order)
    store.complete(Completion(SegmentId("clip2", 0), "s3://out/x", 1.0))
    assert store.completions("clip") == list(made.values())
    assert store.completion(SEGMENT.id) == made[3]
    assert store.completion(SegmentId("clip", 12)) is None
    assert store.completions("another") == []


def test_more_completions_than_a_page_holds(store: Store) -> None:
    long = "s3://out/" + "x" * 20_000  # DynamoDB answers a mebibyte at a time
    for index in range(60):
        store.complete(Completion(SegmentId("clip", index), long, 1.0))
    assert len(store.completions("clip")) == 60


def test_a_trigger_is_taken_by_one(store: Store) -> None:
    answers = at_once(store, [lambda: store.trigger_once("clip", 60)] * 6)
    assert sorted(map(str, answers)) == ["held"] * 5 + ["taken"]
    store.trigger_sent("clip")
    assert store.trigger_once("clip", 60) == "sent"
    assert store.trigger_once("clip", 0) == "sent"


def test_a_trigger_whose_taker_died_is_taken_over_by_one(store: Store) -> None:
    assert store.trigger_once("clip", 60) == "taken"
    time.sleep(0.5)  # old enough to be given up, and what takes it over is not
    answers = at_once(store, [lambda: store.trigger_once("clip", 0.45)] * 4)
    assert sorted(map(str, answers)) == ["held"] * 3 + ["taken"]


def test_an_invocation_that_succeeds(store: Store) -> None:
    recorded = invocation()
    assert store.invocation(recorded.id) is None
    assert store.record(recorded)
    assert not store.record(replace(recorded, output_uri="another"))
    assert store.invocation(recorded.id) == recorded
    assert store.open_invocations() == [recorded]
    store.accepted(recorded.id, "s3://out/async/a.out", "s3://out/async-failures/a.out", at=1234.5)
    known = replace(
        recorded, answer_uri="s3://out/async/a.out", failure_uri="s3://out/async-failures/a.out", called_at=1234.5
    )
    assert store.invocation(recorded.id) == known
    assert store.open_invocations() == [known]
    assert store.finish(recorded.id, "succeeded")
    assert store.invocation(recorded.id) == replace(known, state="succeeded")
    assert store.open_invocations() == [replace(known, state="succeeded")], "until it is settled"
    store.settle(recorded.id)
    store.settle(recorded.id)
    assert store.open_invocations() == []
    assert store.invocation(recorded.id) == replace(known, state="succeeded", settled=True)


def test_an_invocation_is_finished_once(store: Store) -> None:
    recorded = invocation()
    store.record(recorded)
    ends = [lambda: store.finish(recorded.id, "succeeded"), lambda: store.finish(recorded.id, "failed", "why")]
    answers = at_once(store, ends * 3)
    assert sorted(answers, key=str) == [False] * 5 + [True]
    assert not store.finish(recorded.id, "timed_out")
    assert not store.finish("b" * 32, "failed")
    assert store.invocation("b" * 32) is None


def test_a_failed_invocation_says_why(store: Store) -> None:
    recorded = invocation()
    store.record(recorded)
    store.finish(recorded.id, "failed", "out of memory")
    assert store.invocation(recorded.id) == replace(recorded, state="failed", reason="out of memory")


def test_what_is_said_of_an_invocation_that_is_not_there_makes_none(store: Store) -> None:
    store.accepted("c" * 32, "s3://out/async/c.out", None, at=1.0)
    store.settle("c" * 32)
    assert store.invocation("c" * 32) is None
    assert store.open_invocations() == []


def test_the_local_store_outlives_its_process(tmp_path: Path) -> None:
    first = LocalDatabase(tmp_path / "state.db")
    LocalStore(first).put_job(JOB)
    second = LocalDatabase(tmp_path / "state.db")  # the first is still open: as after a kill, or in another process
    assert LocalStore(second).job("clip") == JOB
    first.close()
    second.close()


class Recorder:
    """A DynamoDB client that notes what it is asked to store."""

    def __init__(self) -> None:
        self.items: list[dict[str, object]] = []
        self.values: list[dict[str, object]] = []

    def get_item(self, **_: object) -> dict[str, object]:
        return {}

    def delete_item(self, **_: object) -> None:
        """Nothing is kept."""

    def put_item(self, *, Item: dict[str, object], **_: object) -> None:
        self.items.append(Item)

    def update_item(self, **request: Any) -> dict[str, Any]:
        self.values.append(request["ExpressionAttributeValues"])
        return {"Attributes": {"failures_00003": {"SS": ["one"]}}}


def test_items_in_dynamodb_are_encoded_as_they_always_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expected values were written by the serializer that boto3's own replaced."""
    monkeypatch.setattr(time, "time", lambda: 1700000000.25)
    names = ("jobs", "segment_completions", "reassembly_triggered", "invocations")
    settings = SegmentSettings(**{f"{name}_table_name": name for name in names})
    client = Recorder()
    store = DynamoStore(client, settings)  # type: ignore[arg-type]
    store.put_job(replace(JOB, total=7, round=2))
    store.complete(Completion(SEGMENT.id, "s3://out/3", 1700000001.0))
    store.record(Invocation("a" * 32, SEGMENT, "s3://in/x", "s3://out/y", called_at=1700000002.123456))
    expiry, job_id, index = {"N": "1707776000"}, {"S": "clip"}, {"N": "3"}
    assert client.items == [
        {
            "job_id": job_id,
            "mode": {"S": "annotate"},
            "source": {"S": "Clip of a cat.mp4"},
            "created_at": {"N": "1234.5678"},
            "status": {"S": "chunking"},
            "total": {"N": "7"},
            "round": {"N": "2"},
            "expires_at": expiry,
        },
        {
            "job_id": job_id,
            "segment_index": index,
            "output_s3_uri": {"S": "s3://out/3"},
            "completed_at": {"N": "1700000001.0"},
            "expires_at": expiry,
        },
        {
            "invocation_id": {"S": "a" * 32},
            "job_id": job_id,
            "segment_index": index,
            "mode": {"S": "annotate"},
            "input_s3_uri": {"S": "s3://in/x"},
            "output_s3_uri": {"S": "s3://out/y"},
            "called_at": {"N": "1700000002.123456"},
            "state": {"S": "open"},
            "open": {"S": "open"},
            "expires_at": expiry,
        },
    ]
    store.fail(SEGMENT, "one", "why")
    store.trigger_once("clip", 60)
    store.trigger_sent("clip")
    store.accepted("a" * 32, "s3://out/a", None, 1700000003.5)
    store.chunking_complete("clip", 4)
    assert client.values == [
        {":w": {"SS": ["one"]}},
        {
            ":no": {"BOOL": False},
            ":now": {"N": "1700000000.25"},
            ":before": {"N": "1699999940.25"},
            ":expires": expiry,
        },
        {":yes": {"BOOL": True}},
        {":answer_uri": {"S": "s3://out/a"}, ":called_at": {"N": "1700000003.5"}},
        {":total": {"N": "4"}, ":from": {"S": "chunking"}, ":to": {"S": "chunking_complete"}},
    ]


def test_the_local_database_outlives_a_transaction_that_sqlite_ended_itself(tmp_path: Path) -> None:
    database = LocalDatabase(tmp_path / "state.db")

    def fill() -> None:
        with database.transaction() as db:
            db.execute("ROLLBACK")  # as SQLite does on a full disk
            raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        fill()
    LocalStore(database).put_job(JOB)
    assert LocalStore(database).job("clip") == JOB


def test_a_table_without_a_name_is_told(aws: Aws) -> None:
    settings = estate(aws).settings.model_copy(update={"invocations_table_name": None})
    with pytest.raises(ConfigurationError, match="INVOCATIONS_TABLE_NAME is unset"):
        DynamoStore(aws.client("dynamodb"), settings)
    with pytest.raises(ConfigurationError, match="JOBS_TABLE_NAME is unset"):
        DynamoStore(aws.client("dynamodb"), SegmentSettings())
