"""A camera's frame as Redis carries it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_MOST_TYPE = 128
"""Bytes of a camera's type, which each of its answers repeats."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a frame came from: enough to answer and to acknowledge it; without its pixels."""

    stream: str
    """Key of the Redis stream."""
    entry: str
    """Id of the entry in it: `milliseconds-number`, growing."""
    camera_id: str
    camera_type: str | None
    captured_at_ms: float
    """Epoch milliseconds; without a time of its own, when the entry was added."""
    epoch: int = 0
    """Of the lease that it was read under: it grows whenever the camera changes hands."""


@dataclass(frozen=True, slots=True)
class CameraFrame:
    origin: Origin
    jpeg: bytes
    arrived: float
    """`time.perf_counter()` when it was read."""
    claimed: bool = False
    """Whether a worker that died had read it before; it was claimed when that one had been silent for long."""


def read_entry(
    prefix: str,
    stream: str,
    entry: bytes,
    fields: Mapping[bytes, bytes],
    *,
    arrived: float,
    epoch: int = 0,
    claimed: bool = False,
) -> CameraFrame:
    """An entry of a camera's stream. The stream's name says which camera it is; missing fields are borne with.

    An entry without a picture has an empty one, which the pipeline refuses by name.
    """
    identity = entry.decode()
    camera_type = fields.get(b"camera_type")
    return CameraFrame(
        Origin(
            stream=stream,
            entry=identity,
            camera_id=stream.removeprefix(prefix),
            camera_type=None if camera_type is None else camera_type[:_MOST_TYPE].decode(errors="replace"),
            captured_at_ms=_number(fields.get(b"captured_at_ms"), float(identity.partition("-")[0])),
            epoch=epoch,
        ),
        jpeg=fields.get(b"frame", b""),
        arrived=arrived,
        claimed=claimed,
    )


def _number(value: bytes | None, otherwise: float) -> float:
    try:
        number = otherwise if value is None else float(value)
    except ValueError:
        return otherwise
    return number if math.isfinite(number) else otherwise
