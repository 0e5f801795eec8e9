"""What S3 says when an object was created: the body of a queue's message, read and written. Pure."""

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


def read(body: str) -> list[Created]:
    """The objects that an event names, in its order; none for what S3 sends to try a queue (`s3:TestEvent`).

    Keys come percent-encoded, a space as `+`. Records of anything but a creation are left out.

    Raises:
        InvalidEvent: the body is no such event, or any record of it is damaged.
    """
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidEvent(f"no JSON: {error}") from None
    if not isinstance(event, dict):
        raise InvalidEvent(f"a JSON {type(event).__name__}, not an object")
    if event.get("Event") == "s3:TestEvent":
        return []
    records = event.get("Records")
    if not isinstance(records, list) or not records:
        raise InvalidEvent("no `Records`, or none in it")
    return [created for place, record in enumerate(records) if (created := _record(record, place)) is not None]


def _record(record: Any, place: int) -> Created | None:
    try:
        name, bucket, key = record["eventName"], record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
    except (TypeError, KeyError):
        raise InvalidEvent(f"Records[{place}]: no `eventName`, `s3.bucket.name` or `s3.object.key`") from None
    if not (isinstance(name, str) and isinstance(bucket, str) and isinstance(key, str) and bucket and key):
        raise InvalidEvent(f"Records[{place}]: its name, bucket and key should be words")
    return Created(bucket, unquote_plus(key)) if name.startswith("ObjectCreated:") else None


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
