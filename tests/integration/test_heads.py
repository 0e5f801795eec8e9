"""Heads of all families on a real Triton, from a frame to its objects: filled at random, and Ultralytics' own exports.

The second part needs an interpreter with Ultralytics; see `test_ultralytics`.
"""

from __future__ import annotations

import ast
import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from app.errors import ConfigurationError, FrameError
from app.pipeline.stages.detect import Detection
from app.pipeline.startup import open_pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from app.settings import ROOT, Settings, TritonSettings
from tests.conftest import photograph
from tests.integration import test_ultralytics
from tests.integration.watching import corners, iou
from tests.pipeline.test_families import CASES, CONFIDENCE, HEIGHT, IOU, NAMES, WIDTH, clipped, compare
from tests.support.service import require_environment, running_triton

python = test_ultralytics.python
ANSWER = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.outputs = dict(np.load(os.path.join(args["model_repository"], args["model_version"], "outputs.npz")))
        self.batched = int(__import__("json").loads(args["model_config"])["max_batch_size"]) > 0

    def execute(self, requests):
        answers = []
        for request in requests:
            count = request.inputs()[0].shape()[0]
            arrays = {k: np.repeat(v[None], count, 0) if self.batched else v for k, v in self.outputs.items()}
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(k, v) for k, v in arrays.items()]))
        return answers
"""
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32", "int64": "TYPE_INT64"}
_ONNX_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16", "tensor(int64)": "TYPE_INT64"}
SIZES = [(640, 480), (333, 517)]


def config(max_batch: int, image: str, outputs: dict[str, tuple[str, Any]], **parameters: str) -> str:
    return (
        f'backend: "python"\nmax_batch_size: {max_batch}\n'
        f"input [{{ {image} }}]\n"
        + "".join(f'output [{{ name: "{n}" data_type: {k} dims: {list(d)} }}]\n' for n, (k, d) in outputs.items())
        + "instance_group [{ kind: KIND_CPU }]\n"
        + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}\n'
            for key, value in parameters.items()
        )
    )


def write_canned(repository: Path, layout: str, told: str | None = None) -> None:
    """A model that answers every image with one head of this layout."""
    head = CASES[layout][0](np.random.default_rng(21))
    folder = repository / layout / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(ANSWER)
    np.savez(folder / "outputs.npz", **head)
    single = layout == "torchvision"
    outputs = {
        name: (_TYPES[str(array.dtype)], [-1, *array.shape[1:]] if single else array.shape)
        for name, array in head.items()
    }
    image = f'name: "images" data_type: TYPE_FP32 dims: [{"1, " if single else ""}3, {HEIGHT}, {WIDTH}]'
    parameters = {"layout": told or layout, "class_names": json.dumps(NAMES), **CASES[layout][2]}
    if layout == "efficient_nms":
        del parameters["layout"]
    (folder.parent / "config.pbtxt").write_text(config(0 if single else 8, image, outputs, **parameters))


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("heads")
    for layout in CASES:
        write_canned(folder / "repository", layout)
    wrong = folder / "wrong"
    write_canned(wrong, "boxes_logits", told="boxes_scores")
    (wrong / "boxes_logits").rename(folder / "repository" / "wrong")
    with running_triton(folder / "repository", folder / "state") as url:
        yield url


def analyze(url: str, model: str, jpegs: list[bytes], state: Path, together: int = 1) -> list[FrameResult]:
    """What the pipeline says about the images with this detection model, so many of them in one batch."""
    settings = StreamSettings(
        confidence=CONFIDENCE, iou=IOU, stages=Stages(ocr=False, motion=False, track=False, pose=False)
    )
    environment = Settings(
        triton_url=url, triton_detect_model=model, ocr="off", state_dir=state, max_detections=1000, triton_deadline_s=60
    )

    async def run() -> list[FrameResult]:
        results: list[FrameResult] = []
        async with open_pipeline(environment) as opened:
            for at in range(0, len(jpegs), together):
                jobs = [
                    FrameJob(Frame(str(n), jpeg, time.perf_counter(), 0.0, 1), StreamMemory(), settings)
                    for n, jpeg in enumerate(jpegs[at : at + together])
                ]
                deadline = time.monotonic() + 60
                answers = await opened.pipeline.analyze(jobs)
                while not all(done(answer) for answer in answers):  # a loaded machine: Triton may count as away
                    assert time.monotonic() < deadline, answers
                    await asyncio.sleep(0.5)
                    answers = await opened.pipeline.analyze(jobs)
                results += [answer for answer in answers if isinstance(answer, FrameResult)]
        return results

    return asyncio.run(run())


def done(answer: FrameResult | FrameError) -> bool:
    assert isinstance(answer, FrameResult)
    return answer.stages["detect"].status == "ok"


@pytest.mark.parametrize("layout", CASES)
def test_c1_a_head_of_each_family_becomes_its_objects(triton: str, tmp_path: Path, layout: str) -> None:
    jpegs = [photograph(*size) for size in SIZES]
    results = analyze(triton, layout, jpegs, tmp_path, together=1 if layout == "torchvision" else 2)
    head = CASES[layout][0](np.random.default_rng(21))
    for size, result in zip(SIZES, results, strict=True):
        wanted = CASES[layout][1](head, size)
        assert len(wanted) > 5
        found = [(o.box.x1, o.box.y1, o.box.x2, o.box.y2, o.confidence, o.class_id) for o in result.objects]
        rounded = [(*np.round(row[:4], 2), round(row[4], 4), row[5]) for row in clipped(wanted, size)]
        compare(found, rounded, size)  # type: ignore[arg-type]
        assert {o.class_name for o in result.objects} <= set(NAMES)


def test_a_model_whose_answers_are_of_another_layout_is_refused_at_the_start(triton: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"its layout is boxes_scores, .*but .*not from 0 to 1"):
        analyze(triton, "wrong", [], tmp_path)


# --- Ultralytics' exports ---


@pytest.fixture(scope="module")
def exports(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported networks, and Ultralytics' own results with them on images of eight shapes."""
    folder = tmp_path_factory.mktemp("ultralytics-heads")
    test_ultralytics.write_pictures(folder / "pictures")
    script = ROOT / "tests" / "integration" / "ultralytics_heads.py"
    done = subprocess.run(
        [python, script, folder], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


LAYOUTS = {"rtdetr": "rtdetr", "rtdetr-rows": "rtdetr_rows", "v9-dynamic": "raw"}
"""What the shape alone does not show."""


def write_export(repository: Path, name: str, onnx_path: Path) -> None:
    """The export as it is, in Triton's Python backend, with its names and no word on its layout unless it needs one."""
    graph = onnx.load(onnx_path)
    about = {entry.key: entry.value for entry in graph.metadata_props}
    kinds = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.FLOAT16: "TYPE_FP16"}

    def described(value: Any) -> tuple[str, list[int]]:
        tensor = value.type.tensor_type
        return kinds[tensor.elem_type], [dim.dim_value or -1 for dim in tensor.shape.dim][1:]

    folder = repository / name / "1"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "triton" / "onnx_model.py", folder / "model.py")
    shutil.copy(onnx_path, folder / "model.onnx")
    (value,) = graph.graph.input
    kind, dims = described(value)
    size = json.loads(about["imgsz"])
    names = ast.literal_eval(about["names"])
    parameters = {
        "class_names": json.dumps([*names.values()]),
        "task": about["task"],
        "input_size": f"{size[0]}x{size[1]}",
        "runtime": "onnxruntime",
    }
    if name in LAYOUTS:
        parameters["layout"] = LAYOUTS[name]
    outputs = {output.name: described(output) for output in graph.graph.output}
    image = f'name: "{value.name}" data_type: {kind} dims: {dims}'
    (folder.parent / "config.pbtxt").write_text(config(8, image, outputs, **parameters))


@pytest.fixture(scope="module")
def exporting_triton(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("exports")
    for path in exports.glob("*.onnx"):
        write_export(folder / "repository", path.stem, path)
    with running_triton(folder / "repository", folder / "state") as url:
        yield url


NETWORKS = [
    "v5u", "v8-half", "v8-rectangular", "v9-dynamic", "v10", "v11-nms", "v12", "v26", "rtdetr-rows", "rtdetr",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_c1_an_export_as_it_is_sees_what_ultralytics_sees(
    exports: Path, exporting_triton: str, tmp_path: Path, name: str
) -> None:
    jpegs = [path.read_bytes() for path in sorted((exports / "pictures").glob("*.jpg"))]
    wanted = json.loads((exports / f"{name}.json").read_text())
    assert sum(len(image["boxes"]) for image in wanted) > 100
    results = analyze(exporting_triton, name, jpegs, tmp_path)
    for result, theirs in zip(results, wanted, strict=True):
        size = np.array([result.image.width, result.image.height] * 2)
        # RT-DETR's own tool leaves corners beyond the frame; on the wire a box ends there.
        theirs["boxes"] = np.clip(np.array(theirs["boxes"]).reshape(-1, 4), 0, size).tolist()
        if name.endswith("-half"):
            nearly_the_same(result, theirs)
            continue
        # What lies on the threshold itself may be on either side of it.
        ours = [found for found in result.objects if found.confidence > SURE or on_both_sides(found, theirs)]
        keep = [at for at, score in enumerate(theirs["scores"]) if score > SURE or has(result, theirs, at)]
        theirs = {key: [theirs[key][at] for at in keep] for key in ("boxes", "scores", "classes")}
        test_ultralytics.the_same_things(ours, theirs, f"{result.image.width}x{result.image.height}")


SURE = CONFIDENCE + 0.001


def has(result: FrameResult, theirs: dict[str, Any], at: int) -> bool:
    return any(test_ultralytics.alike(found, theirs, at) for found in result.objects)


def on_both_sides(found: Detection, theirs: dict[str, Any]) -> bool:
    return any(test_ultralytics.alike(found, theirs, at) for at in range(len(theirs["boxes"])))


def nearly_the_same(result: FrameResult, theirs: dict[str, Any]) -> None:
    """Two versions of ONNX Runtime round half precision differently, and a box may lose to another one for that."""
    count = len(theirs["boxes"])
    assert abs(len(result.objects) - count) <= max(1, 0.05 * count)
    same = sum(
        any(
            o.class_id == label and abs(o.confidence - score) < 0.02 and near(corners(o.box), np.array(box))
            for o in result.objects
        )
        for box, score, label in zip(theirs["boxes"], theirs["scores"], theirs["classes"], strict=True)
    )
    assert same >= 0.95 * count


def near(box: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """A thin box, perhaps without an area, is compared by its corners."""
    if min((box[2:] - box[:2]).min(), (other[2:] - other[:2]).min()) < 4:
        return float(np.abs(box - other).max()) < 2
    return iou(box, other) > 0.95
