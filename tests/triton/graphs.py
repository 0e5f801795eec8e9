"""ONNX graphs in Ultralytics' layouts whose every number can be computed by hand.

Each head is linear in the mean colour of the cells of an 8-pixel grid: `weights @ colour + bias`.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CELL = 8


def save(
    path: Path,
    weights: np.ndarray,
    bias: np.ndarray,
    *,
    height: int = 160,
    width: int = 192,
    batch: int | str = "batch",
    half: bool = False,
    open_size: bool = False,
    end2end: bool = False,
    opset: int = 17,
    shuffled: bool = False,
    masks: int = 0,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes a graph with `weights` [C, 3] and `bias` [C]: output [N, C, A] raw, [N, 300, C] end-to-end.

    `masks`: number of prototypes in a second output [N, masks, H / 4, W / 4], each a multiple of the mean colour.
    `shuffled` puts the nodes in the wrong order, as Ultralytics' FP16 export does; ONNX Runtime takes that, too.
    """
    channels, anchors = len(bias), (height // CELL) * (width // CELL)
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    constants = {
        "weights": weights.astype(dtype).reshape(channels, 3, 1, 1),
        "bias": bias.astype(dtype),
        "flat": np.array([0, channels, -1], np.int64),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Conv", ["cells", "weights", "bias"], ["map"]),
        helper.make_node("Reshape", ["map", "flat"], ["flat_map" if end2end else "output0"]),
    ]
    head: list[int | str] = [batch, channels, "anchors" if open_size else anchors]
    if end2end:
        constants |= {"from": np.array([0]), "to": np.array([300]), "axis": np.array([1])}
        nodes.append(helper.make_node("Transpose", ["flat_map"], ["rows"], perm=[0, 2, 1]))
        nodes.append(helper.make_node("Slice", ["rows", "from", "to", "axis"], ["output0"]))
        head = [batch, 300, channels]
    outputs = [helper.make_tensor_value_info("output0", kind, head)]
    if masks:
        constants["masks"] = _mask_weights(masks).astype(dtype).reshape(masks, 3, 1, 1)
        nodes.append(helper.make_node("AveragePool", ["images"], ["quarters"], kernel_shape=[4, 4], strides=[4, 4]))
        nodes.append(helper.make_node("Conv", ["quarters", "masks"], ["output1"]))
        outputs.append(helper.make_tensor_value_info("output1", kind, [batch, masks, height // 4, width // 4]))
    size: list[int | str] = ["height", "width"] if open_size else [height, width]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("images", kind, [batch, 3, *size])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    if shuffled:
        backwards = list(reversed(graph.node))
        del graph.node[:]
        graph.node.extend(backwards)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def _mask_weights(masks: int) -> np.ndarray:
    return np.random.default_rng(11).normal(0, 1, (masks, 3)).astype(np.float16).astype(float)


def prototypes(images: np.ndarray, masks: int) -> np.ndarray:
    """What the graph above gives as its second output for UINT8 [N, H, W, 3]."""
    count, height, width, _ = images.shape
    scaled = images.astype(np.float64) / 255
    cells = scaled.reshape(count, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4))
    return np.einsum("nyxc,mc->nmyx", cells, _mask_weights(masks))


CLASSIFIER = np.random.default_rng(12).normal(0, 1, (5, 3)).astype(np.float16).astype(float)


def classifier(path: Path, metadata: dict[str, str], *, side: int = 64, softmax: bool = True) -> Path:
    """Writes a graph [N, 3, side, side] -> [N, 5]: multiples of the image's mean colour, and their softmax."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["colour"]),
        helper.make_node("Flatten", ["colour"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits" if softmax else "output0"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["output0"], axis=1))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(CLASSIFIER.T.astype(np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def scores(images: np.ndarray) -> np.ndarray:
    """What the graph above gives for [N, H, W, 3] of 0 to 255."""
    logits = (images.astype(np.float64) / 255).mean(axis=(1, 2)) @ CLASSIFIER.T
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return grown / grown.sum(axis=1, keepdims=True)


def head(images: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What the graph above gives for UINT8 [N, H, W, 3]: [N, C, A], in float64."""
    count, height, width, _ = images.shape
    scaled = images.astype(np.float64) / 255
    cells = scaled.reshape(count, height // CELL, CELL, width // CELL, CELL, 3).mean(axis=(2, 4))
    return np.einsum("nac,kc->nka", cells.reshape(count, -1, 3), weights) + bias[:, None]


def candidates(raw: np.ndarray, classes: int) -> np.ndarray:
    """The prepared rows of a raw head by the definition, one anchor at a time: [N, A, 6 + the rest]."""
    pictures = []
    for raw_head in raw:
        rows = []
        for x, y, width, height, *rest in raw_head.T:
            scores, keypoints = rest[:classes], rest[classes:]
            best = int(np.argmax(scores))
            corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            rows.append([*corners, scores[best], best, *keypoints])
        pictures.append(rows)
    return np.array(pictures)
