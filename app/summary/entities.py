"""Arrivals and departures: entities followed over new track ids, missed detections and dropped frames. Does no I/O.

A tracker gives an object a new id whenever it loses it: after a gap between frames, or when the frames change their
size. Counting track ids would therefore count one person several times. The number of objects in view at once is
certain, however: an entity arrived if more of its class are in view than before, and left if fewer are for long enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from app.pipeline.stages.detect import Detection
from app.pipeline.stages.motion import CameraMotion
from app.pipeline.stages.pose import Pose
from app.protocol.result import FrameResult

PERSON = "person"
FACE = "face"
GONE_MS = 2000.0
"""Milliseconds that an entity may be out of sight before it has left; the tracker remembers it as long."""
_MISSES = 2
"""Usable results in a row that must miss it, too, so that one missed detection is no departure at a low frame rate."""
_SIGHTINGS = 2
"""Results that must show an entity without a track id before it counts, so that a flickering box is no arrival."""
_SPEED = 0.5
"""Most speed of an entity out of sight, in frame diagonals a second: that of a person close to the camera."""
_MOST_PAIRS = 1000
"""Most pairs of boxes and entities of one class that are compared by place. Larger crowds are only counted."""


class Entity(NamedTuple):
    """An object that arrived or left."""

    number: int
    """Number of the entity, from 1 over all classes of the session; never reused."""
    class_name: str


class _Followed:
    """An entity in view, or out of sight for a moment. Positions and lengths are shares of the frame's diagonal."""

    __slots__ = ("counted", "entity", "height", "misses", "seen_ms", "sightings", "track_id", "x", "y")

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.x = self.y = self.height = self.seen_ms = 0.0
        self.track_id: int | None = None
        self.counted = False
        self.sightings = 0
        self.misses = 0


class _Box(NamedTuple):
    """A detection; its centre and height are shares of the frame's diagonal."""

    class_name: str
    track_id: int | None
    x: float
    y: float
    height: float


class Entities:
    """The entities in view of one stream. Call `add` with each result; it takes some microseconds."""

    def __init__(self) -> None:
        self._entities: list[_Followed] = []
        self._by_track: dict[int, _Followed] = {}
        self._numbers = 0
        self._begun = False
        """Whether a result was usable yet: entities of the first usable one were there before, and did not arrive."""

    def add(self, result: FrameResult, at_ms: float) -> tuple[list[Entity], list[Entity]]:
        """The entities that arrived, and those that left, with this result.

        Args:
            result: of this stream, in order. Without `ok` of detection or pose it is unusable and changes nothing.
            at_ms: milliseconds of any clock, which may go back.
        """
        boxes, evidence = _boxes(result)
        if evidence == "nothing":
            return [], []
        camera = result.motion.camera if result.motion is not None else None
        self._follow(at_ms, camera, math.hypot(result.image.width, result.image.height))
        arrived = self._match(boxes, at_ms)
        self._begun = True
        if evidence == "some people":
            return arrived, []
        return arrived, self._leave(at_ms, only_people=evidence == "people")

    def _follow(self, at_ms: float, camera: CameraMotion | None, diagonal: float) -> None:
        moves = camera is not None and (camera.dx or camera.dy)
        for followed in self._entities:
            if followed.seen_ms > at_ms:  # the clock went back, and the entity must not stay for as long as that
                followed.seen_ms = at_ms
            if moves and camera is not None:
                followed.x += camera.dx / diagonal
                followed.y += camera.dy / diagonal

    def _match(self, boxes: Sequence[_Box], at_ms: float) -> list[Entity]:
        free = {id(followed): followed for followed in self._entities}
        arrived: list[Entity] = []
        loose: dict[str, list[_Box]] = {}
        for box in boxes:
            followed = None if box.track_id is None else self._by_track.get(box.track_id)
            if followed is None or free.pop(id(followed), None) is None:
                loose.setdefault(box.class_name, []).append(box)
            elif self._see(followed, box, at_ms):
                arrived.append(followed.entity)
        for class_name, rest in loose.items():
            lost = [followed for followed in free.values() if followed.entity.class_name == class_name]
            for box, followed in _matched(rest, lost, at_ms):
                if followed is None:
                    self._numbers += 1
                    followed = _Followed(Entity(self._numbers, class_name))
                    followed.counted = not self._begun
                    self._entities.append(followed)
                if self._see(followed, box, at_ms):
                    arrived.append(followed.entity)
        return arrived

    def _see(self, followed: _Followed, box: _Box, at_ms: float) -> bool:
        """Notes that the box shows this entity; returns whether it arrived with that."""
        followed.x, followed.y, followed.height, followed.seen_ms = box.x, box.y, box.height, at_ms
        followed.misses = 0
        followed.sightings += 1
        if box.track_id is not None and box.track_id != followed.track_id:
            if followed.track_id is not None:
                self._by_track.pop(followed.track_id, None)
            followed.track_id = box.track_id
            self._by_track[box.track_id] = followed
        if followed.counted or not (box.track_id is not None or followed.sightings >= _SIGHTINGS):
            return False
        followed.counted = True
        return True

    def _leave(self, at_ms: float, *, only_people: bool) -> list[Entity]:
        left: list[Entity] = []
        stay: list[_Followed] = []
        for followed in self._entities:
            if followed.seen_ms == at_ms or (only_people and followed.entity.class_name != PERSON):
                stay.append(followed)
                continue
            followed.misses += 1
            if followed.misses < _MISSES or (followed.counted and at_ms - followed.seen_ms <= GONE_MS):
                stay.append(followed)
                continue
            if followed.track_id is not None:
                self._by_track.pop(followed.track_id, None)
            if followed.counted:
                left.append(followed.entity)
        self._entities = stay
        return left


_Evidence = Literal["all", "people", "some people", "nothing"]


def _boxes(result: FrameResult) -> tuple[list[_Box], _Evidence]:
    """The boxes in view, and the classes about which they are evidence.

    Detection is evidence about all classes. If it is off, poses are evidence about people. If it failed, poses show
    people who are there, but not that a person is missing, because detection alone may have found that person.
    """
    stages = result.stages
    detected = "detect" in stages and stages["detect"].status == "ok"
    posed = "pose" in stages and stages["pose"].status == "ok"
    if not detected and not posed:
        return [], "nothing"
    diagonal = math.hypot(result.image.width, result.image.height)
    boxes = [_box(found, found.class_name, diagonal) for found in result.objects] if detected else []
    if posed and not any(box.class_name == PERSON for box in boxes):  # no detector that knows people
        boxes += [_box(pose, PERSON, diagonal) for pose in result.poses]
    if detected:
        return boxes, "all"
    return boxes, "some people" if "detect" in stages and stages["detect"].status == "error" else "people"


def _box(found: Detection | Pose, class_name: str, diagonal: float) -> _Box:
    box = found.box
    return _Box(
        class_name,
        found.track_id,
        (box.x1 + box.x2) / (2 * diagonal),
        (box.y1 + box.y2) / (2 * diagonal),
        (box.y2 - box.y1) / diagonal,
    )


def _matched(boxes: Sequence[_Box], lost: Sequence[_Followed], at_ms: float) -> Iterable[tuple[_Box, _Followed | None]]:
    """Each box with the lost entity that it shows, one to one; None if it shows a new entity.

    An entity may be within half a height of its last position plus the distance that it may have moved since. The
    nearest pairs are matched first; then matches are rearranged along augmenting paths (Kuhn 1955) until as few boxes
    as possible are new, so that no arrival is reported that the known entities explain.
    """
    if not lost:
        return [(box, None) for box in boxes]
    if len(boxes) * len(lost) > _MOST_PAIRS:
        return [(box, lost[at] if at < len(lost) else None) for at, box in enumerate(boxes)]
    near = []
    for at, box in enumerate(boxes):
        for which, followed in enumerate(lost):
            apart = math.hypot(box.x - followed.x, box.y - followed.y)
            if apart <= max(box.height, followed.height) / 2 + _SPEED * (at_ms - followed.seen_ms) / 1000:
                near.append((apart, at, which))
    near.sort()
    box_of: dict[int, int] = {}
    lost_of: dict[int, int] = {}
    reach: dict[int, list[int]] = {}
    for _, at, which in near:
        reach.setdefault(at, []).append(which)
        if at not in lost_of and which not in box_of:
            lost_of[at], box_of[which] = which, at
    for at in reach:
        if at not in lost_of:
            _augment(at, reach, box_of, lost_of, set())
    return [(box, lost[lost_of[at]] if at in lost_of else None) for at, box in enumerate(boxes)]


def _augment(
    at: int, reach: dict[int, list[int]], box_of: dict[int, int], lost_of: dict[int, int], tried: set[int]
) -> bool:
    """Matches box `at`, matching other boxes differently if need be; returns whether that succeeded."""
    for which in reach[at]:
        if which in tried:
            continue
        tried.add(which)
        if which not in box_of or _augment(box_of[which], reach, box_of, lost_of, tried):
            lost_of[at], box_of[which] = which, at
            return True
    return False
