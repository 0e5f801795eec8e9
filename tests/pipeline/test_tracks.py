"""Track ids over frames, and the persons that poses belong to."""

import numpy as np
import pytest

from app.pipeline.pose import Posed
from app.pipeline.tracks import StreamTracker, match_poses
from app.pipeline.yolo import Detected


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
