"""The network that stands for a YOLO has its size, and `make models` accepts it as one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from app.settings import ROOT
from benchmarks import cpu_models, yolov8n

sys.path.insert(0, str(ROOT / "triton"))


def test_it_has_yolov8ns_parameters() -> None:
    model = yolov8n.build(640, 640)
    shapes = [tuple(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) in (1, 4)]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 64  # 57 with SiLU, 6 that end the head, 1 for its distances
    assert 3.1e6 < sum(int(np.prod(shape)) for shape in shapes) < 3.2e6
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [1, 84, 8400]


def test_it_is_prepared_like_an_export(tmp_path: Path) -> None:
    from prepare import prepare

    sheet = prepare(yolov8n.write(tmp_path / "wide.onnx", 96, 128), tmp_path / "prepared.onnx")
    assert (sheet.height, sheet.width, sheet.columns) == (96, 128, 6)
    assert len(sheet.names) == 80


def test_every_variant_is_a_runtime_a_precision_and_a_shape() -> None:
    for variant in cpu_models.VARIANTS:
        runtime, precision, shape = variant.split("-")
        assert runtime in ("onnxruntime", "openvino")
        assert precision in ("f32", "bf16", "int8")
        assert shape in cpu_models.SHAPES
    assert {ratio.over for ratio in cpu_models.RATIOS} | {ratio.under for ratio in cpu_models.RATIOS} <= set(
        cpu_models.VARIANTS
    )
