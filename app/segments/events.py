"""What S3 says when an object was created: the body of a queue's message, read and written. Pure.

AWS: docs of S3 ("Event message structure", "Using EventBridge"), of SNS ("Amazon SNS message formats").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import orjson


class InvalidEvent(ValueError):
    """The body is no S3 event. The message says what it is instead."""


@dataclass(frozen=True, slots=True)
class Created:
    """One object that was created."""

    bucket: str
    key: str


_MOST_DEEP = 8
"""Envelopes within envelopes, and JSON in JSON strings."""
_MOST_OBJECTS = 1000
"""In one message: SQS takes 1 MB."""


def read(body: str) -> list[Created]:
    """The objects that an event names, in its order; none for what S3 sends to try a queue (`s3:TestEvent`).

    An event comes as S3 sends it to a queue, or wrapped by SNS (as a notification, or as a Lambda record), by
    EventBridge, or by SQS (as a Lambda record), in any order, one in the other. S3's own keys come percent-encoded, a
    space as `+`; EventBridge's come as they are. Records of anything but a creation are left out.

    Raises:
        InvalidEvent: the body is no such event, or any record of it is damaged.
    """
    created = _opened(body, 0)
    if len(created) > _MOST_OBJECTS:
        raise InvalidEvent(f"{len(created):,} objects; at most {_MOST_OBJECTS:,} are taken")
    return created


def _opened(body: Any, depth: int) -> list[Created]:
    if depth > _MOST_DEEP:
        raise InvalidEvent(f"more than {_MOST_DEEP} envelopes, one in the other")
    if isinstance(body, str):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidEvent(f"no JSON: {error}") from None
        if isinstance(body, str):
            return _opened(body, depth + 1)
    if not isinstance(body, dict):
        raise InvalidEvent(f"a JSON {type(body).__name__}, not an object")
    if body.get("Event") == "s3:TestEvent":
        return []
    if "detail-type" in body:
        return _of_eventbridge(body)
    if "Message" in body and "TopicArn" in body:  # SNS; a confirmation of a subscription has a text there
        return _opened(body["Message"], depth + 1)
    records = body.get("Records")
    if not isinstance(records, list) or not records:
        raise InvalidEvent("neither S3's `Records`, nor an envelope of SNS or EventBridge")
    return [created for place, record in enumerate(records) for created in _record(record, place, depth)]


def _of_eventbridge(event: dict[str, Any]) -> list[Created]:
    kind = event["detail-type"]
    if event.get("source") != "aws.s3" or not isinstance(kind, str):
        raise InvalidEvent(f"an event of EventBridge, but of {str(event.get('source'))[:40]!r}, not of 'aws.s3'")
    try:
        bucket, key = event["detail"]["bucket"]["name"], event["detail"]["object"]["key"]
    except (TypeError, KeyError):
        raise InvalidEvent("an event of EventBridge without `detail.bucket.name` or `detail.object.key`") from None
    if not (isinstance(bucket, str) and isinstance(key, str) and bucket and key):
        raise InvalidEvent("an event of EventBridge whose bucket and key should be words")
    return [Created(bucket, key)] if kind == "Object Created" else []


def _record(record: Any, place: int, depth: int) -> list[Created]:
    if isinstance(record, dict) and isinstance(record.get("Sns"), dict):
        return _opened(record["Sns"].get("Message"), depth + 1)
    if isinstance(record, dict) and record.get("eventSource") == "aws:sqs":
        return _opened(record.get("body"), depth + 1)
    try:
        name, bucket, key = record["eventName"], record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
    except (TypeError, KeyError):
        raise InvalidEvent(f"Records[{place}]: no `eventName`, `s3.bucket.name` or `s3.object.key`") from None
    if not (isinstance(name, str) and isinstance(bucket, str) and isinstance(key, str) and bucket and key):
        raise InvalidEvent(f"Records[{place}]: its name, bucket and key should be words")
    # S3 writes `ObjectCreated:Put`, other stores of its kind `s3:ObjectCreated:Put`.
    return [Created(bucket, unquote_plus(key))] if name.removeprefix("s3:").startswith("ObjectCreated:") else []


def body_of(*objects: Created) -> str:
    """The event that S3 would send for these objects. Where there is no S3, or a segment is repeated, we send it."""
    records = [
        {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": one.bucket}, "object": {"key": quote_plus(one.key, safe="/")}},
        }
        for one in objects
    ]
    return orjson.dumps({"Records": records}).decode()
