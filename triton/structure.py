"""Recognises the parts of an ONNX's output by its last nodes: scores, class ids, anything else.

A shape does not identify a family of models: [N, 300, 6] is the output of an end-to-end YOLO and of RT-DETR, and
[N, 84, A] may contain an angle or masks after fewer classes. The graph does: scores come from a Sigmoid or Softmax,
class ids from the indices of a TopK or ArgMax, and boxes relative to the image (0 to 1) from a Sigmoid as well.
"""

from __future__ import annotations

from typing import Literal

import onnx

Part = Literal["shares", "classes", "other"]
"""`shares`: numbers from 0 to 1, by a Sigmoid or Softmax; `classes`: class ids; `other`: the rest, such as pixels."""

_SAME = {
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "GatherElements",
    "GatherND", "Expand", "Clip", "Flatten", "Tile", "Pad",
}  # fmt: skip
"""Operators that pass values on: their output consists of values of their first input."""
_COUNTED = {*_SAME, "Mod", "Sub", "Div", "Floor", "Mul", "Add"}
"""Operators that may lie between a TopK's indices and the class ids computed from them."""
_FAR = 64


def parts_of(model: onnx.ModelProto, output: str) -> list[Part]:
    """The parts of an output in the order of its channels; empty if no Concat joins them."""
    made = {name: node for node in model.graph.node for name in node.output if name}
    last = _through(output, made, {"Identity", "Cast", "Transpose"})
    if last is None or last.op_type != "Concat" or len(last.input) < 2:
        return []
    return [_part(name, made) for name in last.input]


def last_node(model: onnx.ModelProto, output: str) -> str:
    """The operator whose values an output has; empty if there is none."""
    made = {name: node for node in model.graph.node for name in node.output if name}
    last = _through(output, made, {"Identity", "Cast", "Reshape", "Flatten", "Squeeze"})
    return last.op_type if last else ""


def suppresses(model: onnx.ModelProto) -> bool:
    """Whether the graph contains a non-maximum suppression."""
    return any(node.op_type == "NonMaxSuppression" for node in model.graph.node)


def _part(name: str, made: dict[str, onnx.NodeProto]) -> Part:
    if _is_index(name, made):
        return "classes"
    source = _through(name, made, {*_SAME, "TopK", "ReduceMax", "Concat"})
    return "shares" if source is not None and source.op_type in ("Sigmoid", "Softmax") else "other"


def _through(name: str, made: dict[str, onnx.NodeProto], ops: set[str]) -> onnx.NodeProto | None:
    """The first node before `name` that is none of `ops`, or is a Concat of several inputs; None if there is none."""
    for _ in range(_FAR):
        node = made.get(name)
        if node is None or node.op_type not in ops or (node.op_type == "Concat" and len(node.input) > 1):
            return node
        if node.op_type == "TopK" and node.output[0] != name:
            return node  # `name` is its indices, not its values
        name = node.input[0]
    return None


def _is_index(name: str, made: dict[str, onnx.NodeProto]) -> bool:
    """Whether `name` is computed from the indices of a TopK or ArgMax."""
    for _ in range(_FAR):
        node = made.get(name)
        if node is None or not node.input:
            return False
        if node.op_type == "ArgMax" or (node.op_type == "TopK" and node.output[0] != name):
            return True
        if node.op_type not in _COUNTED:
            return False
        name = node.input[0]
    return False
