"""Models as a server would describe them, and heads built from boxes, for the readers' tests."""

import json

import numpy as np

from app.inference.client import ModelSpec, TensorSpec

FLOAT = TensorSpec("images", "FP32", (-1, 3, 640, 640))
PREPARED = TensorSpec("images", "UINT8", (-1, 640, 640, 3))


def model(picture, *shapes, names=None, dtype="FP32", **parameters):
    """Outputs are named output0, output1, ..."""
    outputs = tuple(TensorSpec(f"output{i}", dtype, shape) for i, shape in enumerate(shapes))
    if names is not None:
        parameters["class_names"] = json.dumps(names)
    return ModelSpec("yolo", "1", (picture,), outputs, 8, parameters)


def raw_head(rows, classes, anchors, extra=0):
    """`[4 + classes + extra, anchors]` of rows (x1, y1, x2, y2, score, class, *extra), spread over the anchors."""
    head = np.zeros((4 + classes + extra, anchors), np.float32)
    for place, (x1, y1, x2, y2, score, class_id, *more) in zip(
        np.linspace(0, anchors - 1, len(rows)).astype(int) if len(rows) else [], rows, strict=True
    ):
        head[:4, place] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        head[4 + class_id, place] = score
        head[4 + classes :, place] = more
    return head


def row_head(rows, count, extra=0):
    """`[count, 6 + extra]`: the rows, then zeros."""
    head = np.zeros((count, 6 + extra), np.float32)
    for i, row in enumerate(rows):
        head[i] = row
    return head
