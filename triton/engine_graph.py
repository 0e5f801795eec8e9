"""Adapts an ONNX for TensorRT, which needs more than ONNX Runtime; the outputs stay the same."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with an open batch dimension, whose UINT8 input goes to a Cast first."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    open_batch(made)
    cast_first(made)
    onnx.checker.check_model(made)
    return made


def cast_first(model: onnx.ModelProto) -> None:
    """Replaces Transpose, Cast by Cast, Transpose, because TensorRT allows UINT8 only at the input of a Cast.

    See `DataType.UINT8` in TensorRT's API. For ONNX Runtime the other order is faster, because its Transpose then moves
    a quarter of the bytes.
    """
    images = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    nodes = model.graph.node
    for at, node in enumerate(nodes):
        if node.op_type != "Transpose" or node.input[0] not in images:
            continue
        readers = [other for other in nodes if node.output[0] in other.input]
        if len(readers) != 1 or readers[0].op_type != "Cast":
            continue
        cast = readers[0]
        between = f"{node.input[0]}/cast"
        first = helper.make_node("Cast", [node.input[0]], [between], name=cast.name)
        first.attribute.extend(cast.attribute)
        then = helper.make_node("Transpose", [between], [cast.output[0]], name=node.name)
        then.attribute.extend(node.attribute)
        nodes.remove(cast)
        nodes[at].CopyFrom(first)
        nodes.insert(at + 1, then)
        return


def open_batch(model: onnx.ModelProto) -> None:
    """Makes a batch dimension of 1 open: at the input, at the output, and in every Reshape with a constant shape.

    Exports for single frames have shapes such as [1, 144, -1] in their Reshapes. With 0 instead of the 1, the Reshape
    keeps its input's dimension. Other operators may still assume a batch of 1, so `engine_source` runs a larger batch.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims:
            dims[0].dim_param = "N"
    del graph.value_info[:]
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type != "Reshape" or any(
            attribute.name == "allowzero" and attribute.i for attribute in node.attribute
        ):
            continue
        shape = node.input[1]
        if shape in weights:
            found = numpy_helper.to_array(weights[shape])
        elif shape in constants:
            found = numpy_helper.to_array(constants[shape].attribute[0].t)
        else:
            continue
        if len(found) > 1 and found[0] == 1:
            opened = np.array([0, *found[1:]], np.int64)
            # The new shape has a name of its own, because other nodes may read the same constant.
            node.input[1] = f"{shape}/open/{node.output[0]}"
            graph.initializer.append(numpy_helper.from_array(opened, node.input[1]))
