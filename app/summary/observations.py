"""Observations: the content of consecutive results of one session, in a few hundred bytes. Does no I/O.

`ObservationBuilder` turns results into observations, about one a second; the backlog holds them, and summaries are
written from them. `merge` makes one observation of two neighbours and is associative: sums are whole
numbers, lists keep the first distinct entries up to a cap, and totals beside the lists count those beyond it.

In this file: movement, the observation and its record, which records to merge, the builder, postures.
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
from app.pipeline import registry
from app.pipeline.stages.detect import Detection
from app.pipeline.stages.motion import CameraMotion, Motion
from app.pipeline.stages.ocr.policy import Text
from app.pipeline.stages.pose import KEYPOINT_NAMES, Keypoint, Pose, is_human
from app.protocol.result import Box, FrameResult, Image, Stage
from app.summary.entities import Entities, Entity

assert registry.BUILT_IN  # imported because it declares the parts of a result, which this module reads

# --- movement: how much moved, in which direction, and what the camera did ---

Level = Literal["still", "some", "much"]

_SOME_FRACTION = 0.01
_MUCH_FRACTION = 0.25
"""Shares of a frame's cells that move, from which the frame counts as `some` and as `much`."""
_SOME_OF_FRAMES = 10
_MUCH_OF_FRAMES = 4
"""One frame in 10 must move for `some`, one in 4 must move much for `much`."""
_CAMERA_MOVES = 300
"""Least mean motion of the whole image per frame, in hundred-thousandths of the diagonal, from which the camera moves.

For a rotation or zoom it is the motion of a corner.
"""
_UNIT = 1000
"""Length of a unit vector in the sums of directions."""
_DIAGONAL = 100_000
"""Length of a frame's diagonal in the sums of the camera's motion."""

_DIRECTIONS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")


@dataclass(frozen=True, slots=True)
class Movement:
    """Sums over frames, as integers so that addition is associative. The properties put them into words."""

    frames: int = 0
    """Frames whose motion was measured."""
    some: int = 0
    """Of those, frames in which something moved, but not much."""
    much: int = 0
    directed: int = 0
    """Frames with one direction."""
    dx: int = 0
    dy: int = 0
    """Sum of their directions as unit vectors, in thousandths; x points right, y down."""
    camera_dx: int = 0
    camera_dy: int = 0
    """Sum of the whole image's motion, in hundred-thousandths of the frame's diagonal."""
    camera_path: int = 0
    """Sum of the lengths of that motion."""
    camera_turn: int = 0
    """Sum of a corner's motion by rotation, clockwise positive, in the same unit."""
    turn_path: int = 0
    """Sum of the lengths of that motion."""
    camera_zoom: int = 0
    """Sum of a corner's motion by zoom, growing positive, in the same unit."""
    zoom_path: int = 0

    @property
    def level(self) -> Level | None:
        """How much moved; None if no motion was measured."""
        if not self.frames:
            return None
        if self.much * _MUCH_OF_FRAMES >= self.frames:
            return "much"
        return "some" if (self.some + self.much) * _SOME_OF_FRAMES >= self.frames else "still"

    @property
    def direction(self) -> str | None:
        """One of eight: `left`, `up and right`, ...; None if nothing moved, or there was no common direction."""
        if (
            self.level in (None, "still")
            or math.hypot(self.dx, self.dy) < self.directed * _UNIT / 2
            or not self.directed
        ):
            return None
        return _DIRECTIONS[round(math.degrees(math.atan2(self.dy, self.dx)) / 45) % 8]

    @property
    def camera(self) -> str | None:
        """`panning left`, `tilting up`, `zooming in`, `shaking`, ...; None if the camera stood still.

        If it did several, the one that moved the image most. A camera that pans right moves the image left, one that
        rolls clockwise rotates the image anticlockwise.
        """
        path = max(self.camera_path, self.turn_path, self.zoom_path)
        if path < _CAMERA_MOVES * max(1, self.frames):
            return None
        if path == self.camera_path:
            net = math.hypot(self.camera_dx, self.camera_dy)
        else:
            net = abs(self.camera_zoom if path == self.zoom_path else self.camera_turn)
        if net < path / 2:  # most of the motion went back and forth
            return "shaking"
        if path == self.zoom_path > self.camera_path:
            return "zooming in" if self.camera_zoom > 0 else "zooming out"
        if path == self.turn_path > self.camera_path:
            return "rolling clockwise" if self.camera_turn < 0 else "rolling anticlockwise"
        if abs(self.camera_dx) >= abs(self.camera_dy):
            return "panning right" if self.camera_dx < 0 else "panning left"
        return "tilting down" if self.camera_dy < 0 else "tilting up"

    def numbers(self) -> tuple[int, ...]:
        """The fields in their order; dataclasses.astuple copies each field and takes ten times as long."""
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
    """Adds frames in place, about a microsecond each. The indices are those of `Movement.numbers`."""

    def __init__(self) -> None:
        self._sums = [0] * _NUMBERS

    def add(self, motion: Motion, image: Image) -> None:
        """Adds the motion of one frame; `image` is the size of that frame."""
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
        """Returns the sums so far and resets them."""
        sums, self._sums = self._sums, [0] * _NUMBERS
        return Movement(*sums)


# --- the observation and its record ---

ENTITIES = 32
"""Most entities in `arrived`, and in `left`."""
TEXTS = 16
"""Most texts in `new_texts`."""
TEXT_CHARS = 120
"""Most characters of each text."""

_HEAD = b"o1"
"""Start of every record; the digit is the version of its layout. Four bytes of CRC-32 follow, then JSON."""
_BODY = len(_HEAD) + 4

T = TypeVar("T")


class DamagedRecord(SightlineError):
    """The bytes are not a record: torn, altered, of another version, or something else."""


@dataclass(frozen=True, slots=True)
class ObjectCount:
    """The detections of one class."""

    class_name: str
    most: int
    """Most in one frame."""
    frames: int
    """Frames that had at least one."""
    boxes: int
    """Boxes over all frames."""
    score: int
    """Sum of their confidences, in thousandths."""

    @property
    def confidence(self) -> float:
        """Mean over the boxes, 0 to 1."""
        return self.score / (1000 * self.boxes)


@dataclass(frozen=True, slots=True)
class Observation:
    """The content of consecutive results of one session."""

    first_frame_id: int
    last_frame_id: int
    started_at_ms: float
    ended_at_ms: float
    """When the first and the last frame were received, epoch milliseconds."""
    frames: int
    """Results that it covers."""
    objects: tuple[ObjectCount, ...] = ()
    """In the order in which the classes were first detected."""
    arrived: tuple[Entity, ...] = ()
    """The first ENTITIES that came into view; entities in view from the start are not among them."""
    arrivals: int = 0
    """Number of arrivals, also beyond the cap. A person who left and came again counts twice, being unidentified."""
    left: tuple[Entity, ...] = ()
    """The first ENTITIES that left."""
    departures: int = 0
    """Number of departures, also beyond the cap."""
    poses: tuple[str, ...] = ()
    """Postures in words, see `posture`; each once."""
    new_texts: tuple[str, ...] = ()
    """The first TEXTS texts that were not read shortly before, cut at TEXT_CHARS."""
    texts: int = 0
    """Number of new texts, also beyond the cap."""
    motion: Movement = STILL
    failed: tuple[str, ...] = ()
    """Stages that reported `error` on at least one frame, so that what they would have shown is unknown."""

    @property
    def size(self) -> int:
        """Bytes of its record. Encodes the observation, so not for the hot path."""
        return len(self.encode())

    def encode(self) -> bytes:
        """The record that `decode` reads: a few hundred bytes. Takes a few microseconds."""
        body = orjson.dumps(
            (
                self.first_frame_id,
                self.last_frame_id,
                self.started_at_ms,
                self.ended_at_ms,
                self.frames,
                [(count.class_name, count.most, count.frames, count.boxes, count.score) for count in self.objects],
                [(entity.number, entity.class_name) for entity in self.arrived],
                self.arrivals,
                [(entity.number, entity.class_name) for entity in self.left],
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
        """The observation that `encode` made this record of.

        Raises:
            DamagedRecord: torn, altered, of another version, or not a record.
        """
        body = data[_BODY:]
        if not data.startswith(_HEAD):
            raise DamagedRecord(f"a record begins with {_HEAD!r}, not with {data[: len(_HEAD)]!r}")
        if crc32(body) != int.from_bytes(data[len(_HEAD) : _BODY], "big"):
            raise DamagedRecord(f"the checksum of a record of {len(data)} bytes is wrong: torn or altered")
        try:
            return _parse(body)
        except (TypeError, ValueError) as error:  # orjson's own is a ValueError
            raise DamagedRecord(f"a record of {len(data)} bytes has another layout: {error}") from None


def merge(a: Observation, b: Observation) -> Observation:
    """One observation for both; `a` comes before `b`. Associative."""
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
    counts = {count.class_name: count for count in a}
    for count in b:
        same = counts.get(count.class_name)
        counts[count.class_name] = count if same is None else _sum(same, count)
    return tuple(counts.values())


def _sum(a: ObjectCount, b: ObjectCount) -> ObjectCount:
    return ObjectCount(a.class_name, max(a.most, b.most), a.frames + b.frames, a.boxes + b.boxes, a.score + b.score)


def _distinct(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return a if not b or a == b else tuple(dict.fromkeys((*a, *b)))


def _first(a: tuple[T, ...], b: tuple[T, ...], cap: int) -> tuple[T, ...]:
    return _distinct(a, b)[:cap]


def _parse(body: bytes) -> Observation:
    first, last, started, ended, frames, objects, arrived, arrivals, left, departures, *rest = orjson.loads(body)
    poses, new_texts, texts, motion, failed = rest
    return Observation(
        first,
        last,
        started,
        ended,
        frames,
        tuple([ObjectCount(*count) for count in objects]),
        tuple([Entity(*entity) for entity in arrived]),
        arrivals,
        tuple([Entity(*entity) for entity in left]),
        departures,
        tuple(poses),
        tuple(new_texts),
        texts,
        Movement(*motion),
        tuple(failed),
    )


def merge_evenly(observations: Sequence[Observation], most: int) -> list[Observation]:
    """Merges groups of neighbours, of equal length, into at most `most` observations; keeps the order.

    `most` is at least 1.
    """
    if len(observations) <= most:
        return [*observations]
    out: list[Observation] = []
    group = -(-len(observations) // most)
    for start in range(0, len(observations), group):
        merged = observations[start]
        for following in observations[start + 1 : start + group]:
            merged = merge(merged, following)
        out.append(merged)
    return out


# --- records in the backlog, and which of them are merged ---


class EncodedObservation(NamedTuple):
    """An encoded observation, as the backlog holds it in memory and on disk."""

    seq: int
    """Its number in the session; after a merge, the lower of the two."""
    frames: int
    data: bytes
    """The record, as `Observation.encode` returns it."""


def neighbours(frames: Sequence[int], wanted: int) -> list[int]:
    """Chooses pairs of neighbours to merge: those smallest for their age, so that older observations get coarser.

    Size and age are counted in frames; the age is the number of frames up to the newest.

    Args:
        frames: of each record, oldest first.
        wanted: most pairs.

    Returns:
        The index of the first record of each pair, ascending. No record is in two pairs.
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
    """The first pairs of which neither part is in a pair chosen before: `wanted`, or at least a third of all pairs."""
    chosen: list[tuple[int, int]] = []
    used: set[int] = set()
    for pair in pairs:
        if len(chosen) == wanted:
            break
        if used.isdisjoint(pair):
            used.update(pair)
            chosen.append(pair)
    return chosen


def merge_records(a: EncodedObservation, b: EncodedObservation) -> EncodedObservation:
    """One record for both; `a` comes before `b`.

    Raises:
        DamagedRecord: one of them cannot be decoded.
    """
    both = merge(Observation.decode(a.data), Observation.decode(b.data))
    return EncodedObservation(a.seq, both.frames, both.encode())


# --- the builder ---

_POSE_MS = 250.0
"""Milliseconds between two classifications of postures, which take ten times as long as everything else here."""
_TEXTS_KNOWN = 512
"""Texts remembered, so that a sign on the wall is new only once."""


class ObservationBuilder:
    """Turns a session's results into observations. Runs on the event loop for every frame; does no I/O."""

    def __init__(self, interval_s: float = 1.0) -> None:
        """`interval_s`: seconds that one observation covers."""
        self._interval_ms = interval_s * 1000
        self._motion = MovementSum()
        self._entities = Entities()
        self._pose_due = float("-inf")
        self._texts: list[Text] = []
        self._known: OrderedDict[str, None] = OrderedDict()
        self._quiet: Observation | None = None
        self._begin()

    def add(self, frame_id: int, result: FrameResult, at_ms: float) -> Observation | None:
        """Adds one result. Takes a few microseconds.

        Args:
            at_ms: when the frame was received, milliseconds of any clock of the session.

        Returns:
            An observation if the interval is over and something was seen; else None.
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
            self._classify(result.poses, at_ms)
        if result.texts and result.texts is not self._texts:  # the list stays the same until something else is read
            self._read(result.texts)
        if result.motion is not None:
            self._motion.add(result.motion, result.image)
        self._note_failures(stages)
        if 0 <= at_ms - self._started < self._interval_ms:
            return None
        return self.flush()

    def flush(self) -> Observation | None:
        """The observation since the last one, without waiting for the interval; None if nothing was seen."""
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
        if _noteworthy(made):
            return made
        self._quiet = made if self._quiet is None else merge(self._quiet, made)
        return None

    def quiet(self) -> Observation | None:
        """Returns and forgets the frames since the last observation in which nothing was seen, as one observation.

        Call it with every observation, before the next `add`, because shares of frames are right only with these.
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
        for detection in objects:
            name = detection.class_name
            sums = self._objects.get(name)
            if sums is None:
                sums = self._objects[name] = [0, 0, 0, 0]
            sums[2] += 1
            sums[3] += int(detection.confidence * 1000)
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

    def _classify(self, poses: Iterable[Pose], at_ms: float) -> None:
        if 0 <= self._pose_due - at_ms <= _POSE_MS:
            return
        self._pose_due = at_ms + _POSE_MS
        for pose in poses:
            words = posture(pose)
            if words is not None:
                self._poses[words] = None

    def _read(self, texts: list[Text]) -> None:
        self._texts = texts
        for found in texts:
            text = " ".join(found.text.encode(errors="replace").decode().split())
            key = "".join(filter(str.isalnum, text.casefold())) or text  # OCR varies in punctuation and blanks
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


def _noteworthy(made: Observation) -> bool:
    """Whether the observation shows anything that a summary could mention."""
    if made.objects or made.poses or made.new_texts or made.failed or made.arrivals or made.departures:
        return True
    return made.motion.level in ("some", "much") or made.motion.camera is not None


# --- postures: geometry of COCO keypoints, without a model ---

_SURE = 0.5
"""Least confidence of a keypoint that is used."""
_UPRIGHT_DEG = 30.0
_FLAT_DEG = 60.0
"""Angle of the trunk to the vertical, degrees: upright up to the first, flat from the second."""
_THIGH = 0.5
"""Least drop from hip to knee, in trunk lengths, of legs that are not bent at the hip."""
_LOW = 0.6
"""Least drop from hip to ankle, in trunk lengths, of a person who is not on the heels or on the floor."""
_ABOVE_SHOULDER = 0.5
"""Least height of a wrist above the shoulders, in trunk lengths, of a raised arm where no face is visible."""

_FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
_AT = {name: index for index, name in enumerate(KEYPOINT_NAMES)}
_FACE_AT = tuple(_AT[name] for name in _FACE)


class _Point(NamedTuple):
    x: float
    y: float


def posture(pose: Pose) -> str | None:
    """A person's posture: `standing`, `sitting, one arm raised`, `lying`, ...; None if the keypoints do not show it.

    Keypoints with a confidence under 0.5 are ignored. The trunk runs from the middle of the shoulders to the middle of
    the hips; lengths are given in its length, and its angle is taken to the vertical.

    - upright (up to 30 degrees): `standing` when the knees are at least half a trunk lower than the hips; else
      `crouching` when the ankles are visible and less than 0.6 trunks lower than the hips; else `sitting`.
      Without knees the posture is unknown, because a person behind a desk may stand or sit.
    - flat (from 60 degrees): `bending over` when the legs go down (hips to ankles, or knees, within 45 degrees of the
      vertical), `lying` when they do not; without legs `lying` when the box is wider than high.
    - in between: `leaning`.
    - `arms raised`, `one arm raised`: wrists above the whole face; where no face is visible, at least half a trunk
      above the shoulders. A hand at the ear is not a raised arm. Not reported for a person who is lying.
    """
    if not is_human(pose):
        return None
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
    """The middle of left and right; the visible one if the other is not; None without either."""
    left, right = points[_AT[f"left_{part}"]], points[_AT[f"right_{part}"]]
    if left.confidence < _SURE:
        return _Point(right.x, right.y) if right.confidence >= _SURE else None
    if right.confidence < _SURE:
        return _Point(left.x, left.y)
    return _Point((left.x + right.x) / 2, (left.y + right.y) / 2)


def _lean(top: _Point, bottom: _Point) -> float:
    """Degrees between the line and the vertical, 0 to 90."""
    return math.degrees(math.atan2(abs(top.x - bottom.x), abs(top.y - bottom.y)))
