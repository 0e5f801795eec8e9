"""A tiny model of each task, installed by `make models` and served by a real Triton: alone, and in the ensemble."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import graphs
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from configs import parsed
from install import TASKS, compose, remove
from onnx import TensorProto, helper, numpy_helper, save

from app.inference.embedded import models_of
from app.inference.triton import TritonClient
from app.pipeline.models import ModelSet, describe
from app.pipeline.registry import create
from app.settings import ROOT, Settings, TritonSettings
from tests.support.service import running_triton

HEIGHT, WIDTH, CLASSES, MASKS = 160, 192, 3, 8
NAMES = {"names": str({index: f"thing {index}" for index in range(CLASSES)})}
ROWS = {"detect": 0, "pose": 51, "segment": MASKS, "obb": 1}
"""By task: numbers behind the classes."""
EXACT = 'parameters { key: "precision" value { string_value: "f32" } }\n'  # where OpenVINO would take BF16


def head_of(task: str) -> tuple[np.ndarray, np.ndarray]:
    spread = np.random.default_rng(len(task))
    count = 4 + CLASSES + ROWS[task]
    return spread.normal(0, 1, (count, 3)), spread.normal(0, 1, count)


def checkout(folder: Path) -> Path:
    """The checked-in repository, without what this machine may have installed into its own."""
    repository = folder / "repository"
    shutil.copytree(ROOT / "triton" / "cpu_repository", repository, ignore=shutil.ignore_patterns("__pycache__"))
    for name in TASKS:
        remove(name, repository)
    compose(repository)
    return repository


def make_models(repository: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "triton" / "models.py", "--repository", repository, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class Asked:
    """A Triton, and requests to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = grpcclient.InferenceServerClient(url)

    def infer(self, model: str, images: np.ndarray, *outputs: str, given: str = "images") -> dict[str, np.ndarray]:
        tensor = grpcclient.InferInput(given, images.shape, "UINT8")
        tensor.set_data_from_numpy(images)
        wanted = [grpcclient.InferRequestedOutput(name) for name in outputs] or None
        answer = self.client.infer(model, [tensor], outputs=wanted)
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    def runs(self, model: str) -> int:
        (stats,) = self.client.get_inference_statistics(model).model_stats
        return stats.inference_count

    def ran(self, before: dict[str, int], at_least: set[str]) -> set[str]:
        """Which models ran since then; waits until those did, because Triton counts a run after it has answered."""
        deadline = time.monotonic() + 10
        while True:
            found = {name for name, runs in before.items() if self.runs(name) > runs}
            if at_least <= found or time.monotonic() > deadline:
                time.sleep(0.3)  # others would have been counted, too
                return {name for name, runs in before.items() if self.runs(name) > runs}
            time.sleep(0.05)

    def parameters(self, model: str) -> dict[str, str]:
        config = self.client.get_model_config(model).config
        return {key: value.string_value for key, value in config.parameters.items()}


@pytest.fixture(scope="module")
def every(triton_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """A Triton with a model of each task: four of one image, and a classifier of another."""
    folder = tmp_path_factory.mktemp("every")
    repository = checkout(folder)
    arguments: list[str | Path] = []
    for task in ROWS:
        metadata = NAMES | {"task": task} | ({"kpt_shape": "[17, 3]"} if task == "pose" else {})
        masks = MASKS if task == "segment" else 0
        path = graphs.save(folder / f"my-{task}.onnx", *head_of(task), masks=masks, metadata=metadata)
        arguments += [f"--{task}", path]
    arguments += ["--classify", graphs.classifier(folder / "my-classify.onnx", {"task": "classify"})]
    done = make_models(repository, *arguments)
    assert done.returncode == 0, done.stderr
    assert "not in the ensemble, but asked apart: yolo_classify takes 64x64 (crop)" in done.stdout
    for name in TASKS:
        config = repository / name / "configs" / "installed.pbtxt"
        config.write_text(config.read_text() + EXACT)
    assert models_of(repository) == ("vision", *sorted(TASKS))
    with running_triton(repository, folder / "state") as url:
        yield Asked(url)


def images(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    small = np.random.default_rng(7).integers(0, 256, (count, height // 8, width // 8, 3), np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("task", list(ROWS))
def test_each_answers_with_its_head(every: Asked, task: str) -> None:
    name = next(name for name, of in TASKS.items() if of == task)
    given = images(3)
    answer = every.infer(name, given)
    raw = graphs.head(given, *head_of(task))
    expected = graphs.candidates(raw, CLASSES)
    if task == "obb":
        expected[..., :4] = raw[:, :4].transpose(0, 2, 1)
    rows = next(iter(answer.values()))
    apart = np.abs(rows - expected).max(axis=2)
    assert np.count_nonzero(apart > 2e-3) <= apart.size // 200  # two classes that score alike but for rounding
    if task == "segment":
        np.testing.assert_allclose(answer["protos"], graphs.prototypes(given, MASKS), atol=1e-3)
    parameters = every.parameters(name)
    assert (parameters["task"], parameters["layout"]) == (task, "prepared")
    assert parameters["input_size"] == "160x192"
    assert json.loads(parameters["class_names"]) == [f"thing {index}" for index in range(CLASSES)]
    assert parameters.get("kpt_shape") == ("17x3" if task == "pose" else None)


def test_the_classifier_answers_with_scores(every: Asked) -> None:
    given = images(2, 64, 64)
    np.testing.assert_allclose(every.infer("yolo_classify", given)["scores"], graphs.scores(given), atol=1e-4)
    parameters = every.parameters("yolo_classify")
    assert (parameters["task"], parameters["resize"], parameters["logits"]) == ("classify", "crop", "false")


def test_the_ensemble_answers_as_all_of_them_alone(every: Asked) -> None:
    outputs = json.loads(every.parameters("vision")["outputs"])
    assert outputs == {
        "yolo": {"detections": "detections"},
        "yolo_pose": {"detections": "poses"},
        "yolo_segment": {"segments": "segments", "protos": "protos"},
        "yolo_obb": {"oriented": "oriented"},
    }
    given = images(2)
    together = every.infer("vision", given)
    assert set(together) == {name for names in outputs.values() for name in names.values()}
    for model, names in outputs.items():
        for own, answer in every.infer(model, given).items():
            np.testing.assert_array_equal(together[names[own]], answer)


@pytest.mark.parametrize(
    ("wanted", "running"),
    [
        (("segments", "protos"), {"yolo_segment"}),
        (("detections",), {"yolo"}),
        (("detections", "oriented"), {"yolo", "yolo_obb"}),
    ],
)
def test_triton_runs_only_the_models_whose_outputs_are_wanted(
    every: Asked, wanted: tuple[str, ...], running: set[str]
) -> None:
    before = {name: every.runs(name) for name in TASKS}
    assert set(every.infer("vision", images(1), *wanted)) == set(wanted)
    assert every.ran(before, running) == running


def test_the_service_reads_all_of_them_and_asks_the_ensemble(every: Asked) -> None:
    async def read() -> ModelSet:
        client = TritonClient(every.url, TritonSettings(triton_shm="off", triton_deadline_s=30))
        await client.open()
        try:
            return await describe(client, "vision", create(Settings()))
        finally:
            await client.close()

    models = asyncio.run(read())
    assert set(models.readers) == {"detect", "pose", "segment", "obb", "classify"}
    assert set(models.ensemble) == {"detect", "pose", "segment", "obb"}
    assert {name: reader.layout for name, reader in models.ensemble.items()} == dict.fromkeys(
        models.ensemble, "prepared"
    )
    together, alone = models.request({name: models.readers[name] for name in ("detect", "segment", "classify")})
    assert (set(together), set(alone)) == ({"detect", "segment"}, {"classify"})
    assert together["segment"].spec.chosen == "detections,segments,protos"


def test_one_of_a_size_of_its_own_stays_outside(tmp_path: Path) -> None:
    repository = checkout(tmp_path)
    arguments: list[str | Path] = []
    for task, size in (("detect", (160, 192)), ("segment", (160, 192)), ("obb", (320, 320))):
        masks = MASKS if task == "segment" else 0
        path = tmp_path / f"{task}.onnx"
        graphs.save(path, *head_of(task), height=size[0], width=size[1], masks=masks, metadata=NAMES | {"task": task})
        arguments += [f"--{task}", path]
    done = make_models(repository, *arguments)
    assert done.returncode == 0, done.stderr
    assert "not in the ensemble, but asked apart: yolo_obb takes 320x320" in done.stdout
    vision = (repository / "vision" / "configs" / "installed.pbtxt").read_text()
    # MediaPipe stands in for the pose model, at the size of the others.
    assert vision.count("model_name") == 3
    assert 'model_name: "_mediapipe"' in vision
    assert "yolo_obb" not in vision
    assert models_of(repository) == ("vision", "yolo", "yolo_obb", "yolo_pose", "yolo_segment")


def test_a_segmentation_model_alone_leaves_mediapipe_to_see_people(tmp_path: Path, triton_python: Path) -> None:
    repository = checkout(tmp_path)
    metadata = NAMES | {"task": "segment"}
    path = graphs.save(tmp_path / "s.onnx", *head_of("segment"), masks=MASKS, metadata=metadata)
    assert make_models(repository, "--segment", path).returncode == 0
    with running_triton(repository, tmp_path / "state") as url:
        asked = Asked(url)
        answer = asked.infer("vision", images(1))
        assert {name: found.shape[1:] for name, found in answer.items()} == {
            "detections": (16, 6), "poses": (4, 57), "segments": (480, 14), "protos": (MASKS, 40, 48),
        }  # fmt: skip
        before = {name: asked.runs(name) for name in ("_mediapipe", "yolo_segment")}
        asked.infer("vision", images(1), "segments", "protos")
        assert asked.ran(before, {"yolo_segment"}) == {"yolo_segment"}
    done = make_models(repository, "--remove")
    assert done.returncode == 0
    assert models_of(repository) == ("vision", "yolo", "yolo_pose")


def test_a_classifier_alone_leaves_the_ensemble_alone(tmp_path: Path) -> None:
    repository = checkout(tmp_path)
    assert (
        make_models(repository, "--classify", graphs.classifier(tmp_path / "c.onnx", NAMES)).returncode == 1
    )  # 5 classes
    done = make_models(repository, "--classify", graphs.classifier(tmp_path / "c.onnx", {}), "--names", "a,b,c,d,e")
    assert done.returncode == 0, done.stderr
    assert "ensemble" not in done.stdout
    assert models_of(repository) == ("vision", "yolo", "yolo_classify", "yolo_pose")


def test_keypoints_of_ones_own_are_named_in_the_configuration(tmp_path: Path) -> None:
    repository = checkout(tmp_path)
    spread = np.random.default_rng(3)
    source = graphs.save(tmp_path / "card.onnx", spread.normal(0, 1, (15, 3)), np.zeros(15), metadata={"task": "pose"})
    (tmp_path / "model.yaml").write_text(
        "names: [card]\nkpt_shape: [5, 2]\nkpt_names: [a, b, c, d, middle]\nskeleton: [[0, 4], [1, 4]]\n"
    )
    done = make_models(repository, "--pose", source)
    assert done.returncode == 0, done.stderr
    config = parsed((repository / "yolo_pose" / "configs" / "installed.pbtxt").read_text())
    given = {key: value.string_value for key, value in config.parameters.items()}
    assert list(config.output[0].dims) == [480, 16]
    assert given["kpt_shape"] == "5x2"
    assert json.loads(given["kpt_names"]) == ["a", "b", "c", "d", "middle"]
    assert json.loads(given["skeleton"]) == [[0, 4], [1, 4]]
    (tmp_path / "model.yaml").write_text("names: [card]\nkpt_shape: [5, 2]\nskeleton: [[0, 5]]\n")
    done = make_models(repository, "--pose", source)
    assert done.returncode == 1
    assert "skeleton: 5; the model has 5 keypoints, from 0 to 4" in done.stderr


# --- other families, with a model.yaml ---


def family(path: Path, outputs: dict[str, np.ndarray], *, batch: int | str = "N") -> Path:
    """A graph whose outputs are constants, the same for every image, plus the image's mean of the first channel."""
    nodes, constants, declared = [], {}, []
    nodes.append(helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0))
    for name, value in outputs.items():
        constants[f"c/{name}"] = value
        if batch == 1:
            nodes.append(helper.make_node("Identity", [f"c/{name}"], [name]))
        else:
            constants[f"s/{name}"] = np.array([-1, *[1] * (value.ndim - 1)], np.int64)
            nodes += [
                helper.make_node("Reshape", ["mean", f"s/{name}"], [f"m/{name}"]),
                helper.make_node("Cast", [f"m/{name}"], [f"k/{name}"], to=helper.np_dtype_to_tensor_dtype(value.dtype)),
                helper.make_node("Mul", [f"k/{name}", f"z/{name}"], [f"p/{name}"]),
                helper.make_node("Add", [f"p/{name}", f"c/{name}"], [name]),
            ]
            constants[f"z/{name}"] = np.zeros(1, value.dtype)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        shape = [None, *value.shape[1:]] if batch == 1 and value.ndim < 3 else [batch, *value.shape[1:]]
        declared.append(helper.make_tensor_value_info(name, kind, shape))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, HEIGHT, WIDTH])
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "family", [image], declared, held)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


BOXES = np.array([[[10, 20, 60, 90], [70, 30, 150, 140]]], np.float32)
SHARES = np.array([[[0.2, 0.3, 0.2, 0.4], [0.6, 0.5, 0.4, 0.6]]], np.float32)
SCORES = np.array([[[0.1, 0.9, 0.2], [0.8, 0.1, 0.1]]], np.float32)
CELLS = 480 + 120 + 30


def dense(values: np.ndarray) -> np.ndarray:
    """The rows at the front of as many as there are cells."""
    return np.concatenate((values, np.zeros((1, CELLS - values.shape[1], values.shape[2]), np.float32)), axis=1)


FAMILIES = {
    "rtdetr": {"output0": np.concatenate((SHARES, SCORES), axis=2)},
    "rtdetr_rows": {"output0": np.concatenate((SHARES, SCORES[..., 1:2], SCORES[..., :1] * 0), axis=2)},
    "boxes_logits": {"pred_logits": np.log(SCORES / (1 - SCORES)), "pred_boxes": SHARES},
    "boxes_scores": {"boxes": BOXES, "scores": SCORES},
    "objectness": {"output": dense(np.concatenate((BOXES, SCORES[..., 1:2], SCORES), axis=2))},
    "yolox": {"output": dense(np.concatenate((BOXES * 0, SCORES[..., 1:2], SCORES), axis=2))},
    "rows_apart": {"labels": np.array([[1, 0]]), "boxes": BOXES, "scores": np.array([[0.9, 0.8]], np.float32)},
    "torchvision": {"boxes": BOXES[0], "labels": np.array([1, 2]), "scores": np.array([0.9, 0.8], np.float32)},
    "efficient_nms": {
        "num_dets": np.array([[2]], np.int32), "det_boxes": BOXES,
        "det_scores": np.array([[0.9, 0.8]], np.float32), "det_classes": np.array([[1, 0]], np.int32),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", list(FAMILIES))
def test_a_family_that_model_yaml_names_is_installed(tmp_path: Path, triton_python: Path, layout: str) -> None:
    repository = checkout(tmp_path)
    source = family(tmp_path / "own.onnx", FAMILIES[layout], batch=1 if layout == "torchvision" else "N")
    (tmp_path / "model.yaml").write_text(f"layout: {layout}\nnames: [a, b, c]\ntask: detect\n")
    done = make_models(repository, "--detect", source)
    assert done.returncode == 0, done.stderr
    with running_triton(repository, tmp_path / "state") as url:
        asked = Asked(url)
        parameters = asked.parameters("yolo")
        assert (parameters["layout"], parameters["colour"]) == (layout, "rgb")
        assert json.loads(parameters["class_names"]) == ["a", "b", "c"]
        given = images(1 if layout == "torchvision" else 2)
        answer = asked.infer("yolo", given)
        for name, value in FAMILIES[layout].items():
            wanted = value if layout == "torchvision" else np.repeat(value, 2, axis=0)
            np.testing.assert_allclose(answer[name], wanted, rtol=1e-2)
    resize = {"yolox": "letterbox_top_left", "rtdetr": "stretch", "rtdetr_rows": "stretch", "boxes_logits": "stretch"}
    assert parameters["resize"] == resize.get(layout, "letterbox")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("layout: yolo", "model.yaml: layout: 'yolo'; want raw or end_to_end or rtdetr"),
        ("std: [1, 1]", "model.yaml: std: [1, 1]; want three numbers above 0"),
        ("scale: 127", "model.yaml: scale: 127; want 255"),
        ("names: ['', b]\nlayout: raw", "number 0 is empty"),
        ("size: 640", "'size' is not known; there are task, layout, names, colour"),
        ("task: obb", "says task: obb; DETECT= takes a model for detect. It goes with OBB="),
        ("layout: boxes_logits", "the boxes is missing"),
        ("- 1", "want lines such as"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_model_yaml_that_is_wrong_changes_nothing(tmp_path: Path, text: str, why: str) -> None:
    repository = checkout(tmp_path)
    source = graphs.save(tmp_path / "own.onnx", *head_of("detect"))
    (tmp_path / "own.model.yaml").write_text(text)
    done = make_models(repository, "--detect", source)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert not (repository / "yolo" / "configs").exists()
