"""Suppression against Ultralytics' `non_max_suppression` written down plainly: any number of candidates."""

from __future__ import annotations

import numpy as np
import pytest

from app.pipeline.boxes import letterbox
from app.pipeline.layouts import implausible
from app.pipeline.stages.detect import detect_reader
from tests.support.heads import FLOAT, PREPARED, model

SQUARE = letterbox(640, 640, 640, 640)
NAMES = ["a", "b", "c"]


def plain(head, confidence, iou, classes, most):
    """One box after the other, in float32 of boxes moved apart by 7680 pixels a class: indices kept."""
    xywh, scores = head[:4].T, head[4:].T
    label, best = scores.argmax(1), scores.max(1)
    at = [i for i in range(len(best)) if best[i] > confidence and (classes is None or label[i] in classes)]
    at = sorted(at, key=lambda i: -best[i])[:30_000]
    half = xywh[:, 2:] * np.float32(0.5)
    corners = np.concatenate((xywh[:, :2] - half, xywh[:, :2] + half), axis=1)
    moved = corners + (label * 7680).astype(np.float32)[:, None]
    kept = []
    for i in at:
        x1, y1, x2, y2 = moved[i]
        alone = True
        for k in kept:
            wide = np.maximum(np.minimum(x2, moved[k, 2]) - np.maximum(x1, moved[k, 0]), np.float32(0))
            high = np.maximum(np.minimum(y2, moved[k, 3]) - np.maximum(y1, moved[k, 1]), np.float32(0))
            area = (x2 - x1) * (y2 - y1) + (moved[k, 2] - moved[k, 0]) * (moved[k, 3] - moved[k, 1])
            if float(wide * high / (area - wide * high)) > iou:
                alone = False
                break
        if alone:
            kept.append(i)
        if len(kept) == most:
            break
    return corners[kept], best[kept], label[kept]


def crowd(count, seed):
    """A raw head of heaps of boxes, all of which score."""
    random = np.random.default_rng(seed)
    head = np.zeros((7, 8400), np.float32)
    at = random.choice(8400, count, replace=False)
    head[:2, at] = random.choice([150.0, 300.0, 450.0], (2, count)) + random.uniform(-25, 25, (2, count))
    head[2:4, at] = random.uniform(60, 90, (2, count))
    head[4:, at] = random.permutation(3 * count).reshape(3, count) / (3 * count) * 0.9 + 0.05
    return head


def prepared(head):
    """What `triton/prepare.py` makes of it: a row for every anchor."""
    half = head[2:4] * np.float32(0.5)
    best, label = head[4:].max(0, keepdims=True), head[4:].argmax(0)[None].astype(np.float32)
    return np.concatenate((head[:2] - half, head[:2] + half, best, label)).T.copy()


@pytest.mark.parametrize("count", [1, 40, 314, 700, 2500])
@pytest.mark.parametrize(("confidence", "classes"), [(0.0, None), (0.25, None), (0.25, {1}), (0.5, {0, 2})])
def test_c2_as_ultralytics_for_any_number_of_candidates(count, confidence, classes):
    head = crowd(count, count)
    corners, scores, labels = plain(head, confidence, 0.45, classes, 300)
    for spec, answer in (
        (model(FLOAT, (-1, 7, 8400), names=NAMES), head),
        (model(PREPARED, (-1, 8400, 6), names=NAMES, layout="prepared"), prepared(head)),
    ):
        reader = detect_reader(spec)
        limits = {"confidence": confidence, "iou": 0.45, "max_detections": 300}
        wanted = None if classes is None else frozenset(classes)
        (found,) = reader.read_all({reader.output_name: answer[None]}, [SQUARE], classes=wanted, **limits)
        assert found.class_id.tolist() == labels.tolist()
        assert found.confidence.tolist() == scores.tolist()
        np.testing.assert_allclose(found.xyxy, np.clip(corners, 0, 640), atol=1e-4)


@pytest.mark.parametrize("picture", [FLOAT, PREPARED])
def test_c3_what_the_model_calls_finished_is_not_suppressed_again(picture):
    """By `layout`, whatever its picture's type: 300 boxes on one place stay 300."""
    reader = detect_reader(model(picture, (-1, 300, 6), names=NAMES, layout="end_to_end"))
    rows = np.tile(np.array([100, 100, 200, 200, 0.9, 1], np.float32), (1, 300, 1))
    limits = {"confidence": 0.25, "iou": 0.45, "max_detections": 300, "classes": None}
    for found in (
        reader.read({reader.output_name: rows}, 0, SQUARE, **limits),
        reader.read_all({reader.output_name: rows}, [SQUARE], **limits)[0],
    ):
        assert len(found.confidence) == 300


def test_c4_rows_between_0_and_1_are_no_pixels():
    shares = np.random.default_rng(0).uniform(0.1, 0.9, (300, 6)).astype(np.float32)
    assert "RT-DETR" in (implausible(shares, "end_to_end", 0) or "")
    assert implausible(np.zeros((300, 6), np.float32), "end_to_end", 0) is None
    assert not detect_reader(model(FLOAT, (-1, 300, 6), names=NAMES)).declared
