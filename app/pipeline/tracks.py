"""Track ids: the same number for the same thing, as long as its stream lasts."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.pipeline.boxes import Floats, iou
from app.pipeline.pose import Posed
from app.pipeline.yolo import Detected

Ids = NDArray[np.int64]

FRAME_RATE = 30.0
"""Frames a second that the tracker's motion model is tuned for; real times are scaled to it."""
LOST_S = 2.0
"""Seconds that a track outlives its last sighting."""
MIN_SCORE = 0.4
"""Score that starts a track; a weaker box can only carry one on (ByteTrack's second round)."""
MIN_SIGHTINGS = 2
"""Frames in a row before a track has a number, so that a flash of a box gets none."""
_APART = 131_072.0
"""Pixels between the classes: farther than any frame is wide (a JPEG has 65,535 at most)."""


@cache
def load() -> Any:
    """Imports the tracker's library, a good second the first time. A service calls it before its first frame."""
    from supervision import Detections
    from trackers import ByteTrackTracker

    return ByteTrackTracker, Detections


class StreamTracker:
    """ByteTrack (Zhang et al. 2021, https://arxiv.org/abs/2110.06864) for the boxes of one stream.

    Boxes of different classes never share a track: a face does not take over its person.
    """

    def __init__(self, frame_rate: float = FRAME_RATE) -> None:
        tracker, self._detections = load()
        self._tracker = tracker(
            lost_track_buffer=round(LOST_S * 30),
            frame_rate=frame_rate,
            track_activation_threshold=MIN_SCORE,
            high_conf_det_threshold=MIN_SCORE,
            minimum_consecutive_frames=MIN_SIGHTINGS,
        )
        self._size: tuple[int, int] | None = None
        self._before = 0
        self._highest = 0
        self._at: float | None = None

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
            at_s: when the frame was taken, seconds on any clock that does not go back; None: at the frame rate.
                Give it for all of a stream's frames or for none.
        """
        if size != self._size:
            self._size = size
            self._tracker.reset()
            self._before, self._at = self._highest, None
        count = len(xyxy)
        boxes = xyxy.astype(np.float64).reshape(-1, 4)
        if class_id is not None:
            boxes += (class_id * _APART)[:, None]
        # The tracker answers in an order of its own and never looks at classes: their place carries ours.
        found = self._tracker.update(
            self._detections(xyxy=boxes, confidence=confidence, class_id=np.arange(count)),
            timestamp=self._later(at_s),
        )
        ids = np.full(count, -1, np.int64)
        if count:
            ids[found.class_id] = np.where(found.tracker_id >= 0, found.tracker_id + 1 + self._before, -1)
            self._highest = max(self._highest, int(ids.max()))
        return ids

    def _later(self, at_s: float | None) -> float | None:
        """The tracker ignores a frame that is not later than the one before."""
        if at_s is not None:
            self._at = at_s = at_s if self._at is None else max(at_s, self._at + 0.001)
        return at_s


def match_poses(
    posed: Posed, detected: Detected, track_ids: NDArray[Any], person_class_ids: frozenset[int], min_iou: float = 0.5
) -> Ids:
    """Track ids `[poses]` of the persons that poses lie on, one to one, the largest overlap first; -1 without one.

    Args:
        track_ids: `[n]` of `detected`; -1 where there is none, which its pose then gets.
        person_class_ids: the classes that a pose may belong to.
        min_iou: least overlap of the two boxes.
    """
    ids = np.full(len(posed.xyxy), -1, np.int64)
    persons = np.flatnonzero(np.isin(detected.class_id, list(person_class_ids)))
    overlap = iou(posed.xyxy, detected.xyxy[persons])
    pose_at, person_at = np.nonzero(overlap >= min_iou)
    free_poses, free_persons = set(pose_at.tolist()), set(person_at.tolist())
    for pair in np.argsort(-overlap[pose_at, person_at], kind="stable").tolist():
        pose, person = int(pose_at[pair]), int(person_at[pair])
        if pose in free_poses and person in free_persons:
            free_poses.remove(pose)
            free_persons.remove(person)
            ids[pose] = track_ids[persons[person]]
    return ids
