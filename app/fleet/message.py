"""What Kafka gets: one JSON value a frame, keyed by its camera. Pure.

A frame that was analysed has the fields of its `FrameResult` and `error: null`; one that could not be has `error` with
`code` and `message`, and of the result what there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from app.fleet.frames import Origin
from app.protocol.result import FrameResult

SCHEMA = "sightline.frame.v1"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a frame has no full answer."""

    code: str
    """`inference` (a model refused or timed out), `inference_unavailable`, or `internal`."""
    message: str


def encode(origin: Origin, result: FrameResult | None, failure: Failure | None, *, worker: str, age_ms: float) -> bytes:
    """The value of one frame.

    `frame_id` is the entry's id in Redis: unique within its camera and in order. A frame may come twice (at least
    once): by camera and `frame_id` the second is known. `epoch` grows whenever the camera changes hands: a message with
    a lower one than its camera has shown already comes from a worker that has lost the camera, and may be discarded.
    """
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "camera_id": origin.camera_id,
        "camera_type": origin.camera_type,
        "frame_id": origin.entry,
        "epoch": origin.epoch,
        "captured_at_ms": origin.captured_at_ms,
        "age_ms": round(age_ms, 3),
        "worker": worker,
        "error": failure,
    }
    if result is not None:
        value |= {
            "image": result.image,
            "objects": result.objects,
            "poses": result.poses,
            "texts": result.texts,
            "motion": result.motion,
            "stages": result.stages,
            "timings_ms": result.timings_ms,
        }
    return orjson.dumps(value)
