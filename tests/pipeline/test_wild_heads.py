"""Heads with any numbers in them: what is read is finite, and nothing warns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import letterbox
from app.pipeline.stages.classify import class_scores, classify_reader
from app.pipeline.stages.obb import obb_reader, oriented_boxes
from app.pipeline.stages.pose import pose_reader, poses
from app.pipeline.stages.segment import segment_reader, segments, with_run_lengths

SMALL = TensorSpec("images", "FP32", (-1, 3, 64, 64))
VALUES = np.array([0, -1, 0.5, 1e-30, 1e15, -1e15, np.inf, -np.inf, np.nan, 640, 100.5, 7], np.float32)
BOX = letterbox(97, 61, 64, 64)
PLACES = 84


def shapes(task: str, layout: str) -> list[tuple[int, ...]]:
    extra = {"segment": 4, "obb": 1, "pose": 10}[task]
    classes = 1 if task == "pose" else 2
    head = (-1, 4 + classes + extra, PLACES) if layout == "raw" else (-1, PLACES, 6 + extra)
    return [head, *([(-1, 4, 16, 16)] if task == "segment" else [])]


@pytest.mark.parametrize("layout", ["raw", "end_to_end", "prepared"])
@pytest.mark.parametrize(
    ("task", "reader_of"), [("segment", segment_reader), ("obb", obb_reader), ("pose", pose_reader)]
)
def test_any_numbers(task: str, reader_of: Callable[[ModelSpec], Any], layout: str) -> None:
    random = np.random.default_rng(0)
    given = shapes(task, layout)
    outputs = tuple(TensorSpec(f"output{number}", "FP32", shape) for number, shape in enumerate(given))
    reader = reader_of(ModelSpec("net", "1", (SMALL,), outputs, 8, {"layout": layout, "kpt_shape": "5x2"}))
    read = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(60):
            sizes = {tensor.name: (1, *tensor.shape[1:]) for tensor in outputs}
            answer = {
                name: (random.choice(VALUES, size) if turn % 3 else random.normal(0, 30, size)).astype(np.float32)
                for name, size in sizes.items()
            }
            limits = {"confidence": 0.1, "iou": (0.0, 0.45, 1.0)[turn % 3], "classes": None, "max_detections": 300}
            (found,) = reader.read_all(answer, [BOX], **limits)
            read += len(found.confidence)
            assert np.isfinite(found.xyxy).all()
            assert np.isfinite(found.confidence).all()
            if task == "segment":
                for instance in segments(with_run_lengths(found), None, ()):
                    assert all(len(ring) > 2 and np.isfinite(ring).all() for ring in instance.polygons)
            elif task == "obb":
                for oriented in oriented_boxes(found, None, ()):
                    assert np.isfinite([*np.ravel(oriented.corners), oriented.angle_deg, oriented.width]).all()
            else:
                for pose in poses(found, None, reader.keypoint_names, reader.class_names):
                    assert np.isfinite([(point.x, point.y) for point in pose.keypoints]).all()
    assert read > 50


def test_any_scores() -> None:
    random = np.random.default_rng(1)
    outputs = (TensorSpec("output0", "FP32", (-1, 9)),)
    for logits in ("true", "false"):
        reader = classify_reader(ModelSpec("net", "1", (SMALL,), outputs, 8, {"logits": logits}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(200):
                found = reader.read({"output0": random.choice(VALUES, (1, 9))}, 0)
                assert np.isfinite([score.confidence for score in class_scores(found, reader.class_names)]).all()
