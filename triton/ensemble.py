"""Puts installed models that take the same image into one ensemble, which answers one request for all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs import MAX_BATCH, parameters, string_parameters
from tritonclient.grpc import model_config_pb2

PLURAL = {
    "yolo": "detections", "yolo_pose": "poses", "yolo_segment": "segments", "yolo_obb": "oriented",
    "yolo_classify": "classifications",
}  # fmt: skip
"""By model: the ensemble's name of its only output. Of several outputs each keeps its own."""
_IMAGE = ("resize", "colour", "scale", "mean", "std")


@dataclass(frozen=True)
class Member:
    """A model in the ensemble."""

    name: str
    """As the service knows it."""
    config: Any
    """Its configuration (`model_config_pb2.ModelConfig`)."""
    runs: str = ""
    """The model that answers in its place; empty: itself."""
    output: str = ""
    """That model's output with its answer."""


def image_of(config: Any) -> tuple[object, ...]:
    """All that two models must have in common to take the same tensor."""
    (tensor,) = config.input
    said = {key: value.string_value for key, value in config.parameters.items()}
    size = said.get("input_size", "") if -1 in tensor.dims else ""
    return (
        config.max_batch_size,
        tensor.data_type,
        tuple(tensor.dims),
        size,
        *(said.get(key, _USUAL.get(key)) for key in _IMAGE),
    )


_USUAL = {"resize": "letterbox", "colour": "rgb"}


def is_bytes(config: Any) -> bool:
    """Whether a model takes what MediaPipe takes, apart from the size: bytes of a letterboxed RGB image."""
    _, kind, dims, _, resize, colour, *_ = image_of(config)
    fits = kind == model_config_pb2.TYPE_UINT8 and len(dims) == 3 and dims[2] == 3  # type: ignore[arg-type, index]
    return fits and (resize, colour) == ("letterbox", "rgb") and config.max_batch_size > 0


def image_in_words(config: Any) -> str:
    """For messages: the size, and what sets it apart from what `make models` prepares."""
    _, kind, dims, size, resize, *_ = image_of(config)
    *_, first, second, third = dims  # type: ignore[misc]
    height, width = (first, second) if third == 3 else (second, third)
    apart = [] if resize == "letterbox" else [str(resize)]
    apart += [] if kind == model_config_pb2.TYPE_UINT8 else ["not prepared"]
    apart += [] if config.max_batch_size else ["one image at a time"]
    return f"{size or f'{height}x{width}'}" + (f" ({', '.join(apart)})" if apart else "")


def largest_group(configs: Mapping[str, Any]) -> list[str]:
    """The names of the models that take the same image, of the largest such group; of equals the first."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(image_of(config), []).append(name)
    return max(groups.values(), key=len)


def ensemble_config(name: str, members: Sequence[Member], shown: str, classes: Sequence[str]) -> str:
    """The configuration of an ensemble whose steps all take its input `images`.

    Its parameter `outputs` says for each model how its outputs are called in the ensemble.
    """
    image = members[0].config
    (tensor,) = image.input
    taken: set[str] = set()
    outputs: dict[str, dict[str, str]] = {}
    declared: list[str] = []
    steps: dict[str, tuple[str, dict[str, str]]] = {}
    for member in members:
        runs, given = member.runs or member.name, member.config.output
        named = {given[0].name: PLURAL[member.name]} if len(given) == 1 else {value.name: value.name for value in given}
        named = {own: other if other not in taken else f"{member.name}/{other}" for own, other in named.items()}
        taken |= set(named.values())
        outputs[member.name] = named
        declared += [_tensor(named[value.name], value) for value in given]
        mapped = {member.output or own: other for own, other in named.items()}
        steps.setdefault(runs, (member.config.input[0].name, {}))[1].update(mapped)
    calls = ",\n    ".join(
        f'{{ model_name: "{model}" model_version: -1 input_map {{ key: "{own}" value: "images" }} '
        + " ".join(f'output_map {{ key: "{given}" value: "{output}" }}' for given, output in mapped.items())
        + " }"
        for model, (own, mapped) in steps.items()
    )
    return f"""# Written by `make models`; remove with `make models REMOVE=1`.
name: "{name}"
platform: "ensemble"
max_batch_size: {image.max_batch_size or MAX_BATCH}
input [ {_tensor("images", tensor)} ]
output [ {", ".join(declared)} ]
ensemble_scheduling {{
  step [
    {calls}
  ]
}}
{parameters(shown, classes)}{string_parameters({"outputs": json.dumps(outputs)})}"""


def _tensor(name: str, value: Any) -> str:
    kind = model_config_pb2.DataType.Name(value.data_type)
    return f'{{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, value.dims))} ] }}'
