"""Tracking: gives an object the same number in all frames of its stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import isfinite
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.pipeline.boxes import Floats
from app.pipeline.models import ModelSet, class_names
from app.pipeline.stage import PipelineStage
from app.pipeline.stages.detect import Detected
from app.pipeline.stages.pose import Posed
from app.pipeline.types import Batch, FrameState
from app.protocol.result import OK, Stage
from app.settings import Settings

Ids = NDArray[np.int64]
Corners = Sequence[float]
"""x1, y1, x2, y2, frame pixels."""

LOST_S = 2.0
"""Seconds that a track outlives its last sighting."""
MIN_SCORE = 0.4
"""Score that starts a track; a weaker box can only carry one on (ByteTrack's second round)."""
MIN_SIGHTINGS = 2
"""Frames in a row before a track has a number, so that a box that flashes up in one frame gets none."""
MIN_IOU = 0.1
"""Least overlap of a box with the place that its track is predicted to be at."""
FRAME_RATE = 30.0
"""Frames a second that the noise below is meant for; a real gap is counted in such frames."""
_MEASUREMENT_NOISE = 0.1
"""Variance of a detected coordinate, pixels². This and the next are what `trackers` gives its ByteTrack."""
_PROCESS_NOISE = 0.01
"""Variance that one frame adds to a coordinate and to its velocity."""
_NOMINAL_S = 0.004
"""A gap this near to a frame of FRAME_RATE counts as one: clocks in milliseconds never hit it exactly."""
_PAIRS_IN_PYTHON = 200
"""Pairs of boxes up to which plain Python is faster than numpy."""

Overlaps = list[tuple[int, int, float]]
"""Row, column and intersection over union of each pair that overlaps."""


@cache
def load() -> Callable[..., Any]:
    """Imports and returns the solver of assignments. The import takes a fifth of a second, so a service calls this at
    its start."""
    from scipy.optimize import linear_sum_assignment

    solver: Callable[..., Any] = linear_sum_assignment
    return solver


class _Track:
    """One object: a Kalman filter of constant velocity for each coordinate of its box.

    The four filters have the same noise and are updated together, so that one covariance serves them all.
    """

    __slots__ = ("box", "class_id", "covariance", "number", "sightings", "unseen_s", "velocity")

    def __init__(self, box: Corners, class_id: int) -> None:
        self.class_id = class_id
        self.number = -1
        self.sightings = 1
        """Frames in a row in which the object was detected."""
        self.unseen_s = 0.0
        self.box = tuple(box)
        self.velocity = (0.0, 0.0, 0.0, 0.0)
        """Pixels a frame of FRAME_RATE."""
        self.covariance = (1.0, 0.0, 1.0)
        """A coordinate's variance, its covariance with its velocity, and the velocity's variance."""

    def predict(self, frames: float, seconds: float, noise: tuple[float, float, float]) -> None:
        x1, y1, x2, y2 = self.box
        u1, v1, u2, v2 = self.velocity
        self.box = (x1 + frames * u1, y1 + frames * v1, x2 + frames * u2, y2 + frames * v2)
        place, shared, speed = self.covariance
        ahead = shared + frames * speed
        self.covariance = (place + frames * (shared + ahead) + noise[0], ahead + noise[1], speed + noise[2])
        if self.unseen_s > 0:
            self.sightings = 0
        self.unseen_s += seconds

    def update(self, box: Corners) -> None:
        place, shared, speed = self.covariance
        gain = place / (place + _MEASUREMENT_NOISE)
        turn = shared / (place + _MEASUREMENT_NOISE)
        off = 1.0 - gain
        # Joseph's form, as in `trackers`: the variance stays positive despite rounding.
        self.covariance = (
            off * off * place + gain * gain * _MEASUREMENT_NOISE,
            off * (shared - turn * place) + gain * turn * _MEASUREMENT_NOISE,
            speed - 2.0 * turn * shared + turn * turn * (place + _MEASUREMENT_NOISE),
        )
        x1, y1, x2, y2 = self.box
        d1, e1, d2, e2 = box[0] - x1, box[1] - y1, box[2] - x2, box[3] - y2
        self.box = (x1 + gain * d1, y1 + gain * e1, x2 + gain * d2, y2 + gain * e2)
        u1, v1, u2, v2 = self.velocity
        self.velocity = (u1 + turn * d1, v1 + turn * e1, u2 + turn * d2, v2 + turn * e2)
        self.unseen_s = 0.0
        self.sightings += 1


class StreamTracker:
    """ByteTrack (Zhang et al. 2021, https://arxiv.org/abs/2110.06864) for the boxes of one stream.

    The answers are those of `trackers.ByteTrackTracker` 2.6 with the constants above, which the tests hold it to. Boxes
    of different classes never share a track: a face does not take over its person.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._size: tuple[int, int] | None = None
        self._highest = 0
        self._at_s: float | None = None

    def update(
        self,
        xyxy: Floats,
        confidence: Floats,
        class_id: NDArray[Any] | None = None,
        *,
        size: tuple[int, int] | None = None,
        at_s: float | None = None,
    ) -> Ids:
        """One frame's boxes -> their track ids `[n]`, in the same order; -1 while the tracker does not trust one.

        Args:
            xyxy: `[n, 4]`, frame pixels.
            confidence: `[n]`.
            class_id: `[n]`; None: all the same.
            size: the frame's width and height. Tracks end where it changes; numbers are not used again.
            at_s: when the frame was taken, seconds on any clock; a frame that is not later than the one before counts
                as a millisecond later. None: a frame of FRAME_RATE after the one before.
        """
        if size != self._size:
            self._size = size
            self._tracks, self._at_s = [], None
        self._predict(at_s)
        boxes, scores = xyxy.tolist(), confidence.tolist()
        classes = [0] * len(boxes) if class_id is None else class_id.tolist()
        ids = [-1] * len(boxes)
        usable: Sequence[int] = range(len(boxes))
        if not isfinite(sum(map(sum, boxes))):  # a box with NaN or infinity overlaps nothing and would spoil sums
            usable = [at for at in usable if isfinite(sum(boxes[at]))]
        strong = [at for at in usable if scores[at] >= MIN_SCORE]
        unseen, new = self._carry_on(self._tracks, strong, boxes, classes, ids)
        if len(strong) < len(usable):
            weak = [at for at in usable if scores[at] < MIN_SCORE]
            unseen, _ = self._carry_on(unseen, weak, boxes, classes, ids)
        # A track without a number ends with the first frame that misses it.
        if unseen and any(track.number < 0 for track in unseen):
            self._tracks = [track for track in self._tracks if track.number >= 0 or track.unseen_s == 0]
        self._tracks += [_Track(boxes[at], classes[at]) for at in new]
        return np.array(ids, np.int64)

    def _predict(self, at_s: float | None) -> None:
        """Moves every track to where it should be now, and ends those that were lost for too long."""
        before = self._at_s
        if at_s is None:
            seconds = 1.0 / FRAME_RATE
            self._at_s = None if before is None else before + seconds
        elif before is None:
            seconds, self._at_s = 1.0 / FRAME_RATE, at_s
        else:
            self._at_s = max(at_s, before + 0.001)
            seconds = self._at_s - before
        if not self._tracks:
            return
        frames = seconds * FRAME_RATE
        if abs(frames - 1.0) <= _NOMINAL_S * FRAME_RATE:
            noise = (_PROCESS_NOISE, 0.0, _PROCESS_NOISE)
        else:
            # Discrete white noise of the acceleration, as filterpy's Q_discrete_white_noise.
            square = frames * frames
            noise = (
                _PROCESS_NOISE * square * square / 4,
                _PROCESS_NOISE * square * frames / 2,
                _PROCESS_NOISE * square,
            )
        lost = False
        for track in self._tracks:
            track.predict(frames, seconds, noise)
            lost |= track.unseen_s > LOST_S
        if lost:
            self._tracks = [track for track in self._tracks if track.unseen_s <= LOST_S]

    def _carry_on(
        self, tracks: list[_Track], chosen: list[int], boxes: list[Corners], classes: list[int], ids: list[int]
    ) -> tuple[list[_Track], list[int]]:
        """Gives the chosen boxes to tracks and writes their ids; returns the tracks and boxes that are left over."""
        if not tracks or not chosen:
            return tracks, chosen
        overlaps = overlapping(
            [track.box for track in tracks],
            [boxes[at] for at in chosen],
            [track.class_id for track in tracks],
            [classes[at] for at in chosen],
        )
        rows, columns = set(), set()
        for row, column in assign(overlaps, MIN_IOU):
            track, at = tracks[row], chosen[column]
            track.update(boxes[at])
            if track.number < 0 and track.sightings >= MIN_SIGHTINGS:
                self._highest += 1
                track.number = self._highest
            ids[at] = track.number
            rows.add(row)
            columns.add(column)
        return (
            [track for row, track in enumerate(tracks) if row not in rows],
            [at for column, at in enumerate(chosen) if column not in columns],
        )


def overlapping(
    a: Sequence[Corners], b: Sequence[Corners], a_classes: Sequence[int], b_classes: Sequence[int]
) -> Overlaps:
    """The pairs of a box of `a` and a box of `b` that are of one class and overlap at all, row by row."""
    if len(a) * len(b) > _PAIRS_IN_PYTHON:
        return _overlapping_many(a, b, a_classes, b_classes)
    found = []
    for row, ((ax1, ay1, ax2, ay2), a_class) in enumerate(zip(a, a_classes, strict=True)):
        for column, (bx1, by1, bx2, by2) in enumerate(b):
            # Written out, without min and max: most pairs end at the first comparison.
            width = (ax2 if ax2 < bx2 else bx2) - (ax1 if ax1 > bx1 else bx1)
            if width > 0 and b_classes[column] == a_class:
                height = (ay2 if ay2 < by2 else by2) - (ay1 if ay1 > by1 else by1)
                if height > 0:
                    shared = width * height
                    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
                    found.append((row, column, shared / union))
    return found


def _overlapping_many(
    a: Sequence[Corners], b: Sequence[Corners], a_classes: Sequence[int], b_classes: Sequence[int]
) -> Overlaps:
    ax1, ay1, ax2, ay2 = np.array(a, np.float64).T[:, :, None]
    bx1, by1, bx2, by2 = np.array(b, np.float64).T.copy()
    shared = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0)
    shared *= np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0)
    shared *= np.array(a_classes)[:, None] == np.array(b_classes)
    rows, columns = shared.nonzero()
    overlap = shared[rows, columns]
    areas = ((ax2 - ax1) * (ay2 - ay1))[rows, 0] + ((bx2 - bx1) * (by2 - by1))[columns]
    return list(zip(rows.tolist(), columns.tolist(), (overlap / (areas - overlap)).tolist(), strict=True))


def assign(overlaps: Overlaps, least: float) -> list[tuple[int, int]]:
    """Pairs rows and columns one to one for the largest sum of overlaps; leaves out pairs under `least`. Sorted by row.

    A pair that shares neither its row nor its column is taken as it is. Only groups of pairs that compete are solved
    (Jonker and Volgenant's algorithm, `scipy.optimize.linear_sum_assignment`): on most frames there are none.
    """
    if len({row for row, _, _ in overlaps}) == len(overlaps) == len({column for _, column, _ in overlaps}):
        return [(row, column) for row, column, overlap in overlaps if overlap >= least]
    pairs: list[tuple[int, int]] = []
    for group in _competing(overlaps):
        if len(group) == 1:
            row, column, overlap = group[0]
            if overlap >= least:
                pairs.append((row, column))
            continue
        rows = sorted({row for row, _, _ in group})
        columns = sorted({column for _, column, _ in group})
        matrix = np.zeros((len(rows), len(columns)))
        row_at = {row: at for at, row in enumerate(rows)}
        column_at = {column: at for at, column in enumerate(columns)}
        for row, column, overlap in group:
            matrix[row_at[row], column_at[column]] = overlap
        solved: Iterable[tuple[int, int]] = zip(*load()(matrix, maximize=True), strict=True)
        pairs += [(rows[i], columns[j]) for i, j in solved if matrix[i, j] >= least]
    pairs.sort()
    return pairs


def _competing(overlaps: Overlaps) -> list[Overlaps]:
    """The pairs in groups: two pairs with a row or a column in common are in one group."""
    group_of_row: dict[int, Overlaps] = {}
    group_of_column: dict[int, Overlaps] = {}
    for pair in overlaps:
        group = group_of_row.setdefault(pair[0], [])
        other = group_of_column.get(pair[1], group)
        if other is not group:
            small, group = sorted((group, other), key=len)
            for row, column, _ in small:
                group_of_row[row] = group_of_column[column] = group
            group += small
            group_of_row[pair[0]] = group
        group_of_column[pair[1]] = group
        group.append(pair)
    return list({id(group): group for group in group_of_row.values()}.values())


def match_poses(
    posed: Posed, detected: Detected, track_ids: NDArray[Any], person_class_ids: frozenset[int], min_iou: float = 0.5
) -> Ids:
    """Track ids `[poses]` of the people that poses lie on, one to one, the largest overlap first; -1 without one.

    Args:
        track_ids: `[n]`, the ids of `detected`; -1 means no id, and its pose then has none either.
        person_class_ids: the classes that a pose may belong to.
        min_iou: least overlap of the two boxes.
    """
    return match(
        posed.xyxy.tolist(),
        [0] * len(posed.xyxy),
        detected.xyxy.tolist(),
        [0 if class_id in person_class_ids else -1 for class_id in detected.class_id.tolist()],
        track_ids,
        min_iou,
    )


def match(
    boxes: Sequence[Corners],
    classes: Sequence[int],
    others: Sequence[Corners],
    other_classes: Sequence[int],
    track_ids: NDArray[Any],
    min_iou: float = 0.5,
) -> Ids:
    """For each box the track id of the other box of its class that it lies on, one to one, the largest overlap first.

    Args:
        track_ids: `[others]`; -1 means no id, and a box on it then has none either.
        min_iou: least overlap of the two boxes.
    """
    ids = [-1] * len(boxes)
    if boxes and others:
        overlaps = overlapping(boxes, others, classes, other_classes)
        numbers = track_ids.tolist()
        taken, taken_others = set(), set()
        for row, column, overlap in sorted(overlaps, key=itemgetter(2), reverse=True):
            if overlap < min_iou:
                break
            if row not in taken and column not in taken_others:
                taken.add(row)
                taken_others.add(column)
                ids[row] = numbers[column]
    return np.array(ids, np.int64)


class TrackStage(PipelineStage):
    """Gives objects numbers that stay the same in all frames of their stream.

    One tracker a stream follows what the first stage with classes found. The boxes of other stages get the number of
    the box of the same class that they lie on.
    """

    name = "track"
    title = "Tracks"
    description = "Gives an object the same number in all frames of its stream."
    runs = "anywhere"
    single = False
    needs = ("detect", "pose")

    def __init__(self, settings: Settings, *, used: bool = True) -> None:
        super().__init__(settings, used=used)
        self._numbers: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self._numbers_of: ModelSet | None = None
        """The models that `_numbers` is about."""

    def load(self) -> None:
        load()

    def finish(self, state: FrameState, batch: Batch) -> None:
        # In the order of the stages, not of the models' answers: else the leader would change from frame to frame.
        ordered: dict[str, Any] = {name: state.found[name] for name in batch.stages if name in state.found}
        found = {name: what for name, what in ordered.items() if hasattr(what, "xyxy")}
        if not found:
            return
        with_classes = [name for name, what in found.items() if hasattr(what, "class_id")]
        leader = with_classes[0] if with_classes else next(iter(found))
        memory, frame, info = state.job.memory, state.job.frame, state.info
        assert info is not None
        tracker = memory.parts.get("track")
        if tracker is None:
            tracker = memory.parts["track"] = StreamTracker()
        led = found.pop(leader)
        ids = state.track_ids[leader] = tracker.update(
            led.xyxy,
            led.confidence,
            getattr(led, "class_id", None),
            size=(info.width, info.height),
            at_s=frame.received if frame.at_s is None else frame.at_s,
        )
        for name, what in found.items():
            numbers = self._numbers.get((name, leader))
            if numbers is None or self._numbers_of is not batch.model_set:
                numbers = self._number(name, leader, batch.model_set)
            classes = []
            for numbered, of in zip(numbers, (what, led), strict=True):
                class_id = getattr(of, "class_id", None)
                ids_of = [0] * len(of.xyxy) if class_id is None else class_id.tolist()
                # A class without a name is no class of another model.
                classes.append([numbered[n] if 0 <= n < len(numbered) else -1 - n for n in ids_of])
            state.track_ids[name] = match(what.xyxy.tolist(), classes[0], led.xyxy.tolist(), classes[1], ids)
        state.stages["track"] = OK

    def _number(self, name: str, leader: str, models: ModelSet) -> tuple[list[int], list[int]]:
        """Numbers for the classes of two stages' models, by class id: equal where the classes have the same name."""
        if self._numbers_of is not models:
            self._numbers, self._numbers_of = {}, models
        known: dict[str, int] = {}
        of_leader, of_this = (
            [known.setdefault(word.lower(), len(known)) for word in class_names(models.readers.get(stage))]
            for stage in (leader, name)
        )
        self._numbers[name, leader] = of_this, of_leader
        return of_this, of_leader

    def status(self, state: FrameState, batch: Batch) -> Stage:
        return _NOTHING


_NOTHING = Stage("skipped", "nothing_detected_on")
