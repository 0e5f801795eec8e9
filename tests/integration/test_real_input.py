"""Photographs and videos through the whole service: the results agree with what is known about the images."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import cycle

import httpx
import numpy as np
import orjson
import pytest
from skimage import data

from app.protocol.messages import Result
from tests.integration.watching import corners, iou, watch, watch_film, watching
from tests.support import clip
from tests.support.service import Service

PAN = clip.Pan()
MOTION_ALONE = {"detect": False, "pose": False, "ocr": False}


@pytest.fixture(scope="module")
def panned(real: Service) -> list[Result]:
    """The results of the panned video."""
    return watch(real.url, PAN.jpegs())


def test_the_person_and_her_face_are_found_in_every_frame(panned: list[Result]) -> None:
    overlaps = []
    for index, result in enumerate(panned):
        found = {detection.class_name: detection for detection in result.frame.objects}
        assert sorted(found) == ["face", "person"]
        assert len(result.frame.objects) == 2
        overlaps.append(iou(corners(found["person"].box), PAN.seen(index, clip.PERSON)))
        face = corners(found["face"].box)
        assert iou(face, PAN.seen(index, clip.FACE)) > 0.65
        for point in clip.POINTS.values():
            x, y = PAN.seen(index, point)
            assert face[0] < x < face[2]
            assert face[1] < y < face[3]
    assert min(overlaps) > 0.75
    assert np.mean(overlaps) > 0.8


def test_eyes_and_nose_lie_where_they_are_and_left_is_hers(panned: list[Result]) -> None:
    between_the_eyes = np.hypot(*(clip.POINTS["left_eye"] - clip.POINTS["right_eye"]))
    for index, result in enumerate(panned):
        (pose,) = result.frame.poses
        at = {point.name: np.array([point.x, point.y]) for point in pose.keypoints}
        for name, point in clip.POINTS.items():
            assert np.hypot(*(at[name] - PAN.seen(index, point))) < 0.3 * between_the_eyes, (index, name)
        # She faces the camera: her left is on the right.
        for part in ("eye", "ear", "shoulder"):
            assert at[f"left_{part}"][0] > at[f"right_{part}"][0] + 20


def test_person_and_face_keep_their_numbers_and_the_pose_has_the_persons(panned: list[Result]) -> None:
    numbers = [{detection.class_name: detection.track_id for detection in result.frame.objects} for result in panned]
    assert numbers[0] == {"person": None, "face": None}  # one sighting is none yet
    assert numbers[1]["person"] != numbers[1]["face"]
    assert None not in numbers[1].values()
    assert numbers[1:] == [numbers[1]] * (len(panned) - 1)
    assert [result.frame.poses[0].track_id for result in panned] == [ids["person"] for ids in numbers]
    assert all(result.frame.stages["track"].status == "ok" for result in panned)


@pytest.mark.parametrize("step", [(8, 3), (-6, 0), (0, 7), (-5, -5), (9, -4), (2, 1)])
def test_a_pan_has_its_direction_and_its_length(real: Service, step: tuple[int, int]) -> None:
    start = (50 if step[0] >= 0 else 110, 40)
    results = watch(real.url, clip.Pan(step, 6, start).jpegs(), stages=MOTION_ALONE)
    assert results[0].frame.stages["motion"].reason == "first_frame"
    for result in results[1:]:
        motion = result.frame.motion
        assert motion is not None
        camera = np.array([motion.camera.dx, motion.camera.dy])
        # The window goes one way, what it shows the other.
        angle = np.degrees(np.arctan2(*camera[::-1]) - np.arctan2(-step[1], -step[0]))
        assert abs((angle + 180) % 360 - 180) < 10
        assert np.hypot(*camera) == pytest.approx(np.hypot(*step), rel=0.15)
        assert motion.moving_fraction < 0.1


@pytest.mark.parametrize("step", [(8, 0), (0, 8), (-6, 6), (5, -9), (10, 4)])
def test_what_moves_before_a_still_camera_has_its_direction(real: Service, step: tuple[int, int]) -> None:
    results = watch(real.url, clip.moving_patch(step), stages=MOTION_ALONE)
    truth = np.degrees(np.arctan2(step[1], step[0]))
    for result in results[1:]:
        motion = result.frame.motion
        assert motion is not None
        assert motion.direction_deg is not None
        assert abs((motion.direction_deg - truth + 180) % 360 - 180) < 10
        assert 0.1 < motion.moving_fraction < 0.5
        assert abs(motion.camera.dx) + abs(motion.camera.dy) < 0.1


def test_nothing_moves_in_a_still_film(real: Service) -> None:
    # The same view through five encoders' worth of noise: no two frames are the same bytes.
    picture = PAN.pictures()[0]
    results = watch(real.url, [clip.encode(picture, quality) for quality in (85, 70, 95, 60, 80)], stages=MOTION_ALONE)
    for result in results[1:]:
        motion = result.frame.motion
        assert motion is not None
        assert motion.direction_deg is None
        assert motion.moving_fraction < 0.01
        assert motion.score < 0.0005
        assert abs(motion.camera.dx) + abs(motion.camera.dy) < 0.1


def test_text_is_read_where_it_is_printed_and_its_age_is_true(real: Service) -> None:
    shots = PAN.jpegs()
    there_and_back = [*range(PAN.count), *reversed(range(PAN.count))]
    places: list[int] = []

    def film(seen: list[Result]) -> Iterator[bytes]:
        """Pans until some frames had a text of an earlier one, then stands until it is read anew."""
        for place in cycle(there_and_back):
            if sum(result.frame.stages["ocr"].status == "stale" for result in seen) >= 10:
                break
            places.append(place)
            yield shots[place]
        moved = len(places)
        while seen[-1].seq <= moved or seen[-1].frame.stages["ocr"].status != "ok":
            places.append(places[-1])
            yield shots[places[-1]]

    seen = watch_film(real.url, film)
    said = [result.frame.stages["ocr"] for result in seen]
    # When each was answered: sent by our clock, and what the service took for it by its own.
    answered = np.array([result.captured_at_ms + result.frame.timings_ms["total"] for result in seen])
    assert (said[0].status, said[0].reason) == ("skipped", "running")
    assert said[-1].status == "ok"
    assert {stage.status for stage in said} == {"skipped", "stale", "ok"}
    for index, (result, stage) in enumerate(zip(seen, said, strict=True)):
        if stage.status == "skipped":
            assert result.frame.texts == []
            continue
        (text,) = result.frame.texts
        assert text.text == clip.WORDS
        assert text.confidence > 0.9
        # The text stands where the frame that was answered `age_ms` ago showed it; a fresh one where this frame does.
        origin = int(np.abs(answered - (answered[index] - (stage.age_ms or 0))).argmin())
        near = [index] if stage.status == "ok" else [max(origin - 1, 0), origin, origin + 1]
        inks = [PAN.seen(places[position], clip.words_box()) for position in near if position < len(places)]
        # Four corners, clockwise from the top left, each with its own of the ink.
        off = [np.array(text.polygon) - ink[[[0, 1], [2, 1], [2, 3], [0, 3]]] for ink in inks]
        assert min(np.hypot(*offsets.mean(axis=0)) for offsets in off) < 5
        assert min(np.abs(offsets).max() for offsets in off) < 16  # the reader leaves some room around the ink
    ages = [stage.age_ms for stage in said if stage.status == "stale"]
    assert all(age is not None and age > 0 for age in ages)


def test_a_picture_without_text_says_that_it_was_read(real: Service) -> None:
    answer = httpx.post(f"{real.url}/v1/frames", content=clip.encode(data.coffee()), timeout=30).json()
    assert answer["texts"] == []
    assert answer["stages"]["ocr"] == {"status": "ok", "reason": None, "age_ms": None}
    assert answer["objects"] == []
    assert answer["poses"] == []
    assert answer["stages"]["detect"]["status"] == "ok"


def pictures() -> list[bytes]:
    """Eight images with different objects in different places."""
    astronaut, cat, coffee = data.astronaut(), data.chelsea(), data.coffee()
    return [
        clip.encode(picture)
        for picture in (
            astronaut,
            astronaut[:, ::-1],
            np.hstack([astronaut, astronaut[:, ::-1]]),
            astronaut[:400, :400],
            np.vstack([astronaut, np.full_like(astronaut, 90)]),
            cat,
            coffee,
            PAN.pictures()[0],
        )
    ]


def test_sessions_side_by_side_get_what_is_theirs(real: Service) -> None:
    async def alone(jpeg: bytes) -> dict[str, object]:
        async with httpx.AsyncClient(timeout=30) as http:
            return orjson.loads((await http.post(f"{real.url}/v1/frames", content=jpeg)).content)

    async def run() -> None:
        shown = pictures()
        truth = [await alone(jpeg) for jpeg in shown]
        streams = await asyncio.gather(
            *(watching(real.url, [jpeg] * 6, stages={"track": False, "ocr": False}) for jpeg in shown)
        )
        for results, expected in zip(streams, truth, strict=True):
            for result in results:
                found = orjson.loads(orjson.dumps(result.frame))
                assert found["image"] == expected["image"]
                assert found["objects"] == expected["objects"]
                assert found["poses"] == expected["poses"]
        assert len({orjson.dumps(answer["objects"]) for answer in truth}) >= 6
        # Text as well: a sign for the one, none for the others.
        assert [bool(answer["texts"]) for answer in truth[-3:]] == [False, False, True]

    asyncio.run(run())
