"""ObservationBuilder: about one observation a second, and none if nothing was seen."""

from __future__ import annotations

from collections.abc import Sequence

from app.pipeline.stages.detect import Detection
from app.pipeline.stages.motion import CameraMotion, Motion
from app.pipeline.stages.ocr.policy import Text
from app.pipeline.stages.pose import Pose
from app.protocol.result import OK, Box, FrameResult, Image, Stage
from app.summary import Entity, Observation, ObservationBuilder
from app.summary.observations import TEXT_CHARS, TEXTS
from tests.summary.test_observation_words import SITTING, STANDING, person

CORNERS = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
STAGES = dict.fromkeys(("detect", "pose", "ocr", "motion", "track"), OK)


def seen(*objects: tuple[int | None, str], confidence: float = 0.8) -> list[Detection]:
    """Boxes side by side, each at the place of its number."""
    return [
        Detection(0, name, confidence, Box(50 * (track or 0), 0, 50 * (track or 0) + 10, 20), track)
        for track, name in objects
    ]


def read(*texts: str) -> list[Text]:
    return [Text(text, 0.9, CORNERS) for text in texts]


def frame(
    objects: Sequence[Detection] = (),
    poses: Sequence[Pose] = (),
    texts: list[Text] | None = None,
    moving: float = 0.0,
    **stages: Stage,
) -> FrameResult:
    motion = Motion(moving / 50, None, moving, CameraMotion(0, 0))
    return FrameResult(
        Image(640, 480),
        {**STAGES, **stages},
        objects=list(objects),
        poses=list(poses),
        texts=texts or [],
        motion=motion,
    )


def watch(
    builder: ObservationBuilder, frames: Sequence[FrameResult], *, first: int = 1, fps: float = 10
) -> list[Observation]:
    """The observations made of these frames in order; frame `n` is at `n / fps` seconds."""
    ids = range(first, first + len(frames))
    made = [builder.add(number, result, number * 1000 / fps) for number, result in zip(ids, frames, strict=True)]
    return [observation for observation in made if observation is not None]


def test_an_observation_a_second_and_the_rest_on_flush() -> None:
    builder = ObservationBuilder()
    made = watch(builder, [frame(seen((1, "person")))] * 25)
    assert [(observation.first_frame_id, observation.last_frame_id, observation.frames) for observation in made] == [
        (1, 11, 11),
        (12, 22, 11),
    ]
    assert made[0].started_at_ms == 100
    assert made[0].ended_at_ms == 1100
    rest = builder.flush()
    assert rest is not None
    assert (rest.first_frame_id, rest.last_frame_id) == (23, 25)
    assert builder.flush() is None


def test_nothing_to_say_says_nothing() -> None:
    builder = ObservationBuilder()
    assert watch(builder, [frame()] * 50) == []
    assert builder.flush() is None


def test_a_slow_stream_gives_one_observation_a_frame() -> None:
    made = watch(ObservationBuilder(), [frame(seen((1, "person")))] * 4, fps=0.5)
    assert [observation.frames for observation in made] == [2, 2]


def test_who_left_has_left_though_the_clock_went_back_an_hour() -> None:
    for step_ms in (0, -3_600_000):
        builder = ObservationBuilder()
        made = watch(builder, [frame(seen((1, "person"), (2, "dog")))] * 20)
        for number in range(20, 80):
            observation = builder.add(number, frame(seen((1, "person"))), number * 100 + step_ms)
            made += [] if observation is None else [observation]
        left = [entity for observation in made for entity in observation.left]
        assert (left, sum(observation.arrivals for observation in made)) == ([Entity(2, "dog")], 0)


def test_a_clock_that_goes_back_while_detection_fails_makes_nobody_leave() -> None:
    builder = ObservationBuilder()
    made = watch(builder, [frame(seen((1, "person")))] * 20)
    for number in range(20, 80):
        failed = frame(texts=read(f"GATE {number}"), detect=Stage("error"))
        observation = builder.add(number, failed, number * 100 - 3_600_000)
        made += [] if observation is None else [observation]
    assert sum(observation.departures for observation in made) == 0


def test_a_clock_that_goes_back_starts_a_new_observation() -> None:
    builder = ObservationBuilder()
    assert builder.add(1, frame(seen((1, "person"))), 50_000) is None
    observation = builder.add(2, frame(seen((1, "person"))), 1_000)
    assert observation is not None
    assert observation.frames == 2


def test_classes_are_counted() -> None:
    frames = [frame(seen((1, "person"), (2, "person"), (None, "dog"), confidence=0.75)), frame(seen((1, "person")))] * 5
    (observation,) = watch(ObservationBuilder(), [*frames, frame()])
    person_, dog = observation.objects
    assert (person_.class_name, person_.most, person_.frames, person_.boxes) == ("person", 2, 10, 15)
    assert (dog.class_name, dog.most, dog.frames, dog.boxes) == ("dog", 1, 5, 5)
    assert dog.confidence == 0.75


def test_things_come_and_go() -> None:
    builder = ObservationBuilder()
    both, person_only = frame(seen((1, "person"), (2, "dog"))), frame(seen((1, "person")))
    made = watch(builder, [person_only] + [both] * 10 + [person_only] * 33)
    assert made[0].arrived == (Entity(2, "dog"),)
    assert made[0].arrivals == 1
    assert [observation.left for observation in made[1:]] == [(), (Entity(2, "dog"),), ()]
    assert sum(observation.departures for observation in made) == 1
    again = watch(builder, [both] * 11, first=45)
    assert again[0].arrived == (Entity(3, "dog"),)


def test_what_is_in_view_from_the_start_did_not_come() -> None:
    (observation,) = watch(ObservationBuilder(), [frame(seen((1, "person"), (2, "dog")))] * 11)
    assert (observation.arrived, observation.arrivals) == ((), 0)


def test_nobody_leaves_while_detection_fails() -> None:
    builder = ObservationBuilder()
    off = frame(detect=Stage("error", "timeout"), track=Stage("skipped", "nothing_detected_on"))
    made = watch(builder, [frame(seen((1, "person")))] * 11 + [off] * 55)
    assert sum(observation.departures for observation in made) == 0
    assert all(observation.failed == ("detect",) for observation in made[1:])


def test_poses_are_said_once_each() -> None:
    frames = [frame(poses=[person(STANDING)]), frame(poses=[person(SITTING), person(STANDING)])] * 8
    (observation,) = watch(ObservationBuilder(), frames[:11])
    assert set(observation.poses) == {"standing", "sitting"}


def test_a_pose_without_a_detector_is_a_person_that_arrives() -> None:
    pose = person(STANDING)
    tracked = Pose(pose.confidence, pose.box, pose.keypoints, track_id=7)
    off = Stage("disabled", "off")
    (observation,) = watch(ObservationBuilder(), [frame(detect=off), *[frame(poses=[tracked], detect=off)] * 10])
    assert observation.arrived == (Entity(1, "person"),)


def test_a_text_is_new_once_however_it_wavers() -> None:
    builder = ObservationBuilder()
    frames = [frame(texts=read("EXIT  5")), frame(texts=read("exit 5.")), frame(texts=read("Exit 5", "Gate A"))] * 10
    made = watch(builder, frames)
    assert made[0].new_texts == ("EXIT 5", "Gate A")
    assert made[0].texts == 2
    assert made[1:] == []


def test_texts_are_capped_and_counted() -> None:
    many = read(*(f"{number} {'long ' * 60}" for number in range(TEXTS + 5)), "\ud800", "")
    (observation,) = watch(ObservationBuilder(), [frame(texts=many)] * 11)
    assert len(observation.new_texts) == TEXTS
    assert max(map(len, observation.new_texts)) == TEXT_CHARS
    assert observation.texts == TEXTS + 6
    assert Observation.decode(observation.encode()) == observation


def test_motion_alone_is_something_to_say() -> None:
    (observation,) = watch(ObservationBuilder(), [frame(moving=0.1)] * 11)
    assert observation.motion.level == "some"
    assert observation.objects == ()
