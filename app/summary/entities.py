"""Who is in view: things joined over renumbering, missed detections and dropped frames. Pure.

A tracker gives a thing a new number whenever it loses it: after a gap between frames, or when the frames change their
size. Counting its numbers counts one person several times. What is certain is how many things are in view at once: a
thing came where more of its class are in view than were, and left where fewer are, for long enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from app.protocol.result import CameraMotion, Detection, FrameResult, Pose

PERSON = "person"
GONE_MS = 2000.0
"""How long a thing may be out of sight before it has left; the tracker itself remembers it as long."""
_MISSES = 2
"""Usable results in a row without it, besides: one missed detection is no leaving, however few results there are."""
_SIGHTINGS = 2
"""Results with a thing before it counts, unless the tracker vouches for it: a flash of a box is nothing that came."""
_SPEED = 0.5
"""Diagonals of the frame a second that a thing may have gone unseen; somebody close to the camera goes as fast."""
_MOST_PAIRS = 1000
"""Pairs of boxes and things of one class that are compared by place; a crowd beyond is counted, not compared."""


class Entity(NamedTuple):
    """A thing that came or left."""

    number: int
    """Counted from 1 over the session, over all classes; never used again."""
    class_name: str


class _Thing:
    """A thing in view, or out of sight for a moment. Places and lengths are shares of the frame's diagonal."""

    __slots__ = ("counted", "entity", "height", "misses", "seen_ms", "sightings", "track_id", "x", "y")

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.x = self.y = self.height = self.seen_ms = 0.0
        self.track_id: int | None = None
        self.counted = False
        self.sightings = 0
        self.misses = 0


class _Box(NamedTuple):
    class_name: str
    track_id: int | None
    x: float
    y: float
    height: float


class Entities:
    """The things in view of one stream; one call of `add` a result, some microseconds."""

    def __init__(self) -> None:
        self._things: list[_Thing] = []
        self._by_track: dict[int, _Thing] = {}
        self._numbers = 0
        self._begun = False
        """Whether any result was usable yet: what the first one shows was there, and did not come."""

    def add(self, result: FrameResult, at_ms: float) -> tuple[list[Entity], list[Entity]]:
        """Who came and who left with this result.

        Args:
            result: of this stream, in order. Unusable where neither detection nor poses say `ok`: nobody comes or goes.
            at_ms: any clock, milliseconds; it may go back.
        """
        boxes, told = _boxes(result)
        if told == "nothing":
            return [], []
        camera = result.motion.camera if result.motion is not None else None
        self._follow(at_ms, camera, math.hypot(result.image.width, result.image.height))
        arrived = self._match(boxes, at_ms)
        self._begun = True
        if told == "some people":
            return arrived, []
        return arrived, self._leave(at_ms, only_people=told == "people")

    def _follow(self, at_ms: float, camera: CameraMotion | None, diagonal: float) -> None:
        moves = camera is not None and (camera.dx or camera.dy)
        for thing in self._things:
            if thing.seen_ms > at_ms:  # the clock went back: seen just now, or it would stay for as long as that
                thing.seen_ms = at_ms
            if moves and camera is not None:
                thing.x += camera.dx / diagonal
                thing.y += camera.dy / diagonal

    def _match(self, boxes: Sequence[_Box], at_ms: float) -> list[Entity]:
        free = {id(thing): thing for thing in self._things}
        arrived: list[Entity] = []
        loose: dict[str, list[_Box]] = {}
        for box in boxes:
            thing = None if box.track_id is None else self._by_track.get(box.track_id)
            if thing is None or free.pop(id(thing), None) is None:
                loose.setdefault(box.class_name, []).append(box)
            elif self._see(thing, box, at_ms):
                arrived.append(thing.entity)
        for class_name, rest in loose.items():
            lost = [thing for thing in free.values() if thing.entity.class_name == class_name]
            for box, thing in _joined(rest, lost, at_ms):
                if thing is None:
                    self._numbers += 1
                    thing = _Thing(Entity(self._numbers, class_name))
                    thing.counted = not self._begun
                    self._things.append(thing)
                if self._see(thing, box, at_ms):
                    arrived.append(thing.entity)
        return arrived

    def _see(self, thing: _Thing, box: _Box, at_ms: float) -> bool:
        """Whether it came with this sighting."""
        thing.x, thing.y, thing.height, thing.seen_ms = box.x, box.y, box.height, at_ms
        thing.misses = 0
        thing.sightings += 1
        if box.track_id is not None and box.track_id != thing.track_id:
            if thing.track_id is not None:
                self._by_track.pop(thing.track_id, None)
            thing.track_id = box.track_id
            self._by_track[box.track_id] = thing
        if thing.counted or not (box.track_id is not None or thing.sightings >= _SIGHTINGS):
            return False
        thing.counted = True
        return True

    def _leave(self, at_ms: float, *, only_people: bool) -> list[Entity]:
        left: list[Entity] = []
        stay: list[_Thing] = []
        for thing in self._things:
            if thing.seen_ms == at_ms or (only_people and thing.entity.class_name != PERSON):
                stay.append(thing)
                continue
            thing.misses += 1
            if thing.misses < _MISSES or (thing.counted and at_ms - thing.seen_ms <= GONE_MS):
                stay.append(thing)
                continue
            if thing.track_id is not None:
                self._by_track.pop(thing.track_id, None)
            if thing.counted:
                left.append(thing.entity)
        self._things = stay
        return left


_Told = Literal["all", "people", "some people", "nothing"]


def _boxes(result: FrameResult) -> tuple[list[_Box], _Told]:
    """The boxes in view, and of what they tell.

    Detection tells of all classes; where it is off, poses tell of the people. Where it failed they tell of people whom
    they show, but not that a person is missing whom detection alone had found.
    """
    stages = result.stages
    detected = "detect" in stages and stages["detect"].status == "ok"
    posed = "pose" in stages and stages["pose"].status == "ok"
    if not detected and not posed:
        return [], "nothing"
    diagonal = math.hypot(result.image.width, result.image.height)
    boxes = [_box(found, found.class_name, diagonal) for found in result.objects] if detected else []
    if posed and not any(box.class_name == PERSON for box in boxes):  # people that no detector names
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


def _joined(boxes: Sequence[_Box], lost: Sequence[_Thing], at_ms: float) -> Iterable[tuple[_Box, _Thing | None]]:
    """Each box with the thing that it is, one to one; None: a thing not known yet.

    A thing may be anywhere within half a height and the way that it may have gone since. The nearest are joined first;
    then those joined give way where that leaves fewer things unknown (Kuhn 1955): nobody has come whom all boxes and
    places explain without.
    """
    if not lost:
        return [(box, None) for box in boxes]
    if len(boxes) * len(lost) > _MOST_PAIRS:
        return [(box, lost[at] if at < len(lost) else None) for at, box in enumerate(boxes)]
    near = []
    for at, box in enumerate(boxes):
        for which, thing in enumerate(lost):
            apart = math.hypot(box.x - thing.x, box.y - thing.y)
            if apart <= max(box.height, thing.height) / 2 + _SPEED * (at_ms - thing.seen_ms) / 1000:
                near.append((apart, at, which))
    near.sort()
    box_of: dict[int, int] = {}
    thing_of: dict[int, int] = {}
    reach: dict[int, list[int]] = {}
    for _, at, which in near:
        reach.setdefault(at, []).append(which)
        if at not in thing_of and which not in box_of:
            thing_of[at], box_of[which] = which, at
    for at in reach:
        if at not in thing_of:
            _give_way(at, reach, box_of, thing_of, set())
    return [(box, lost[thing_of[at]] if at in thing_of else None) for at, box in enumerate(boxes)]


def _give_way(
    at: int, reach: dict[int, list[int]], box_of: dict[int, int], thing_of: dict[int, int], tried: set[int]
) -> bool:
    """Whether box `at` found a thing, perhaps one whose box found another."""
    for which in reach[at]:
        if which in tried:
            continue
        tried.add(which)
        if which not in box_of or _give_way(box_of[which], reach, box_of, thing_of, tried):
            thing_of[at], box_of[which] = which, at
            return True
    return False
