"""What a model wants as its picture, read from its metadata, and the filling of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec

DEFAULT_SIZE = 640
"""Side of the canvas of a model that leaves its size open, unless its parameter `input_size` says."""

_NUMPY = {"UINT8": np.uint8, "FP16": np.float16, "FP32": np.float32}
_KNOWN = "UINT8, FP16 or FP32 of [N, H, W, 3] or [N, 3, H, W]"


@dataclass(frozen=True, slots=True)
class InputFormat:
    """The one input tensor. UINT8 takes pixels as they are, FP16 and FP32 pixels over 255; RGB always."""

    name: str
    height: int
    width: int
    dtype: Literal["UINT8", "FP16", "FP32"]
    """Triton's name."""
    layout: Literal["NHWC", "NCHW"]

    @property
    def is_image(self) -> bool:
        """Whether one image of the tensor is a canvas itself: decode straight into it, nothing is left to fill."""
        return self.dtype == "UINT8" and self.layout == "NHWC"

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a request with `batch` pictures."""
        if self.layout == "NHWC":
            return batch, self.height, self.width, 3
        return batch, 3, self.height, self.width

    def fill(self, canvas: NDArray[np.uint8], out: NDArray[Any]) -> None:
        """Writes one picture: canvas RGB uint8 `[H, W, 3]` -> `out`, one image of the tensor, of its dtype.

        Does nothing where the canvas is that image already. Planes are split by OpenCV, then scaled by numpy:
        1.8 times as fast as `cv2.dnn.blobFromImage`.
        """
        if self.is_image and np.may_share_memory(canvas, out):
            return
        if self.layout == "NHWC":
            _scale(canvas, out)
        else:
            for plane, target in zip(cv2.split(canvas), out, strict=True):
                _scale(plane, target)


def input_format(spec: ModelSpec) -> InputFormat:
    """Reads the input's size, type and layout.

    Height or width that the model leaves open (-1) come from its parameter `input_size` (`640`, or `480x640`:
    height, then width), else are 640.

    Raises:
        ModelRejected: not one input, or not of a kind known.
    """
    if len(spec.inputs) != 1:
        names = ", ".join(tensor.name for tensor in spec.inputs) or "none"
        raise ModelRejected(f"model {spec.name!r}: want one input, a picture; it has {len(spec.inputs)} ({names})")
    (tensor,) = spec.inputs
    layout: Literal["NHWC", "NCHW"] | None = None
    if len(tensor.shape) == 4 and tensor.dtype in _NUMPY:
        if tensor.shape[3] == 3:
            layout = "NHWC"
        elif tensor.shape[1] == 3:
            layout = "NCHW"
    if layout is None:
        raise ModelRejected(
            f"model {spec.name!r}: input {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}; known: {_KNOWN}"
        )
    if tensor.shape[0] > 1:
        raise ModelRejected(
            f"model {spec.name!r}: input {tensor.name!r} {list(tensor.shape)} takes {tensor.shape[0]} pictures at a "
            "time, never fewer; export it with an open batch (Ultralytics: dynamic=True) or batch=1, or install it "
            "with `make models`, which fills such batches up"
        )
    height, width = tensor.shape[1:3] if layout == "NHWC" else tensor.shape[2:4]
    open_height, open_width = _open_size(spec)
    height, width = height if height > 0 else open_height, width if width > 0 else open_width
    return InputFormat(tensor.name, height, width, tensor.dtype, layout)  # type: ignore[arg-type]


def _open_size(spec: ModelSpec) -> tuple[int, int]:
    text = spec.parameters.get("input_size")
    if text is None:
        return DEFAULT_SIZE, DEFAULT_SIZE
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and 32 <= int(part) <= 8192 for part in parts):
        raise ModelRejected(
            f"model {spec.name!r}: parameter input_size={text!r}; want a side such as 640, or height x width "
            "such as 480x640, each from 32 to 8192"
        )
    return int(parts[0]), int(parts[-1])


def _scale(pixels: NDArray[Any], out: NDArray[Any]) -> None:
    if out.dtype == np.uint8:
        out[...] = pixels
    elif out.dtype == np.float16:
        # numpy's float16 arithmetic is slow, and there are but 256 values: OpenCV looks their bits up.
        cv2.LUT(pixels, _HALVES, dst=out.view(np.uint16))
    else:
        np.multiply(pixels, np.float32(1 / 255), out=out)


_HALVES = (np.arange(256, dtype=np.float32) / 255).astype(np.float16).view(np.uint16)[None]
