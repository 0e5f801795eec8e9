"""Builds Triton's model configurations (config.pbtxt) for installed models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import onnx
from layouts import UnknownLayout

MAX_BATCH = 16
PREFERRED = (1, 2, 4, 8, 16)
DELAY_US = 2000
WARM_UP = (1, 8, 16)
TYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
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
        given: further string parameters.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in weights]
    outputs = [_tensor(value) for value in model.graph.output]
    return f"""# Written by `make models`; remove with `make models REMOVE=1`.
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH}
version_policy {{ specific {{ versions: [ {version} ] }} }}
input [ {", ".join(inputs)} ]
output [ {", ".join(outputs)} ]
instance_group [ {{ kind: KIND_CPU count: {instances} }} ]
{parameters(shown, classes)}{_parameters(given or {})}"""


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
{parameters(shown, classes)}{_parameters(given)}"""


def ensemble_config(
    name: str, size: Size, steps: Sequence[tuple[str, str, str, int, int]], shown: str, classes: Sequence[str]
) -> str:
    """The configuration of an ensemble whose steps all take `images`.

    Args:
        steps: for each model its name, its output, the ensemble's output, and the output's rows and columns.
    """
    outputs = ", ".join(
        f'{{ name: "{output}" data_type: TYPE_FP32 dims: [ {rows}, {columns} ] }}'
        for _, _, output, rows, columns in steps
    )
    calls = ",\n    ".join(
        f'{{ model_name: "{model}" model_version: -1 input_map {{ key: "images" value: "images" }} '
        f'output_map {{ key: "{given}" value: "{output}" }} }}'
        for model, given, output, _, _ in steps
    )
    return f"""# Written by `make models`; remove with `make models REMOVE=1`.
name: "{name}"
platform: "ensemble"
max_batch_size: {MAX_BATCH}
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ {size[0]}, {size[1]}, 3 ] }} ]
output [ {outputs} ]
ensemble_scheduling {{
  step [
    {calls}
  ]
}}
{parameters(shown, classes)}"""


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
    return _parameters(values)


def _parameters(values: Mapping[str, str]) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}\n'
        for key, value in values.items()
    )


def _tensor(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if tensor.elem_type not in TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UnknownLayout(f"{value.name} is {kind}; want UINT8, FLOAT or FLOAT16")
    dims = ", ".join(str(dim.dim_value if dim.dim_value > 0 else -1) for dim in tensor.shape.dim[1:])
    return f'{{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: [ {dims} ] }}'
