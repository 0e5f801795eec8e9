import json
from pathlib import Path

import graphs
import numpy as np
import onnx
import pytest
from layouts import UnknownLayout
from onnx import TensorProto, helper
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
    """Each row has its like, best score first. Scores that differ by rounding alone may come in either order."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    for ours, theirs in zip(found, expected, strict=True):
        apart = np.abs(ours[:, None] - theirs[None]).max(axis=2)
        assert apart.min(axis=0).max() < tolerance
        assert apart.min(axis=1).max() < tolerance
    assert (np.diff(found[..., 4]) <= 0).all()


@pytest.mark.parametrize("opset", [11, 12, 17, 20])
def test_raw_head_becomes_the_best_candidates(tmp_path: Path, run_onnx, opset: int) -> None:
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
    for one, image in zip(together, IMAGES, strict=True):
        assert_same_rows(run_onnx(tmp_path / "prepared.onnx", image[None]), one[None], tolerance=1e-4)


def test_pose_head_keeps_its_keypoints(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(56)
    prepare(graphs.save(tmp_path / "pose.onnx", weights, bias, metadata={"task": "pose"}), tmp_path / "prepared.onnx")
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), 1)
    assert expected.shape == (3, 300, 57)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


def test_pose_of_several_classes(tmp_path: Path, run_onnx) -> None:
    weights, bias = weights_of(4 + 3 + 51)
    metadata = {"task": "pose", "kpt_shape": "[17, 3]", "names": "{0: 'player', 1: 'keeper', 2: 'referee'}"}
    sheet = prepare(graphs.save(tmp_path / "own.onnx", weights, bias, metadata=metadata), tmp_path / "prepared.onnx")
    assert (sheet.task, sheet.names) == ("pose", ["player", "keeper", "referee"])
    expected = graphs.candidates(graphs.head(IMAGES, weights, bias), 3)
    assert_same_rows(run_onnx(tmp_path / "prepared.onnx", IMAGES), expected)


def test_other_keypoints_are_refused(tmp_path: Path) -> None:
    weights, bias = weights_of(4 + 1 + 63)
    source = graphs.save(tmp_path / "hand.onnx", weights, bias, metadata={"task": "pose", "kpt_shape": "[21, 3]"})
    with pytest.raises(UnknownLayout, match=r"kpt_shape is \[21, 3\]; known is \[17, 3\]"):
        prepare(source, tmp_path / "prepared.onnx")


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
    sheet = prepare(graphs.save(tmp_path / "own.onnx", weights, bias, end2end=True), tmp_path / "prepared.onnx")
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


def test_fewer_anchors_than_candidates(tmp_path: Path, run_onnx) -> None:
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
    assert (sheet["height"], sheet["width"], sheet["candidates"], sheet["columns"]) == (160, 192, 300, 6)
    assert sheet["sha256"] == checksum(tmp_path / "prepared.onnx")
    assert sheet["source_sha256"] == checksum(source)
    kept = {entry.key: entry.value for entry in onnx.load(tmp_path / "prepared.onnx").metadata_props}
    assert kept == NAMES | {"imgsz": "[160, 192]"}


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
        ([1, 3, 160, 192], [1, 1000]),
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
