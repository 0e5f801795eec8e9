"""Exports by Ultralytics for segmentation, oriented boxes, other poses and classification, in a real Triton, against
Ultralytics' own `predict` of the same JPEGs.

As test_ultralytics.py, it needs an interpreter with Ultralytics, which is AGPL-3.0 and never a dependency.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import skimage.data
import supervision
from numpy.typing import NDArray

from app.inference.triton import TritonClient
from app.pipeline.multimodal import Pipeline
from app.pipeline.registry import create
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import Box, FrameResult
from app.settings import ROOT, Settings, TritonSettings
from tests.integration.watching import iou
from tests.pipeline.test_model_stages import add_model
from tests.support.service import require_environment, running_triton

SHAPES = [(640, 480), (480, 640), (1280, 720), (1920, 400), (97, 61)]
"""Width and height."""
OVERLAP, SCORE, POINT = 0.99, 0.005, 0.5
PARAMETERS = {
    "v8-seg": {"task": "segment", "layout": "raw"},
    "v26-seg": {"task": "segment", "layout": "end_to_end"},
    "v11-seg": {"task": "segment", "layout": "end_to_end"},
    "v8-obb": {"task": "obb", "layout": "raw"},
    "v26-obb": {"task": "obb", "layout": "end_to_end"},
    "v8-hands": {"task": "pose", "layout": "raw", "kpt_shape": "21x3"},
    "v11-cards": {"task": "pose", "layout": "raw", "kpt_shape": "5x2"},
    "v8-cls": {"task": "classify", "resize": "crop"},
}


def both(*names: str) -> list[str]:
    """Each export as it is, and as `make models` installs it."""
    return [f"{name}{how}" for name in names for how in ("", "-installed")]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported networks, and what `predict` makes of images of five shapes."""
    python = os.environ.get("ULTRALYTICS_PYTHON", sys.executable)
    asked = subprocess.run([python, "-c", "import ultralytics, onnx, onnxruntime"], capture_output=True, check=False)
    if asked.returncode != 0:
        pytest.skip("Ultralytics is not installed: ULTRALYTICS_PYTHON names an interpreter that has it")
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "pictures").mkdir()
    photograph = np.tile(skimage.data.astronaut()[..., ::-1], (4, 4, 1))
    for number, (width, height) in enumerate(SHAPES):
        picture = photograph[40 : 40 + height, 40 : 40 + width]
        cv2.imwrite(str(folder / "pictures" / f"{number}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    script = ROOT / "tests" / "integration" / "ultralytics_tasks.py"
    done = subprocess.run(
        [python, script, folder], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def url(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_environment(TritonSettings().triton_python, "make triton-env")
    repository = tmp_path_factory.mktemp("repository")
    for name, given in PARAMETERS.items():
        model = onnx.load(exports / f"{name}.onnx")
        (names,) = [entry.value for entry in model.metadata_props if entry.key == "names"]
        classes = [f"thing {number}" for number in range(names.count("thing"))]
        add_model(repository, name, model, classes, **given)
        add_installed(repository, name, exports / f"{name}.onnx", tmp_path_factory.mktemp(name))
    with running_triton(repository, tmp_path_factory.mktemp("state"), TRITON_DEADLINE_S="600") as found:
        yield found


def add_installed(repository: Path, name: str, source: Path, folder: Path) -> None:
    """Installs an export as `make models` does, under a name of its own: NAME-installed."""
    task = PARAMETERS[name]["task"]
    command = [sys.executable, ROOT / "triton" / "models.py", "--repository", folder, f"--{task}", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    shutil.move(folder / f"yolo_{task}", repository / f"{name}-installed")
    config = repository / f"{name}-installed" / "configs" / "installed.pbtxt"
    text = config.read_text().replace(f'name: "yolo_{task}"', f'name: "{name}-installed"', 1)
    # Where OpenVINO would take BF16.
    config.write_text(text + 'parameters { key: "runtime" value { string_value: "onnxruntime" } }\n')


def seen_by_us(exports: Path, url: str, state: Path, name: str) -> list[FrameResult]:
    task = PARAMETERS[name.removesuffix("-installed")]["task"]
    settings = Settings(ocr="off", state_dir=state, triton_deadline_s=60, **{f"triton_{task}_model": name})  # type: ignore[arg-type]
    chosen = StreamSettings(stages=Stages.only([task]), confidence=0.35, iou=0.45, mask_rle=True)

    async def run() -> list[Any]:
        client = TritonClient(url, settings.triton)
        await client.open()
        pipeline = Pipeline(client, settings, create(settings))
        try:
            await pipeline.load()
            results = []
            for number, path in enumerate(sorted((exports / "pictures").glob("*.jpg"))):
                frame = Frame("s", path.read_bytes(), time.perf_counter(), 0.0, number)
                results += await pipeline.analyze([FrameJob(frame, StreamMemory(), chosen)])
            return results
        finally:
            pipeline.close()
            await client.close()

    results = asyncio.run(run())
    assert [result.stages[task].status for result in results] == ["ok"] * len(SHAPES)
    return results


def pairs(ours: list[Any], theirs: dict[str, NDArray[Any]]) -> Iterator[tuple[Any, int]]:
    """Each of ours, and which of theirs it is: the one of its class whose score and box are nearest."""
    assert len(ours) == len(theirs["scores"])
    free = list(range(len(ours)))
    for found in ours:

        def apart(at: int, found: Any = found) -> float:
            if theirs["classes"][at] != getattr(found, "class_id", 0):
                return np.inf
            box = np.abs(corners(found.box) - theirs["boxes"][at]).max() if "boxes" in theirs else 0.0
            return float(box + 1000 * abs(found.confidence - theirs["scores"][at]))

        at = min(free, key=apart)
        free.remove(at)
        assert abs(found.confidence - theirs["scores"][at]) <= SCORE
        yield found, at


def corners(box: Box) -> NDArray[np.float64]:
    return np.array([box.x1, box.y1, box.x2, box.y2])


def cases(exports: Path, url: str, state: Path, name: str) -> Iterator[tuple[FrameResult, dict[str, NDArray[Any]]]]:
    with np.load(exports / f"{name.removesuffix('-installed')}.npz") as file:
        theirs = dict(file)
    for number, result in enumerate(seen_by_us(exports, url, state, name)):
        prefix = f"{number}_"
        yield result, {key.removeprefix(prefix): value for key, value in theirs.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", both("v8-seg", "v26-seg", "v11-seg"))
def test_masks_are_those_of_predict(exports: Path, url: str, tmp_path: Path, name: str) -> None:
    total = 0
    for result, theirs in cases(exports, url, tmp_path, name):
        size = (result.image.width, result.image.height)
        for found, at in pairs(result.segments, theirs):
            total += 1
            box = theirs["boxes"][at]
            if min(box[2:] - box[:2]) >= 2:
                assert iou(corners(found.box), box) >= OVERLAP
            if found.rle is None:
                continue  # the frame's run lengths are bounded
            right = np.unpackbits(theirs["masks"][at], axis=1, count=size[0]).astype(bool)
            mask = supervision.rle_to_mask(found.rle.counts, size)
            union = np.count_nonzero(mask | right)
            assert np.count_nonzero(mask ^ right) <= max((1 - OVERLAP) * union, 8), (size, at)
    assert total > 100


@pytest.mark.parametrize("name", both("v8-obb", "v26-obb"))
def test_oriented_boxes_are_those_of_predict(exports: Path, url: str, tmp_path: Path, name: str) -> None:
    total = 0
    for result, theirs in cases(exports, url, tmp_path, name):
        width, height = result.image.width, result.image.height
        theirs["boxes"] = theirs["boxes"].clip(0, (width, height, width, height))
        for found, at in pairs(result.oriented, theirs):
            total += 1
            assert np.abs(np.array(found.corners) - theirs["corners"][at]).max() <= POINT
            assert found.angle_deg == pytest.approx(np.degrees(theirs["xywhr"][at, 4]), abs=0.1)
            assert (found.width, found.height) == pytest.approx(theirs["xywhr"][at, 2:4], abs=POINT)
    assert total > 100


@pytest.mark.parametrize("name", both("v8-hands", "v11-cards"))
def test_other_poses_are_those_of_predict(exports: Path, url: str, tmp_path: Path, name: str) -> None:
    total = 0
    for result, theirs in cases(exports, url, tmp_path, name):
        for found, at in pairs(result.poses, theirs):
            total += 1
            assert found.class_name == f"thing {theirs['classes'][at]}"
            points = np.array([(point.x, point.y, point.confidence) for point in found.keypoints])
            wanted = theirs["keypoints"][at]
            assert np.abs(points[:, :2] - wanted[:, :2]).max() <= POINT
            if wanted.shape[1] == 3:
                assert points[:, 2] == pytest.approx(wanted[:, 2], abs=SCORE)
    assert total > 50


@pytest.mark.parametrize("name", both("v8-cls"))
def test_the_best_classes_are_those_of_predict(exports: Path, url: str, tmp_path: Path, name: str) -> None:
    for result, theirs in cases(exports, url, tmp_path, name):
        (whole,) = result.classifications
        assert [score.class_id for score in whole.top] == theirs["classes"].tolist()
        assert [score.confidence for score in whole.top] == pytest.approx(theirs["scores"], abs=SCORE)
