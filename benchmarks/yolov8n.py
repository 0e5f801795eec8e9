"""A network with YOLOv8n's layers and random weights, as ONNX: it costs the same, but its outputs mean nothing.

Built from the published architecture (backbone, feature pyramid and head of 80 classes: 3.2 million parameters,
8.7 GFLOPs at 640x640), batch normalisation folded as an export has it. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES, BINS = 80, 16
STRIDES = (8, 16, 32)
IR_VERSION, OPSET = 9, 17


class Graph:
    """Nodes and weights as they are added; every method returns the name of what it made."""

    def __init__(self, seed: int = 8) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.parameters = 0
        self._chance = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def plain(self, x: str, given: int, made: int, side: int, stride: int = 1, bias: float = 0.0) -> str:
        """A convolution; weights keep the signal's size from layer to layer (He et al. 2015)."""
        spread = float(np.sqrt(2 / (given * side * side)))
        weights = self._chance.normal(0, spread, (made, given, side, side)).astype(np.float32)
        self.parameters += weights.size + made
        pad = side // 2
        tensors = self.constant(weights), self.constant(np.full(made, bias, np.float32))
        return self.op("Conv", x, *tensors, pads=[pad] * 4, strides=[stride] * 2, kernel_shape=[side] * 2)

    def conv(self, x: str, given: int, made: int, side: int = 3, stride: int = 1) -> str:
        """Convolution and SiLU."""
        x = self.plain(x, given, made, side, stride)
        return self.op("Mul", x, self.op("Sigmoid", x))

    def c2f(self, x: str, given: int, made: int, count: int, *, shortcut: bool) -> str:
        """Cross-stage partial block with `count` bottlenecks."""
        half = made // 2
        both = self.conv(x, given, made, 1)
        sizes = self.constant(np.array([half, half], np.int64))
        names = [f"{both}_a", f"{both}_b"]
        self.nodes.append(helper.make_node("Split", [both, sizes], names, axis=1))
        parts = list(names)
        for _ in range(count):
            last = parts[-1]
            inner = self.conv(self.conv(last, half, half), half, half)
            parts.append(self.op("Add", last, inner) if shortcut else inner)
        return self.conv(self.op("Concat", *parts, axis=1), (2 + count) * half, made, 1)

    def sppf(self, x: str, given: int, made: int) -> str:
        """Spatial pyramid pooling, fast."""
        parts = [self.conv(x, given, given // 2, 1)]
        for _ in range(3):
            parts.append(self.op("MaxPool", parts[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
        return self.conv(self.op("Concat", *parts, axis=1), given * 2, made, 1)

    def twice(self, x: str) -> str:
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        return self.op("Resize", x, "", scales, mode="nearest")


def build(height: int, width: int) -> onnx.ModelProto:
    """FP32 `images` `[1, 3, height, width]` -> `output0` `[1, 84, anchors]`, with metadata as Ultralytics writes it."""
    g = Graph()
    x = g.conv(g.conv("images", 3, 16, stride=2), 16, 32, stride=2)
    x = g.conv(g.c2f(x, 32, 32, 1, shortcut=True), 32, 64, stride=2)
    p3 = g.c2f(x, 64, 64, 2, shortcut=True)
    p4 = g.c2f(g.conv(p3, 64, 128, stride=2), 128, 128, 2, shortcut=True)
    x = g.c2f(g.conv(p4, 128, 256, stride=2), 256, 256, 1, shortcut=True)
    p5 = g.sppf(x, 256, 256)
    n4 = g.c2f(g.op("Concat", g.twice(p5), p4, axis=1), 384, 128, 1, shortcut=False)
    n3 = g.c2f(g.op("Concat", g.twice(n4), p3, axis=1), 192, 64, 1, shortcut=False)
    m4 = g.c2f(g.op("Concat", g.conv(n3, 64, 64, stride=2), n4, axis=1), 192, 128, 1, shortcut=False)
    m5 = g.c2f(g.op("Concat", g.conv(m4, 128, 128, stride=2), p5, axis=1), 384, 256, 1, shortcut=False)
    _head(g, (n3, m4, m5), (64, 128, 256), height, width)
    anchors = sum((height // stride) * (width // stride) for stride in STRIDES)
    graph = helper.make_graph(
        g.nodes,
        "yolov8n-shaped",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, height, width])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + CLASSES, anchors])],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    names = {number: f"class {number}" for number in range(CLASSES)}
    helper.set_model_props(
        model, {"task": "detect", "names": str(names), "imgsz": str([height, width]), "stride": "32"}
    )
    onnx.checker.check_model(model)
    return model


def _head(g: Graph, levels: tuple[str, ...], channels: tuple[int, ...], height: int, width: int) -> None:
    """Boxes as distributions over BINS distances to each side, a score a class; decoded, as an export has it."""
    boxes, scores = [], []
    reg, cls = max(16, channels[0] // 4, 4 * BINS), max(channels[0], min(CLASSES, 100))
    for level, given in zip(levels, channels, strict=True):
        box = g.plain(g.conv(g.conv(level, given, reg), reg, reg), reg, 4 * BINS, 1)
        # As trained heads begin: nearly nothing is an object.
        score = g.plain(g.conv(g.conv(level, given, cls), cls, cls), cls, CLASSES, 1, bias=-6.0)
        boxes.append(g.op("Reshape", box, g.constant(np.array([1, 4 * BINS, -1], np.int64))))
        scores.append(g.op("Reshape", score, g.constant(np.array([1, CLASSES, -1], np.int64))))
    bins = g.op("Reshape", g.op("Concat", *boxes, axis=2), g.constant(np.array([1, 4, BINS, -1], np.int64)))
    likely = g.op("Softmax", g.op("Transpose", bins, perm=[0, 2, 1, 3]), axis=1)
    ramp = np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1)
    distances = g.op("Conv", likely, g.constant(ramp), kernel_shape=[1, 1])
    distances = g.op("Reshape", distances, g.constant(np.array([1, 4, -1], np.int64)))
    cells, strides = _cells(height, width)
    near, far = (
        g.op("Slice", distances, *(g.constant(np.array([at], np.int64)) for at in (begin, begin + 2, 1)))
        for begin in (0, 2)
    )
    middles = g.constant(cells)
    low, high = g.op("Sub", middles, near), g.op("Add", middles, far)
    centre = g.op("Mul", g.op("Add", low, high), g.constant(np.float32(0.5)))
    box = g.op("Mul", g.op("Concat", centre, g.op("Sub", high, low), axis=1), g.constant(strides))
    score = g.op("Sigmoid", g.op("Concat", *scores, axis=2))
    g.nodes.append(helper.make_node("Concat", [box, score], ["output0"], axis=1))


def _cells(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Middles `[1, 2, anchors]` in cells and strides `[1, 1, anchors]`."""
    middles, strides = [], []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
        middles.append(np.stack((x.ravel(), y.ravel())))
        strides.append(np.full(rows * columns, stride))
    return np.concatenate(middles, 1)[None].astype(np.float32), np.concatenate(strides)[None, None].astype(np.float32)


def write(path: Path, height: int, width: int) -> Path:
    """The network as a file."""
    onnx.save(build(height, width), path)
    return path
