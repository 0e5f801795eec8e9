"""Gathers a session's results into observations, about one a second. No I/O; runs on the event loop for every frame."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from app.protocol.result import Detection, FrameResult, Pose, Stage, Text
from app.summary.entities import Entities, Entity
from app.summary.movement import MovementSum
from app.summary.observation import ENTITIES, TEXT_CHARS, TEXTS, ObjectCount, Observation, merge
from app.summary.postures import posture

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
