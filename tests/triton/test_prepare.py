import json
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
from layouts import UnknownLayout
from model_yaml import ModelYaml
from onnx import TensorProto, helper, numpy_helper
from prepare import checksum, prepare

CLASSES = 5
SPREAD = np.random.default_rng(7)
# A colour a cell: the mean of noise would be the same grey everywhere.
IMAGES = SPREAD.integers(0, 256, (3, 20, 24, 3), np.uint8).repeat(graphs.CELL, axis=1).repeat(graphs.CELL, axis=2)
NAMES = {"names": str({index: f"thing {index}" for index in range(CLASSES)}), "task": "detect"}


def weights_of(channels: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of some tens of pixels, scores that differ from cell to cell."""
    spread = np.random.default_rng(seed)
    weights, bias = spread.normal(0, 1, (channels, 3)), spread.normal(0, 0.2, channels)
    weights[:4] *= 40
    # Grey scores 0 in every class: which is best depends on the colour alone.
    weights[4:] -= weights[4:].mean(axis=1, keepdims=True)
    bias[:4], bias[4:] = (90, 80, 60, 50), 0
    return weights.astype(np.float16).astype(float), bias.astype(np.float16).astype(float)


def assert_same_rows(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-3) -> None:
    """Each anchor's row; where two classes score alike but for rounding, either is its class."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    apart = np.abs(found - expected).max(axis=2)
    assert np.count_nonzero(apart > tolerance) <= apart.size // 200


@pytest.mark.parametrize("opset", [11, 12, 17, 20])
def test_c2_raw_head_keeps_a_row_for_every_anchor(tmp_path: Path, run_onnx, opset: int) -> None:
    weights, bias = weights_of(4 + CLASSES)
    source = graphs.save(tmp_path / "own.onnx", weights, bias, opset=opset, metadata=NAMES)
    prepare(source, tmp_path / "prepared.onnx")
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), CLASSES)
    assert len(set(expected[..., 5].ravel())) > 1
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


def test_frames_of_a_batch_do_not_mix(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + CLASSES)
    prepare(graphs.save(tmp_path / "own.onnx", weights, bias), tmp_path / "prepared.onnx")
    together = run_onnx(tmp_path / "prepared.onnx", IMAGES)
    for result, image in zip(together, IMAGES, strict=True):
        assert_same_rows(run_onnx(tmp_path / "prepared.onnx", image[None]), result[None], tolerance=1e-4)


def test_pose_head_keeps_its_keypoints(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(56)
    prepare(graphs.save(tmp_path / "pose.onnx", weights, bias, metadata={"task": "pose"}), tmp_path / "prepared.onnx")
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), 1)
    assert expected.shape == (3, 480, 57)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


def test_pose_of_several_classes(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + 3 + 51)
    metadata = {"task": "pose", "kpt_shape": "[17, 3]", "names": "{0: 'player', 1: 'keeper', 2: 'referee'}"}
    sheet = prepare(graphs.save(tmp_path / "own.onnx", weights, bias, metadata=metadata), tmp_path / "prepared.onnx")
    assert (sheet.task, sheet.names) == ("pose", ["player", "keeper", "referee"])
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), 3)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


@pytest.mark.parametrize(("points", "numbers"), [(21, 3), (4, 2)])
def test_other_keypoints(tmp_path: Path, run_onnx, points: int, numbers: int) -> None:
    weights, bias = weights_of(4 + 2 + points * numbers)
    metadata = {"task": "pose", "kpt_shape": f"[{points}, {numbers}]", "names": "{0: 'left', 1: 'right'}"}
    metadata["kpt_names"] = str({0: [f"p{number}" for number in range(points)]})
    sheet = prepare(graphs.save(tmp_path / "hand.onnx", weights, bias, metadata=metadata), tmp_path / "prepared.onnx")
    assert (sheet.columns, sheet.names) == (6 + points * numbers, ["left", "right"])
    assert sheet.parameters["kpt_shape"] == f"{points}x{numbers}"
    assert json.loads(sheet.parameters["kpt_names"])[-1] == f"p{points - 1}"
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), 2)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


@pytest.mark.parametrize("shape", ["[21]", "[0, 3]", "[17, 4]", "many"])
def test_keypoints_that_cannot_be_are_refused(tmp_path: Path, shape: str) -> None:
    weights, bias = weights_of(4 + 1 + 63)
    source = graphs.save(tmp_path / "hand.onnx", weights, bias, metadata={"task": "pose", "kpt_shape": shape})
    with pytest.raises(UnknownLayout, match=r"kpt_shape is .*; want the number of points"):
        prepare(source, tmp_path / "prepared.onnx")


def test_rows_that_are_keypoints_or_classes_ask_for_kpt_shape(tmp_path: Path) -> None:
    weights, bias = weights_of(4 + 1 + 63)
    source = graphs.save(tmp_path / "hand.onnx", weights, bias, metadata={"task": "pose"})
    with pytest.raises(UnknownLayout, match=r"68 rows: neither.*model.yaml.*kpt_shape: \[points, 3\]"):
        prepare(source, tmp_path / "prepared.onnx")
    about = ModelYaml(kpt_shape=(21, 3))
    assert prepare(source, tmp_path / "prepared.onnx", about=about).columns == 69


def test_oriented_boxes_keep_their_centre_and_angle(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + CLASSES + 1)
    source = graphs.save(tmp_path / "own.onnx", weights, bias, metadata=NAMES | {"task": "obb"})
    sheet = prepare(source, tmp_path / "prepared.onnx")
    assert (sheet.task, sheet.columns, sheet.rows) == ("obb", 7, "prepared")
    raw = graphs.head(IMAGES, weights, bias)
    expected = graphs.candidates(raw, CLASSES)
    expected[..., :4] = raw[:, :4].transpose(0, 2, 1)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


def test_masks_keep_their_coefficients_and_prototypes(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + CLASSES + 8)
    source = graphs.save(tmp_path / "own.onnx", weights, bias, masks=8, metadata=NAMES | {"task": "segment"})
    sheet = prepare(source, tmp_path / "prepared.onnx")
    assert (sheet.task, sheet.columns, sheet.rows) == ("segment", 14, "prepared")
    outputs = {value.name: value for value in onnx.load(tmp_path / "prepared.onnx").graph.output}
    assert [dim.dim_value for dim in outputs["protos"].type.tensor_type.shape.dim[1:]] == [8, 40, 48]
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), CLASSES)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)
    protos = run_onnx(tmp_path / "prepared.onnx", IMAGES, output=1)
    np.testing.assert_allclose(protos, graphs.prototypes(IMAGES, 8), atol=1e-4)


def test_scores_of_a_classification_model(tmp_path: Path, run_onnx) -> None:
    source = graphs.classifier(tmp_path / "own.onnx", NAMES | {"task": "classify"})
    sheet = prepare(source, tmp_path / "prepared.onnx")
    assert (sheet.task, sheet.rows, sheet.names[0]) == ("classify", "", "thing 0")
    assert sheet.parameters == {
        "task": "classify", "input_size": "64x64", "resize": "crop", "colour": "rgb", "logits": "false",
    }  # fmt: skip
    images = IMAGES[:, :64, :64]
    np.testing.assert_allclose(run_onnx(tmp_path / "prepared.onnx", images), graphs.scores(images), atol=1e-5)


def test_pixels_become_what_model_yaml_says(tmp_path: Path, run_onnx) -> None:
    source = graphs.classifier(tmp_path / "own.onnx", NAMES | {"task": "classify"})
    images = IMAGES[:, :64, :64]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    about = ModelYaml(colour="bgr", scale=1, mean=mean, std=std)
    prepare(source, tmp_path / "prepared.onnx", about=about)
    wanted = (images[..., ::-1].astype(np.float64) - mean) / std
    found = run_onnx(tmp_path / "prepared.onnx", images)
    np.testing.assert_allclose(found, graphs.scores(wanted * 255), atol=1e-4)


def test_half_precision_is_entered_and_left_inside_the_graph(tmp_path: Path, run_onnx) -> None:
    # One colour: the head is the same everywhere, so that rounding cannot reorder the candidates.
    weights, bias = weights_of(4 + CLASSES)
    images = np.broadcast_to(np.array([200, 40, 120], np.uint8), (2, 160, 192, 3))
    prepare(graphs.save(tmp_path / "half.onnx", weights, bias, half=True, shuffled=True), tmp_path / "prepared.onnx")
    expected = graphs.candidates(graphs.head(images, weights, bias), CLASSES)
    found = run_onnx(tmp_path / "prepared.onnx", images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[..., 4:], expected[..., 4:], atol=5e-3)
    np.testing.assert_allclose(found[..., :4], expected[..., :4], atol=0.15)


@pytest.mark.parametrize("channels", [6, 57])
def test_end_to_end_rows_pass_as_they_are(tmp_path: Path, run_onnx, channels: int) -> None:
    weights, bias = weights_of(channels)
    source = graphs.save(tmp_path / "own.onnx", weights, bias, end2end=True)
    sheet = prepare(source, tmp_path / "prepared.onnx", told="end_to_end")
    assert (sheet.layout, sheet.task) == ("end2end", "pose" if channels == 57 else "detect")
    expected = graphs.head(IMAGES, weights, bias).transpose(0, 2, 1)[:, :300]
    np.testing.assert_allclose(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected, atol=2e-3)


def test_an_open_size_is_taken_from_the_metadata(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + CLASSES)
    source = graphs.save(tmp_path / "own.onnx", weights, bias, open_size=True, metadata={"imgsz": "[160, 192]"})
    sheet = prepare(source, tmp_path / "prepared.onnx")
    assert (sheet.height, sheet.width) == (160, 192)
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), CLASSES)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


def test_a_small_picture(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + CLASSES)
    source = graphs.save(tmp_path / "own.onnx", weights, bias, height=64, width=96)
    sheet = prepare(source, tmp_path / "prepared.onnx")
    assert sheet.candidates == 96
    images = IMAGES[:, :64, :96]
    assert_same_rows(
        run_onnx(tmp_path / "prepared.onnx", images), graphs.candidates(graphs.head(images, weights, bias), CLASSES)
    )


def test_sheet_and_metadata_say_what_it_is(tmp_path: Path) -> None:
    weights, bias = weights_of(4 + CLASSES)
    source = graphs.save(tmp_path / "own.onnx", weights, bias, metadata=NAMES | {"imgsz": "[160, 192]"})
    prepare(source, tmp_path / "prepared.onnx")
    sheet = json.loads((tmp_path / "prepared.json").read_text())
    assert sheet["names"] == [f"thing {index}" for index in range(CLASSES)]
    assert (sheet["height"], sheet["width"], sheet["candidates"], sheet["columns"]) == (160, 192, 480, 6)
    assert sheet["sha256"] == checksum(tmp_path / "prepared.onnx")
    assert sheet["source_sha256"] == checksum(source)
    kept = {entry.key: entry.value for entry in onnx.load(tmp_path / "prepared.onnx").metadata_props}
    assert kept == NAMES | {"imgsz": "[160, 192]", "sightline_layout": "prepared"}


def test_prepared_twice_is_prepared_once(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + CLASSES)
    prepare(graphs.save(tmp_path / "own.onnx", weights, bias, metadata=NAMES), tmp_path / "once.onnx")
    sheet = prepare(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert sheet.layout == "prepared"
    assert sheet.names == [f"thing {index}" for index in range(CLASSES)]
    once, twice = (run_onnx(tmp_path / name, IMAGES) for name in ("once.onnx", "twice.onnx"))
    np.testing.assert_array_equal(once, twice)


def test_56_rows_are_52_classes_when_the_names_say_so(tmp_path: Path) -> None:
    weights, bias = weights_of(56)
    names = {"names": str({index: str(index) for index in range(52)})}
    sheet = prepare(graphs.save(tmp_path / "own.onnx", weights, bias, metadata=names), tmp_path / "prepared.onnx")
    assert (sheet.task, len(sheet.names)) == ("detect", 52)


@pytest.mark.parametrize(
    ("given", "head"),
    [
        ([1, 3, 160, 192], [1, 84, 20, 24]),
        ([1, 3, 160, 192], [1, 480, 84]),
        ([1, 1, 160, 192], [1, 84, 480]),
    ],
)
def test_unknown_shapes_are_refused_by_name(tmp_path: Path, given: list[int], head: list[int]) -> None:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("data", given), ("logits", head))
    ]
    constant = helper.make_node("ConstantOfShape", ["shape"], ["logits"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [len(head)], head)
    graph = helper.make_graph([constant], "g", values[:1], values[1:], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "odd.onnx")
    with pytest.raises(UnknownLayout) as refused:
        prepare(tmp_path / "odd.onnx", tmp_path / "prepared.onnx")
    message = str(refused.value)
    assert "odd.onnx" in message
    assert f"logits FLOAT [{', '.join(map(str, head))}]" in message
    assert "[N, 4+classes, A]" in message
    assert not (tmp_path / "prepared.onnx").exists()


def test_not_an_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "best.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(UnknownLayout, match=r"best\.onnx: not"):
        prepare(tmp_path / "best.onnx", tmp_path / "prepared.onnx")


def saved(path: Path, nodes: list, outputs: dict[str, list], constants: dict[str, np.ndarray], **metadata: str) -> Path:
    """A graph of these nodes behind `images` [1, 3, 160, 192]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 160, 192])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def rows_of(path: Path, boxes: np.ndarray, *, shares: bool, indexed: bool = False, **metadata: str) -> Path:
    """`[1, 300, 6]`: these boxes [300, 4], whatever the picture; `indexed`: the class comes out of a TopK."""
    random = np.random.default_rng(1)
    values = {
        "boxes": np.log(boxes / (1 - boxes))[None].astype(np.float32) if shares else boxes[None].astype(np.float32),
        "rest": random.random((1, 300, 1 if indexed else 2)).astype(np.float32),
        "k": np.array([300]),
    }
    make = helper.make_node
    nodes = [make("Sigmoid" if shares else "Identity", ["boxes"], ["where"]), make("Sigmoid", ["rest"], ["what"])]
    parts = ["where", "what"]
    if indexed:
        nodes += [
            make("TopK", ["what", "k"], ["best", "index"], axis=1),
            make("Cast", ["index"], ["class"], to=TensorProto.FLOAT),
        ]
        parts = ["where", "best", "class"]
    nodes.append(make("Concat", parts, ["output0"], axis=2))
    return saved(path, nodes, {"output0": [1, 300, 6]}, values, **metadata)


def corners() -> np.ndarray:
    low = np.random.default_rng(2).uniform(0, 100, (300, 2))
    return np.concatenate((low, low + 30), axis=1)


SHARES = np.random.default_rng(3).uniform(0.1, 0.9, (300, 4))
DETECT = {"task": "detect", "names": "{0: 'red', 1: 'green'}"}


@pytest.mark.parametrize(
    "metadata",
    [
        {"end2end": "True"},
        {"args": "{'nms': True, 'batch': 1}"},
        {"end2end": "False", "args": "{'nms': True}", "description": "Ultralytics YOLOv8n model"},
        {"sightline_layout": "end_to_end"},
    ],
)
def test_c3_what_has_suppressed_overlaps_itself_says_so_in_the_graph(tmp_path: Path, metadata: dict[str, str]) -> None:
    source = rows_of(tmp_path / "own.onnx", corners(), shares=False, **DETECT, **metadata)
    sheet = prepare(source, tmp_path / "prepared.onnx")
    assert (sheet.rows, sheet.layout) == ("end_to_end", "end2end")
    # A graph prepared elsewhere and brought back knows it still.
    assert prepare(tmp_path / "prepared.onnx", tmp_path / "twice.onnx").rows == "end_to_end"


def test_c3_class_ids_out_of_a_topk_are_an_end_to_end_head(tmp_path: Path) -> None:
    source = rows_of(tmp_path / "own.onnx", corners(), shares=False, indexed=True)
    assert prepare(source, tmp_path / "prepared.onnx").rows == "end_to_end"


@pytest.mark.parametrize(
    ("indexed", "shares", "metadata", "rows"),
    [
        (True, False, {"head": "RTDETRDecoder", "names": "{0: 'a', 1: 'b', 2: 'c'}"}, "rtdetr_rows"),
        (True, True, {"description": "Ultralytics rtdetr-l model", **DETECT}, "rtdetr_rows"),
        (False, True, {"description": "Ultralytics RT-DETR-x model", **DETECT}, "rtdetr"),
    ],
)
def test_c4_rt_detr_is_known_by_its_metadata(
    tmp_path: Path, indexed: bool, shares: bool, metadata: dict[str, str], rows: str
) -> None:
    source = rows_of(tmp_path / "own.onnx", SHARES, shares=shares, indexed=indexed, **metadata)
    sheet = prepare(source, tmp_path / "prepared.onnx")
    assert (sheet.rows, sheet.parameters["resize"]) == (rows, "stretch")
    twice = prepare(tmp_path / "prepared.onnx", tmp_path / "twice.onnx")
    assert (twice.rows, twice.parameters["resize"]) == (rows, "stretch")


@pytest.mark.parametrize(
    ("shares", "metadata"),
    [
        (True, {}),
        (True, DETECT),
        (True, {"end2end": "False", "args": "{'nms': None}"}),
        (False, {"head": "RTDETRDecoder"}),
        (False, {"description": "Ultralytics rtdetr-l model", **DETECT}),
    ],
)
def test_c4_boxes_as_shares_that_may_be_one_or_the_other_ask_for_the_layout(
    tmp_path: Path, shares: bool, metadata: dict[str, str]
) -> None:
    source = rows_of(tmp_path / "own.onnx", SHARES, shares=shares, **metadata)
    with pytest.raises(UnknownLayout, match=r"RT-DETR's head.*relative to the image.*model\.yaml.*layout: rtdetr"):
        prepare(source, tmp_path / "p.onnx")
    assert prepare(source, tmp_path / "p.onnx", about=ModelYaml(layout="rtdetr")).rows == "rtdetr"


def constant_rows(path: Path, boxes: np.ndarray) -> Path:
    """`[1, 300, 6]` that neither metadata nor nodes tell anything about."""
    rest = np.random.default_rng(1).random((300, 2))
    value = np.concatenate((boxes, rest), axis=1)[None].astype(np.float32)
    return saved(path, [helper.make_node("Identity", ["rows"], ["output0"])], {"output0": [1, 300, 6]}, {"rows": value})


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        (SHARES, "lie between 0 and 0.90: shares of the image"),
        (np.tile([100.0, 90.0, 20.0, 10.0], (300, 1)), "no corners"),
    ],
)
def test_c4_rows_that_nothing_explains_are_asked_what_they_are(
    tmp_path: Path, triton_python: Path, boxes: np.ndarray, why: str
) -> None:
    assert prepare(constant_rows(tmp_path / "own.onnx", corners()), tmp_path / "p.onnx").rows == "end_to_end"
    with pytest.raises(UnknownLayout, match=why):
        prepare(constant_rows(tmp_path / "own.onnx", boxes), tmp_path / "other.onnx")


def test_c4_rows_that_nobody_can_be_asked_about_name_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_PYTHON", str(tmp_path / "none"))
    source = constant_rows(tmp_path / "own.onnx", corners())
    with pytest.raises(UnknownLayout, match=r"could be an end-to-end YOLO's.*LAYOUT=end_to_end"):
        prepare(source, tmp_path / "p.onnx")
    assert prepare(source, tmp_path / "p.onnx", told="end_to_end").rows == "end_to_end"


def raw_of(path: Path, *extra: str, classes: int = 15, **metadata: str) -> Path:
    """`[1, 4 + classes + extra, 630]` as Ultralytics puts it together; `extra`: rows behind the scores."""
    make = helper.make_node
    nodes, parts, rows = [make("Sigmoid", ["logits"], ["scores"])], ["pixels", "scores"], 4 + classes
    constants = {"pixels": np.ones((1, 4, 630), np.float32), "logits": np.zeros((1, classes, 630), np.float32)}
    for number, width in enumerate(extra):
        constants[f"more{number}"] = np.ones((1, int(width), 630), np.float32)
        nodes.append(make("Neg", [f"more{number}"], [f"part{number}"]))
        parts.append(f"part{number}")
        rows += int(width)
    nodes.append(make("Concat", parts, ["output0"], axis=1))
    return saved(path, nodes, {"output0": [1, rows, 630]}, constants, **metadata)


@pytest.mark.parametrize(
    ("extra", "metadata", "why"),
    [
        (["1"], {}, "not classes, but masks, an angle"),
        (["32"], {}, "not classes, but masks"),
        (["32"], {"task": "segment"}, "a segmentation model has a second output"),
        (["1"], {"task": "detect", "names": str({i: f"n{i}" for i in range(15)})}, "not classes, but masks"),
        (
            [],
            {"names": str({i: f"n{i}" for i in range(14)})},
            "15 classes, but the number of names is 14: oriented boxes",
        ),
    ],
)
def test_c4_masks_and_angles_are_no_classes(tmp_path: Path, extra: list[str], metadata: dict, why: str) -> None:
    with pytest.raises(UnknownLayout, match=why):
        prepare(raw_of(tmp_path / "own.onnx", *extra, **metadata), tmp_path / "p.onnx")


def test_c4_a_head_of_boxes_and_scores_alone_needs_no_metadata(tmp_path: Path) -> None:
    sheet = prepare(raw_of(tmp_path / "own.onnx"), tmp_path / "p.onnx")
    assert (sheet.task, sheet.names, sheet.rows) == ("detect", [f"class_{i}" for i in range(15)], "prepared")


def test_c4_56_rows_that_nothing_explains_are_what_whoever_installs_them_says(tmp_path: Path) -> None:
    weights, bias = weights_of(56)
    source = graphs.save(tmp_path / "own.onnx", weights, bias)
    for task in (None, "detect"):
        with pytest.raises(UnknownLayout, match="56 rows are one class with 17 keypoints, or 52 classes"):
            prepare(source, tmp_path / "p.onnx", task=task)
    assert prepare(source, tmp_path / "p.onnx", task="pose").task == "pose"
    given = [f"n{i}" for i in range(52)]
    assert prepare(source, tmp_path / "p.onnx", task="detect", given=given).names == given
    # The graph itself may tell: 52 scores.
    assert prepare(raw_of(tmp_path / "s.onnx", classes=52), tmp_path / "p.onnx", task="detect").task == "detect"


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ({"output": [1, 25200, 85]}, "YOLOv5 and YOLOX"),
        ({"output": [1, 1890, 85]}, "YOLOv5 and YOLOX"),
        ({"output": [1, 85, 1890]}, "three anchors a cell"),
        ({"output": [1, 630, 85]}, "YOLOv5 and YOLOX"),
        ({"num_dets": [1, 1], "boxes": [1, 100, 4], "scores": [1, 100], "labels": [1, 100]}, "EfficientNMS"),
        ({"boxes": [1, 300, 4], "scores": [1, 300], "labels": [1, 300]}, "rows_apart, or torchvision"),
        ({"boxes": [300, 4], "scores": [300], "labels": [300]}, "rows_apart, or torchvision"),
        ({"dets": [1, 300, 4], "labels": [1, 300, 91]}, "separate boxes and scores, as of RF-DETR"),
        ({"boxes": [1, 630, 4], "scores": [1, 630, 80]}, "separate boxes and scores"),
        ({"output0": [1, 116, 630], "output1": [1, 32, 40, 48]}, "is a segment model.*It goes with SEGMENT="),
        ({"output0": [1, 1000]}, "is a classify model.*It goes with CLASSIFY="),
    ],
)
def test_c4_other_families_are_named(tmp_path: Path, outputs: dict[str, list[int]], why: str) -> None:
    constants = {f"c_{name}": np.zeros(shape, np.float32) for name, shape in outputs.items()}
    nodes = [helper.make_node("Identity", [f"c_{name}"], [name]) for name in outputs]
    with pytest.raises(UnknownLayout, match=why):
        prepare(saved(tmp_path / "odd.onnx", nodes, outputs, constants), tmp_path / "p.onnx", task="detect")
