"""Recognises and installs an ArcFace ONNX: crops of 112x112 in, 512 numbers out.

InsightFace's exports differ in a way that no shape shows: exports from MXNet scale the pixels themselves. Like
InsightFace (`ArcFaceONNX` in its python-package/insightface/model_zoo/arcface_onnx.py), this module recognises those by
their first nodes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx
from install import place
from layouts import UnknownLayout, load
from onnx import TensorProto
from prepare import checksum

ARCFACE = "arcface"

SIDE, LENGTH = 112, 512
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_FIRST_NODES = 8


@dataclass(frozen=True)
class Arcface:
    """A recognised model and the scaling of its input."""

    model: onnx.ModelProto
    input_mean: float
    input_std: float

    @property
    def parameters(self) -> dict[str, str]:
        """The configuration's parameters, by which the service scales crops: (x - input_mean) / input_std."""
        return {"input_mean": f"{self.input_mean:g}", "input_std": f"{self.input_std:g}"}


def read_arcface(source: Path) -> Arcface:
    """Reads a model and recognises whether it scales its input.

    Raises:
        UnknownLayout: it is not an ONNX file, or does not have ArcFace's shapes; the message lists the shapes found.
    """
    model = load(source)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    fits = (
        len(inputs) == len(outputs) == 1
        and inputs[0].type.tensor_type.elem_type in FLOATS
        and outputs[0].type.tensor_type.elem_type in FLOATS
        and _dims(inputs[0])[1:] == [3, SIDE, SIDE]
        and _dims(outputs[0])[1:] == [LENGTH]
    )
    if not fits:
        found = "; ".join(
            f"{value.name} {TensorProto.DataType.Name(value.type.tensor_type.elem_type)} {_dims(value)}"
            for value in (*inputs, *outputs)
        )
        raise UnknownLayout(
            f"{source.name}: found {found}\n"
            f"an ArcFace takes FP32 or FP16 [N, 3, {SIDE}, {SIDE}] and returns [N, {LENGTH}]"
        )
    scales = _scales(model)
    return Arcface(model, *((0.0, 1.0) if scales else (127.5, 127.5)))


def install_arcface(source: Path, repository: Path) -> Path:
    """Installs an unchanged ONNX as `arcface`; returns its version folder.

    Raises:
        UnknownLayout: as by `read_arcface`. The repository is not changed.
    """
    found = read_arcface(source)

    def fill(fresh: Path) -> tuple[list[str], dict[str, str]]:
        shutil.copyfile(source, fresh / "model.onnx")
        about = {"source": source.name, "sha256": checksum(source), "task": "face", **found.parameters}
        (fresh / "model.json").write_text(json.dumps(about, indent=2) + "\n")
        return [], found.parameters

    return place(ARCFACE, repository, source.stem, fill)


def _scales(model: onnx.ModelProto) -> bool:
    names = [node.name for node in model.graph.node[:_FIRST_NODES]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in names)
    multiplies = any(name.startswith(("Mul", "_mul", "Div")) for name in names)
    return subtracts and multiplies


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]
