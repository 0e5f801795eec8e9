"""An ArcFace model's tensors: crops in, unit vectors out. Pure numpy and OpenCV.

InsightFace's models take RGB `[N, 3, 112, 112]`, each value (x - 127.5) / 127.5 (`ArcFaceONNX` in its
python-package/insightface/model_zoo/arcface_onnx.py). Those that came from MXNet have that step in their graph, and
others were trained with a divisor of 128: a model says so by its parameters `input_mean` and `input_std`.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec
from app.pipeline.boxes import Floats

SIDE = 112
"""Width and height of a crop, pixels."""
LENGTH = 512
"""Numbers in an embedding."""
MEAN, STD = 127.5, 127.5
KNOWN = f"FP32 or FP16 [N, 3, {SIDE}, {SIDE}] in, [N, {LENGTH}] out"

Crops = NDArray[np.uint8]
_NUMPY: dict[str, type[np.floating[Any]]] = {"FP32": np.float32, "FP16": np.float16}


@dataclass(frozen=True, slots=True)
class FaceReader:
    """How one served model wants its crops."""

    spec: ModelSpec
    dtype: Literal["FP32", "FP16"]
    """Triton's name, of the input."""
    output_name: str
    mean: float
    std: float

    def empty(self, count: int) -> NDArray[Any]:
        """Room for so many crops as the model takes them: `[count, 3, 112, 112]`."""
        return np.empty((count, 3, SIDE, SIDE), _NUMPY[self.dtype])

    def fill(self, crops: Crops, out: NDArray[Any]) -> None:
        """RGB uint8 `[n, 112, 112, 3]` -> `out`, so many of `empty`; some 50 microseconds a crop."""
        scaled = np.empty((SIDE, SIDE), np.float32)
        for crop, planes in zip(crops, out, strict=True):
            for plane, target in zip(cv2.split(crop), planes, strict=True):
                np.subtract(plane, np.float32(self.mean), out=scaled)
                np.divide(scaled, np.float32(self.std), out=target, casting="same_kind")

    def read(self, output: NDArray[Any]) -> Floats:
        """The answer `[n, 512]` -> unit vectors `[n, 512]`; a row without length or with no number in it is all NaN."""
        rows: Floats = output.astype(np.float32)
        with np.errstate(all="ignore"):
            lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
            lengths[~np.isfinite(lengths) | (lengths == 0)] = np.nan
            unit: Floats = rows / lengths
        return unit


def face_reader(spec: ModelSpec) -> FaceReader:
    """Reads the model's metadata.

    Raises:
        ModelRejected: other tensors than ArcFace's, or parameters that are no numbers.
    """
    fits = (
        len(spec.inputs) == len(spec.outputs) == 1
        and spec.inputs[0].dtype in _NUMPY
        and spec.inputs[0].shape[1:] == (3, SIDE, SIDE)
        and spec.outputs[0].dtype in _NUMPY
        and spec.outputs[0].shape[1:] == (LENGTH,)
    )
    if not fits:
        found = "; ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in (*spec.inputs, *spec.outputs))
        raise ModelRejected(f"model {spec.name!r}: found {found}; known: {KNOWN}")
    return FaceReader(
        spec,
        spec.inputs[0].dtype,  # type: ignore[arg-type]
        spec.outputs[0].name,
        _parameter(spec, "input_mean", MEAN),
        _parameter(spec, "input_std", STD),
    )


def _parameter(spec: ModelSpec, name: str, default: float) -> float:
    text = spec.parameters.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (name == "input_std" and value <= 0):
        raise ModelRejected(f"model {spec.name!r}: parameter {name}={text!r}; want a number such as {default}")
    return value


def encode(unit: Floats) -> str:
    """One embedding for the wire: base64 of its float32, little-endian."""
    return base64.b64encode(unit.astype("<f4").tobytes()).decode()


def decode(text: str) -> Floats:
    """The way back: `[512]`."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
