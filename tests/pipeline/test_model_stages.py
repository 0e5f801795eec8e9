"""Segmentation, oriented boxes, classification and poses of cards through a real Triton: tiny ONNX graphs.

The heads with boxes are constant; prototypes are the image's colours, so masks are where a
colour is; the classification is the softmax of the mean colour.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import orjson
import pytest
import simplejpeg
import supervision
from onnx import TensorProto, helper, numpy_helper

from app import metrics
from app.errors import InferenceError
from app.inference.client import Reply
from app.inference.triton import TritonClient
from app.pipeline.multimodal import Pipeline
from app.pipeline.registry import create
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import FrameResult
from app.settings import ROOT, Settings, TritonSettings
from tests.support.service import require_environment, running_triton

sys.path.insert(0, str(ROOT / "triton"))
from configs import onnx_config

SIDE, WIDTH, HEIGHT = 160, 320, 240  # a frame covers 160x120 of the canvas, 20 rows down
RED, BLUE = (40, 60, 140, 180), (180, 40, 280, 200)
THINGS = ["person", "dog"]
COLOURS = ["red", "green", "blue"]
ANCHORS = 525


def frame() -> bytes:
    """Grey, with a red and a blue rectangle."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for (x1, y1, x2, y2), colour in ((RED, (230, 20, 20)), (BLUE, (20, 20, 230))):
        pixels[y1:y2, x1:x2] = colour
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=97, colorsubsampling="444")
    return jpeg


def on_canvas(box: tuple[int, ...]) -> tuple[float, ...]:
    x1, y1, x2, y2 = box
    return (x1 + x2) / 4, (y1 + y2) / 4 + 20, (x2 - x1) / 2, (y2 - y1) / 2


def raw(*columns: tuple[float, ...]) -> np.ndarray:
    head = np.zeros((len(columns[0]), ANCHORS), np.float32)
    head[:, 100 : 100 + len(columns)] = np.transpose(columns)
    return head


DETECT = raw((*on_canvas(RED), 0.9, 0), (*on_canvas(BLUE), 0.8, 0), (150, 30, 4, 4, 0, 0.7), (80, 22, 1, 1, 0.6, 0))
SEGMENT = raw(
    (*on_canvas(RED), 0.9, 0, 1, 0, 0), (80, 80, 160, 120, 0.1, 0.8, 0, 0, 1), (*on_canvas(BLUE), 0.7, 0, 0, 1, 0)
)
"""A red person; something blue in a box around everything; and something green in the blue, which is nothing."""
OBB = raw((80, 80, 60, 20, 0.9, 0, 0.5), (81, 80, 60, 20, 0.8, 0, 0.52), (30, 60, 40, 30, 0.1, 0.7, 1.2))

CARD = raw((*on_canvas(BLUE), 0.9, 90, 40, 140, 40, 140, 120, 90, 120, 115, 80))
"""Its four corners and its middle, without confidence."""


def constant(head: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """The head for each image of the batch."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "three"], ["of_each"]),
        helper.make_node("Add", ["of_each", "head"], ["output0"]),
    ]
    return nodes, {"zero": np.array(0, np.float32), "three": np.array([-1, 1, 1]), "head": head[None]}


def install(
    repository: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
    outputs: dict[str, list[int]],
    classes: list[str],
    side: int = SIDE,
    **given: str,
) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, ["batch", *shape]) for key, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    add_model(repository, name, model, classes, **given)


def add_model(repository: Path, name: str, model: onnx.ModelProto, classes: list[str], **given: str) -> None:
    """Puts a graph into a repository, with these string parameters."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    shutil.copyfile(ROOT / "triton" / "onnx_model.py", folder / "model.py")
    given["runtime"] = "onnxruntime"
    (folder.parent / "config.pbtxt").write_text(onnx_config(model, name, f"tiny {name}", classes, 1, 1, given))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("stages")
    repository = folder / "repository"
    install(repository, "yolo", *constant(DETECT), {"output0": [6, ANCHORS]}, THINGS, layout="raw")
    nodes, constants = constant(SEGMENT)
    nodes += [
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sub", ["cells", "half"], ["output1"]),
    ]
    outputs = {"output0": [9, ANCHORS], "output1": [3, SIDE // 4, SIDE // 4]}
    constants["half"] = np.array(0.5, np.float32)
    install(repository, "yolo_segment", nodes, constants, outputs, THINGS, task="segment", layout="raw")
    install(repository, "yolo_obb", *constant(OBB), {"output0": [7, ANCHORS]}, THINGS, task="obb", layout="raw")
    shape = {"kpt_shape": "5x2", "kpt_names": '["a", "b", "c", "d", "middle"]', "skeleton": "[[0, 4], [1, 4]]"}
    install(
        repository,
        "yolo_pose",
        *constant(CARD),
        {"output0": [15, ANCHORS]},
        ["card"],
        task="pose",
        layout="raw",
        **shape,
    )
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["colour"]),
        helper.make_node("Reshape", ["colour", "flat"], ["scores"]),
        helper.make_node("Mul", ["scores", "sharp"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["output0"], axis=1),
    ]
    constants = {"flat": np.array([-1, 3]), "sharp": np.array(4, np.float32)}
    install(
        repository,
        "yolo_classify",
        nodes,
        constants,
        {"output0": [3]},
        COLOURS,
        64,
        task="classify",
        resize="crop",
    )
    together(repository)
    with running_triton(repository, folder / "state", TRITON_DEADLINE_S="600") as found:
        yield found


TOGETHER = {"yolo": "objects", "yolo_segment": "segments", "yolo_obb": "oriented", "yolo_pose": "poses"}


def together(repository: Path) -> None:
    """An ensemble of all models that take the same image, under the name of no setting's default."""
    outputs, steps, named = [], [], {}
    for name, output in TOGETHER.items():
        given = {"output0": output, **({"output1": "protos"} if name == "yolo_segment" else {})}
        maps = " ".join(f'output_map {{ key: "{own}" value: "{ours}" }}' for own, ours in given.items())
        steps.append(
            f'{{ model_name: "{name}" model_version: -1 input_map {{ key: "images" value: "images" }} {maps} }}'
        )
        rows = {"yolo": 6, "yolo_segment": 9, "yolo_obb": 7, "yolo_pose": 15}[name]
        outputs.append(f'{{ name: "{output}" data_type: TYPE_FP32 dims: [ {rows}, {ANCHORS} ] }}')
        named[name] = given
    outputs.append(f'{{ name: "protos" data_type: TYPE_FP32 dims: [ 3, {SIDE // 4}, {SIDE // 4} ] }}')
    text = orjson.dumps(orjson.dumps(named).decode()).decode()
    folder = repository / "all_in_one"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(f"""name: "all_in_one"
platform: "ensemble"
max_batch_size: 16
input [ {{ name: "images" data_type: TYPE_FP32 dims: [ 3, {SIDE}, {SIDE} ] }} ]
output [ {", ".join(outputs)} ]
ensemble_scheduling {{ step [ {", ".join(steps)} ] }}
parameters {{ key: "outputs" value {{ string_value: {text} }} }}
""")


async def analyze(
    url: str,
    state: Path,
    *,
    frames: int = 1,
    together: bool = False,
    refuse: str | None = None,
    settings: dict[str, Any] | None = None,
    **chosen: Any,
) -> list[FrameResult]:
    """One stream's frames one after the other, or frames of as many streams in one batch."""
    given = Settings(ocr="off", state_dir=state, triton_deadline_s=60, **(settings or {}))
    client = TritonClient(url, given.triton)
    await client.open()
    if refuse is not None:
        ask = client.infer

        async def infer(spec: Any, *arguments: Any, **more: Any) -> Reply:
            if spec.name == refuse:
                raise InferenceError(f"{refuse}: out of memory")
            return await ask(spec, *arguments, **more)

        client.infer = infer  # type: ignore[method-assign,assignment]
    pipeline = Pipeline(client, given, create(given))
    chosen.setdefault("stages", Stages(ocr=False, motion=False))
    memories = [StreamMemory()] * frames if not together else [StreamMemory() for _ in range(frames)]
    jobs = [
        FrameJob(Frame("s", frame(), time.perf_counter(), 0.0, i, at_s=i / 10), memory, StreamSettings(**chosen))
        for i, memory in enumerate(memories)
    ]
    try:
        await pipeline.load()
        calls = [jobs] if together else [[job] for job in jobs]
        results = [result for call in calls for result in await pipeline.analyze(call)]
    finally:
        pipeline.close()
        await client.close()
    assert all(isinstance(result, FrameResult) for result in results)
    return results  # type: ignore[return-value]


def wire(result: FrameResult) -> dict[str, Any]:
    written: dict[str, Any] = orjson.loads(orjson.dumps(result.values()))
    return written


def test_masks_lie_where_their_colour_is(url: str, tmp_path: Path) -> None:
    (found,) = asyncio.run(analyze(url, tmp_path, mask_rle=True))
    assert found.stages["segment"].status == "ok"
    blank = metrics.MASKS.labels("empty")._value.get()
    assert blank >= 1  # the one that is green
    red, blue = wire(found)["segments"]
    assert (red["class_name"], red["confidence"], blue["class_name"]) == ("person", 0.9, "dog")
    assert (blue["box"]["x1"], blue["box"]["x2"]) == (0, WIDTH)
    for segment, (x1, y1, x2, y2) in ((red, RED), (blue, BLUE)):
        right = np.zeros((HEIGHT, WIDTH), bool)
        right[y1:y2, x1:x2] = True
        drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.fillPoly(drawn, [np.rint(ring).astype(np.int32) for ring in segment["polygons"]], 1)
        assert segment["rle"]["size"] == [HEIGHT, WIDTH]
        mask = supervision.rle_to_mask(segment["rle"]["counts"], (WIDTH, HEIGHT))
        for pixels in (drawn > 0, mask):
            assert np.count_nonzero(pixels & right) / np.count_nonzero(pixels | right) > 0.9
        assert len(segment["polygons"]) == 1


def test_run_lengths_are_only_made_on_request(url: str, tmp_path: Path) -> None:
    (found,) = asyncio.run(analyze(url, tmp_path))
    assert [segment.rle for segment in found.segments] == [None, None]
    (off,) = asyncio.run(analyze(url, tmp_path, stages=Stages(ocr=False, motion=False, segment=False)))
    assert (off.segments, off.stages["segment"].reason) == ([], "off")
    assert len(off.oriented) == 2


def test_oriented_boxes_are_suppressed_and_lie_where_they_should(url: str, tmp_path: Path) -> None:
    (found,) = asyncio.run(analyze(url, tmp_path))
    first, second = wire(found)["oriented"]
    assert (first["confidence"], second["class_name"]) == (0.9, "dog")
    assert (first["width"], first["height"], first["angle_deg"]) == (120.0, 40.0, round(math.degrees(0.5), 4))
    middle = np.mean(first["corners"], axis=0)
    assert middle == pytest.approx((160, 120), abs=0.02)
    direction = math.atan2(*(np.subtract(first["corners"][0], first["corners"][3])[::-1]))
    assert direction == pytest.approx(0.5, abs=1e-3)


def test_what_has_boxes_is_tracked(url: str, tmp_path: Path) -> None:
    *_, last = asyncio.run(analyze(url, tmp_path, frames=4))
    ids = {name: [entry["track_id"] for entry in wire(last)[name]] for name in ("objects", "segments", "oriented")}
    assert None not in ids["objects"][:2]
    assert ids["segments"][0] == ids["objects"][0]  # the same person


def test_a_whole_frame_is_classified_as_its_middle(url: str, tmp_path: Path) -> None:
    (found,) = asyncio.run(analyze(url, tmp_path))
    (whole,) = wire(found)["classifications"]
    assert (whole["box"], whole["track_id"]) == (None, None)
    pixels = simplejpeg.decode_jpeg(frame())[:, 40:280]  # the square in the middle
    shares = np.exp(4 * pixels.reshape(-1, 3).mean(axis=0) / 255)
    shares /= shares.sum()
    assert [score["class_name"] for score in whole["top"]] == [COLOURS[at] for at in np.argsort(-shares)]
    assert [score["confidence"] for score in whole["top"]] == pytest.approx(sorted(shares)[::-1], abs=0.01)


CROPS = {"classify_crops": "person"}


def test_objects_of_a_class_are_classified_one_by_one(url: str, tmp_path: Path) -> None:
    counts = {name: metrics.CLASSIFY_CROPS.labels(name)._value.get() for name in ("classified", "unfit")}
    *_, last = asyncio.run(analyze(url, tmp_path, frames=3, settings=CROPS))
    red, blue = wire(last)["classifications"]  # not the dog, and not the person of a few pixels
    assert [red["box"][key] for key in ("x1", "y1", "x2", "y2")] == pytest.approx(RED, abs=0.5)
    assert (red["top"][0]["class_name"], blue["top"][0]["class_name"]) == ("red", "blue")
    assert red["top"][0]["confidence"] > 0.8
    assert red["track_id"] == last.objects[0].track_id is not None
    assert last.stages["classify"].status == "ok"
    assert "classify" in last.timings_ms
    assert metrics.CLASSIFY_CROPS.labels("classified")._value.get() == counts["classified"] + 6
    assert metrics.CLASSIFY_CROPS.labels("unfit")._value.get() == counts["unfit"] + 3


def test_crops_of_a_batch_share_requests_of_a_bounded_size(url: str, tmp_path: Path) -> None:
    results = asyncio.run(analyze(url, tmp_path, frames=4, together=True, settings={**CROPS, "max_sub_batch": 3}))
    for found in results:
        names = [entry.top[0].class_name for entry in found.classifications]
        assert (names, found.stages["classify"].status) == (["red", "blue"], "ok")
    over = metrics.CLASSIFY_CROPS.labels("too_many")._value.get()
    (few,) = asyncio.run(analyze(url, tmp_path, settings={**CROPS, "classify_most_crops": 1}))
    assert [entry.top[0].class_name for entry in few.classifications] == ["red"]
    assert metrics.CLASSIFY_CROPS.labels("too_many")._value.get() == over + 1


@pytest.mark.parametrize(
    ("crops", "status", "reason"),
    [
        ("person", "error", "yolo_classify: out of memory"),
        ("persn", "skipped", "CLASSIFY_CROPS='persn': the detection model has none of these classes"),
    ],
)
def test_only_its_own_stage_fails(url: str, tmp_path: Path, crops: str, status: str, reason: str) -> None:
    settings = {"classify_crops": crops}
    (found,) = asyncio.run(analyze(url, tmp_path, refuse="yolo_classify", settings=settings))
    assert (found.stages["classify"].status, found.stages["classify"].reason) == (status, reason)
    assert found.classifications == []
    assert {found.stages[name].status for name in ("detect", "segment", "obb")} == {"ok"}


def test_without_detections_there_is_nothing_to_cut(url: str, tmp_path: Path) -> None:
    chosen = Stages(ocr=False, motion=False, detect=False)
    (found,) = asyncio.run(analyze(url, tmp_path, settings=CROPS, stages=chosen))
    assert (found.stages["classify"].status, found.stages["classify"].reason) == ("skipped", "no_detections")


def test_poses_of_other_things_than_people(url: str, tmp_path: Path) -> None:
    (found,) = asyncio.run(analyze(url, tmp_path))
    (card,) = wire(found)["poses"]
    assert (card["class_name"], card["confidence"], found.stages["pose"].status) == ("card", 0.9, "ok")
    assert [(point["name"], point["x"], point["y"], point["confidence"]) for point in card["keypoints"]] == [
        ("a", 180.0, 40.0, 1.0),
        ("b", 280.0, 40.0, 1.0),
        ("c", 280.0, 200.0, 1.0),
        ("d", 180.0, 200.0, 1.0),
        ("middle", 230.0, 120.0, 1.0),
    ]


def test_clients_learn_what_the_models_are(url: str, tmp_path: Path) -> None:
    async def models() -> dict[str, Any]:
        settings = Settings(ocr="off", state_dir=tmp_path, triton_deadline_s=60)
        client = TritonClient(url, settings.triton)
        await client.open()
        pipeline = Pipeline(client, settings, create(settings))
        try:
            await pipeline.load()
            await pipeline.try_models()
            assert pipeline.well, pipeline.watch.reason
            read: dict[str, Any] = orjson.loads(orjson.dumps(pipeline.models))
            return read
        finally:
            pipeline.close()
            await client.close()

    found = asyncio.run(models())
    assert found["segment"] == {"name": "tiny yolo_segment", "classes": THINGS}
    assert found["obb"]["classes"] == THINGS
    assert found["classify"]["classes"] == COLOURS
    card = {"keypoints": ["a", "b", "c", "d", "middle"], "skeleton": [[0, 4], [1, 4]], "classes": ["card"]}
    assert found["pose"] == {"name": "tiny yolo_pose", **card}


def test_models_in_an_ensemble_answer_together_what_they_answer_alone(url: str, tmp_path: Path) -> None:
    (alone,) = asyncio.run(analyze(url, tmp_path, mask_rle=True))
    requests = metrics.MODEL_BATCH.labels("all_in_one")._sum.get()
    (one,) = asyncio.run(analyze(url, tmp_path, mask_rle=True, settings={"triton_ensemble": "all_in_one"}))
    assert metrics.MODEL_BATCH.labels("all_in_one")._sum.get() == requests + 1
    for part in ("objects", "segments", "oriented", "poses", "classifications"):
        assert wire(one)[part] == wire(alone)[part]
        assert len(wire(one)[part]) >= 1
    some = Stages.only(["segment", "obb"])
    (few,) = asyncio.run(analyze(url, tmp_path, stages=some, settings={"triton_ensemble": "all_in_one"}))
    assert (len(few.segments), len(few.oriented), few.objects, few.poses) == (2, 2, [], [])
