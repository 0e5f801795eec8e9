"""ONNX graphs in YOLOv8's layouts with known weights: a coloured cell of the picture is an object around it.

The picture is cut into cells of 8x8 pixels, the graph's anchors. A cell's mean colour (R, G, B from 0 to 1)
and its place give every number of its column:

    cx, cy     the cell's centre
    w          24 + 100 B
    h          16 + 100 B
    score      1.5 R - 0.6 for class 0 (`red`), 1.5 G - 0.6 for class 1 (`green`)
    keypoint k cx + k, cy - k, confidence 0.05 k + 0.1

Black and the letterbox's grey (114/255) thus score nothing, full red 0.9.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CELL, SIDE = 8, 160
CELLS = SIDE // CELL
NAMES = ("red", "green")
_W, _H, _B = 24.0, 16.0, 100.0
_SCORE = [[1.5, 0, 0], [0, 1.5, 0]]
_KEYPOINTS = [value for k in range(17) for value in (k, -k, 0.05 * k + 0.1)]

Floats = NDArray[np.float32]


def detect(path: Path) -> Path:
    """`[N, 6, 400]`: cx, cy, w, h, two classes."""
    weights = [[0, 0, 0], [0, 0, 0], [0, 0, _B], [0, 0, _B], *_SCORE]
    return _save(path, weights, [0, 0, _W, _H, -0.6, -0.6], xs=[0], ys=[1], task="detect")


def pose(path: Path) -> Path:
    """`[N, 56, 400]`: cx, cy, w, h, the red score, 17 keypoints."""
    weights = [[0, 0, 0], [0, 0, 0], [0, 0, _B], [0, 0, _B], _SCORE[0], *[[0, 0, 0]] * 51]
    bias = [0, 0, _W, _H, -0.6, *_KEYPOINTS]
    return _save(path, weights, bias, xs=[0, *range(5, 56, 3)], ys=[1, *range(6, 56, 3)], task="pose")


def end_to_end(path: Path) -> Path:
    """`[N, 300, 6]`: x1, y1, x2, y2, the red score, class (1 where there is much blue), of the upper 300 cells.

    Boxes are 24x16 here whatever the colour.
    """
    weights = [*[[0, 0, 0]] * 4, _SCORE[0], [0, 0, 1]]
    bias = [-_W / 2, -_H / 2, _W / 2, _H / 2, -0.6, 0.3]
    return _save(path, weights, bias, xs=[0, 2], ys=[1, 3], task="detect", rows=300)


def end_to_end_pose(path: Path) -> Path:
    """`[N, 300, 57]`: x1, y1, x2, y2, the red score, class 0, 17 keypoints, of the upper 300 cells; boxes are 24x16."""
    weights = [*[[0, 0, 0]] * 4, _SCORE[0], *[[0, 0, 0]] * 52]
    bias = [-_W / 2, -_H / 2, _W / 2, _H / 2, -0.6, 0, *_KEYPOINTS]
    xs, ys = [0, 2, *range(6, 57, 3)], [1, 3, *range(7, 57, 3)]
    return _save(path, weights, bias, xs=xs, ys=ys, task="pose", rows=300)


def _save(
    path: Path,
    weights: list[list[float]],
    bias: list[float],
    *,
    xs: list[int],
    ys: list[int],
    task: str,
    rows: int | None = None,
) -> Path:
    """Writes the graph; `xs` and `ys` are the rows to which a cell's centre is added."""
    channels = len(bias)
    centres = (np.arange(CELLS) + 0.5) * CELL
    offsets = np.zeros((1, channels, CELLS, CELLS), np.float32)
    offsets[:, xs] += centres
    offsets[:, ys] += centres[:, None]
    offsets += np.array(bias, np.float32).reshape(1, -1, 1, 1)
    constants = {
        "weights": np.array(weights, np.float32).reshape(channels, 3, 1, 1),
        "offsets": offsets,
        "flat": np.array([0, channels, -1], np.int64),
    }
    make = helper.make_node
    nodes = [
        make("AveragePool", ["images"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        make("Conv", ["cells", "weights"], ["colours"]),
        make("Add", ["colours", "offsets"], ["map"]),
        make("Reshape", ["map", "flat"], ["columns" if rows else "output0"]),
    ]
    shape: list[int | str] = ["batch", channels, CELLS**2]
    if rows:
        constants |= {name: np.array([value]) for name, value in (("from", 0), ("to", rows), ("axis", 1))}
        nodes.append(make("Transpose", ["columns"], ["all_rows"], perm=[0, 2, 1]))
        nodes.append(make("Slice", ["all_rows", "from", "to", "axis"], ["output0"]))
        shape = ["batch", rows, channels]
    graph = helper.make_graph(
        nodes,
        "known",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    names = ("person",) if task == "pose" else NAMES
    helper.set_model_props(model, {"names": str(dict(enumerate(names))), "task": task})
    onnx.save(model, path)
    return path
