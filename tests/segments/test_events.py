"""S3's events."""

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
    parts = estate(aws).parts()
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
    assert all(one.bucket and one.key for one in found)
