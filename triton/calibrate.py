"""Makes an INT8 model of a YOLO's ONNX: quantises the convolutions, with ranges measured on your own images.

    .venv/bin/uv run --isolated --no-project --with-requirements requirements/cpu.txt \\
        triton/calibrate.py best.onnx --pictures FOLDER -o best-int8.onnx
    make models DETECT=best-int8.onnx

It takes the unchanged export (FP32, raw head) and a hundred or more images of what the camera will see. Before you use
the result, compare its detections with those of the original. Both ONNX Runtime and OpenVINO run it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
GREY = 114


class CalibrationImages:
    """Reads images for the calibration, prepared like the service's frames: RGB, letterboxed with grey, over 255."""

    def __init__(self, paths: list[Path], name: str, height: int, width: int) -> None:
        self._name = name
        self._tensors = self._each(paths, height, width)

    def get_next(self) -> dict[str, Any] | None:
        tensor = next(self._tensors, None)
        return None if tensor is None else {self._name: tensor}

    @staticmethod
    def _each(paths: list[Path], height: int, width: int) -> Iterator[Any]:
        for path in paths:
            image = cv2.imread(str(path))
            if image is None:
                print(f"{path}: cannot be read as an image; left out", file=sys.stderr)
                continue
            scale = min(width / image.shape[1], height / image.shape[0])
            w, h = (max(1, round(side * scale)) for side in image.shape[1::-1])
            canvas = np.full((height, width, 3), GREY, np.uint8)
            y, x = (height - h) // 2, (width - w) // 2
            canvas[y : y + h, x : x + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
            yield np.ascontiguousarray(canvas[None, ..., ::-1].transpose(0, 3, 1, 2), np.float32) / 255


def calibrate(source: Path, images: list[Path], out: Path) -> None:
    """Writes the INT8 model to `out`.

    Raises:
        ValueError: the model's input is not one FP32 image `[N, 3, H, W]` of a fixed size, or there are no images.
    """
    model = onnx.load(source)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    floats = len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    if not floats or len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < 1:
        raise ValueError(f"{source}: want one FP32 input [N, 3, H, W] of a fixed size, as exports have it")
    if not images:
        raise ValueError("no images: want a folder of JPEGs or PNGs of what the camera will see")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source),
        str(out),
        CalibrationImages(images, inputs[0].name, shape[2], shape[3]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=_kept(model),
    )
    made = onnx.load(out)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)  # names, task and size
    onnx.save(made, out)


def _kept(model: onnx.ModelProto) -> list[str]:
    """Convolutions that stay FP32: those with one output channel, which add up distances; 8 bits would cost pixels."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "Conv" and shapes.get(n.input[1], (0,))[0] == 1]


def main() -> int:
    # ONNX Runtime's tools import a module onnx_model, which the onnx_model.py in this folder would hide.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the FP32 export")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of images, searched recursively")
    parser.add_argument("--most", type=int, default=300, help="most images to use")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    paths = sorted(path for path in options.pictures.rglob("*") if path.suffix.lower() in KINDS)[: options.most]
    try:
        calibrate(options.source, paths, options.output)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.output}: INT8, calibrated on {len(paths)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
