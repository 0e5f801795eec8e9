"""S3's events, parsed and written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.segments.events import Created, InvalidEvent, body_of, read
from tests.support.aws import Aws
from tests.support.segments import estate


@given(
    st.lists(
        st.builds(Created, st.text("abc-", min_size=1), st.text(st.characters(codec="utf-8"), min_size=1)), min_size=1
    )
)
def test_what_is_written_is_read_back(objects: list[Created]) -> None:
    assert read(body_of(*objects)) == objects


def test_keys_as_s3_sends_them(aws: Aws) -> None:
    parts = estate(aws).resources()
    key = "segments/a job/ü+%20.mp4"
    parts.objects.write(f"s3://{parts.input_bucket}/{key}", b"x")
    message = parts.segments.receive(5)
    while message is not None and "TestEvent" in message.body:
        assert read(message.body) == []
        parts.segments.delete(message)
        message = parts.segments.receive(5)
    assert message is not None
    assert read(message.body) == [Created(parts.input_bucket, key)]


def test_a_removal_creates_nothing() -> None:
    event = json.loads(body_of(Created("b", "one"), Created("b", "two")))
    event["Records"][0]["eventName"] = "ObjectRemoved:Delete"
    assert read(json.dumps(event)) == [Created("b", "two")]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no json",
        "[]",
        "null",
        "{}",
        '{"Records": []}',
        '{"Records": {}}',
        '{"Records": [1]}',
        '{"Records": [{"eventName": "ObjectCreated:Put"}]}',
        '{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": 7}}}]}',
        '{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": ""}, "object": {"key": "k"}}}]}',
        '{"Records": [{"eventName": null, "s3": null}]}',
    ],
)
def test_bodies_that_are_no_event(body: str) -> None:
    with pytest.raises(InvalidEvent):
        read(body)


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["Records", "s3", "bucket", "object", "key", "name", "eventName"]), inner)
        ),
    )
)
def test_any_json_is_read_or_refused(body: object) -> None:
    try:
        found = read(json.dumps(body))
    except InvalidEvent:
        found = []
    assert all(created.bucket and created.key for created in found)


def sns(body: str, **more: str) -> str:
    return json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:eu:1:films", "Message": body, **more})


def eventbridge(bucket: str, key: str, kind: str = "Object Created", source: str = "aws.s3") -> str:
    detail = {"bucket": {"name": bucket}, "object": {"key": key}, "reason": "PutObject"}
    return json.dumps({"version": "0", "source": source, "detail-type": kind, "detail": detail})


@pytest.mark.parametrize("key", ["segments/job/00000.annotate.mp4", "a+b c%20ü.mp4"])
def test_d1_envelopes_are_opened(key: str) -> None:
    plain, two = body_of(Created("b", key)), body_of(Created("b", key), Created("b", "two"))
    as_lambda = json.dumps({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": plain}}] * 2})
    through_sqs = json.dumps({"Records": [{"eventSource": "aws:sqs", "body": sns(plain)}]})
    created = Created("b", key)
    assert read(sns(plain)) == [created]
    assert read(sns(two)) == [created, Created("b", "two")]
    assert read(sns(sns(plain))) == [created]
    assert read(eventbridge("b", key)) == [created]
    assert read(sns(eventbridge("b", key))) == [created]
    assert read(as_lambda) == [created, created]
    assert read(through_sqs) == [created]
    assert read(json.dumps(plain)) == [created]


def test_d1_what_an_envelope_says_of_no_creation_is_none() -> None:
    assert read(eventbridge("b", "k", "Object Deleted")) == []
    assert read(sns('{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}')) == []


@pytest.mark.parametrize(
    "body",
    [
        sns("hello"),
        sns("{}"),
        sns("You have chosen to subscribe", Type="SubscriptionConfirmation", SubscribeURL="https://sns/confirm"),
        eventbridge("b", "k", source="aws.ec2"),
        eventbridge("", "k"),
        '{"detail-type": "Object Created", "source": "aws.s3", "detail": []}',
        '{"detail-type": ["Object Created"], "source": "aws.s3"}',
        '{"TopicArn": "t", "Message": null}',
        '{"Records": [{"EventSource": "aws:sns", "Sns": {"Message": 7}}]}',
    ],
)
def test_d1_an_envelope_around_something_else_is_refused(body: str) -> None:
    with pytest.raises(InvalidEvent):
        read(body)


def test_d1_envelopes_have_a_budget() -> None:
    body = body_of(Created("b", "k"))
    for _ in range(12):
        body = sns(body)
    with pytest.raises(InvalidEvent, match="envelopes"):
        read(body)
    with pytest.raises(InvalidEvent, match="at most 1,000"):
        read(body_of(*[Created("b", str(number)) for number in range(1001)]))
