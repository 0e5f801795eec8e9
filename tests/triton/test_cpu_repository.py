"""The checked-in models on real photographs, and one's own ONNX in their place, through the embedded Triton."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import graphs
import numpy as np
import pytest
import skimage.data
import tritonclient.grpc as grpcclient
from install import DETECT, POSE, VISION, compose, install, remove

from app.inference.embedded import EmbeddedTriton
from app.settings import ROOT, TritonSettings

REPOSITORY = ROOT / "triton" / "cpu_repository"
HEIGHT, WIDTH = 480, 640
# By eye, in the photograph's own 512x512 pixels.
PERSON = np.array([22, 15, 373, 512])
EYES = {"left": (250, 112), "right": (206, 104)}
FACE = np.array([170, 60, 275, 185])


def letterbox(image: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    """The canvas, and the scale and offsets by which the picture lies on it (nearest pixel, as simple as can be)."""
    scale = min(WIDTH / image.shape[1], HEIGHT / image.shape[0])
    height, width = round(image.shape[0] * scale), round(image.shape[1] * scale)
    rows = (np.arange(height) / scale).astype(int)
    columns = (np.arange(width) / scale).astype(int)
    left, top = (WIDTH - width) // 2, (HEIGHT - height) // 2
    canvas = np.full((HEIGHT, WIDTH, 3), 114, np.uint8)
    canvas[top : top + height, left : left + width] = image[rows][:, columns]
    return canvas, scale, left, top


CANVAS, SCALE, LEFT, TOP = letterbox(skimage.data.astronaut())


def on_canvas(points: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """x, y, x, y… of the photograph -> of the canvas."""
    flat = np.asarray(points, float) * SCALE
    flat[0::2] += LEFT
    flat[1::2] += TOP
    return flat


def iou(box: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared))


class Served:
    """A Triton with a repository, and calls to it."""

    def __init__(self, repository: Path, state: Path) -> None:
        self._runner = asyncio.Runner()
        settings = TritonSettings(triton_repository=repository, triton_start_timeout_s=60)
        self._triton = EmbeddedTriton(settings, state)
        self.client = grpcclient.InferenceServerClient(self._runner.run(self._triton.start()))

    def infer(self, model: str, *images: np.ndarray) -> dict[str, np.ndarray]:
        batch = np.stack(images)
        given = grpcclient.InferInput("images", batch.shape, "UINT8")
        given.set_data_from_numpy(batch)
        answer = self.client.infer(model, [given])
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    def config(self, model: str) -> dict[str, object]:
        return self.client.get_model_config(model, as_json=True)["config"]

    def parameters(self, model: str) -> dict[str, str]:
        return {name: value["string_value"] for name, value in self.config(model)["parameters"].items()}

    def close(self) -> None:
        self.client.close()
        self._runner.run(self._triton.stop())
        self._runner.close()


@pytest.fixture(scope="module")
def served(triton_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What a fresh checkout serves."""
    folder = tmp_path_factory.mktemp("checkout")
    triton = Served(checkout(folder), folder / "state")
    yield triton
    triton.close()


def checkout(folder: Path) -> Path:
    """A copy of the checked-in repository, without what this machine may have installed into its own."""
    repository = folder / "repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (DETECT, POSE):
        remove(name, repository)
    compose(repository)
    return repository


def found(rows: np.ndarray, label: int) -> np.ndarray:
    return rows[(rows[:, 4] > 0.35) & (rows[:, 5] == label)]


def test_models_describe_themselves(served: Served) -> None:
    for model, outputs in (
        ("yolo", {"detections": ["16", "6"]}),
        ("yolo_pose", {"detections": ["4", "57"]}),
        ("vision", {"detections": ["16", "6"], "poses": ["4", "57"]}),
    ):
        config = served.config(model)
        assert config["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["480", "640", "3"]}]
        assert {output["name"]: output["dims"] for output in config["output"]} == outputs
        assert config["max_batch_size"] == 16
        assert "dynamic_batching" not in config
        assert served.parameters(model)["display_name"] == "mediapipe"
    assert json.loads(served.parameters("yolo")["class_names"]) == ["person", "face"]
    assert json.loads(served.parameters("yolo_pose")["class_names"]) == ["person"]


def test_finds_the_person_and_the_face(served: Served) -> None:
    rows = served.infer("yolo", CANVAS)["detections"][0]
    persons, faces = found(rows, 0), found(rows, 1)
    assert len(persons) == len(faces) == 1
    assert iou(persons[0, :4], on_canvas(PERSON)) > 0.8
    assert iou(faces[0, :4], on_canvas(FACE)) > 0.5


def test_eyes_and_nose_lie_on_the_face(served: Served) -> None:
    rows = served.infer("yolo_pose", CANVAS)["detections"][0]
    assert (rows[:, 4] > 0).sum() == 1
    keypoints = rows[0, 6:].reshape(17, 3)
    nose, left, right = keypoints[:3]
    # COCO's left is the person's own left: to the right in the picture.
    assert np.hypot(*(left[:2] - on_canvas(EYES["left"]))) < 12
    assert np.hypot(*(right[:2] - on_canvas(EYES["right"]))) < 12
    low, high = on_canvas(FACE)[:2], on_canvas(FACE)[2:]
    assert (nose[:2] > low).all()
    assert (nose[:2] < high).all()
    assert keypoints[:3, 2].min() > 0.9
    # The knees and ankles are not in the picture.
    assert keypoints[13:, 2].max() < 0.3


def test_the_ensemble_answers_as_both_models_alone(served: Served) -> None:
    both = served.infer("vision", CANVAS)
    np.testing.assert_array_equal(both["detections"], served.infer("yolo", CANVAS)["detections"])
    np.testing.assert_array_equal(both["poses"], served.infer("yolo_pose", CANVAS)["detections"])


def test_frames_of_a_batch_are_independent(served: Served) -> None:
    images = CANVAS, np.full_like(CANVAS, 114), np.ascontiguousarray(CANVAS[:, ::-1])
    together = served.infer("vision", *images)
    for index, image in enumerate(images):
        alone = served.infer("vision", image)
        for name, rows in alone.items():
            np.testing.assert_array_equal(together[name][index], rows[0])
    assert not together["detections"][1].any()
    assert not together["poses"][1].any()
    mirrored = together["poses"][2, 0, 6:9]
    assert abs(WIDTH - 1 - mirrored[0] - together["poses"][0, 0, 6]) < 5


def test_two_people_are_two(served: Served) -> None:
    photograph = skimage.data.astronaut()
    canvas, *_ = letterbox(np.hstack([photograph, photograph[:, ::-1]]))
    answer = served.infer("vision", canvas)
    persons, faces = found(answer["detections"][0], 0), found(answer["detections"][0], 1)
    assert len(persons) == len(faces) == 2
    poses = answer["poses"][0]
    noses = sorted(poses[poses[:, 4] > 0, 6])
    assert len(noses) == 2
    assert noses[0] < WIDTH / 2 < noses[1]


def test_a_picture_without_people_is_empty(served: Served) -> None:
    canvas, *_ = letterbox(skimage.data.coffee())
    answer = served.infer("vision", canvas)
    assert not len(found(answer["detections"][0], 0))
    assert not answer["poses"].any()


@pytest.mark.parametrize("batch", [1, 4])
def test_c5_an_installed_onnx_is_served_with_its_names(triton_python: Path, tmp_path: Path, batch: int) -> None:
    repository = checkout(tmp_path)
    spread = np.random.default_rng(3)
    weights, bias = spread.normal(0, 1, (7, 3)), spread.normal(0, 1, 7)
    names = {"names": str({0: "crane", 1: 'a "quoted" one', 2: "Füße"}), "task": "detect"}
    # Exported for one frame at a time, as Ultralytics does unless told otherwise; or for four, never fewer.
    source = graphs.save(tmp_path / "site.onnx", weights, bias, height=160, width=192, batch=batch, metadata=names)
    install(source, DETECT, repository)
    configuration = repository / "yolo" / "configs" / "installed.pbtxt"
    exact = 'parameters { key: "precision" value { string_value: "f32" } }\n'  # where OpenVINO would take BF16
    configuration.write_text(configuration.read_text() + exact)
    assert compose(repository) is None
    images = spread.integers(0, 256, (3, 160, 192, 3), np.uint8)
    images[0] = 114
    expected = graphs.candidates(graphs.head(images, weights, bias), 3)
    triton = Served(repository, tmp_path / "state")
    try:
        answer = triton.infer("yolo", *images)["detections"]
        np.testing.assert_allclose(np.sort(answer[..., 4]), np.sort(expected[..., 4]), atol=2e-3)
        both = triton.infer("vision", *images)
        np.testing.assert_array_equal(both["detections"], answer)
        assert both["poses"].shape == (3, 4, 57)
        for model, shown in (("yolo", "site"), ("vision", "site + mediapipe")):
            assert triton.parameters(model)["display_name"] == shown
            assert json.loads(triton.parameters(model)["class_names"]) == ["crane", 'a "quoted" one', "Füße"]
        assert triton.config("yolo_pose")["input"][0]["dims"] == ["160", "192", "3"]
    finally:
        triton.close()
    assert VISION in {path.name for path in repository.iterdir()}
