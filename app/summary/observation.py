"""What some consecutive results of one session showed, in little: the unit that the backlog holds. Pure.

`merge` folds neighbours and may be grouped in any way: sums are whole numbers, lists keep the first
distinct entries up to a cap, and the totals beside them say how many there were in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar
from zlib import crc32

import orjson

from app.errors import SightlineError
from app.summary.entities import Entity
from app.summary.movement import STILL, Movement

ENTITIES = 32
"""Entities named in `arrived`, and in `left`."""
TEXTS = 16
"""Texts in `new_texts`."""
TEXT_CHARS = 120
"""Longest of them."""

_HEAD = b"o1"
"""What every record begins with; the digit is the version of its layout. Four bytes of CRC-32 follow, then JSON."""
_BODY = len(_HEAD) + 4

T = TypeVar("T")


class DamagedRecord(SightlineError):
    """These bytes are no observation, or a torn one, or one of another version."""


@dataclass(frozen=True, slots=True)
class ObjectCount:
    class_name: str
    most: int
    """Most in one frame."""
    frames: int
    """Frames that had at least one."""
    boxes: int
    """Boxes over all frames."""
    score: int
    """Their confidences, thousandths, summed."""

    @property
    def confidence(self) -> float:
        """Mean over the boxes, 0 to 1."""
        return self.score / (1000 * self.boxes)


@dataclass(frozen=True, slots=True)
class Observation:
    first_frame_id: int
    last_frame_id: int
    started_at_ms: float
    ended_at_ms: float
    frames: int
    """Results folded in."""
    objects: tuple[ObjectCount, ...] = ()
    """In the order of their first sighting."""
    arrived: tuple[Entity, ...] = ()
    """The first ENTITIES that came into view; what was in view from the start did not come."""
    arrivals: int = 0
    """How many came, named or not. Somebody who left and came again counts twice: nobody knows who it was."""
    left: tuple[Entity, ...] = ()
    """The first ENTITIES that left."""
    departures: int = 0
    """How many left, named or not."""
    poses: tuple[str, ...] = ()
    """In words (see `postures`), each once."""
    new_texts: tuple[str, ...] = ()
    """The first TEXTS texts not read lately, cut at TEXT_CHARS."""
    texts: int = 0
    """How many there were, named or not."""
    motion: Movement = STILL
    failed: tuple[str, ...] = ()
    """Stages that said `error` on at least one frame: what they would have shown is not known."""

    @property
    def size(self) -> int:
        """Bytes of its record. Encodes: not for the hot path."""
        return len(self.encode())

    def encode(self) -> bytes:
        """A record that `decode` reads: some hundred bytes, a few microseconds."""
        body = orjson.dumps(
            (
                self.first_frame_id,
                self.last_frame_id,
                self.started_at_ms,
                self.ended_at_ms,
                self.frames,
                [(one.class_name, one.most, one.frames, one.boxes, one.score) for one in self.objects],
                [(one.number, one.class_name) for one in self.arrived],
                self.arrivals,
                [(one.number, one.class_name) for one in self.left],
                self.departures,
                self.poses,
                self.new_texts,
                self.texts,
                self.motion.numbers(),
                self.failed,
            )
        )
        return b"".join((_HEAD, crc32(body).to_bytes(4, "big"), body))

    @staticmethod
    def decode(data: bytes) -> Observation:
        """The observation that gave this record.

        Raises:
            DamagedRecord: torn, altered, of another version, or no record at all.
        """
        body = data[_BODY:]
        if not data.startswith(_HEAD):
            raise DamagedRecord(f"a record begins with {_HEAD!r}, not with {data[: len(_HEAD)]!r}")
        if crc32(body) != int.from_bytes(data[len(_HEAD) : _BODY], "big"):
            raise DamagedRecord(f"the checksum of a record of {len(data)} bytes is wrong: torn or altered")
        try:
            return _read(body)
        except (TypeError, ValueError) as error:  # orjson's own is a ValueError
            raise DamagedRecord(f"a record of {len(data)} bytes has another layout: {error}") from None


def merge(a: Observation, b: Observation) -> Observation:
    """One observation for both. `a` comes before `b`; merging is associative."""
    return Observation(
        first_frame_id=a.first_frame_id,
        last_frame_id=b.last_frame_id,
        started_at_ms=a.started_at_ms,
        ended_at_ms=b.ended_at_ms,
        frames=a.frames + b.frames,
        objects=_counted(a.objects, b.objects),
        arrived=_first(a.arrived, b.arrived, ENTITIES),
        arrivals=a.arrivals + b.arrivals,
        left=_first(a.left, b.left, ENTITIES),
        departures=a.departures + b.departures,
        poses=_distinct(a.poses, b.poses),
        new_texts=_first(a.new_texts, b.new_texts, TEXTS),
        texts=a.texts + b.texts,
        motion=a.motion + b.motion,
        failed=_distinct(a.failed, b.failed),
    )


def _counted(a: Iterable[ObjectCount], b: Iterable[ObjectCount]) -> tuple[ObjectCount, ...]:
    counts = {one.class_name: one for one in a}
    for one in b:
        same = counts.get(one.class_name)
        counts[one.class_name] = one if same is None else _sum(same, one)
    return tuple(counts.values())


def _sum(a: ObjectCount, b: ObjectCount) -> ObjectCount:
    return ObjectCount(a.class_name, max(a.most, b.most), a.frames + b.frames, a.boxes + b.boxes, a.score + b.score)


def _distinct(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return a if not b or a == b else tuple(dict.fromkeys((*a, *b)))


def _first(a: tuple[T, ...], b: tuple[T, ...], cap: int) -> tuple[T, ...]:
    return _distinct(a, b)[:cap]


def _read(body: bytes) -> Observation:
    first, last, started, ended, frames, objects, arrived, arrivals, left, departures, *rest = orjson.loads(body)
    poses, new_texts, texts, motion, failed = rest
    return Observation(
        first,
        last,
        started,
        ended,
        frames,
        tuple([ObjectCount(*one) for one in objects]),
        tuple([Entity(*one) for one in arrived]),
        arrivals,
        tuple([Entity(*one) for one in left]),
        departures,
        tuple(poses),
        tuple(new_texts),
        texts,
        Movement(*motion),
        tuple(failed),
    )
