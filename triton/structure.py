"""What an ONNX's output is put together from, read off its last nodes: boxes, scores, class ids, something else.

A shape alone does not tell families apart: [N, 300, 6] is an end-to-end YOLO's and RT-DETR's, [N, 84, A] could hold
an angle or masks behind fewer classes. The graph does: scores come out of a Sigmoid or Softmax, class ids out of the
indices of a TopK or ArgMax, and boxes that are shares of the picture out of a Sigmoid, too.
"""

from __future__ import annotations

from typing import Literal

import onnx

Part = Literal["shares", "classes", "other"]
"""Of numbers: from 0 to 1 by a Sigmoid or Softmax; class ids; anything else, as pixels."""

_SAME = {
    "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "GatherElements",
    "GatherND", "Expand", "Clip", "Flatten", "Tile", "Pad",
}  # fmt: skip
"""Nodes that hand values on: their first input is what their output is made of."""
_COUNTED = {*_SAME, "Mod", "Sub", "Div", "Floor", "Mul", "Add"}
"""Nodes between a TopK's indices and the class ids made of them."""
_FAR = 64


def parts_of(model: onnx.ModelProto) -> list[Part]:
    """What the first output is put together from, in the order of its channels; empty where its last nodes hide it."""
    made = {output: node for node in model.graph.node for output in node.output if output}
    last = _through(model.graph.output[0].name, made, {"Identity", "Cast", "Transpose"})
    if last is None or last.op_type != "Concat" or len(last.input) < 2:
        return []
    return [_part(name, made) for name in last.input]


def suppresses(model: onnx.ModelProto) -> bool:
    """Whether the graph has a non-maximum suppression of its own."""
    return any(node.op_type == "NonMaxSuppression" for node in model.graph.node)


def _part(name: str, made: dict[str, onnx.NodeProto]) -> Part:
    if _is_index(name, made):
        return "classes"
    source = _through(name, made, {*_SAME, "TopK", "ReduceMax", "Concat"})
    return "shares" if source is not None and source.op_type in ("Sigmoid", "Softmax") else "other"


def _through(name: str, made: dict[str, onnx.NodeProto], ops: set[str]) -> onnx.NodeProto | None:
    """The first node above `name` that does more than hand values on; a Concat of one input does not."""
    for _ in range(_FAR):
        node = made.get(name)
        if node is None or node.op_type not in ops or (node.op_type == "Concat" and len(node.input) > 1):
            return node
        if node.op_type == "TopK" and node.output[0] != name:
            return node  # its indices, not its values
        name = node.input[0]
    return None


def _is_index(name: str, made: dict[str, onnx.NodeProto]) -> bool:
    """Whether numbers come from the indices of a TopK or ArgMax."""
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
