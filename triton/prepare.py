"""Prepares an Ultralytics-style ONNX for serving: takes bytes and returns a row for each candidate. Works offline.

    python triton/prepare.py yolov8n.onnx -o prepared.onnx

before                                             after
images      FP32/FP16 [N, 3, H, W], 0..1, RGB      images      UINT8 [N, H, W, 3], RGB
raw head    [N, 4 + classes, A], [N, 56, A]        detections  FP32 [N, A, 6], [N, A, 57]
end-to-end  [N, K, 6], [N, K, 57]                  detections  FP32 [N, K, 6], [N, K, 57]

The input has a quarter of the bytes, and the output of a detection model a fourteenth. A row is x1, y1, x2, y2 in input
pixels, score, class, and for poses x, y, confidence of 17 keypoints. Every anchor keeps its row, as only the service
knows the threshold and the requested classes. The service also suppresses overlaps, unless the source graph does; the
metadata's `sightline_layout` records this. The weights are not changed, and the metadata (`names`, `task`, `imgsz`) is
copied. A JSON file beside the graph, with the same name, describes it and has its SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from layouts import KEYPOINTS, MARK, Layout, SharedShape, UnknownLayout, class_names, load, metadata, read_layout
from onnx import TensorProto, compose, helper, numpy_helper
from probe import default_python, end_to_end_problem

PREFIX = "net/"
"""Prefix of all names of the source graph, so that the added names cannot be equal to one of them."""


@dataclass(frozen=True)
class Sheet:
    """The JSON beside a prepared graph."""

    source: str
    source_sha256: str
    sha256: str
    task: str
    names: list[str]
    height: int
    width: int
    candidates: int
    columns: int
    layout: str
    rows: str = "prepared"
    """The meaning of the graph's rows: `prepared` (with overlaps) or `end_to_end`."""
    batch: int | None = None
    """The graph's fixed batch size; None: it accepts any."""


def prepare(
    source: Path,
    target: Path,
    *,
    task: str | None = None,
    given: Sequence[str] | None = None,
    told: str | None = None,
) -> Sheet:
    """Writes the prepared graph to `target` and its sheet to `target` with the suffix .json.

    Args:
        task, given, told: as for `layouts.read_layout`.

    Raises:
        UnknownLayout: the layout is not known, or remains ambiguous.
    """
    model = load(source)
    layout = layout_of(model, source, task=task, given=given, told=told)
    names = class_names(model, layout, given)
    prepared = model if layout.kind == "prepared" else rebuild(model, layout)
    about = metadata(model) | {MARK: layout.rows, "task": "pose" if layout.pose else "detect"}
    if names:
        about["names"] = str(dict(enumerate(names)))
    del prepared.metadata_props[:]
    helper.set_model_props(prepared, about)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(prepared, target)
    sheet = Sheet(
        source=source.name,
        source_sha256=checksum(source),
        sha256=checksum(target),
        task="pose" if layout.pose else "detect",
        names=names,
        height=layout.height,
        width=layout.width,
        candidates=layout.candidates,
        columns=layout.columns,
        layout=layout.kind,
        rows=layout.rows,
        batch=layout.batch,
    )
    target.with_suffix(".json").write_text(json.dumps(asdict(sheet), indent=2) + "\n")
    return sheet


def layout_of(
    model: onnx.ModelProto, source: Path, *, task: str | None, given: Sequence[str] | None, told: str | None
) -> Layout:
    """Recognises the layout by `read_layout`; runs an ambiguous graph once on noise if ONNX Runtime is installed.

    Raises:
        UnknownLayout: the layout is not known, or remains ambiguous.
    """
    try:
        return read_layout(model, source.name, task=task, given=given, told=told)
    except SharedShape as doubt:
        python = default_python()
        if not python.exists():
            raise
        layout = read_layout(model, source.name, task=task, given=given, told="end_to_end")
        wrong = end_to_end_problem(source, (layout.height, layout.width), python)
        if wrong is not None:
            raise UnknownLayout(f"{doubt}\nA run on an image of noise: {wrong}") from None
        return layout


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rebuild(model: onnx.ModelProto, layout: Layout) -> onnx.ModelProto:
    """A graph of the input's conversion, the source graph, and the output's conversion."""
    graph = compose.add_prefix(model, PREFIX).graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    before = _input_nodes(layout)
    after, constants = (_raw_nodes if layout.kind == "raw" else _end2end_nodes)(layout, opset)
    batch: int | str = layout.batch or "N"
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, layout.height, layout.width, 3])
    detections = helper.make_tensor_value_info(
        "detections", TensorProto.FLOAT, [batch, layout.candidates if layout.candidates > 0 else "K", layout.columns]
    )
    scale = numpy_helper.from_array(
        np.asarray(255, np.float16 if layout.input_type == TensorProto.FLOAT16 else np.float32), "scale"
    )
    # The source's `value_info` is left out, because its shapes may contradict the size that is fixed now.
    rebuilt = helper.make_model(
        helper.make_graph(
            [*before, *graph.node, *after],
            "prepared",
            [images],
            [detections],
            [*graph.initializer, scale, *constants],
            sparse_initializer=list(graph.sparse_initializer),
        ),
        opset_imports=list(model.opset_import),
        functions=list(model.functions),
        producer_name="sightline",
    )
    rebuilt.ir_version = model.ir_version
    onnx.checker.check_model(rebuilt)
    return rebuilt


def _input_nodes(layout: Layout) -> list[onnx.NodeProto]:
    """Nodes that convert the input as Ultralytics does: cast to the network's type first, then divide by 255."""
    return [
        helper.make_node("Transpose", ["images"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["pixels"], to=layout.input_type),
        helper.make_node("Div", ["pixels", "scale"], [PREFIX + layout.input_name]),
    ]


def _end2end_nodes(layout: Layout, opset: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    return [helper.make_node("Cast", [PREFIX + layout.output_name], ["detections"], to=TensorProto.FLOAT)], []


def _raw_nodes(layout: Layout, opset: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes that convert [N, C, A] to [N, A, columns]: each anchor's corners, best score, class and keypoints."""
    classes = layout.classes or 0
    channels = 4 + classes + (3 * KEYPOINTS if layout.pose else 0)
    values = {"zero": [0], "two": [2], "four": [4], "end_of_classes": [4 + classes], "axis1": [1]}
    if layout.pose:
        values["channels"] = [channels]
    constants = [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in values.items()]
    constants.append(numpy_helper.from_array(np.asarray(0.5, np.float32), "half"))
    make = helper.make_node
    best = (
        make("ReduceMax", ["scores", "axis1"], ["best"], keepdims=1)
        if opset >= 18
        else make("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=1)
    )
    nodes = [
        make("Cast", [PREFIX + layout.output_name], ["head"], to=TensorProto.FLOAT),
        make("Slice", ["head", "zero", "two", "axis1"], ["centre"]),
        make("Slice", ["head", "two", "four", "axis1"], ["size"]),
        make("Mul", ["size", "half"], ["reach"]),
        make("Sub", ["centre", "reach"], ["low"]),
        make("Add", ["centre", "reach"], ["high"]),
        make("Slice", ["head", "four", "end_of_classes", "axis1"], ["scores"]),
        best,
        make("ArgMax", ["scores"], ["class_index"], axis=1, keepdims=1),
        make("Cast", ["class_index"], ["class"], to=TensorProto.FLOAT),
    ]
    columns = ["low", "high", "best", "class"]
    if layout.pose:
        nodes.append(make("Slice", ["head", "end_of_classes", "channels", "axis1"], ["keypoints"]))
        columns.append("keypoints")
    nodes.append(make("Concat", columns, ["columns"], axis=1))
    nodes.append(make("Transpose", ["columns"], ["detections"], perm=[0, 2, 1]))
    return nodes, constants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an ONNX in Ultralytics' format")
    parser.add_argument("--task", choices=("detect", "pose"), help="the model's task, if its metadata does not name it")
    parser.add_argument(
        "--layout", choices=("raw", "end_to_end"), help="the output's layout, if the graph does not show it"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the prepared ONNX; its JSON goes beside it")
    options = parser.parse_args()
    try:
        sheet = prepare(options.source, options.output, task=options.task, told=options.layout)
    except (UnknownLayout, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(sheet), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
