"""Recognises an ONNX by its shapes and, if these are ambiguous, by its metadata, its last nodes or its `model.yaml`."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, shape_inference
from structure import Part, last_node, parts_of, suppresses

from app.pipeline.layouts import FAMILY_LAYOUTS
from app.pipeline.parameters import TASKS

Unknown = Callable[[str], "UnknownLayout"]
KEYPOINTS = (17, 3)
"""Points of a pose, and numbers of each, where nothing says otherwise: COCO's."""
STRIDES = (8, 16, 32)
MARK = "sightline_layout"
"""Key in a prepared graph's metadata; its value is the meaning of the rows."""
YOLO_LAYOUTS = ("raw", "end_to_end")
"""What a user may say about a head of YOLO."""
LAYOUTS = (*YOLO_LAYOUTS, *FAMILY_LAYOUTS)
"""What a user may say about a head."""

KNOWN = """layouts known (detect, pose, segment, obb, classify: make models DETECT=, POSE=, SEGMENT=, OBB=, CLASSIFY=):
  [N, 4+classes, A]           raw head of YOLOv8 / YOLO11, input FP32 or FP16 [N, 3, H, W]; behind the classes
                              pose: the keypoints (56 rows: one class, 17 points), segment: masks, obb: an angle
  [N, K, 6 + the same]        end-to-end heads (YOLOv10, YOLO26, any export with nms=True)
  [N, K, 6 + the same]        prepared already, input UINT8 [N, H, W, 3]
  [N, classes]                classify
  other families (detect)     a model.yaml beside the ONNX names them: layout: """ + ", ".join(FAMILY_LAYOUTS)
_ANGLE = 1


class UnknownLayout(ValueError):
    """The graph has no known layout. The message names the file, the shapes found and the known ones."""


class SharedShape(UnknownLayout):
    """Two families of models have this shape, and neither metadata nor graph show which it is; a run would."""


@dataclass(frozen=True)
class Layout:
    """The input and outputs of an ONNX."""

    task: str
    """detect, pose, segment, obb or classify."""
    kind: str
    """raw, end2end or prepared; scores, of a classification model; else the layout of another family."""
    height: int
    width: int
    batch: int | None
    """The fixed batch size; None: any."""
    input_name: str
    input_type: int
    outputs: tuple[str, ...]
    """Names; first the one with the rows."""
    output_type: int
    """Type of the first."""
    classes: int | None
    """Number of classes; None if the shape does not show it."""
    extra: int
    """Numbers of a candidate beyond its box, score and class."""
    candidates: int
    """Rows of the prepared graph's output; -1 if only a run shows how many."""
    overlaps: bool
    """Whether the rows overlap, because the graph has not suppressed them."""
    keypoints: tuple[int, int] | None = None
    """Of a pose model: points, and numbers of each."""
    logits: bool | None = None
    """Of a classification model: whether it answers logits; None if the graph does not show it."""

    @property
    def pose(self) -> bool:
        return self.task == "pose"

    @property
    def columns(self) -> int:
        return 6 + self.extra

    @property
    def is_rows(self) -> bool:
        """Whether the head is one of YOLO's, of boxes."""
        return self.kind in ("raw", "end2end", "prepared")

    @property
    def rows(self) -> str:
        """The meaning of the prepared graph's outputs, as a value of the configuration's parameter `layout`.

        A classification model has none.
        """
        if not self.is_rows:
            return "" if self.kind == "scores" else self.kind
        return "prepared" if self.overlaps else "end_to_end"

    @property
    def as_is(self) -> str:
        """The meaning of the unprepared graph's outputs, as a value of the parameter `layout`."""
        return "raw" if self.kind == "raw" else self.rows


def load(source: Path) -> onnx.ModelProto:
    """Loads a graph and sorts its nodes.

    Raises:
        UnknownLayout: the file is not an ONNX, or is damaged.
    """
    try:
        model = onnx.load(source)
        _check_plugins(model, source.name)
        sort_nodes(model.graph)
        onnx.checker.check_model(model)
    except UnknownLayout:
        raise
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise UnknownLayout(f"{source.name}: not a valid ONNX file: {error}") from None
    except Exception as error:  # protobuf's DecodeError has no public module
        if type(error).__name__ != "DecodeError":
            raise
        raise UnknownLayout(f"{source.name}: not an ONNX file: {error}") from None
    return model


def _check_plugins(model: onnx.ModelProto, name: str) -> None:
    plugins = sorted({node.op_type for node in model.graph.node if node.op_type.endswith("_TRT")})
    if plugins:
        raise UnknownLayout(
            f"{name}: has {', '.join(plugins)}, a plug-in that only TensorRT runs. Stage `detect` reads such a head "
            "(layout efficient_nms), but from a Triton of your own that serves the plan. To install it here, export it "
            "without the plug-in"
        )


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
    alone = ["person"] if layout.keypoints == KEYPOINTS and layout.classes in (1, None) else []
    return list(given or names(model) or alone or [f"class_{index}" for index in range(layout.classes or 0)])


def read_layout(
    model: onnx.ModelProto,
    name: str,
    *,
    task: str | None = None,
    given: Sequence[str] | None = None,
    told: str | None = None,
    keypoints: tuple[int, int] | None = None,
    logits: bool | None = None,
) -> Layout:
    """Recognises the graph: by its metadata, then by its last nodes, and by shapes that only one family has.

    Args:
        task: the task that the user installs it for; the metadata's task must not be another.
        given: the user's class names.
        told: the user's layout, one of `LAYOUTS`.
        keypoints: the user's number of keypoints, and of numbers for each.
        logits: what the user says of a classification model's output.

    Raises:
        UnknownLayout: the layout is not known.
        SharedShape: two families of models have this shape, and nothing shows which it is.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    found = "; ".join(_describe(value) for value in (*inputs, *outputs))
    about = metadata(model)

    def unknown(why: str | None = None) -> UnknownLayout:
        return UnknownLayout(f"{name}: found {found}" + (f"\n{why}" if why else "") + f"\n{KNOWN}")

    def check_task(seen: str) -> str:
        if task not in (None, seen):
            raise UnknownLayout(
                f"{name}: is a {seen} model; {task.upper()}= takes one for {task}. It goes with {seen.upper()}=\n"
                f"found {found}"
            )
        return seen

    said = about.get("task")
    if said is not None and said not in TASKS:
        raise unknown(f"it is for the task {said}, which no stage reads; there are {', '.join(TASKS)}")
    if said is not None:
        check_task(said)
    if len(inputs) != 1 or not outputs:
        raise unknown(_several_inputs(inputs))
    value = inputs[0]
    shape, kind = _shape(value), value.type.tensor_type.elem_type
    prepared = kind == TensorProto.UINT8 and len(shape) == 4 and shape[3] == 3
    if not prepared and not (len(shape) == 4 and kind in _FLOATS and shape[1] == 3):
        raise unknown()
    height, width = _size(model, shape[1:3] if prepared else shape[2:4], unknown())
    shapes = [
        _inferred_head(model, value.name, output, height, width, prepared)
        if None in _shape(output)[1:]
        else _shape(output)
        for output in outputs
    ]
    images = {
        "height": height, "width": width, "batch": shape[0] or _unrolled(about),
        "input_name": value.name, "input_type": kind,
    }  # fmt: skip

    def made(seen: str, kind: str, *order: onnx.ValueInfoProto, **more: object) -> Layout:
        rest = {"classes": None, "extra": 0, "candidates": -1, "overlaps": False} | more
        named, first = tuple(output.name for output in order), order[0].type.tensor_type.elem_type
        return Layout(check_task(seen), kind, **images, outputs=named, output_type=first, **rest)  # type: ignore[arg-type]

    heads = [output for output, dims in zip(outputs, shapes, strict=True) if len(dims) == 3]
    parts = parts_of(model, (heads or outputs)[0].name)
    family = told if told not in (None, *YOLO_LAYOUTS) else None
    if family is None and about.get(MARK) in FAMILY_LAYOUTS:
        family = about[MARK]
    if family is None and not prepared:
        family = _family(about, parts, outputs, shapes, list(given or labels(model)), unknown)
    if family is not None:
        return made("detect", family, *outputs)
    if len(outputs) == 1 and len(shapes[0]) == 2:
        classes = shapes[0][1]
        known = list(given or labels(model))
        if known and classes and len(known) != classes:
            raise unknown(f"it has {classes} classes, but the number of names is {len(known)}")
        return made("classify", "scores", *outputs, classes=classes, logits=_logits(model, outputs[0].name, logits))
    masks = [output for output, dims in zip(outputs, shapes, strict=True) if len(dims) == 4]
    if len(heads) != 1 or len(masks) > 1 or len(outputs) != 1 + len(masks):
        raise unknown(_several_outputs(outputs, shapes))
    seen = said or ("segment" if masks else task)
    if masks and seen != "segment":
        check_task("segment")
        raise unknown(f"the 4-dimensional output is a segmentation model's, but its task is {seen}")
    if seen == "segment" and not masks:
        raise unknown("a segmentation model has a second output, the prototypes of its masks [N, masks, h, w]")
    if seen == "classify":
        raise unknown("a classification model has one vector for each image, [N, classes]")
    rows, columns = shapes[outputs.index(heads[0])][1:]
    if said is None and columns == 6 + KEYPOINTS[0] * KEYPOINTS[1] and seen in (None, "detect"):
        seen = "pose"
    elif said is None and columns == 6 and seen == "pose":
        seen = "detect"
    seen = seen or "detect"
    points = _keypoints(about, keypoints, unknown) if seen == "pose" else None
    extra = {
        "pose": (points or KEYPOINTS)[0] * (points or KEYPOINTS)[1],
        "obb": _ANGLE,
        "segment": shapes[outputs.index(masks[0])][1] if masks else 0,
    }.get(seen, 0)
    if extra is None:
        raise unknown("the number of its prototypes is open: export it with a fixed size")
    common = {"extra": extra, "keypoints": (points or KEYPOINTS) if seen == "pose" else None}
    finished = _says_finished(about, parts, model, told)
    if finished and columns is None:
        columns = 6 + extra
    cells = sum((height // stride) * (width // stride) for stride in STRIDES)
    if columns == 6 + extra and told != "raw" and (prepared or finished or (rows or 0) not in (cells, 3 * cells)):
        if not prepared and not finished:
            boxes = "cx, cy, w, h" if seen == "obb" else "x1, y1, x2, y2"
            raise SharedShape(
                f"{name}: found {found}\n"
                f"[N, {rows or '?'}, {columns}] could be an end-to-end YOLO's rows ({boxes}, score, class) or "
                "those of RT-DETR (cx, cy, w, h from 0 to 1), and neither its metadata (end2end, args, head) nor its "
                f"last nodes show which. If it is the former: make models LAYOUT=end_to_end\n{KNOWN}"
            )
        overlaps = prepared and not finished
        return made(
            seen, "prepared" if prepared else "end2end", heads[0], *masks, candidates=rows or -1, overlaps=overlaps,
            **common,
        )  # fmt: skip
    if prepared or rows is None or rows < 5:
        raise unknown()
    if finished:
        raise unknown(
            f"by its metadata or its last nodes it suppresses overlaps itself, but it has {columns} columns; a {seen} "
            f"model's has {6 + extra}"
        )
    if columns is not None and (rows >= columns or rows in (cells, 3 * cells)):
        raise unknown(
            f"anchors in rows, as of YOLOv5 and YOLOX (with an objectness): {_SAY} layout: objectness, or "
            "yolox; or export with Ultralytics, as yolov5nu"
        )
    if columns == 3 * cells:
        raise unknown("three anchors a cell, as of YOLOv5 (with an objectness): export with Ultralytics, as yolov5nu")
    known = list(given or labels(model))
    if seen == "pose" and points is None and not known and rows != _POSE_ROWS:
        raise unknown(
            f"{rows} rows: neither its metadata (kpt_shape) nor its names tell keypoints from classes. {_SAY} "
            "kpt_shape: [points, 3]"
        )
    classes = _classes(rows, seen, extra, said, known, parts, unknown)
    return made(seen, "raw", heads[0], *masks, classes=classes, candidates=columns or cells, overlaps=True, **common)


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_POSE_ROWS = 5 + KEYPOINTS[0] * KEYPOINTS[1]
_SAY = "say in a model.yaml beside the ONNX"


def _several_inputs(inputs: Sequence[onnx.ValueInfoProto]) -> str | None:
    if any("target_size" in value.name for value in inputs):
        return (
            "it is an RT-DETR or D-FINE with its post-processor: export it without (layout: boxes_logits), or make "
            "orig_target_sizes a constant, [[width, height]] of the input (layout: rows_apart)"
        )
    return None


def _several_outputs(outputs: Sequence[onnx.ValueInfoProto], shapes: Sequence[list[int | None]]) -> str | None:
    """Describes a graph with several outputs, who reads it, and what to say; None if it has no known form."""
    if any(value.name.lower().startswith("num_det") for value in outputs):
        return f"a head as behind TensorRT's EfficientNMS (stage `detect`): {_SAY} layout: efficient_nms"
    if any(len(shape) == 4 for shape in shapes):
        return "the 4-dimensional output is a segmentation model's, which has one more, of rows: make models SEGMENT="
    if any(len(shape) in (2, 3) and shape[-1] == 4 for shape in shapes):
        if any(len(shape) < 3 and shape[-1] != 4 for shape in shapes):
            return (
                "boxes, scores and labels apart, as of RT-DETR or D-FINE with their post-processor, or of torchvision "
                f"(stage `detect`): {_SAY} layout: rows_apart, or torchvision"
            )
        return (
            "separate boxes and scores, as of RF-DETR and D-FINE (layout: boxes_logits; RF-DETR: also mean and std) or "
            f"YOLO-NAS (layout: boxes_scores); stage `detect` reads them: {_SAY} which"
        )
    return None


def _family(
    about: dict[str, str],
    parts: Sequence[Part],
    outputs: Sequence[onnx.ValueInfoProto],
    shapes: Sequence[list[int | None]],
    known: Sequence[str],
    unknown: Unknown,
) -> str | None:
    """The layout of a head of another family that metadata or names prove; None if it is none.

    Raises:
        UnknownLayout: it is one of RT-DETR, and which one is not certain.
    """
    if {"num_dets", "det_boxes", "det_scores", "det_classes"} <= {output.name for output in outputs}:
        return "efficient_nms"
    said = f"{about.get('head', '')} {about.get('description', '')}"
    named = re.search(r"rt-?detr", said, re.IGNORECASE) is not None
    if len(outputs) != 1 or len(shapes[0]) != 3 or not (named or parts[:1] == ["shares"]):
        return None
    columns = shapes[0][2]
    picked = "classes" in parts
    if named and known and columns is not None:
        if columns == 6 and (len(known) != 2 or picked):
            return "rtdetr_rows"
        if columns == 4 + len(known) and (len(known) != 2 or parts == ["shares", "shares"]):
            return "rtdetr"
    raise unknown(
        "it is RT-DETR's head, or another whose boxes are relative to the image (cx, cy, w, h from 0 to 1), which "
        f"stage `detect` reads. {_SAY} layout: rtdetr (one score a class), or rtdetr_rows (score, class)"
    )


def _logits(model: onnx.ModelProto, output: str, told: bool | None) -> bool | None:
    """Whether a classification model answers logits: by the user, else by its last node; None if neither shows it."""
    if told is not None:
        return told
    last = last_node(model, output)
    if last in ("Softmax", "Sigmoid"):
        return False
    return True if last in ("Gemm", "MatMul", "Conv", "LogSoftmax") else None


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


def _says_finished(about: dict[str, str], parts: Sequence[Part], model: onnx.ModelProto, told: str | None) -> bool:
    """Whether the graph suppresses overlaps itself, according to the user, its metadata or its nodes."""
    if told is not None:
        return told == "end_to_end"
    if MARK in about:
        return about[MARK] == "end_to_end"
    nms = _args(about).get("nms") is True
    return nms or about.get("end2end") == "True" or "classes" in parts or suppresses(model)


def _keypoints(about: dict[str, str], told: tuple[int, int] | None, unknown: Unknown) -> tuple[int, int] | None:
    """Number of keypoints and of numbers for each: the user's, else the metadata's; None if neither says it."""
    if told is not None or "kpt_shape" not in about:
        return told
    try:
        points, numbers = (int(value) for value in ast.literal_eval(about["kpt_shape"]))
    except (ValueError, SyntaxError, TypeError):
        points, numbers = 0, 0
    if points < 1 or numbers not in (2, 3):
        raise unknown(f"its kpt_shape is {about['kpt_shape']}; want the number of points, then 2 or 3: [17, 3]")
    return points, numbers


def _classes(
    rows: int,
    task: str,
    extra: int,
    said: str | None,
    known: Sequence[str],
    parts: Sequence[Part],
    unknown: Unknown,
) -> int:
    """The number of classes of a raw head with `rows` rows.

    Args:
        extra: rows behind the classes.
        said: the task in its metadata.
        known: the class names, if any.

    Raises:
        UnknownLayout: the rows are ambiguous, or do not fit the names or the nodes.
    """
    if (
        task == "detect" and not said and rows == _POSE_ROWS
        and len(known) != rows - 4 and parts != ["other", "shares"]
    ):  # fmt: skip
        raise unknown(
            f"{rows} rows are one class with {KEYPOINTS[0]} keypoints, or {rows - 4} classes, and neither its metadata "
            "(task, names) nor its last nodes show which. For the former: make models POSE=…; for the latter: DETECT=… "
            f"with {rows - 4} NAMES"
        )
    classes = rows - 4 - extra
    if classes < 1:
        raise unknown(
            f"a {task} model has {5 + extra} rows at least: 4, a class, and {extra} more"
            + (
                f" (x, y and confidence of {KEYPOINTS[0]} keypoints, where its kpt_shape is no other)"
                if task == "pose"
                else ""
            )
        )
    if task == "detect" and len(parts) > 2:
        raise unknown(
            "its rows after the scores are not classes, but masks, an angle or keypoints. Install it as what it is "
            "(make models OBB=, POSE=; a segmentation model has a second output), or export a detection model"
        )
    if task == "obb" and parts == ["other", "shares"]:
        raise unknown("behind its scores there is no angle: it is a detection model's head. It goes with DETECT=")
    if known and len(known) != classes:
        hint = {
            1: ": oriented boxes have one more row, an angle (OBB=); YOLOv5 and YOLOX have an objectness",
            32: ": a segmentation model has 32 more rows (SEGMENT=)",
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


def _inferred_head(
    model: onnx.ModelProto, name: str, output: onnx.ValueInfoProto, height: int, width: int, nhwc: bool
) -> list[int | None]:
    """The output's shape with the given height and width."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name == name:
            value.type.tensor_type.shape.dim[1 if nhwc else 2].dim_value = height
            value.type.tensor_type.shape.dim[2 if nhwc else 3].dim_value = width
    for value in fixed.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.Clear()
    del fixed.graph.value_info[:]
    inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph.output
    found = next(_shape(value) for value in inferred if value.name == output.name)
    return [given or dim for given, dim in zip(_shape(output), found, strict=False)]
