"""An ArcFace whose every number can be computed by hand, and faces for it: charts laid into frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from skimage.transform import SimilarityTransform, warp

from app.pipeline.stages.faces import TEMPLATE

CELL = 14
WEIGHTS = np.random.default_rng(11).normal(0, 1, (512, 3 * 64)).astype(np.float32)
"""From the mean colours of 8x8 cells to an embedding."""


def save(path: Path, *, batch: int | str = "N", side: int = 112, length: int = 512, scaled: bool = False) -> Path:
    """Writes `WEIGHTS @ cells`; `scaled` puts MXNet's own scaling in front of it."""
    constants = {"weights": WEIGHTS[:length], "mean": np.float32(127.5), "factor": np.float32(1 / 128)}
    cells = side // CELL
    nodes = [
        helper.make_node("AveragePool", ["shifted"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights"], ["embedding"], transB=1),
    ]
    if cells != 8:
        constants["weights"] = np.ones((length, 3 * cells * cells), np.float32)
    if scaled:
        nodes[:0] = [
            helper.make_node("Sub", ["data", "mean"], ["centred"], name="_minus0"),
            helper.make_node("Mul", ["centred", "factor"], ["shifted"], name="_mul0"),
        ]
    else:
        nodes[0].input[0] = "data"
    graph = helper.make_graph(
        nodes,
        "arcface",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, length])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name == "weights" or scaled],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def embedding(crop: np.ndarray) -> np.ndarray:
    """What the model says of a crop RGB `[112, 112, 3]`, by the definition; of length 1."""
    scaled = (crop.astype(np.float64) - 127.5) / 127.5
    cells = scaled.reshape(8, CELL, 8, CELL, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    vector = WEIGHTS.astype(np.float64) @ cells.ravel()
    return vector / np.linalg.norm(vector)


def run(tensor: np.ndarray) -> np.ndarray:
    """The same for the request's tensor `[n, 3, 112, 112]`, as a model of the fake client."""
    cells = tensor.reshape(len(tensor), 3, 8, CELL, 8, CELL).mean(axis=(3, 5))
    return (cells.reshape(len(tensor), -1) @ WEIGHTS.T).astype(np.float32)


def chart(seed: int) -> np.ndarray:
    """A crop `[112, 112, 3]` of smooth colours, different for every seed."""
    y, x = np.mgrid[:112, :112] / 112
    waves = np.random.default_rng(seed).uniform(0.5, 2.5, (3, 4))
    planes = [127 + 60 * np.sin(a * 3 * x + b * 3) + 60 * np.cos(c * 3 * y + d * 3) for a, b, c, d in waves]
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def place(scale: float, degrees: float, at: tuple[float, float]) -> SimilarityTransform:
    """From crop pixels to frame pixels."""
    return SimilarityTransform(scale=scale, rotation=np.radians(degrees), translation=at)


def keypoints(to_frame: SimilarityTransform, confidence: float = 0.9) -> np.ndarray:
    """A pose's `[17, 3]` whose head lies as the template does; the body is somewhere below."""
    body = np.tile([(56.0, 200.0)], (12, 1))
    return np.column_stack([to_frame(np.vstack([TEMPLATE, body])), np.full(17, confidence)])


def paint(frame: np.ndarray, picture: np.ndarray, to_frame: SimilarityTransform) -> None:
    """Lays a chart into a frame, by skimage's own resampling."""
    corners = to_frame([(0, 0), (112, 0), (0, 112), (112, 112)])
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
    part = frame[top:bottom, left:right]
    from_part = SimilarityTransform(translation=(left, top)) + to_frame.inverse
    painted = warp(picture, from_part, output_shape=part.shape[:2], order=1, mode="edge", preserve_range=True)
    inside = warp(np.ones((112, 112)), from_part, output_shape=part.shape[:2], order=0)
    part[inside > 0.5] = np.round(painted[inside > 0.5])
