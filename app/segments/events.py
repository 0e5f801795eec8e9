"""Parses and writes S3's "object created" events, which are the bodies of queue messages. No I/O.

The formats are in the AWS documentation: S3 ("Event message structure", "Using EventBridge"), SNS ("Amazon SNS message
formats").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import orjson


class InvalidEvent(ValueError):
    """The body is not an S3 event. The message names the defect."""


@dataclass(frozen=True, slots=True)
class Created:
    """An object that was created."""

    bucket: str
    key: str


_MAX_DEPTH = 8
"""Levels of nested envelopes, and of JSON within JSON strings."""
_MAX_OBJECTS = 1000
"""Objects in one message, which SQS limits to 1 MB."""


def read(body: str) -> list[Created]:
    """The created objects in an event, in its order; none for the event with which S3 tests a queue (`s3:TestEvent`).

    S3 sends the event to a queue directly, or SNS (as a notification or a Lambda record), EventBridge or SQS (as a
    Lambda record) wraps it. Wrappings may be nested in any order. S3 percent-encodes keys, with `+` for a
    space; EventBridge does not. Records of other events than a creation are ignored.

    Raises:
        InvalidEvent: the body is not such an event, or one of its records is damaged.
    """
    created = _unwrap(body, 0)
    if len(created) > _MAX_OBJECTS:
        raise InvalidEvent(f"{len(created):,} objects; at most {_MAX_OBJECTS:,} are accepted")
    return created


def _unwrap(body: Any, depth: int) -> list[Created]:
    if depth > _MAX_DEPTH:
        raise InvalidEvent(f"more than {_MAX_DEPTH} nested envelopes")
    if isinstance(body, str):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidEvent(f"not JSON: {error}") from None
        if isinstance(body, str):
            return _unwrap(body, depth + 1)
    if not isinstance(body, dict):
        raise InvalidEvent(f"a JSON {type(body).__name__}, not an object")
    if body.get("Event") == "s3:TestEvent":
        return []
    if "detail-type" in body:
        return _read_eventbridge(body)
    if "Message" in body and "TopicArn" in body:  # SNS; the confirmation of a subscription has plain text there
        return _unwrap(body["Message"], depth + 1)
    records = body.get("Records")
    if not isinstance(records, list) or not records:
        raise InvalidEvent("neither S3's `Records`, nor an envelope of SNS or EventBridge")
    return [created for place, record in enumerate(records) for created in _read_record(record, place, depth)]


def _read_eventbridge(event: dict[str, Any]) -> list[Created]:
    kind = event["detail-type"]
    if event.get("source") != "aws.s3" or not isinstance(kind, str):
        raise InvalidEvent(f"an event of EventBridge with source {str(event.get('source'))[:40]!r}, not 'aws.s3'")
    try:
        bucket, key = event["detail"]["bucket"]["name"], event["detail"]["object"]["key"]
    except (TypeError, KeyError):
        raise InvalidEvent("an event of EventBridge without `detail.bucket.name` or `detail.object.key`") from None
    if not (isinstance(bucket, str) and isinstance(key, str) and bucket and key):
        raise InvalidEvent("an event of EventBridge whose bucket and key should be non-empty strings")
    return [Created(bucket, key)] if kind == "Object Created" else []


def _read_record(record: Any, place: int, depth: int) -> list[Created]:
    if isinstance(record, dict) and isinstance(record.get("Sns"), dict):
        return _unwrap(record["Sns"].get("Message"), depth + 1)
    if isinstance(record, dict) and record.get("eventSource") == "aws:sqs":
        return _unwrap(record.get("body"), depth + 1)
    try:
        name, bucket, key = record["eventName"], record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
    except (TypeError, KeyError):
        raise InvalidEvent(f"Records[{place}]: no `eventName`, `s3.bucket.name` or `s3.object.key`") from None
    if not (isinstance(name, str) and isinstance(bucket, str) and isinstance(key, str) and bucket and key):
        raise InvalidEvent(f"Records[{place}]: its name, bucket and key should be non-empty strings")
    # S3 writes `ObjectCreated:Put`, compatible stores `s3:ObjectCreated:Put`.
    return [Created(bucket, unquote_plus(key))] if name.removeprefix("s3:").startswith("ObjectCreated:") else []


def body_of(*objects: Created) -> str:
    """The event that S3 would send for these objects. The service sends it itself if there is no S3, and to have a
    segment analysed again."""
    records = [
        {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": created.bucket}, "object": {"key": quote_plus(created.key, safe="/")}},
        }
        for created in objects
    ]
    return orjson.dumps({"Records": records}).decode()
