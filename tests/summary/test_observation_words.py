"""Postures and movement in words: by example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pipeline.stages.motion import CameraMotion, Motion
from app.pipeline.stages.pose import KEYPOINT_NAMES, Keypoint, Pose
from app.protocol.result import Box, Image
from app.summary import Movement
from app.summary.observations import MovementSum, posture

Points = dict[str, tuple[float, float]]

IMAGE = Image(640, 480)

STANDING: Points = {
    "nose": (100, 60),
    "left_eye": (104, 56),
    "right_eye": (96, 56),
    "left_shoulder": (120, 100),
    "right_shoulder": (80, 100),
    "left_wrist": (125, 190),
    "right_wrist": (75, 190),
    "left_hip": (112, 200),
    "right_hip": (88, 200),
    "left_knee": (112, 285),
    "right_knee": (88, 285),
    "left_ankle": (112, 370),
    "right_ankle": (88, 370),
}
SITTING = STANDING | {
    "left_knee": (160, 215),
    "right_knee": (150, 215),
    "left_ankle": (160, 300),
    "right_ankle": (150, 300),
}
CROUCHING = STANDING | {
    "left_knee": (150, 190),
    "right_knee": (140, 190),
    "left_ankle": (115, 245),
    "right_ankle": (100, 245),
}
LYING: Points = {name: (y, 400 + (x - 100) / 2) for name, (x, y) in STANDING.items()}
BENDING = STANDING | {
    "nose": (230, 215),
    "left_eye": (232, 210),
    "right_eye": (232, 212),
    "left_shoulder": (200, 190),
    "right_shoulder": (200, 210),
    "left_wrist": (210, 290),
    "right_wrist": (205, 290),
}
LEANING = STANDING | {"left_shoulder": (200, 120), "right_shoulder": (160, 120)}


def person(points: Points, confidence: float = 0.9) -> Pose:
    """Keypoints not named are not seen."""
    keypoints = tuple(
        Keypoint(name, *points[name], confidence) if name in points else Keypoint(name, 0, 0, 0.05)
        for name in KEYPOINT_NAMES
    )
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    return Pose(0.9, Box(min(xs), min(ys), max(xs), max(ys)), keypoints)


def only(points: Points, *parts: str) -> Points:
    return {name: at for name, at in points.items() if name.rpartition("_")[2] in parts}


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (STANDING, "standing"),
        (SITTING, "sitting"),
        (CROUCHING, "crouching"),
        (LYING, "lying"),
        (BENDING, "bending over"),
        (LEANING, "leaning"),
        (STANDING | {"left_wrist": (130, 20), "right_wrist": (70, 20)}, "standing, arms raised"),
        (SITTING | {"right_wrist": (70, 20)}, "sitting, one arm raised"),
        (STANDING | {"right_wrist": (85, 60)}, "standing"),  # a telephone at the ear
        (LYING | {"left_wrist": (30, 300), "right_wrist": (30, 300)}, "lying"),
        (only(STANDING, "nose", "shoulder", "wrist"), None),  # behind a desk
        (
            only(STANDING, "shoulder", "hip", "wrist") | {"left_wrist": (130, 20)},
            "one arm raised",
        ),  # the face is turned away
        (only(STANDING, "nose", "shoulder") | {"left_wrist": (130, 20), "right_wrist": (70, 20)}, "arms raised"),
        (only(LYING, "nose", "shoulder", "hip"), "lying"),
        (only(STANDING, "eye"), None),
    ],
)
def test_posture(points: Points, words: str | None) -> None:
    assert posture(person(points)) == words


def test_a_person_seen_from_the_side_is_judged_by_the_side_that_is_seen() -> None:
    seen = {name: at for name, at in SITTING.items() if not name.startswith("right")}
    assert posture(person(seen)) == "sitting"


def test_unsure_keypoints_say_nothing() -> None:
    assert posture(person(STANDING, confidence=0.3)) is None


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(0, 1)), min_size=17, max_size=17))
def test_any_keypoints_give_words_or_nothing(points: list[tuple[float, float, float]]) -> None:
    keypoints = tuple(Keypoint(name, *point) for name, point in zip(KEYPOINT_NAMES, points, strict=True))
    assert posture(Pose(0.5, Box(0, 0, 10, 10), keypoints)) in {
        None,
        *(
            ", ".join(filter(None, (body, arms)))
            for body in ("", "standing", "sitting", "crouching", "leaning", "bending over")
            for arms in ("", "arms raised", "one arm raised")
            if body or arms
        ),
        "lying",
    }


def moved(
    *, fraction: float = 0.0, direction: float | None = None, camera: tuple[float, ...] = (0, 0), frames: int = 10
) -> Movement:
    sums = MovementSum()
    for _ in range(frames):
        sums.add(Motion(fraction / 50, direction, fraction, CameraMotion(*camera)), IMAGE)
    return sums.take()


def test_nothing_measured_is_not_still() -> None:
    assert (Movement().level, Movement().direction, Movement().camera) == (None, None, None)
    assert moved().level == "still"


@pytest.mark.parametrize(("fraction", "level"), [(0.0, "still"), (0.009, "still"), (0.05, "some"), (0.4, "much")])
def test_level(fraction: float, level: str) -> None:
    assert moved(fraction=fraction).level == level


@pytest.mark.parametrize(
    ("degrees", "word"),
    [
        (0, "right"),
        (40, "down and right"),
        (90, "down"),
        (180, "left"),
        (225, "up and left"),
        (270, "up"),
        (359, "right"),
    ],
)
def test_direction(degrees: float, word: str) -> None:
    assert moved(fraction=0.1, direction=degrees).direction == word


def test_motion_to_and_fro_has_no_direction() -> None:
    both = moved(fraction=0.1, direction=0) + moved(fraction=0.1, direction=180)
    assert (both.level, both.direction) == ("some", None)


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        ((-5, 0), "panning right"),
        ((5, 1), "panning left"),
        ((0, -5), "tilting down"),
        ((0, 5), "tilting up"),
        ((0.5, 0.5), None),
        ((0, 0, 1.5, 1), "rolling anticlockwise"),
        ((0, 0, -1.5, 1), "rolling clockwise"),
        ((0, 0, 0, 1.02), "zooming in"),
        ((1, 1, 0, 0.97), "zooming out"),
        ((-8, 0, 0.3, 1.002), "panning right"),
        ((0, 0, 0.1, 1.001), None),
    ],
)
def test_camera(shift: tuple[float, ...], word: str | None) -> None:
    assert moved(camera=shift).camera == word


def test_a_camera_that_goes_to_and_fro_shakes() -> None:
    assert (moved(camera=(5, 0)) + moved(camera=(-5, 0))).camera == "shaking"
    assert (moved(camera=(0, 0, 2, 1)) + moved(camera=(0, 0, -2, 1))).camera == "shaking"


def test_a_moment_of_much_does_not_make_an_hour_of_it() -> None:
    assert (moved(fraction=0.5, frames=10) + moved(frames=1000)).level == "still"
