"""Recognises an Ultralytics-style ONNX by its shapes and, if these are ambiguous, by its metadata and last nodes."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, shape_inference
from structure import Part, parts_of, suppresses

Unknown = Callable[[str], "UnknownLayout"]
KEYPOINTS = 17
STRIDES = (8, 16, 32)
MARK = "sightline_layout"
"""Key in a prepared graph's metadata; its value is the meaning of the rows."""
LAYOUTS = ("raw", "end_to_end", "prepared")
_POSE_ROWS = 5 + 3 * KEYPOINTS

KNOWN = """layouts known:
  [N, 4+classes, A]           raw head of YOLOv8 / YOLO11, input FP32 or FP16 [N, 3, H, W]
  [N, 56, A]                  the same with 17 keypoints (more rows with more classes)
  [N, K, 6], [N, K, 57]       end-to-end heads (YOLOv10, YOLO26, any export with nms=True)
  [N, K, 6], [N, K, 57]       prepared already, input UINT8 [N, H, W, 3]"""
_TASKS = {
    "segment": "a segmentation model: export a detection model",
    "obb": "a model of oriented boxes: export a detection model",
    "classify": "a classification model: export a detection model",
}


class UnknownLayout(ValueError):
    """The graph has no known layout. The message names the file, the shapes found and the known ones."""


class SharedShape(UnknownLayout):
    """Two families of models have this shape, and neither metadata nor graph show which it is; a run would."""


@dataclass(frozen=True)
class Layout:
    """The input and output of an ONNX."""

    kind: str
    """raw, end2end or prepared."""
    height: int
    width: int
    batch: int | None
    """The fixed batch size; None: any."""
    input_name: str
    input_type: int
    output_name: str
    output_type: int
    classes: int | None
    """Number of classes; None if the shape does not show it."""
    pose: bool
    candidates: int
    """Rows of the prepared graph's output; -1 if only a run shows how many."""
    overlaps: bool
    """Whether the rows overlap, because the graph has not suppressed them."""

    @property
    def columns(self) -> int:
        return 6 + 3 * KEYPOINTS if self.pose else 6

    @property
    def rows(self) -> str:
        """The meaning of the prepared graph's rows, as a value of the configuration's parameter `layout`."""
        return "prepared" if self.overlaps else "end_to_end"

    @property
    def as_is(self) -> str:
        """The meaning of the unprepared graph's rows, as a value of the parameter `layout`."""
        return "raw" if self.kind == "raw" else self.rows


def load(source: Path) -> onnx.ModelProto:
    """Loads a graph and sorts its nodes.

    Raises:
        UnknownLayout: the file is not an ONNX, or is damaged.
    """
    try:
        model = onnx.load(source)
        sort_nodes(model.graph)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise UnknownLayout(f"{source.name}: not a valid ONNX file: {error}") from None
    except Exception as error:  # protobuf's DecodeError has no public module
        if type(error).__name__ != "DecodeError":
            raise
        raise UnknownLayout(f"{source.name}: not an ONNX file: {error}") from None
    return model


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sorts the nodes so that each follows its inputs, because converters to FP16 append nodes at the end."""
    made_by = {output: index for index, node in enumerate(graph.node) for output in node.output if output}
    placed: list[int] = []
    state = [0] * len(graph.node)  # 0: not placed, 2: placed
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
            for inner_node in inner.node:
                yield from _reads(inner_node)


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def names(model: onnx.ModelProto) -> list[str]:
    """The labels; empty if they are only the ids as text, which Ultralytics writes when it has no names."""
    found = labels(model)
    return found if found != [str(index) for index in range(len(found))] else []


def labels(model: onnx.ModelProto) -> list[str]:
    """The metadata's `names` in the order of the class ids; the metadata has a dict or list in Python's notation."""
    try:
        given = ast.literal_eval(metadata(model).get("names", "None"))
    except (ValueError, SyntaxError):
        return []
    if isinstance(given, dict) and given and all(isinstance(key, int) and key >= 0 for key in given):
        given = [given.get(index, index) for index in range(max(given) + 1)]
    return [str(name) for name in given] if isinstance(given, list | tuple) else []


def class_names(model: onnx.ModelProto, layout: Layout, given: Sequence[str] | None = None) -> list[str]:
    """The given names, else those of the metadata; without any, `person` for a pose model, else class_0, class_1, …"""
    alone = ["person"] if layout.pose and layout.classes in (1, None) else []
    return list(given or names(model) or alone or [f"class_{index}" for index in range(layout.classes or 0)])


def read_layout(
    model: onnx.ModelProto,
    name: str,
    *,
    task: str | None = None,
    given: Sequence[str] | None = None,
    told: str | None = None,
) -> Layout:
    """Recognises the graph: by its metadata, then by its last nodes, and by shapes that only one family has.

    Args:
        task: the user's `detect` or `pose`; the metadata's task takes precedence.
        given: the user's class names.
        told: the user's layout, `raw` or `end_to_end`.

    Raises:
        UnknownLayout: the layout is not known.
        SharedShape: two families of models have this shape, and nothing shows which it is.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    found = "; ".join(_describe(value) for value in (*inputs, *outputs))
    about, parts = metadata(model), parts_of(model)

    def unknown(why: str | None = None) -> UnknownLayout:
        return UnknownLayout(f"{name}: found {found}" + (f"\n{why}" if why else "") + f"\n{KNOWN}")

    said = about.get("task")
    if said is not None and said not in ("detect", "pose"):
        raise unknown(f"it is {_TASKS.get(said, f'for the task {said}, which is not known')}")
    if len(inputs) != 1 or len(outputs) != 1:
        raise unknown(_several(inputs, outputs))
    value, head = inputs[0], _shape(outputs[0])
    shape, kind = _shape(value), value.type.tensor_type.elem_type
    if len(head) == 2:
        raise unknown("one vector for each image: a classification model, or YOLO-NAS' flat list")
    if len(shape) != 4 or len(head) != 3:
        raise unknown()
    prepared = kind == TensorProto.UINT8 and shape[3] == 3
    if not prepared and not (kind in (TensorProto.FLOAT, TensorProto.FLOAT16) and shape[1] == 3):
        raise unknown()
    height, width = _size(model, shape[1:3] if prepared else shape[2:4], unknown())
    if None in head[1:]:
        head = _inferred_head(model, value.name, height, width, prepared)
    if not prepared and _is_detr(about, parts):
        raise unknown(
            "it is RT-DETR's head, or another whose boxes are relative to the image (cx, cy, w, h from 0 to 1): such "
            "heads are not read. Export a YOLO (YOLOv8, YOLO11, YOLO26) instead"
        )
    common = {
        "height": height, "width": width, "batch": shape[0] or _unrolled(about),
        "input_name": value.name, "input_type": kind,
        "output_name": outputs[0].name, "output_type": outputs[0].type.tensor_type.elem_type,
    }  # fmt: skip
    rows, columns = head[1], head[2]
    finished = _says_finished(about, parts, model, told)
    pose = said == "pose" if said else columns == 57 or (columns != 6 and task == "pose")
    _check_keypoints(about, pose, unknown)
    if finished and columns is None:
        columns = 6 + (3 * KEYPOINTS if pose else 0)
    cells = sum((height // stride) * (width // stride) for stride in STRIDES)
    if columns in (6, 57) and told != "raw" and (prepared or finished or (rows or 0) not in (cells, 3 * cells)):
        if not prepared and not finished:
            raise SharedShape(
                f"{name}: found {found}\n"
                f"[N, {rows or '?'}, {columns}] could be an end-to-end YOLO's rows (x1, y1, x2, y2, score, class) or "
                "those of RT-DETR (cx, cy, w, h from 0 to 1), and neither its metadata (end2end, args, head) nor its "
                f"last nodes show which. If it is the former: make models LAYOUT=end_to_end\n{KNOWN}"
            )
        overlaps = prepared and not finished
        kind_name = "prepared" if overlaps else "end2end"
        if (columns == 57) != pose:
            raise unknown(f"{columns} columns do not fit its task, {said}")
        return Layout(
            "prepared" if prepared else kind_name, **common, classes=None, pose=pose, candidates=rows or -1,
            overlaps=overlaps,
        )  # fmt: skip
    if prepared or rows is None or rows < 5:
        raise unknown()
    if finished:
        raise unknown(f"by its metadata or its last nodes it suppresses overlaps itself, but it has {columns} columns")
    if columns is not None and (rows >= columns or rows in (cells, 3 * cells)):
        raise unknown(
            "anchors in rows, as of YOLOv5 and YOLOX (with an objectness): export with Ultralytics, as yolov5nu"
        )
    if columns == 3 * cells:
        raise unknown("three anchors a cell, as of YOLOv5 (with an objectness): export with Ultralytics, as yolov5nu")
    known = list(given or labels(model))
    classes = _classes(rows, pose, said, known, parts, unknown)
    return Layout(
        "raw", **common, classes=classes, pose=pose, candidates=columns or cells, overlaps=True
    )  # fmt: skip


def _several(inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> str | None:
    """Describes a graph with several inputs or outputs; None if it has no known form."""
    shapes = [_shape(value) for value in outputs]
    if any(value.name.lower().startswith("num_det") for value in outputs):
        return "a head behind TensorRT's EfficientNMS: export without the plug-in"
    if any(len(shape) == 4 for shape in shapes):
        return "the 4-dimensional output is a segmentation model's"
    if len(inputs) > 1 or any(len(shape) == 3 and shape[2] == 4 for shape in shapes):
        return "separate boxes and scores, as of RF-DETR, D-FINE or YOLO-NAS: such heads are not read"
    return None


def _unrolled(about: dict[str, str]) -> int | None:
    """The batch size of an export with nms=True and an open batch, because its suppression is built for this number."""
    batch = about.get("batch", "")
    return int(batch) if _args(about).get("nms") is True and batch.isdigit() and int(batch) > 0 else None


def _args(about: dict[str, str]) -> dict[str, object]:
    """The arguments of Ultralytics' export; empty if the metadata has none."""
    try:
        args = ast.literal_eval(about.get("args", "{}"))
    except (ValueError, SyntaxError):
        return {}
    return args if isinstance(args, dict) else {}


def _is_detr(about: dict[str, str], parts: Sequence[Part]) -> bool:
    said = f"{about.get('head', '')} {about.get('description', '')}"
    return re.search(r"rt-?detr", said, re.IGNORECASE) is not None or parts[:1] == ["shares"]


def _says_finished(about: dict[str, str], parts: Sequence[Part], model: onnx.ModelProto, told: str | None) -> bool:
    """Whether the graph suppresses overlaps itself, according to the user, its metadata or its nodes."""
    if told is not None:
        return told == "end_to_end"
    if MARK in about:
        return about[MARK] == "end_to_end"
    nms = _args(about).get("nms") is True
    return nms or about.get("end2end") == "True" or "classes" in parts or suppresses(model)


def _check_keypoints(about: dict[str, str], pose: bool, unknown: Unknown) -> None:
    shape = about.get("kpt_shape", f"[{KEYPOINTS}, 3]").replace("(", "[").replace(")", "]")
    if pose and shape != f"[{KEYPOINTS}, 3]":
        raise unknown(f"its kpt_shape is {shape}; known is [{KEYPOINTS}, 3]")


def _classes(
    rows: int, pose: bool, said: str | None, known: Sequence[str], parts: Sequence[Part], unknown: Unknown
) -> int:
    """The number of classes of a raw head with `rows` rows.

    Args:
        said: the task in its metadata.
        known: the class names, if any.

    Raises:
        UnknownLayout: the rows are ambiguous, or do not fit the names or the nodes.
    """
    if not (pose or said) and rows == _POSE_ROWS and len(known) != rows - 4 and parts != ["other", "shares"]:
        raise unknown(
            f"{rows} rows are one class with {KEYPOINTS} keypoints, or {rows - 4} classes, and neither its metadata "
            "(task, names) nor its last nodes show which. For the former: make models POSE=…; for the latter: DETECT=… "
            f"with {rows - 4} NAMES"
        )
    extra = 3 * KEYPOINTS if pose else 0
    classes = rows - 4 - extra
    if classes < 1:
        raise unknown(
            f"a pose model has {_POSE_ROWS} rows at least: 4, a class, x, y and confidence of {KEYPOINTS} keypoints"
        )
    if not pose and len(parts) > 2:
        raise unknown(
            "its rows after the scores are not classes, but masks, an angle or keypoints. Export a detection model, or "
            "install it as a pose model (make models POSE=…)"
        )
    if known and len(known) != classes:
        hint = {
            1: ": oriented boxes have one more row, an angle; YOLOv5 and YOLOX have an objectness",
            32: ": a segmentation model has 32 more rows",
        }.get(classes - len(known), "")
        raise unknown(f"{rows} rows are {classes} classes, but the number of names is {len(known)}{hint}")
    return classes


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def _describe(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dims = ", ".join("?" if dim is None else str(dim) for dim in _shape(value))
    return f"{value.name} {kind} [{dims}]"


def _size(model: onnx.ModelProto, dims: list[int | None], unknown: UnknownLayout) -> tuple[int, int]:
    """Height and width of the input; if they are open, the metadata's `imgsz`.

    Raises:
        UnknownLayout: they are open, and the metadata has no `imgsz`.
    """
    if None not in dims:
        return dims[0], dims[1]  # type: ignore[return-value]
    try:
        size = ast.literal_eval(metadata(model).get("imgsz", "None"))
    except (ValueError, SyntaxError):
        size = None
    if isinstance(size, int):
        size = [size, size]
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise UnknownLayout(
            f"{unknown}\nheight and width are open and the metadata has no `imgsz`: export with a fixed size"
        )
    return size[0], size[1]


def _inferred_head(model: onnx.ModelProto, name: str, height: int, width: int, nhwc: bool) -> list[int | None]:
    """The output's shape with the given height and width."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name == name:
            value.type.tensor_type.shape.dim[1 if nhwc else 2].dim_value = height
            value.type.tensor_type.shape.dim[2 if nhwc else 3].dim_value = width
    declared = _shape(model.graph.output[0])
    for dim in fixed.graph.output[0].type.tensor_type.shape.dim:
        if not dim.dim_value:
            dim.Clear()
    del fixed.graph.value_info[:]
    inferred = _shape(shape_inference.infer_shapes(fixed, data_prop=True).graph.output[0])
    return [given or found for given, found in zip(declared, inferred, strict=False)]
