"""Triton's model configurations (config.pbtxt) for what is installed."""

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
    """For an ONNX behind `onnx_model.py`: tensors as the graph declares them, the batch dimension left to Triton.

    No dynamic batching: on a CPU a batch gains nothing, and would give one instance all that waits.

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
    """For a GPU host: a TensorRT plan of the graph (`tensorrt_plan`), or the graph itself (`onnxruntime_onnx`).

    The version is left at 1: whoever installs it writes the right one (`engine_swap`).

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
# A batch goes at once when an instance is free; what waits meanwhile goes in the next, at the largest size it fills.
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, PREFERRED))} ]
  max_queue_delay_microseconds: {DELAY_US}
}}
# Two, so that one copies its pictures in while the other computes.
instance_group [ {{ kind: KIND_GPU count: 2 }} ]
# The first run of a size loads its kernels; no client's frame shall wait for that.
model_warmup [
  {warm}
]
{parameters(shown, classes)}{_parameters(given)}"""


def ensemble_config(
    name: str, size: Size, steps: Sequence[tuple[str, str, str, int, int]], shown: str, classes: Sequence[str]
) -> str:
    """For an ensemble whose steps all take `images`.

    Args:
        steps: of each model its name, its output, the ensemble's output, rows and columns.
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
    """A checked-in configuration with another height and width of its `images`."""
    return re.sub(
        r'(name: "images" data_type: TYPE_UINT8 dims: \[) \d+, \d+, 3 \]', rf"\g<1> {size[0]}, {size[1]}, 3 ]", text
    )


def parameters(shown: str, classes: Sequence[str]) -> str:
    """What the service reads: who answers, and the names of its classes in the order of their ids."""
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
        raise UnknownLayout(f"{value.name} is {kind}; known are UINT8, FLOAT and FLOAT16")
    dims = ", ".join(str(dim.dim_value if dim.dim_value > 0 else -1) for dim in tensor.shape.dim[1:])
    return f'{{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: [ {dims} ] }}'
