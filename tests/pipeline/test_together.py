"""A batch read at once says what its pictures say one by one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.inference.client import ModelSpec, TensorSpec
from app.pipeline import layouts
from app.pipeline.boxes import Letterbox, letterbox
from app.pipeline.stages.detect import Detected, DetectReader, detect_reader, detections
from app.pipeline.stages.pose import Posed, PoseReader, pose_reader, poses

BOXES = [letterbox(640, 480, 640, 640), None, letterbox(1920, 1080, 640, 640), letterbox(300, 700, 640, 640)]
LIMITS: dict[str, Any] = {"confidence": 0.25, "iou": 0.45, "max_detections": 5, "classes": None}


def reader(columns: int, dtype: str = "UINT8") -> Any:
    shape = (-1, 640, 640, 3) if dtype == "UINT8" else (-1, 3, 640, 640)
    picture, head = TensorSpec("images", dtype, shape), TensorSpec("found", "FP32", (-1, 300, columns))
    names = {"class_names": json.dumps(["person", "dog", "cat"])}
    spec = ModelSpec("model", "1", (picture,), (head,), 16, names)
    return detect_reader(spec) if columns == 6 else pose_reader(spec)


def heads(seed: int, most: int, columns: int) -> NDArray[np.float32]:
    """Up to `most` rows an image that score, many on top of each other."""
    random = np.random.default_rng(seed)
    out = np.zeros((len(BOXES), 300, columns), np.float32)
    for head in out:
        count = random.integers(0, most + 1)
        at = random.choice(300, count, replace=False)
        corners = random.choice([50.0, 60.0, 300.0], (count, 2)) + random.uniform(0, 40, (count, 2))
        head[at, :2], head[at, 2:4] = corners, corners + random.uniform(-5, 200, (count, 2))
        head[at, 4] = random.choice([0.2, 0.5, 0.9], count)
        head[at, 5] = 0 if columns > 6 else random.integers(0, 3, count)
        head[at, 6:] = random.uniform(-20, 700, (count, columns - 6))
    return out


def the_same(reader: DetectReader | PoseReader, head: NDArray[np.float32], **limits: Any) -> None:
    outputs, limits = {"found": head}, {**LIMITS, **limits}
    for index, (found, box) in enumerate(zip(reader.read_all(outputs, BOXES, **limits), BOXES, strict=True)):
        if box is None:
            assert found is None
            continue
        alone = reader.read(outputs, index, box, **limits)
        assert found is not None
        for name in {*alone.__slots__} - {"written", "columns"}:  # type: ignore[union-attr]
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name), err_msg=name)
        assert wire(found) == wire(alone)


def wire(found: Detected | Posed) -> list[Any]:
    """As it is sent; what was read in a batch brings its numbers rounded."""
    return detections(found, None, ("a", "b")) if isinstance(found, Detected) else poses(found, None)


@pytest.mark.parametrize("columns", [6, 57])
@pytest.mark.parametrize("dtype", ["UINT8", "FP32"])
@pytest.mark.parametrize("most", [0, 1, 3, 12, 120])
def test_at_once_as_one_by_one(columns: int, dtype: str, most: int) -> None:
    one = reader(columns, dtype)
    for seed in range(8):
        the_same(one, heads(seed, most, columns))


def test_with_classes_and_with_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    head = heads(1, 6, 6)
    the_same(reader(6), head, classes=frozenset({1}))
    for column, value in ((0, np.nan), (4, np.inf), (5, np.nan)):
        strange = head.copy()
        strange[0, :2] = (10, 10, 90, 90, 0.8, 1)
        strange[0, 0, column] = value
        the_same(reader(6), strange)
    people = heads(2, 4, 57)
    people[2, :1, 4], people[2, :1, 20] = 0.9, np.nan
    the_same(reader(57), people)


def test_boxes_of_two_pictures_never_suppress_each_other() -> None:
    head = np.zeros((2, 300, 6), np.float32)
    head[:, 0] = (10, 10, 90, 90, 0.8, 1)
    found = layouts.batch_candidates(head, layouts.scoring_rows(head, 0.25), iou=0.45, suppress=True)
    assert found is not None
    assert found[1].tolist() == [0, 1]
    first: Letterbox | None = BOXES[0]
    assert [len(found.xyxy) for found in reader(6).read_all({"found": head}, [first, first], **LIMITS)] == [1, 1]
