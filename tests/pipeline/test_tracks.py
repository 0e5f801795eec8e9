"""Track ids over frames, and the persons that poses belong to."""

import numpy as np
import pytest
from supervision import Detections
from trackers import ByteTrackTracker

from app.pipeline.stages.detect import Detected
from app.pipeline.stages.pose import Posed
from app.pipeline.stages.tracking import (
    FRAME_RATE,
    LOST_S,
    MIN_IOU,
    MIN_SCORE,
    MIN_SIGHTINGS,
    StreamTracker,
    match_poses,
)


def frame(tracker, boxes, classes=None, scores=None, **when):
    count = len(boxes)
    return tracker.update(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([0.9] * count if scores is None else scores, np.float32),
        np.array([0] * count if classes is None else classes, np.int32),
        **when,
    ).tolist()


def walker(x, y=100):
    return [x, y, x + 80, y + 200]


def test_a_thing_has_its_number_from_the_second_sighting_on():
    tracker = StreamTracker()
    ids = [frame(tracker, [walker(100 + 5 * i), walker(400)]) for i in range(5)]
    assert ids == [[-1, -1], [1, 2], [1, 2], [1, 2], [1, 2]]


@pytest.mark.parametrize("fps", [None, 30, 8])
def test_two_who_cross_keep_their_numbers_in_whatever_order_they_come(fps):
    tracker = StreamTracker()
    rate = fps or 30
    seen = []
    for i in range(6 * rate):
        when = {} if fps is None else {"at_s": 50 + i / fps}
        right, left = walker(50 + 90 * i / rate), walker(550 - 90 * i / rate, 140)
        ids = frame(tracker, [right, left] if i % 2 else [left, right], **when)
        seen.append(ids if i % 2 else ids[::-1])
    numbers = seen[1]
    assert sorted(numbers) == [1, 2]
    assert all(ids == numbers for ids in seen[1:])


def test_who_is_hidden_for_a_while_returns_with_the_number_and_who_is_gone_does_not():
    tracker = StreamTracker()
    for i in range(5):
        frame(tracker, [walker(100)], at_s=i / 10)
    for i in range(5, 15):
        assert frame(tracker, [], at_s=i / 10) == []
    assert frame(tracker, [walker(102)], at_s=1.5) == [1]
    assert frame(tracker, [walker(102)], at_s=9.0) == [-1]
    assert frame(tracker, [walker(102)], at_s=9.1) == [2]


def test_classes_do_not_share_a_track():
    tracker = StreamTracker()
    person, face = [100, 100, 300, 400], [120, 100, 280, 300]
    for _ in range(3):
        ids = frame(tracker, [person, face], [0, 1])
    assert ids == [1, 2]
    assert frame(tracker, [face], [1]) == [2]
    assert frame(tracker, [face, person], [1, 0]) == [2, 1]


def test_a_weak_box_starts_no_track_but_carries_one_on():
    tracker = StreamTracker()
    for _ in range(3):
        assert frame(tracker, [walker(100)], scores=[0.3]) == [-1]
    for _ in range(2):
        ids = frame(tracker, [walker(100)], scores=[0.8])
    assert ids == [1]
    assert frame(tracker, [walker(100)], scores=[0.2]) == [1]


def test_a_frame_of_another_size_starts_over_with_new_numbers():
    tracker = StreamTracker()
    for _ in range(2):
        ids = frame(tracker, [walker(100), walker(300)], size=(640, 480))
    assert ids == [1, 2]
    assert frame(tracker, [walker(100)], size=(1280, 720)) == [-1]
    assert frame(tracker, [walker(100)], size=(1280, 720)) == [3]


def test_frames_at_one_moment_or_out_of_order_are_still_answered():
    tracker = StreamTracker()
    ids = [frame(tracker, [walker(100)], at_s=at) for at in (5.0, 5.0, 4.0, 5.1)]
    assert ids == [[-1], [1], [1], [1]]


def test_without_classes_all_are_of_one():
    tracker = StreamTracker()
    boxes, scores = np.array([walker(10), walker(300)], np.float32), np.array([0.9, 0.8], np.float32)
    tracker.update(boxes, scores)
    assert tracker.update(boxes, scores).tolist() == [1, 2]


def test_two_streams_count_for_themselves():
    for _ in range(2):
        tracker = StreamTracker()
        frame(tracker, [walker(0)])
        assert frame(tracker, [walker(0)]) == [1]


class Reference:
    """`trackers.ByteTrackTracker` for one stream: classes are moved apart, ids lie in the order of the boxes."""

    def __init__(self):
        self.tracker = ByteTrackTracker(
            lost_track_buffer=round(LOST_S * 30),
            frame_rate=FRAME_RATE,
            track_activation_threshold=MIN_SCORE,
            high_conf_det_threshold=MIN_SCORE,
            minimum_consecutive_frames=MIN_SIGHTINGS,
            minimum_iou_threshold=MIN_IOU,
        )

    def update(self, xyxy, confidence, class_id, at_s):
        apart = xyxy.astype(np.float64) + (class_id * 131_072.0)[:, None]
        numbered = Detections(xyxy=apart, confidence=confidence, class_id=np.arange(len(apart)))
        answer = self.tracker.update(numbered, timestamp=at_s)
        ids = np.full(len(apart), -1)
        if len(apart):
            ids[answer.class_id] = np.where(answer.tracker_id >= 0, answer.tracker_id + 1, -1)
        return ids.tolist()


def crowd(rng, count, frames=60):
    """Boxes that walk, cross, hide, flicker in size and score, at times as a browser's and a slow camera's come."""
    fps, classes = rng.choice([5, 15, 30]), rng.choice([1, 3])
    hidden, shaking, grid = rng.choice([0, 0.1, 0.4]), rng.choice([0, 1, 6]), rng.choice([0, 0, 1, 16])
    centre, speed = rng.uniform(0, 1200, (count, 2)), rng.normal(0, 120, (count, 2))
    size, kind = rng.uniform(20, 200, (count, 2)), rng.integers(classes, size=count).astype(np.int32)
    now = 100.0
    for _ in range(frames):
        gap = rng.choice([1 / fps, 2 / fps, rng.uniform(0.001, 0.3), 3.0], p=[0.8, 0.1, 0.095, 0.005])
        now += gap
        centre += speed * gap
        speed *= np.where((centre < 0) | (centre > 1280), -1, 1)
        middle = centre + rng.normal(0, shaking, (count, 2)) if shaking else centre
        half = size * (1 + rng.normal(0, 0.02, (count, 2))) / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        if grid:  # equal overlaps are frequent then
            boxes = np.round(boxes / grid) * grid
        scores = np.where(rng.random(count) < 0.3, rng.uniform(0.15, 0.99, count), 0.9)
        seen = rng.permutation(count)[: rng.binomial(count, 1 - hidden)]
        yield boxes[seen].astype(np.float32), scores[seen].astype(np.float32), kind[seen], now


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20, 60])
def test_the_ids_are_those_of_the_reference(count):
    for seed in range(6 if count > 8 else 20):
        ours, reference = StreamTracker(), Reference()
        for xyxy, confidence, class_id, at_s in crowd(np.random.default_rng([count, seed]), count):
            ids = ours.update(xyxy, confidence, class_id, at_s=at_s).tolist()
            assert ids == reference.update(xyxy, confidence, class_id, at_s), (seed, at_s)


def test_a_box_that_is_no_number_is_answered_and_harms_no_other():
    tracker = StreamTracker()
    for at in range(4):
        ids = frame(tracker, [walker(100), [float("nan")] * 4, [0, 0, float("inf"), 50]], at_s=at / 10)
    assert ids[0] == 1
    assert len(ids) == 3


def found(boxes, classes):
    count = len(boxes)
    return Detected(
        np.array(boxes, np.float32).reshape(-1, 4), np.full(count, 0.9, np.float32), np.array(classes, np.int32)
    )


def posed(boxes):
    count = len(boxes)
    return Posed(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(count, 0.9, np.float32),
        np.zeros((count, 17, 3), np.float32),
    )


def test_poses_go_to_the_persons_that_they_lie_on_one_to_one_the_best_first():
    detected = found([walker(100), walker(130), walker(400), walker(402)], [0, 0, 0, 5])
    ids = np.array([11, 12, 13, 14])
    # The first pose overlaps both persons, the second fits the first person better: it gets it.
    ours = match_poses(posed([walker(112), walker(101), walker(401), walker(800)]), detected, ids, frozenset({0}))
    assert ours.tolist() == [12, 11, 13, -1]


def test_a_person_has_one_pose_and_gives_the_number_that_it_has():
    detected = found([walker(100), walker(300)], [0, 0])
    ids = match_poses(posed([walker(105), walker(101), walker(300)]), detected, np.array([7, -1]), frozenset({0}))
    assert ids.tolist() == [-1, 7, -1]


@pytest.mark.parametrize(
    ("poses", "objects", "persons"),
    [
        ([], [walker(0)], {0}),
        ([walker(0)], [], {0}),
        ([walker(0)], [walker(0)], set()),
        ([walker(0)], [walker(90)], {0}),
    ],
)
def test_without_a_person_there_is_no_number(poses, objects, persons):
    detected = found(objects, [0] * len(objects))
    ids = match_poses(posed(poses), detected, np.arange(1, len(objects) + 1), frozenset(persons))
    assert ids.tolist() == [-1] * len(poses)


def test_a_crowd_is_matched_as_its_parts_are():
    """Many pairs are compared by numpy, few in Python."""
    columns, rows = range(0, 2000, 200), range(0, 2000, 250)
    boxes = [walker(x, y) for x in columns for y in rows]
    poses = [walker(x + 6, y + 4) for x in columns for y in rows][::-1]
    detected, ids = found(boxes, [0] * len(boxes)), np.arange(1, len(boxes) + 1)
    assert match_poses(posed(poses), detected, ids, frozenset({0})).tolist() == ids.tolist()[::-1]
