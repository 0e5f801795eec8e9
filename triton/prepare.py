"""Prepares an ONNX for serving: it then takes bytes, and of a YOLO returns a row for each candidate. Works offline.

    python triton/prepare.py yolov8n.onnx -o prepared.onnx

before                                             after
images      FP32/FP16 [N, 3, H, W]                 images      UINT8 [N, H, W, 3], RGB
raw head    [N, 4 + classes + extra, A]            detections  FP32 [N, A, 6 + extra]
end-to-end  [N, K, 6 + extra]                      detections  FP32 [N, K, 6 + extra]

The input has a quarter of the bytes, and the output of a detection model a fourteenth. A row is x1, y1, x2, y2 in input
pixels, score, class; then for poses the numbers of each keypoint, and for segmentation the masks' coefficients. The box
of an oriented one is cx, cy, w, h, and its angle is last. Segmentation (`segments`) has a second output, `protos`;
classification has `scores` [N, classes]. Of other families, only the input is converted.

Every anchor keeps its row, as only the service knows the threshold and the requested classes. The service also
suppresses overlaps, unless the source graph does; the metadata's `sightline_layout` records this. The weights are not
changed, and the metadata (`names`, `task`, `imgsz`) is copied. A JSON file beside the graph, with the same name,
describes it and has its SHA-256.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
from layouts import MARK, YOLO_LAYOUTS, Layout, SharedShape, UnknownLayout, class_names, load, metadata, read_layout
from model_yaml import SILENT, Image, ModelYaml, read_model_yaml
from onnx import TensorProto, compose, helper, numpy_helper
from probe import default_python, end_to_end_problem

from app.pipeline.parameters import TASKS

PREFIX = "net/"
"""Prefix of all names of the source graph, so that the added names cannot be equal to one of them."""
ROWS = {"detect": "detections", "pose": "detections", "segment": "segments", "obb": "oriented"}
"""By task: the name of the prepared rows."""


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
    """The meaning of the graph's outputs: `prepared` (with overlaps), `end_to_end`, or another family's layout."""
    batch: int | None = None
    """The graph's fixed batch size; None: it accepts any."""
    parameters: dict[str, str] = field(default_factory=dict)
    """String parameters of the configuration, besides names."""


def prepare(
    source: Path,
    target: Path,
    *,
    task: str | None = None,
    given: Sequence[str] | None = None,
    told: str | None = None,
    about: ModelYaml = SILENT,
) -> Sheet:
    """Writes the prepared graph to `target` and its sheet to `target` with the suffix .json.

    Args:
        task, given, told: as for `layouts.read_layout`.
        about: the source's `model.yaml`.

    Raises:
        UnknownLayout: the layout is not known, or remains ambiguous.
    """
    model = load(source)
    layout = layout_of(model, source, task=task, given=given, told=told, about=about)
    image = about.image(layout.rows, layout.task)
    if layout.input_type == TensorProto.UINT8:
        _check_bytes(source, image)
    names = class_names(model, layout, given or about.names)
    parameters = parameters_of(model, layout, about, image)
    prepared = model if layout.input_type == TensorProto.UINT8 else rebuild(model, layout, image)
    properties = metadata(model) | ({MARK: layout.rows} if layout.rows else {}) | {"task": layout.task}
    if names:
        properties["names"] = str(dict(enumerate(names)))
    del prepared.metadata_props[:]
    helper.set_model_props(prepared, properties)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(prepared, target)
    sheet = Sheet(
        source=source.name,
        source_sha256=checksum(source),
        sha256=checksum(target),
        task=layout.task,
        names=names,
        height=layout.height,
        width=layout.width,
        candidates=layout.candidates,
        columns=layout.columns,
        layout=layout.kind,
        rows=layout.rows,
        batch=layout.batch,
        parameters=parameters,
    )
    target.with_suffix(".json").write_text(json.dumps(asdict(sheet), indent=2) + "\n")
    return sheet


def layout_of(
    model: onnx.ModelProto,
    source: Path,
    *,
    task: str | None,
    given: Sequence[str] | None,
    told: str | None,
    about: ModelYaml = SILENT,
) -> Layout:
    """Recognises the layout by `read_layout`; runs an ambiguous graph once on noise if ONNX Runtime is installed.

    Raises:
        UnknownLayout: the layout is not known, or remains ambiguous.
    """
    if about.task and task and about.task != task:
        raise UnknownLayout(
            f"{source.name}: {about.path} says task: {about.task}; {task.upper()}= takes a model for {task}. It goes "
            f"with {about.task.upper()}="
        )
    hints = {
        "task": task or about.task,
        "given": given or about.names,
        "told": told or about.layout,
        "keypoints": about.kpt_shape,
        "logits": about.logits,
    }
    try:
        return read_layout(model, source.name, **hints)
    except SharedShape as doubt:
        python = default_python()
        if not python.exists():
            raise
        layout = read_layout(model, source.name, **hints | {"told": "end_to_end"})
        wrong = end_to_end_problem(source, (layout.height, layout.width), python, oriented=layout.task == "obb")
        if wrong is not None:
            raise UnknownLayout(f"{doubt}\nA run on an image of noise: {wrong}") from None
        return layout


def parameters_of(
    model: onnx.ModelProto, layout: Layout, about: ModelYaml, image: Image, *, as_is: bool = False
) -> dict[str, str]:
    """The configuration's string parameters that tell the service what the model is, besides its names.

    Args:
        as_is: for the graph itself, whose images the service scales; else for the prepared graph.
    """
    meaning = layout.as_is if as_is else layout.rows
    found = {"task": layout.task, "input_size": f"{layout.height}x{layout.width}", "resize": image.resize}
    if meaning:
        found["layout"] = meaning
    if not as_is or layout.input_type == TensorProto.UINT8:
        found["colour"] = "rgb"
    else:
        found |= {"colour": image.colour, "scale": str(image.scale)}
        found |= {
            key: json.dumps(value)
            for key, value in (("mean", image.mean), ("std", image.std))
            if value != getattr(Image, key)
        }
    if layout.logits is not None:
        found["logits"] = "true" if layout.logits else "false"
    if layout.keypoints is not None:
        found["kpt_shape"] = "x".join(map(str, layout.keypoints))
        points = _kpt_names(model, about)
        for what, values in (("kpt_names", points), ("skeleton", about.skeleton)):
            if values is not None:
                found[what] = json.dumps(values, ensure_ascii=False)
        _check_points(layout, about, points)
    return found


def _kpt_names(model: onnx.ModelProto, about: ModelYaml) -> tuple[str, ...] | None:
    """Names of the keypoints: the user's, else those of the metadata, which has them by class."""
    if about.kpt_names is not None:
        return about.kpt_names
    try:
        given = ast.literal_eval(metadata(model).get("kpt_names", "None"))
    except (ValueError, SyntaxError):
        return None
    if isinstance(given, dict):
        given = next(iter(given.values()), None)
    return tuple(map(str, given)) if isinstance(given, list | tuple) and given else None


def _check_points(layout: Layout, about: ModelYaml, names: Sequence[str] | None) -> None:
    count = (layout.keypoints or (0, 0))[0]
    if names is not None and len(names) != count:
        raise UnknownLayout(f"kpt_names has {len(names)} names, but the model has {count} keypoints")
    beyond = [index for pair in about.skeleton or () for index in pair if index >= count]
    if beyond:
        raise UnknownLayout(
            f"{about.path}: skeleton: {beyond[0]}; the model has {count} keypoints, from 0 to {count - 1}"
        )


def _check_bytes(source: Path, image: Image) -> None:
    plain = Image(resize=image.resize, scale=image.scale, colour=image.colour)
    if image != plain:
        raise UnknownLayout(
            f"{source.name}: takes UINT8, pixels as they are, so that `mean` and `std` in its model.yaml have no "
            "effect: remove them"
        )


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rebuild(model: onnx.ModelProto, layout: Layout, image: Image) -> onnx.ModelProto:
    """A graph of the input's conversion, the source graph, and the output's conversion."""
    graph = compose.add_prefix(model, PREFIX).graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    before, pixels = _input_nodes(layout, image)
    after, constants, outputs = _output_nodes(model, layout, opset)
    images = helper.make_tensor_value_info(
        "images", TensorProto.UINT8, [layout.batch or "N", layout.height, layout.width, 3]
    )
    # The source's `value_info` is left out, because its shapes may contradict the size that is fixed now.
    rebuilt = helper.make_model(
        helper.make_graph(
            [*before, *graph.node, *after],
            "prepared",
            [images],
            outputs,
            [*graph.initializer, *pixels, *constants],
            sparse_initializer=list(graph.sparse_initializer),
        ),
        opset_imports=list(model.opset_import),
        functions=list(model.functions),
        producer_name="sightline",
    )
    rebuilt.ir_version = model.ir_version
    onnx.checker.check_model(rebuilt)
    return rebuilt


def _input_nodes(layout: Layout, image: Image) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes that convert the input.

    Pixels that are only divided by 255 are converted as Ultralytics does: cast to the network's type first. Others are
    computed in float32, as by torchvision's `normalize`, then cast.
    """
    make = helper.make_node
    plain = Image(resize=image.resize) == image
    work = layout.input_type if plain else TensorProto.FLOAT
    kind = np.float16 if work == TensorProto.FLOAT16 else np.float32
    nodes = [
        make("Transpose", ["images"], ["nchw"], perm=[0, 3, 1, 2]),
        make("Cast", ["nchw"], ["pixels"], to=work),
    ]
    constants = []
    steps = []
    if image.colour == "bgr":
        steps.append(("Gather", np.array([2, 1, 0], np.int64), {"axis": 1}))
    if image.scale != 1:
        steps.append(("Div", np.asarray(image.scale, kind), {}))
    for operation, values, nothing in (("Sub", image.mean, Image.mean), ("Div", image.std, Image.std)):
        if values != nothing:
            steps.append((operation, np.array(values, kind).reshape(1, 3, 1, 1), {}))
    last = "pixels"
    for number, (operation, value, attributes) in enumerate(steps):
        constants.append(numpy_helper.from_array(value, f"image/{number}"))
        nodes.append(make(operation, [last, f"image/{number}"], [f"image/{number}/out"], **attributes))
        last = f"image/{number}/out"
    nodes.append(make("Cast", [last], [PREFIX + layout.input_name], to=layout.input_type))
    if plain:  # the division already gives the network's type
        nodes.pop()
        nodes[-1].output[0] = PREFIX + layout.input_name
    return nodes, constants


def _output_nodes(
    model: onnx.ModelProto, layout: Layout, opset: int
) -> tuple[list[onnx.NodeProto], list[TensorProto], list[onnx.ValueInfoProto]]:
    """Nodes that convert the outputs, their constants, and the new outputs."""
    make = helper.make_node
    given = {output.name: output for output in model.graph.output}
    batch: int | str = layout.batch or "N"
    first, *others = layout.outputs
    if not layout.is_rows and layout.kind != "scores":
        return (
            [make("Identity", [PREFIX + name], [name]) for name in layout.outputs],
            [],
            [*map(given.get, layout.outputs)],
        )
    if layout.kind == "scores":
        nodes, constants, name = [make("Cast", [PREFIX + first], ["scores"], to=TensorProto.FLOAT)], [], "scores"
        shape: list[int | str] = [batch, layout.classes or "C"]
    else:
        name = ROWS[layout.task]
        if layout.kind == "raw":
            nodes, constants = _raw_nodes(layout, opset, name)
        else:
            nodes, constants = [make("Cast", [PREFIX + first], [name], to=TensorProto.FLOAT)], []
        shape = [batch, layout.candidates if layout.candidates > 0 else "K", layout.columns]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    for other in others:
        nodes.append(make("Identity", [PREFIX + other], ["protos"]))
        protos = onnx.ValueInfoProto()
        protos.CopyFrom(given[other])
        protos.name = "protos"
        outputs.append(protos)
    return nodes, constants, outputs


def _raw_nodes(layout: Layout, opset: int, name: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes that convert [N, C, A] to [N, A, columns]: each anchor's box, best score, class and further numbers."""
    classes = layout.classes or 0
    channels = 4 + classes + layout.extra
    values = {"zero": [0], "two": [2], "four": [4], "end_of_classes": [4 + classes], "axis1": [1]}
    if layout.extra:
        values["channels"] = [channels]
    constants = [numpy_helper.from_array(np.asarray(value, np.int64), key) for key, value in values.items()]
    constants.append(numpy_helper.from_array(np.asarray(0.5, np.float32), "half"))
    make = helper.make_node
    best = (
        make("ReduceMax", ["scores", "axis1"], ["best"], keepdims=1)
        if opset >= 18
        else make("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=1)
    )
    nodes = [
        make("Cast", [PREFIX + layout.outputs[0]], ["head"], to=TensorProto.FLOAT),
        make("Slice", ["head", "four", "end_of_classes", "axis1"], ["scores"]),
        best,
        make("ArgMax", ["scores"], ["class_index"], axis=1, keepdims=1),
        make("Cast", ["class_index"], ["class"], to=TensorProto.FLOAT),
    ]
    if layout.task == "obb":  # the corners of its box are those of no rectangle on the image's axes
        nodes.append(make("Slice", ["head", "zero", "four", "axis1"], ["box"]))
    else:
        nodes += [
            make("Slice", ["head", "zero", "two", "axis1"], ["centre"]),
            make("Slice", ["head", "two", "four", "axis1"], ["size"]),
            make("Mul", ["size", "half"], ["reach"]),
            make("Sub", ["centre", "reach"], ["low"]),
            make("Add", ["centre", "reach"], ["high"]),
            make("Concat", ["low", "high"], ["box"], axis=1),
        ]
    columns = ["box", "best", "class"]
    if layout.extra:
        nodes.append(make("Slice", ["head", "end_of_classes", "channels", "axis1"], ["extra"]))
        columns.append("extra")
    nodes.append(make("Concat", columns, ["columns"], axis=1))
    nodes.append(make("Transpose", ["columns"], [name], perm=[0, 2, 1]))
    return nodes, constants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an ONNX; a model.yaml beside it is read")
    parser.add_argument("--task", choices=TASKS, help="the model's task, if its metadata does not name it")
    parser.add_argument("--layout", choices=YOLO_LAYOUTS, help="the output's layout, if the graph does not show it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the prepared ONNX; its JSON goes beside it")
    options = parser.parse_args()
    try:
        about = read_model_yaml(options.source)
        sheet = prepare(options.source, options.output, task=options.task, told=options.layout, about=about)
    except (UnknownLayout, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(sheet), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
