"""Exports by Ultralytics, through the whole service, against Ultralytics' own answers about the same JPEGs.

Needs an interpreter that can import Ultralytics, which is AGPL-3.0 and never a dependency: ULTRALYTICS_PYTHON names
one, from a throw-away environment (`python -m venv /tmp/u && /tmp/u/bin/pip install ultralytics onnx onnxruntime`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from app.pipeline.stages.detect import Detection
from app.pipeline.stages.pose import Pose
from app.protocol.result import FrameResult
from app.settings import ROOT, TritonSettings
from tests.integration.watching import corners, iou, watch
from tests.support.service import require_environment, serving

SHAPES = [(640, 480), (480, 640), (1280, 720), (1920, 400), (200, 900), (320, 320), (333, 517), (97, 61)]
"""Width and height."""
IOU, SCORE, POINT = 0.99, 0.005, 0.5
PAIRS = [("v8", "v8-pose", ()), ("v26", "v26-pose", ()), ("v11", "v11-pose", ()), ("v8", "v26-pose", ("--as-is",))]


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with Ultralytics."""
    found = os.environ.get("ULTRALYTICS_PYTHON", sys.executable)
    asked = subprocess.run([found, "-c", "import ultralytics, onnx, onnxruntime"], capture_output=True, check=False)
    if asked.returncode != 0:
        pytest.skip("Ultralytics is not installed: ULTRALYTICS_PYTHON names an interpreter that has it")
    return found


def write_pictures(folder: Path) -> None:
    """JPEGs of eight shapes."""
    folder.mkdir()
    photograph = np.tile(skimage.data.astronaut()[..., ::-1], (4, 4, 1))
    for number, (width, height) in enumerate(SHAPES):
        picture = photograph[40 : 40 + height, 40 : 40 + width]
        cv2.imwrite(str(folder / f"{number}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])


@pytest.fixture(scope="module")
def exports(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported networks, and Ultralytics' own results with them on images of eight shapes."""
    folder = tmp_path_factory.mktemp("ultralytics")
    write_pictures(folder / "pictures")
    script = ROOT / "tests" / "integration" / "ultralytics_networks.py"
    done = subprocess.run(
        [python, script, folder], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.mark.parametrize(("detect", "pose", "how"), PAIRS)
def test_c1_the_service_sees_what_ultralytics_sees(
    exports: Path, tmp_path: Path, detect: str, pose: str, how: tuple[str, ...]
) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    repository = tmp_path / "repository"
    repository.mkdir()
    models = ["--detect", exports / f"{detect}.onnx", "--pose", exports / f"{pose}.onnx"]
    command = [sys.executable, ROOT / "triton" / "models.py", "--repository", repository, *how, *models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("yolo", "yolo_pose"):  # where OpenVINO would take BF16
        configuration = repository / name / "configs" / "installed.pbtxt"
        exact = 'parameters { key: "runtime" value { string_value: "onnxruntime" } }\n'
        configuration.write_text(configuration.read_text() + exact)
    jpegs = [path.read_bytes() for path in sorted((exports / "pictures").glob("*.jpg"))]
    settings = {"TRITON_REPOSITORY": str(repository), "OCR": "off", "TRITON_DEADLINE_S": "60"}
    with serving(tmp_path, settings) as service:
        stages = {"ocr": False, "motion": False, "track": False}
        results = [result.frame for result in watch(service.url, jpegs, stages=stages, confidence=0.35, iou=0.45)]
    wanted = [json.loads((exports / f"{name}.json").read_text()) for name in (detect, pose)]
    assert sum(len(image["boxes"]) for image in wanted[0]) > 100
    assert sum(len(image["boxes"]) for image in wanted[1]) > 100
    for found, objects, poses in zip(results, *wanted, strict=True):
        the_same(found, objects, poses)


def the_same(found: FrameResult, objects: dict[str, Any], poses: dict[str, Any]) -> None:
    where = f"{found.image.width}x{found.image.height}"
    the_same_things(found.objects, objects, where)
    the_same_things(found.poses, poses, where)


def the_same_things(ours: Sequence[Detection | Pose], theirs: dict[str, Any], where: str) -> None:
    assert len(ours) == len(theirs["boxes"]), where
    free = [*ours]
    for index, box in enumerate(theirs["boxes"]):
        same = [found_object for found_object in free if alike(found_object, theirs, index)]
        assert same, (where, box, theirs["scores"][index], theirs["classes"][index])
        free.remove(same[0])


def alike(found_object: Detection | Pose, theirs: dict[str, Any], index: int) -> bool:
    """Whether an object or a pose is the one that Ultralytics found at this index."""
    box, score = np.array(theirs["boxes"][index]), theirs["scores"][index]
    if abs(found_object.confidence - score) > SCORE or not _covers(corners(found_object.box), box):
        return False
    if isinstance(found_object, Detection):
        return found_object.class_id == theirs["classes"][index]
    points = np.array([(point.x, point.y) for point in found_object.keypoints])
    return float(np.abs(points - np.array(theirs["keypoints"][index])[:, :2]).max()) <= POINT


def _covers(box: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Untrained networks give boxes inside out, too, and some so thin that the wire's hundredth of a pixel is a
    hundredth of them: of those the corners are compared."""
    if (other[2:] - other[:2]).min() < 2:
        return float(np.abs(box - other).max()) <= POINT
    return iou(box, other) >= IOU
