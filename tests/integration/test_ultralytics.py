"""Exports by Ultralytics, through the whole service, against Ultralytics' own answers about the same JPEGs.

Needs an interpreter that can import Ultralytics, which is AGPL-3.0 and never a dependency: ULTRALYTICS_PYTHON names
one, from a throw-away environment (`python -m venv /tmp/u && /tmp/u/bin/pip install ultralytics onnx onnxruntime`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data

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


@pytest.fixture(scope="module")
def exports(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, and what Ultralytics sees with them in pictures of eight shapes."""
    folder = tmp_path_factory.mktemp("ultralytics")
    (folder / "pictures").mkdir()
    photograph = np.tile(skimage.data.astronaut()[..., ::-1], (4, 4, 1))
    for number, (width, height) in enumerate(SHAPES):
        picture = photograph[40 : 40 + height, 40 : 40 + width]
        cv2.imwrite(str(folder / "pictures" / f"{number}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
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
        results = [one.frame for one in watch(service.url, jpegs, stages=stages, confidence=0.35, iou=0.45)]
    wanted = [json.loads((exports / f"{name}.json").read_text()) for name in (detect, pose)]
    assert sum(len(one["boxes"]) for one in wanted[0]) > 100
    assert sum(len(one["boxes"]) for one in wanted[1]) > 100
    for found, objects, poses in zip(results, *wanted, strict=True):
        the_same(found, objects, poses)


def the_same(found: FrameResult, objects: dict[str, Any], poses: dict[str, Any]) -> None:
    where = f"{found.image.width}x{found.image.height}"
    assert len(found.objects) == len(objects["boxes"]), where
    assert len(found.poses) == len(poses["boxes"]), where
    proper = [not _flat(box) for box in objects["boxes"]]  # untrained networks give boxes inside out, too
    ours = [(corners(one.box), one.confidence, one.class_id) for one in found.objects]
    seen = list(zip(objects["boxes"], objects["scores"], objects["classes"], strict=True))
    for box, score, label in [one for one, good in zip(seen, proper, strict=True) if good]:
        alike = [
            iou(one, np.array(box))
            for one, other, kind in ours
            if kind == label and abs(other - score) <= SCORE and not _flat(one.tolist())
        ]
        assert max(alike, default=0) >= IOU, (where, box, score, label)
    for box, score, points in zip(poses["boxes"], poses["scores"], poses["keypoints"], strict=True):
        if _flat(box):
            continue
        candidates = [
            one
            for one in found.poses
            if abs(one.confidence - score) <= SCORE
            and not _flat(corners(one.box).tolist())
            and iou(corners(one.box), np.array(box)) >= IOU
        ]
        assert candidates, (where, box, score)
        apart = min(far(one.keypoints, points) for one in candidates)
        assert apart <= POINT, (where, box, score, apart)


def _flat(box: list[float]) -> bool:
    """Whether it is too thin to overlap anything by 0.99."""
    return box[2] - box[0] < 2 or box[3] - box[1] < 2


def far(ours: Any, theirs: list[list[float]]) -> float:
    """The largest distance along x or y, pixels; of points that Ultralytics shows."""
    shown = [(one, other) for one, other in zip(ours, theirs, strict=True) if other[2] >= 0.5]
    return max((max(abs(one.x - other[0]), abs(one.y - other[1])) for one, other in shown), default=0.0)
