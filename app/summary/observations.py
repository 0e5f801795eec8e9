"""What some consecutive results of one session showed, in little: the unit that the backlog holds. Pure.

`merge` folds neighbours and may be grouped in any way: sums are whole numbers, lists keep the first
distinct entries up to a cap, and the totals beside them say how many there were in all.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Literal, NamedTuple, TypeVar
from zlib import crc32

import orjson

from app.errors import SightlineError
from app.protocol.result import (
    KEYPOINT_NAMES,
    Box,
    CameraMotion,
    Detection,
    FrameResult,
    Image,
    Keypoint,
    Motion,
    Pose,
    Stage,
    Text,
)
from app.summary.entities import Entities, Entity

# --- movement ---

Level = Literal["still", "some", "much"]

_SOME_FRACTION = 0.01
_MUCH_FRACTION = 0.25
"""Shares of a frame's cells that move, from which it moves at all, and moves much."""
_SOME_OF_FRAMES = 10
_MUCH_OF_FRAMES = 4
"""One frame in so many must move (much) before the word is said."""
_CAMERA_MOVES = 300
"""Mean way of the picture's own motion a frame, hundred-thousandths of the diagonal; of a turn or zoom, at a corner."""
_UNIT = 1000
_DIAGONAL = 100_000

_DIRECTIONS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")


@dataclass(frozen=True, slots=True)
class Movement:
    """Sums, in whole numbers so that adding them up in any grouping gives the same; the words are read off them."""

    frames: int = 0
    """Frames whose motion was measured."""
    some: int = 0
    """Of those, frames in which something moved, but not much."""
    much: int = 0
    directed: int = 0
    """Frames with one direction."""
    dx: int = 0
    dy: int = 0
    """Their directions as unit vectors, thousandths, x right and y down, summed."""
    camera_dx: int = 0
    camera_dy: int = 0
    """The whole picture's motion, hundred-thousandths of the frame's diagonal, summed."""
    camera_path: int = 0
    """Its lengths, summed."""
    camera_turn: int = 0
    """The way of a corner of the picture as it turned, clockwise, in the same unit, summed."""
    turn_path: int = 0
    """The lengths of that, summed."""
    camera_zoom: int = 0
    """The way of a corner as the picture grew, likewise."""
    zoom_path: int = 0

    @property
    def level(self) -> Level | None:
        """None when no motion was measured."""
        if not self.frames:
            return None
        if self.much * _MUCH_OF_FRAMES >= self.frames:
            return "much"
        return "some" if (self.some + self.much) * _SOME_OF_FRAMES >= self.frames else "still"

    @property
    def direction(self) -> str | None:
        """One of eight: `left`, `up and right`, ...; None when nothing moved, or not one way."""
        if (
            self.level in (None, "still")
            or math.hypot(self.dx, self.dy) < self.directed * _UNIT / 2
            or not self.directed
        ):
            return None
        return _DIRECTIONS[round(math.degrees(math.atan2(self.dy, self.dx)) / 45) % 8]

    @property
    def camera(self) -> str | None:
        """`panning left`, `tilting up`, `zooming in`, `shaking`, ...; None while it stands.

        Of several, what moves the picture most. A pan right moves the picture left, a roll clockwise turns it the other
        way.
        """
        way = max(self.camera_path, self.turn_path, self.zoom_path)
        if way < _CAMERA_MOVES * max(1, self.frames):
            return None
        if way == self.camera_path:
            gone = math.hypot(self.camera_dx, self.camera_dy)
        else:
            gone = abs(self.camera_zoom if way == self.zoom_path else self.camera_turn)
        if gone < way / 2:
            return "shaking"
        if way == self.zoom_path > self.camera_path:
            return "zooming in" if self.camera_zoom > 0 else "zooming out"
        if way == self.turn_path > self.camera_path:
            return "rolling clockwise" if self.camera_turn < 0 else "rolling anticlockwise"
        if abs(self.camera_dx) >= abs(self.camera_dy):
            return "panning right" if self.camera_dx < 0 else "panning left"
        return "tilting down" if self.camera_dy < 0 else "tilting up"

    def numbers(self) -> tuple[int, ...]:
        """The fields in their order (dataclasses.astuple copies each and takes ten times as long)."""
        return (
            self.frames,
            self.some,
            self.much,
            self.directed,
            self.dx,
            self.dy,
            self.camera_dx,
            self.camera_dy,
            self.camera_path,
            self.camera_turn,
            self.turn_path,
            self.camera_zoom,
            self.zoom_path,
        )

    def __add__(self, other: Movement) -> Movement:
        return Movement(*map(add, self.numbers(), other.numbers()))


STILL = Movement()
_NUMBERS = len(STILL.numbers())


class MovementSum:
    """Adds frames up in place, about a microsecond each."""

    def __init__(self) -> None:
        self._sums = [0] * _NUMBERS

    def add(self, motion: Motion, image: Image) -> None:
        sums = self._sums
        sums[0] += 1
        if motion.moving_fraction >= _SOME_FRACTION:
            sums[2 if motion.moving_fraction >= _MUCH_FRACTION else 1] += 1
        if motion.direction_deg is not None:
            angle = math.radians(motion.direction_deg)
            sums[3] += 1
            sums[4] += round(math.cos(angle) * _UNIT)
            sums[5] += round(math.sin(angle) * _UNIT)
        camera: CameraMotion = motion.camera
        if camera.rotation_deg:
            way = round(math.radians(camera.rotation_deg) * _DIAGONAL / 2)
            sums[9] += way
            sums[10] += abs(way)
        if camera.zoom != 1:
            way = round((camera.zoom - 1) * _DIAGONAL / 2)
            sums[11] += way
            sums[12] += abs(way)
        if camera.dx or camera.dy:
            unit = _DIAGONAL / math.hypot(image.width, image.height)
            sums[6] += round(camera.dx * unit)
            sums[7] += round(camera.dy * unit)
            sums[8] += round(math.hypot(camera.dx, camera.dy) * unit)

    def take(self) -> Movement:
        """The sums so far; begins anew."""
        sums, self._sums = self._sums, [0] * _NUMBERS
        return Movement(*sums)


# --- the observation ---

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


def fold(observations: Sequence[Observation], most: int) -> list[Observation]:
    """At most `most` observations: neighbours merged, evenly, order kept. `most` is at least 1."""
    if len(observations) <= most:
        return [*observations]
    out: list[Observation] = []
    group = -(-len(observations) // most)
    for start in range(0, len(observations), group):
        merged = observations[start]
        for one in observations[start + 1 : start + group]:
            merged = merge(merged, one)
        out.append(merged)
    return out


# --- records: how the backlog holds observations, and which it merges ---


class Row(NamedTuple):
    """An observation as the backlog holds it, in memory and on disk."""

    seq: int
    """Its number in the session; of a folded one, that of its first part."""
    frames: int
    data: bytes


def neighbours(frames: Sequence[int], wanted: int) -> list[int]:
    """Indices `i` of at most `wanted` pairs `i, i + 1` to fold, in order; no index is in two pairs.

    Those that are the smallest for their age, the oldest first. Both are counted in frames, the age up to the newest.
    What waits thus gets coarser the older it is, and the newest keep their detail.
    """
    age = 0
    ordered = []
    for i in range(len(frames) - 1, 0, -1):
        age += frames[i]
        both = frames[i - 1] + frames[i]
        ordered.append((both / (age + frames[i - 1]), i - 1))
    ordered.sort()
    return sorted(i for i, _ in disjoint(((i, i + 1) for _, i in ordered), wanted))


def disjoint(pairs: Iterable[tuple[int, int]], wanted: int) -> list[tuple[int, int]]:
    """The first pairs that share nothing with one chosen before; at least a third of those offered, or `wanted`."""
    chosen: list[tuple[int, int]] = []
    used: set[int] = set()
    for pair in pairs:
        if len(chosen) == wanted:
            break
        if used.isdisjoint(pair):
            used.update(pair)
            chosen.append(pair)
    return chosen


def merge_records(a: Row, b: Row) -> Row:
    """Both in one; `a` comes before `b`.

    Raises:
        DamagedRecord: one of them cannot be read.
    """
    both = merge(Observation.decode(a.data), Observation.decode(b.data))
    return Row(a.seq, both.frames, both.encode())


# --- from results to observations ---

_POSE_MS = 250.0
"""Between two looks at postures: they take ten times as long as all else, and nobody stands up faster."""
_TEXTS_KNOWN = 512
"""Texts remembered, so that a sign on the wall is new once."""


class Observer:
    """One a session. `interval_s`: how much one observation covers."""

    def __init__(self, interval_s: float = 1.0) -> None:
        self._interval_ms = interval_s * 1000
        self._motion = MovementSum()
        self._entities = Entities()
        self._pose_due = float("-inf")
        self._texts: list[Text] = []
        self._known: OrderedDict[str, None] = OrderedDict()
        self._quiet: Observation | None = None
        self._begin()

    def add(self, frame_id: int, result: FrameResult, at_ms: float) -> Observation | None:
        """Folds one more result in; an observation when the interval is over and there is something to say.

        `at_ms` is any clock of the session's, milliseconds. A few microseconds a frame.
        """
        if not self._frames:
            self._first_frame_id, self._started = frame_id, at_ms
        self._frames += 1
        self._last_frame_id, self._ended = frame_id, at_ms
        stages = result.stages
        arrived, left = self._entities.add(result, at_ms)
        if arrived or left:
            self._note_moves(arrived, left)
        if result.objects:
            self._count(result.objects)
        if result.poses:
            self._look(result.poses, at_ms)
        if result.texts and result.texts is not self._texts:  # the same list until something else is read
            self._read(result.texts)
        if result.motion is not None:
            self._motion.add(result.motion, result.image)
        self._note_failures(stages)
        if 0 <= at_ms - self._started < self._interval_ms:
            return None
        return self.flush()

    def flush(self) -> Observation | None:
        """What has gathered since the last observation; None when that says nothing."""
        if not self._frames:
            return None
        made = Observation(
            self._first_frame_id,
            self._last_frame_id,
            self._started,
            self._ended,
            self._frames,
            tuple([ObjectCount(name, *numbers) for name, numbers in self._objects.items()]),
            tuple(self._arrived),
            self._arrivals,
            tuple(self._left),
            self._departures,
            tuple(self._poses),
            tuple(self._new_texts),
            self._texts_read,
            self._motion.take(),
            tuple(self._failed),
        )
        self._begin()
        if _says_something(made):
            return made
        self._quiet = made if self._quiet is None else merge(self._quiet, made)
        return None

    def quiet(self) -> Observation | None:
        """The frames since the last observation that said nothing, as one; each is given once.

        Ask before the next `add`, with every observation: what it says of frames in all is true only with these.
        """
        quiet, self._quiet = self._quiet, None
        return quiet

    def _begin(self) -> None:
        self._frames = 0
        self._objects: dict[str, list[int]] = {}
        self._arrived: list[Entity] = []
        self._left: list[Entity] = []
        self._arrivals = self._departures = self._texts_read = 0
        self._poses: dict[str, None] = {}
        self._new_texts: list[str] = []
        self._failed: dict[str, None] = {}

    def _count(self, objects: Iterable[Detection]) -> None:
        here: dict[str, int] = {}
        for one in objects:
            name = one.class_name
            sums = self._objects.get(name)
            if sums is None:
                sums = self._objects[name] = [0, 0, 0, 0]
            sums[2] += 1
            sums[3] += int(one.confidence * 1000)
            here[name] = here.get(name, 0) + 1
        for name, number in here.items():
            sums = self._objects[name]
            sums[1] += 1
            if number > sums[0]:
                sums[0] = number

    def _note_moves(self, arrived: list[Entity], left: list[Entity]) -> None:
        self._arrivals += len(arrived)
        self._arrived += arrived[: ENTITIES - len(self._arrived)]
        self._departures += len(left)
        self._left += left[: ENTITIES - len(self._left)]

    def _look(self, poses: Iterable[Pose], at_ms: float) -> None:
        if 0 <= self._pose_due - at_ms <= _POSE_MS:
            return
        self._pose_due = at_ms + _POSE_MS
        for one in poses:
            words = posture(one)
            if words is not None:
                self._poses[words] = None

    def _read(self, texts: list[Text]) -> None:
        self._texts = texts
        for one in texts:
            text = " ".join(one.text.encode(errors="replace").decode().split())
            key = "".join(filter(str.isalnum, text.casefold())) or text  # OCR wavers over points and blanks
            if not key:
                continue
            if key in self._known:
                self._known.move_to_end(key)
                continue
            self._known[key] = None
            if len(self._known) > _TEXTS_KNOWN:
                self._known.popitem(last=False)
            self._texts_read += 1
            if len(self._new_texts) < TEXTS:
                self._new_texts.append(text[:TEXT_CHARS])

    def _note_failures(self, stages: dict[str, Stage]) -> None:
        for name, stage in stages.items():
            if stage.status == "error":
                self._failed[name] = None


def _says_something(one: Observation) -> bool:
    if one.objects or one.poses or one.new_texts or one.failed or one.arrivals or one.departures:
        return True
    return one.motion.level in ("some", "much") or one.motion.camera is not None


# --- postures ---

_SURE = 0.5
"""Confidence from which a keypoint counts."""
_UPRIGHT_DEG = 30.0
_FLAT_DEG = 60.0
"""Angle of the trunk to the vertical: up to the first it is upright, from the second it is flat."""
_THIGH = 0.5
"""Drop from hip to knee, trunk lengths: less, and the legs are bent at the hip."""
_LOW = 0.6
"""Drop from hip to ankle, trunk lengths: less, and the person is down on the heels or the floor."""
_ABOVE_SHOULDER = 0.5
"""Drop from wrist to shoulder, trunk lengths, of a raised arm where the face is not seen."""

_FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
_AT = {name: index for index, name in enumerate(KEYPOINT_NAMES)}
_FACE_AT = tuple(_AT[name] for name in _FACE)


class _Point(NamedTuple):
    x: float
    y: float


def posture(pose: Pose) -> str | None:
    """`standing`, `sitting, one arm raised`, `lying`, ...; None where the keypoints do not say.

    Keypoints under 0.5 of confidence are not used. The trunk runs from the middle of the shoulders to the middle of the
    hips; its length is the measure of everything else, its angle is taken to the vertical.

    - upright (up to 30 degrees): `standing` when the knees are at least half a trunk lower than the hips; else
      `crouching` when the ankles are seen and less than 0.6 trunks lower than the hips; else `sitting`.
      Without knees nothing is said: a person behind a desk may do either.
    - flat (from 60 degrees): `bending over` when the legs go down (hips to ankles, or knees, within 45 degrees of the
      vertical), `lying` when they do not; without legs `lying` when the box is wider than high.
    - in between: `leaning`.
    - `arms raised`, `one arm raised`: wrists above the whole face; where no face is seen, at least half a trunk above
      the shoulders. A hand at the ear is no raised arm. Not said of a person who lies.
    """
    points = pose.keypoints
    shoulders = _middle(points, "shoulder")
    hips = _middle(points, "hip")
    body = None if shoulders is None or hips is None else _body(points, shoulders, hips, pose.box)
    if body == "lying":
        return body
    arms = _arms(points, shoulders, hips)
    return ", ".join(word for word in (body, arms) if word) or None


def _body(points: tuple[Keypoint, ...], shoulders: _Point, hips: _Point, box: Box) -> str | None:
    trunk = math.dist(shoulders, hips)
    if trunk == 0:
        return None
    lean = _lean(shoulders, hips)
    knees, ankles = _middle(points, "knee"), _middle(points, "ankle")
    if lean > _FLAT_DEG:
        feet = ankles or knees
        if feet is None:
            return "lying" if box.x2 - box.x1 > box.y2 - box.y1 else None
        return "bending over" if feet.y > hips.y and _lean(hips, feet) < 45 else "lying"
    if lean > _UPRIGHT_DEG:
        return "leaning"
    if knees is None:
        return None
    if knees.y - hips.y >= _THIGH * trunk:
        return "standing"
    return "crouching" if ankles is not None and ankles.y - hips.y < _LOW * trunk else "sitting"


def _arms(points: tuple[Keypoint, ...], shoulders: _Point | None, hips: _Point | None) -> str | None:
    face = [points[index].y for index in _FACE_AT if points[index].confidence >= _SURE]
    if face:
        line = min(face)
    elif shoulders is not None and hips is not None:
        line = shoulders.y - _ABOVE_SHOULDER * math.dist(shoulders, hips)
    else:
        return None
    wrists = (points[_AT["left_wrist"]], points[_AT["right_wrist"]])
    raised = sum(wrist.confidence >= _SURE and wrist.y < line for wrist in wrists)
    return (None, "one arm raised", "arms raised")[raised]


def _middle(points: tuple[Keypoint, ...], part: str) -> _Point | None:
    """Of left and right; one of them where the other is not seen."""
    left, right = points[_AT[f"left_{part}"]], points[_AT[f"right_{part}"]]
    if left.confidence < _SURE:
        return _Point(right.x, right.y) if right.confidence >= _SURE else None
    if right.confidence < _SURE:
        return _Point(left.x, left.y)
    return _Point((left.x + right.x) / 2, (left.y + right.y) / 2)


def _lean(top: _Point, bottom: _Point) -> float:
    """Degrees between the line and the vertical, 0 to 90."""
    return math.degrees(math.atan2(abs(top.x - bottom.x), abs(top.y - bottom.y)))
