"""One's own ONNX, installed as `make models` does it, through the embedded Triton and the whole service.

Every expected number is worked out by hand from `known_models`; no code of the service takes part in that.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from app.pipeline.startup import open_pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import FrameResult
from app.settings import ROOT, Settings, TritonSettings
from benchmarks import canned
from tests.integration import known_models
from tests.integration.watching import corners, watch
from tests.support.service import Service, process, require_environment, running_triton, serving

RED, GREEN, DIM_RED, BIG_RED = (255, 0, 0), (0, 255, 0), (215, 0, 0), (255, 0, 255)


def frame(width: int, height: int, *patches: tuple[tuple[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """A black picture with coloured rectangles x1, y1, x2, y2; JPEG without chroma subsampling, at a quality at which
    a rectangle that fills its blocks in part does not ring: a box's size follows the blue in it."""
    picture = np.zeros((height, width, 3), np.uint8)
    for (x1, y1, x2, y2), colour in patches:
        picture[y1:y2, x1:x2] = colour
    jpeg: bytes = simplejpeg.encode_jpeg(picture, quality=100, colorsubsampling="444")
    return jpeg


def installed(folder: Path, *options: str) -> Path:
    """A repository made by triton/models.py, offline, from ONNX files given by path."""
    repository = folder / "repository"
    repository.mkdir()
    command = [sys.executable, ROOT / "triton" / "models.py", "--repository", repository, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return repository


@contextmanager
def alone(folder: Path, repository: Path) -> Iterator[Service]:
    """Starts a service with an embedded Triton on this repository."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    with serving(folder, {"TRITON_REPOSITORY": str(repository), "OCR": "off"}) as service:
        yield service


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UINT8 in, candidates picked in the graph, an ensemble over both models."""
    folder = tmp_path_factory.mktemp("prepared")
    models = known_models.detect(folder / "site.onnx"), known_models.pose(folder / "site-pose.onnx")
    return installed(folder, "--detect", str(models[0]), "--pose", str(models[1]))


@pytest.fixture(scope="module")
def prepared(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with alone(tmp_path_factory.mktemp("service"), repository) as service:
        yield service


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The exports as they are: FP32 NCHW in, raw heads out, two requests a frame."""
    folder = tmp_path_factory.mktemp("raw")
    models = known_models.detect(folder / "site.onnx"), known_models.pose(folder / "site-pose.onnx")
    with alone(folder, installed(folder, "--as-is", "--detect", str(models[0]), "--pose", str(models[1]))) as service:
        yield service


@pytest.fixture(params=["prepared", "raw"])
def service(request: pytest.FixtureRequest) -> Service:
    served: Service = request.getfixturevalue(request.param)
    return served


def ask(service: Service, *jpegs: bytes, **wishes: object) -> list[FrameResult]:
    stages = {"ocr": False, "motion": False, "track": False}
    results = [result.frame for result in watch(service.url, list(jpegs), stages=stages, **wishes)]
    for result in results:
        assert result.stages["detect"].status == result.stages["pose"].status == "ok"
    return results


# Frame, the rectangle painted, the cell (column, row) that it covers on the 160x160 canvas, and the box expected:
# the cell's centre -/+ (12, 8), less the border, over the scale.
LETTERBOXED = {
    # 640x160 -> scale 1/4, picture 160x40, 60 above. Cell (5, 9): centre (44, 76) -> frame (176, 64), 96x64.
    "wide": ((640, 160), (160, 48, 192, 80), (128, 32, 224, 96)),
    # 160x640 -> scale 1/4, 60 to the left. Cell (9, 12): centre (76, 100) -> frame (64, 400), 96x64.
    "tall": ((160, 640), (48, 384, 80, 416), (16, 368, 112, 432)),
    # 320x240 -> scale 1/2, 20 above. Cell (5, 9): centre (44, 76) -> frame (88, 112), 48x32.
    "camera": ((320, 240), (80, 104, 96, 120), (64, 96, 112, 128)),
    # 333x517 -> scale 160/517, picture 103x160, 28 to the left (28.5 of 57, the odd pixel right).
    # Cell (9, 4): x 72..80, y 32..40 -> frame x 142.2..168.0, y 103.4..129.3; centre (76, 36) -> (155.1, 116.3).
    # A side of 333 is 103 there: scale 103/333 across.
    "odd": ((333, 517), (142, 103, 168, 130), (116.39, 90.48, 193.98, 142.18)),
    # 80x80 -> made twice as large. Cell (0, 0): centre (4, 4) -> frame (2, 2); clipped at the corner.
    "small": ((80, 80), (0, 0, 5, 5), (0, 0, 8, 6)),
}


@pytest.mark.parametrize("name", LETTERBOXED)
def test_boxes_find_back_into_the_frame(service: Service, name: str) -> None:
    (width, height), patch, expected = LETTERBOXED[name]
    (found,) = ask(service, frame(width, height, (patch, RED)))
    (thing,) = found.objects
    assert (found.image.width, found.image.height) == (width, height)
    assert (thing.class_id, thing.class_name) == (0, "red")
    assert thing.confidence == pytest.approx(0.9, abs=0.03)
    assert corners(thing.box) == pytest.approx(np.array(expected), abs=0.1)


def test_keypoints_find_back_into_the_frame(service: Service) -> None:
    (found,) = ask(service, frame(320, 240, ((80, 104, 96, 120), RED)))
    (pose,) = found.poses
    assert corners(pose.box) == pytest.approx(np.array([64, 96, 112, 128]), abs=0.02)
    for k, point in enumerate(pose.keypoints):
        assert (point.x, point.y) == pytest.approx((88 + 2 * k, 112 - 2 * k), abs=0.02)
        assert point.confidence == pytest.approx(0.05 * k + 0.1, abs=1e-4)


def test_overlaps_within_a_class_are_one_thing_and_between_classes_are_two(service: Service) -> None:
    # Neighbours: boxes 48x32 of the frame, 16 apart, IoU (32*32)/(2*48*32 - 32*32) = 0.5.
    left, right = (80, 104, 96, 120), (96, 104, 112, 120)
    (same,) = ask(service, frame(320, 240, (left, DIM_RED), (right, RED)))
    assert [detection.confidence for detection in same.objects] == pytest.approx([0.9], abs=0.03)
    assert same.objects[0].box.x1 == pytest.approx(80, abs=0.02)
    (kept,) = ask(service, frame(320, 240, (left, DIM_RED), (right, RED)), iou=0.55)
    assert [detection.confidence for detection in kept.objects] == pytest.approx([0.9, 0.66], abs=0.03)
    assert [detection.box.x1 for detection in kept.objects] == pytest.approx([80, 64], abs=0.02)
    (other,) = ask(service, frame(320, 240, (left, GREEN), (right, RED)))
    assert sorted((detection.class_name, round(detection.box.x1)) for detection in other.objects) == [
        ("green", 64),
        ("red", 80),
    ]


def test_class_filter_and_confidence(service: Service) -> None:
    both = frame(320, 240, ((80, 104, 96, 120), GREEN), ((240, 184, 256, 200), DIM_RED))
    for wishes, expected in (
        ({}, ["green", "red"]),
        ({"classes": ["green"]}, ["green"]),
        ({"classes": [0]}, ["red"]),
        ({"classes": []}, ["green", "red"]),
        ({"confidence": 0.8}, ["green"]),
    ):
        (found,) = ask(service, both, **wishes)
        assert [detection.class_name for detection in found.objects] == expected
        assert len(found.poses) == (0 if wishes.get("confidence") else 1)  # all are persons, whatever the classes


def test_three_hundred_overlapping_candidates(service: Service) -> None:
    # 20x14 cells are all picture; those above and below are half border, which makes them 1.5 * 0.675 - 0.6 = 0.41.
    # Boxes are 248x232 of the 320x240 frame: any two overlap. Cell (10, 9) is best: centre (84, 76) -> (168, 112).
    field = ((0, 0, 320, 240), (230, 0, 255)), ((160, 104, 176, 120), BIG_RED)
    (found,) = ask(service, frame(320, 240, *field), iou=0.0)
    (best,) = found.objects
    assert corners(best.box) == pytest.approx(np.array([44, 0, 292, 228]), abs=3)
    assert len(found.poses) == 1
    (crowd,) = ask(service, frame(320, 240, *field), iou=1.0)
    assert len(crowd.objects) == len(crowd.poses) == 300  # of 320
    scores = [detection.confidence for detection in crowd.objects]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx([0.9] + [0.753] * 279 + [0.41] * 20, abs=0.03)


def test_nothing_in_the_picture_is_an_answer_too(service: Service) -> None:
    black, red = frame(320, 240), frame(320, 240, ((80, 104, 96, 120), RED))
    answers = ask(service, black, red, black, frame(7, 5), red)
    assert [(len(answer.objects), len(answer.poses)) for answer in answers] == [(0, 0), (1, 1), (0, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize("ensemble", ["vision", "none"])
def test_the_frames_of_a_batch_each_get_their_own(repository: Path, tmp_path: Path, ensemble: str) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    shown = [frame(*size, (patch, RED)) for size, patch, _ in LETTERBOXED.values()]
    shown.insert(2, frame(320, 240))  # with nothing in it
    expected: list[tuple[float, ...] | None] = [box for *_, box in LETTERBOXED.values()]
    expected.insert(2, None)

    async def analyzed(url: str) -> list[object]:
        settings = Settings(triton_url=url, triton_ensemble=ensemble, ocr="off", state_dir=tmp_path / "service")
        wish = StreamSettings(stages=Stages(ocr=False, motion=False, track=False))
        async with open_pipeline(settings) as opened:
            assert opened.pipeline.model_set.max_batch >= len(shown)
            jobs = [
                FrameJob(Frame(str(number), jpeg, time.perf_counter(), 0.0, 1), StreamMemory(), wish)
                for number, jpeg in enumerate(shown)
            ]
            return list(await opened.pipeline.analyze(jobs))

    with running_triton(repository, tmp_path / "triton") as url:
        answers = asyncio.run(analyzed(url))
    for found, box in zip(answers, expected, strict=True):
        assert isinstance(found, FrameResult)
        assert len(found.objects) == len(found.poses) == (box is not None)
        if box is not None:
            assert corners(found.objects[0].box) == pytest.approx(np.array(box), abs=0.1)
            assert corners(found.poses[0].box) == pytest.approx(np.array(box), abs=0.1)


def requests(service: Service) -> dict[str, float]:
    """The number of inference requests by model."""
    names = ("vision", "yolo", "yolo_pose")
    samples = service.metrics()
    return {name: samples.get(f'sightline_model_batch_size_count{{model="{name}"}}', 0) for name in names}


def test_without_an_ensemble_both_models_are_asked_and_answer_the_same(
    prepared: Service, repository: Path, tmp_path: Path
) -> None:
    jpegs = [frame(*size, (patch, RED)) for size, patch, _ in LETTERBOXED.values()]
    together = ask(prepared, *jpegs, iou=0.9)
    assert requests(prepared)["vision"] >= len(jpegs)
    assert requests(prepared)["yolo"] == requests(prepared)["yolo_pose"] == 0
    without = shutil.copytree(repository, tmp_path / "repository")
    shutil.rmtree(without / "vision")
    with alone(tmp_path, without) as service:
        apart = ask(service, *jpegs, iou=0.9)
        assert [(answer.objects, answer.poses) for answer in apart] == [
            (answer.objects, answer.poses) for answer in together
        ]
        assert requests(service) == {"vision": 0, "yolo": len(jpegs), "yolo_pose": len(jpegs)}


def test_end_to_end_heads_are_read_as_they_come(tmp_path: Path) -> None:
    models = known_models.end_to_end(tmp_path / "v26.onnx"), known_models.end_to_end_pose(tmp_path / "v26-pose.onnx")
    repository = installed(tmp_path, "--as-is", "--detect", str(models[0]), "--pose", str(models[1]))
    # Neighbours that overlap by half: such a head has done its own suppression, and none is done here.
    left, right = ((80, 104, 96, 120), DIM_RED), ((96, 104, 112, 120), BIG_RED)
    with alone(tmp_path, repository) as service:
        found, empty = ask(service, frame(320, 240, left, right), frame(320, 240), iou=0.1)
        assert [detection.class_name for detection in found.objects] == ["red", "green"]
        boxes = [corners(detection.box) for detection in found.objects]
        assert boxes[0] == pytest.approx(np.array([64, 96, 112, 128]), abs=0.02)
        assert boxes[1] == pytest.approx(np.array([80, 96, 128, 128]), abs=0.02)
        assert [detection.confidence for detection in found.objects] == pytest.approx([0.665, 0.9], abs=0.03)
        # Poses likewise; each in the order that the head gives them.
        assert [pose.confidence for pose in found.poses] == pytest.approx([0.665, 0.9], abs=0.03)
        for pose, (x, y), box in zip(
            found.poses, [(88, 112), (104, 112)], [(64, 96, 112, 128), (80, 96, 128, 128)], strict=True
        ):
            assert corners(pose.box) == pytest.approx(np.array(box), abs=0.02)
            assert len(pose.keypoints) == 17
            for k, point in enumerate(pose.keypoints):
                assert (point.x, point.y) == pytest.approx((x + 2 * k, y - 2 * k), abs=0.02)
                assert point.confidence == pytest.approx(0.05 * k + 0.1, abs=1e-4)
        assert empty.objects == empty.poses == []


def test_a_model_of_no_known_layout_stops_the_start_with_one_line(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    canned.model(repository, "yolo", {"logits": np.zeros((7, 7, 3), np.float32)}, size=64)
    settings = {"TRITON_REPOSITORY": str(repository), "STATE_DIR": str(tmp_path / "state"), "PORT": "0", "OCR": "off"}
    with process(["serve"], settings, tmp_path / "log") as child:
        assert child.wait(60) not in (0, None)
    log = (tmp_path / "log").read_text()
    (line,) = [line for line in log.splitlines() if '"critical"' in line]
    assert "model 'yolo'" in line
    assert "logits FP32 [-1, 7, 7, 3]" in line
    assert "[N, 4 + classes, A]" in line
    assert "Traceback" not in log
