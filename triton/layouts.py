"""Recognises an Ultralytics-style ONNX: its layout by shapes, its names and size by metadata."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, shape_inference

CANDIDATES = 300
KEYPOINTS = 17
STRIDES = (8, 16, 32)

KNOWN = """layouts known:
  [N, 4+classes, A]           raw head of YOLOv8 / YOLO11, input FP32 or FP16 [N, 3, H, W]
  [N, 56, A]                  the same with 17 keypoints (more rows with more classes)
  [N, 300, 6], [N, 300, 57]   end-to-end heads (YOLOv10, YOLO26)
  [N, K, 6], [N, K, 57]       prepared already, input UINT8 [N, H, W, 3]"""


class UnknownLayout(ValueError):
    """The graph is of no layout that we read. Names the file, the shapes found and those known."""


@dataclass(frozen=True)
class Layout:
    """What an ONNX takes and gives."""

    kind: str
    """raw, end2end or prepared."""
    height: int
    width: int
    batch: int | None
    """None: any."""
    input_name: str
    input_type: int
    output_name: str
    output_type: int
    classes: int | None
    """How many; None where the shape does not say."""
    pose: bool
    candidates: int
    """Rows that the prepared graph gives."""

    @property
    def columns(self) -> int:
        return 6 + 3 * KEYPOINTS if self.pose else 6


def load(source: Path) -> onnx.ModelProto:
    """Raises UnknownLayout: not an ONNX file, or damaged."""
    try:
        model = onnx.load(source)
        sort_nodes(model.graph)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise UnknownLayout(f"{source.name}: not a sound ONNX file: {error}") from None
    except Exception as error:  # protobuf's DecodeError has no public home of its own
        if type(error).__name__ != "DecodeError":
            raise
        raise UnknownLayout(f"{source.name}: not an ONNX file: {error}") from None
    return model


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Puts every node behind those that it reads from: converters to FP16 append theirs at the end."""
    made_by = {output: index for index, node in enumerate(graph.node) for output in node.output if output}
    placed: list[int] = []
    state = [0] * len(graph.node)  # 1 on the way, 2 placed
    for first in range(len(graph.node)):
        waiting = [first]
        while waiting:
            index = waiting[-1]
            before = [made_by[name] for name in _reads(graph.node[index]) if name in made_by]
            missing = [other for other in before if state[other] == 0]
            if state[index] == 0 and missing:
                waiting += missing
                continue
            if state[index] == 0:
                state[index] = 2
                placed.append(index)
            waiting.pop()
    ordered = [graph.node[index] for index in placed]
    del graph.node[:]
    graph.node.extend(ordered)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for one in inner.node:
                yield from _reads(one)


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def names(model: onnx.ModelProto) -> list[str]:
    """Class names in the order of their ids: the metadata's `names`, a dict or list as Python writes it; or none."""
    try:
        given = ast.literal_eval(metadata(model).get("names", "None"))
    except (ValueError, SyntaxError):
        return []
    if isinstance(given, dict) and given and all(isinstance(key, int) for key in given):
        return [str(given.get(index, index)) for index in range(max(given) + 1)]
    return [str(name) for name in given] if isinstance(given, list | tuple) else []


def class_names(model: onnx.ModelProto, layout: Layout) -> list[str]:
    """As `names`; where the metadata has none, `person` for a pose model, else the ids themselves."""
    return names(model) or (["person"] if layout.pose else [str(index) for index in range(layout.classes or 0)])


def read_layout(model: onnx.ModelProto, name: str) -> Layout:
    """Recognises the graph by its shapes and metadata.

    Raises:
        UnknownLayout: see there.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    found = "; ".join(_describe(value) for value in (*inputs, *outputs))
    unknown = UnknownLayout(f"{name}: found {found}\n{KNOWN}")
    if len(inputs) != 1 or len(outputs) != 1:
        raise unknown
    given, kind = _shape(inputs[0]), inputs[0].type.tensor_type.elem_type
    head = _shape(outputs[0])
    if len(given) != 4 or len(head) != 3:
        raise unknown
    prepared = kind == TensorProto.UINT8 and given[3] == 3
    if not prepared and not (kind in (TensorProto.FLOAT, TensorProto.FLOAT16) and given[1] == 3):
        raise unknown
    height, width = _size(model, given[1:3] if prepared else given[2:4], unknown)
    if not prepared and None in head[1:]:
        head = _inferred_head(model, inputs[0].name, height, width)
    rows, columns = head[1], head[2]
    common = {
        "height": height, "width": width, "batch": given[0], "input_name": inputs[0].name, "input_type": kind,
        "output_name": outputs[0].name, "output_type": outputs[0].type.tensor_type.elem_type,
    }  # fmt: skip
    if columns in (6, 57) and rows is not None and (prepared or rows <= 1000):
        kind_name = "prepared" if prepared else "end2end"
        return Layout(kind_name, **common, classes=None, pose=columns == 57, candidates=rows)
    if prepared or rows is None or rows < 5:
        raise unknown
    anchors = columns or sum((height // stride) * (width // stride) for stride in STRIDES)
    if rows >= anchors and columns is not None:
        raise unknown
    pose = _is_pose(model, rows)
    if pose and metadata(model).get("kpt_shape", f"[{KEYPOINTS}, 3]") != f"[{KEYPOINTS}, 3]":
        raise UnknownLayout(f"{unknown}\nits kpt_shape is {metadata(model)['kpt_shape']}; known is [{KEYPOINTS}, 3]")
    if metadata(model).get("task", "detect") not in ("detect", "pose"):
        raise unknown
    classes = rows - 4 - (3 * KEYPOINTS if pose else 0)
    if classes < 1:
        raise unknown
    return Layout("raw", **common, classes=classes, pose=pose, candidates=min(CANDIDATES, anchors))


def _is_pose(model: onnx.ModelProto, rows: int) -> bool:
    """56 rows are a person and 17 keypoints, or 52 classes: the metadata says which; where it is silent, the former."""
    task = metadata(model).get("task")
    if task is not None:
        return task == "pose"
    return rows == 5 + 3 * KEYPOINTS and len(names(model)) != rows - 4


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def _describe(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dims = ", ".join("?" if dim is None else str(dim) for dim in _shape(value))
    return f"{value.name} {kind} [{dims}]"


def _size(model: onnx.ModelProto, dims: list[int | None], unknown: UnknownLayout) -> tuple[int, int]:
    """Height and width: the input's own, or the metadata's `imgsz` where the export left them open."""
    if None not in dims:
        return dims[0], dims[1]  # type: ignore[return-value]
    try:
        size = ast.literal_eval(metadata(model).get("imgsz", "None"))
    except (ValueError, SyntaxError):
        size = None
    if isinstance(size, int):
        size = [size, size]
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(one, int) for one in size)):
        raise UnknownLayout(
            f"{unknown}\nheight and width are open and the metadata names no `imgsz`: export at one size"
        )
    return size[0], size[1]


def _inferred_head(model: onnx.ModelProto, name: str, height: int, width: int) -> list[int | None]:
    """The output's shape once height and width are fixed."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name == name:
            value.type.tensor_type.shape.dim[2].dim_value = height
            value.type.tensor_type.shape.dim[3].dim_value = width
    declared = _shape(model.graph.output[0])
    for dim in fixed.graph.output[0].type.tensor_type.shape.dim:
        if not dim.dim_value:
            dim.Clear()
    del fixed.graph.value_info[:]
    inferred = _shape(shape_inference.infer_shapes(fixed, data_prop=True).graph.output[0])
    return [one or other for one, other in zip(declared, inferred, strict=False)]
