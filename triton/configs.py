"""Builds Triton's model configurations (config.pbtxt) for installed models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from google.protobuf import text_format
from layouts import UnknownLayout
from tritonclient.grpc import model_config_pb2

MAX_BATCH = 16
PREFERRED = (1, 2, 4, 8, 16)
DELAY_US = 2000
WARM_UP = (1, 8, 16)
TYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
}
Size = tuple[int, int]
"""Height, width."""


def onnx_config(
    model: onnx.ModelProto,
    name: str,
    shown: str,
    classes: Sequence[str],
    version: int,
    instances: int,
    given: Mapping[str, str] | None = None,
) -> str:
    """The configuration of an ONNX that `onnx_model.py` serves, with the graph's tensors without the batch dimension.

    It has no dynamic batching, because on a CPU a batch saves no time, and one instance would get all waiting requests.

    Args:
        given: further string parameters. With `layout` torchvision, the model takes one image, and its tensors have all
            their dimensions.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    batched = (given or {}).get("layout") != "torchvision"
    inputs = [_tensor(value, batched) for value in model.graph.input if value.name not in weights]
    outputs = [_tensor(value, batched) for value in model.graph.output]
    return f"""# Written by `make models`; remove with `make models REMOVE=1`.
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH if batched else 0}
version_policy {{ specific {{ versions: [ {version} ] }} }}
input [ {", ".join(inputs)} ]
output [ {", ".join(outputs)} ]
instance_group [ {{ kind: KIND_CPU count: {instances} }} ]
{parameters(shown, classes)}{string_parameters(given or {})}"""


def gpu_config(
    model: onnx.ModelProto, name: str, platform: str, shown: str, classes: Sequence[str], given: Mapping[str, str]
) -> str:
    """The configuration for a GPU host, for a TensorRT plan (`tensorrt_plan`) or the graph itself (`onnxruntime_onnx`).

    The version is 1; `engine_swap` replaces it when it installs the model.

    Args:
        given: further string parameters.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in weights)
    tensor = _tensor(image)
    sample = tensor[tensor.index("data_type") : -2]
    warm = ",\n  ".join(
        f'{{ name: "batch of {size}" batch_size: {size} '
        f'inputs {{ key: "{image.name}" value {{ {sample} zero_data: true }} }} }}'
        for size in WARM_UP
    )
    return f"""name: "{name}"
platform: "{platform}"
max_batch_size: {MAX_BATCH}
version_policy {{ specific {{ versions: [ 1 ] }} }}
input [ {tensor} ]
output [ {", ".join(_tensor(value) for value in model.graph.output)} ]
# If an instance is free, a batch starts at once. Requests that wait meanwhile form the next batch, of the largest
# preferred size that they fill.
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, PREFERRED))} ]
  max_queue_delay_microseconds: {DELAY_US}
}}
# Two instances, so that one can copy its input while the other computes.
instance_group [ {{ kind: KIND_GPU count: 2 }} ]
# The first run of a batch size loads its kernels, so that a warm-up keeps clients' frames from waiting for it.
model_warmup [
  {warm}
]
{parameters(shown, classes)}{string_parameters(given)}"""


def parsed(text: str) -> Any:
    """A configuration as Triton reads it (`model_config_pb2.ModelConfig`)."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def resized(text: str, size: Size) -> str:
    """A checked-in configuration with the height and width of its `images` replaced."""
    return re.sub(
        r'(name: "images" data_type: TYPE_UINT8 dims: \[) \d+, \d+, 3 \]', rf"\g<1> {size[0]}, {size[1]}, 3 ]", text
    )


def parameters(shown: str, classes: Sequence[str]) -> str:
    """The parameters that the service reads: the model's display name, and its class names in the order of the ids."""
    values = {"display_name": shown}
    if classes:
        values["class_names"] = json.dumps(list(classes), ensure_ascii=False)
    return string_parameters(values)


def string_parameters(values: Mapping[str, str]) -> str:
    """Lines of a configuration."""
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}\n'
        for key, value in values.items()
    )


def _tensor(value: onnx.ValueInfoProto, batched: bool = True) -> str:
    tensor = value.type.tensor_type
    if tensor.elem_type not in TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UnknownLayout(f"{value.name} is {kind}; want {', '.join(name[5:] for name in TYPES.values())}")
    given = tensor.shape.dim[1:] if batched else tensor.shape.dim
    dims = ", ".join(str(dim.dim_value if dim.dim_value > 0 else -1) for dim in given)
    return f'{{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: [ {dims} ] }}'
