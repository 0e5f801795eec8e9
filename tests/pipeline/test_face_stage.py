"""The face stage: what a batch's frames get of it, and what it costs when something fails."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import simplejpeg

from app import metrics
from app.errors import FrameError, InferenceError
from app.inference.client import ModelSpec, TensorSpec
from app.inference.fake import FakeClient, Model
from app.pipeline.multimodal import Pipeline
from app.pipeline.registry import create
from app.pipeline.stages import faces as face_stage
from app.pipeline.stages.faces import FaceDetection, decode_embedding
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import FrameResult
from app.settings import Settings
from benchmarks import canned
from tests.support import faces

SIZE = 640
INPUT = (TensorSpec("images", "UINT8", (-1, SIZE, SIZE, 3)),)
NAMES = {"class_names": json.dumps(["person", *(f"class_{i}" for i in range(1, 80))])}
FRAME = (480, 640)
SLOTS = [(40.0 + 150 * column, 20.0 + 150 * row) for row in range(3) for column in range(4)]
"""Where faces of 112 pixels fit side by side."""


def scene(people: list[list[np.ndarray]], *, scale: float = 1.0) -> dict[str, tuple[ModelSpec, Model]]:
    """Detection and pose models that see these poses (frame pixels), a list for each frame of a batch; and a dog."""

    def rows(persons: list[np.ndarray], pose: bool) -> np.ndarray:
        found = [] if pose else [[0, 80, 30, 110, 0.8, 16]]
        for keypoints in persons:
            points = keypoints.copy()
            points[:, :2] = points[:, :2] * scale + (0, 80)  # a 4:3 frame lies 80 rows down the square canvas
            box = [*points[:, :2].min(axis=0), *points[:, :2].max(axis=0), 0.9, 0]
            found.append([*box, *points.ravel()] if pose else box)
        return canned.poses(found) if pose else canned.detections(found)

    def model(name: str, output: str, columns: int) -> tuple[ModelSpec, Model]:
        answers = np.stack([rows(persons, columns == 57) for persons in people])
        outputs = (TensorSpec(output, "FP32", (-1, 300, columns)),)
        return ModelSpec(name, "1", INPUT, outputs, 16, NAMES), lambda images: {output: answers[: len(images)]}

    return {"yolo": model("yolo", "detections", 6), "yolo_pose": model("yolo_pose", "poses", 57)}


EVERY = ("detect", "pose", "ocr", "motion", "track", "face")


def spec(length: int = 512) -> ModelSpec:
    given, gives = TensorSpec("data", "FP32", (-1, 3, 112, 112)), TensorSpec("embedding", "FP32", (-1, length))
    return ModelSpec("arcface", "1", (given,), (gives,), 16)


def arcface(batches: list[int] | None = None, fail: Callable[[int], bool] = lambda _: False) -> tuple[ModelSpec, Model]:
    """The model of `tests.support.faces`; notes the sizes of requests, and refuses those told."""
    sizes = batches if batches is not None else []

    def run(tensor: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(tensor))
        if fail(len(sizes)):
            raise InferenceError("arcface: out of memory")
        return {"embedding": faces.run(tensor)}

    return spec(), run


def analyze(
    client: FakeClient,
    jpegs: list[bytes],
    state: Path,
    *,
    wanted: bool = True,
    on: bool = True,
    most: int = 16,
    **stages: bool,
) -> list[FrameResult]:
    async def go() -> list[FrameResult | FrameError]:
        settings = Settings(ocr="off", max_sub_batch=most, state_dir=state)
        pipeline = Pipeline(client, settings, create(settings, EVERY if on else None))
        chosen = StreamSettings(stages=Stages(**stages, **({"face": True} if wanted else {})))
        jobs = [
            FrameJob(Frame(str(i), jpeg, time.perf_counter(), 0.0, i), StreamMemory(), chosen)
            for i, jpeg in enumerate(jpegs)
        ]
        try:
            return await pipeline.analyze(jobs, entry="fleet")
        finally:
            pipeline.close()

    answers = asyncio.run(go())
    assert all(isinstance(answer, FrameResult) for answer in answers)
    return answers  # type: ignore[return-value]


def frame_of(seeds: list[int], size: tuple[int, int] = FRAME, zoom: float = 1.0) -> tuple[bytes, list[np.ndarray]]:
    """A JPEG with a chart in each slot, and the poses of those faces."""
    frame = np.full((*size, 3), 90, np.uint8)
    poses = []
    for seed, (x, y) in zip(seeds, SLOTS, strict=False):
        to_frame = faces.place(1.1 * zoom, 8, (x * zoom + 10, y * zoom))
        faces.paint(frame, faces.chart(seed), to_frame)
        poses.append(faces.keypoints(to_frame))
    jpeg: bytes = simplejpeg.encode_jpeg(frame, quality=97, colorsubsampling="444")
    return jpeg, poses


def likeness(result: FrameResult, seed: int) -> float:
    """The best of a frame's embeddings against the chart's own."""
    vectors = [decode_embedding(found.embedding) for found in result.objects if isinstance(found, FaceDetection)]
    return max((float(vector @ faces.embedding(faces.chart(seed))) for vector in vectors), default=-1.0)


def faces_counted(outcome: str) -> float:
    return metrics.FACES.labels(outcome)._value.get()


def test_each_person_carries_the_embedding_of_its_own_face(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1, 2, 3])
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": arcface()}), [jpeg], tmp_path)
    people = [found for found in result.objects if found.class_id == 0]
    assert len(people) == 3
    by_place = sorted(people, key=lambda found: found.box.x1)
    for seed, person in zip((1, 2, 3), by_place, strict=True):
        assert isinstance(person, FaceDetection)
        vector = decode_embedding(person.embedding)
        alike = [float(vector @ faces.embedding(faces.chart(other))) for other in (1, 2, 3)]
        assert np.argmax(alike) + 1 == seed
        assert alike[seed - 1] > 0.999
    assert result.stages["face"].status == "ok"
    assert "face" in result.timings_ms


def test_a_request_holds_no_more_faces_than_max_sub_batch(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1, 2, 3, 4, 5])
    batches: list[int] = []
    client = FakeClient({**scene([poses]), "arcface": arcface(batches)})
    (result,) = analyze(client, [jpeg], tmp_path, most=2)
    assert sorted(batches) == [1, 2, 2]
    assert sum(isinstance(found, FaceDetection) for found in result.objects) == 5


def test_only_such_a_person_has_the_field(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1])
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": arcface()}), [jpeg], tmp_path)
    written = {
        found["class_id"]: "embedding" in found for found in orjson.loads(orjson.dumps(result.values()))["objects"]
    }
    assert written == {0: True, 16: False}


@pytest.mark.parametrize(("on", "wanted"), [(True, False), (False, False)])
def test_a_door_that_does_not_ask_sees_nothing_of_it(tmp_path: Path, on: bool, wanted: bool) -> None:
    jpeg, poses = frame_of([1])
    client = FakeClient({**scene([poses]), "arcface": arcface()})
    (result,) = analyze(client, [jpeg], tmp_path, wanted=wanted, on=on)
    assert set(result.stages) == set(Stages()) - {"summary"}
    assert "arcface" not in {name for name, _ in client.calls}
    assert b"embedding" not in orjson.dumps(result.values())


def test_a_cancelled_call_keeps_its_memory_until_the_faces_are_cut_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg, poses = frame_of([1])
    client = FakeClient({**scene([poses]), "arcface": arcface()})
    shape = (1, SIZE, SIZE, 3)
    first = client.buffer(shape, "UINT8")
    memory = first.array
    first.release()  # the next buffer of this shape has the same memory
    begun, go_on, cut = threading.Event(), threading.Event(), face_stage.crop

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        return cut(*arguments)

    monkeypatch.setattr(face_stage, "crop", slow)

    def reused() -> bool:
        buffer = client.buffer(shape, "UINT8")
        try:
            return np.shares_memory(buffer.array, memory)
        finally:
            buffer.release()

    async def run() -> None:
        settings = Settings(ocr="off", state_dir=tmp_path)
        pipeline = Pipeline(client, settings, create(settings, EVERY))
        job = FrameJob(
            Frame("s", jpeg, time.perf_counter(), 0.0, 1), StreamMemory(), StreamSettings(stages=Stages(face=True))
        )
        try:
            call = asyncio.create_task(pipeline.analyze([job]))
            assert await asyncio.to_thread(begun.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not reused()
            go_on.set()
            async with asyncio.timeout(10):
                while not reused():  # noqa: ASYNC110  the pool offers no event
                    await asyncio.sleep(0.01)
        finally:
            go_on.set()
            pipeline.close()

    asyncio.run(run())


def test_at_most_16_crops_a_request_over_all_frames_of_a_batch(tmp_path: Path) -> None:
    batches: list[int] = []
    frames = [frame_of(list(range(12))), frame_of(list(range(12, 24)))]
    client = FakeClient({**scene([poses for _, poses in frames]), "arcface": arcface(batches)})
    first, second = analyze(client, [jpeg for jpeg, _ in frames], tmp_path)
    assert sorted(batches) == [8, 16]
    assert min(likeness(first, seed) for seed in range(12)) > 0.999
    assert min(likeness(second, seed) for seed in range(12, 24)) > 0.999


def test_a_request_that_fails_costs_its_frames_this_stage_alone(tmp_path: Path) -> None:
    frames = [frame_of(list(range(12))), frame_of(list(range(12, 24)))]
    client = FakeClient({**scene([poses for _, poses in frames]), "arcface": arcface(fail=lambda call: call == 2)})
    before = faces_counted("error")
    first, second = analyze(client, [jpeg for jpeg, _ in frames], tmp_path)
    assert first.stages["face"].status == "ok"
    assert sum(isinstance(found, FaceDetection) for found in first.objects) == 12
    assert (second.stages["face"].status, second.stages["face"].reason) == ("error", "arcface: out of memory")
    # Four of its faces went with the first request.
    assert sum(isinstance(found, FaceDetection) for found in second.objects) == 4
    assert len(second.objects) == 13
    assert (second.stages["detect"].status, second.stages["pose"].status) == ("ok", "ok")
    assert faces_counted("error") - before == 8


def test_a_large_frame_is_cut_at_its_full_size(tmp_path: Path) -> None:
    """On the canvas this face is 37 pixels wide: what is cut from there has lost its fine lines."""
    lines = np.repeat((np.arange(112) // 2 % 2 * 255)[:, None], 112, axis=1).astype(np.uint8)
    fine = np.stack([lines, lines.T, lines], axis=2)
    fine[:56] = faces.chart(5)[:56]
    frame = np.full((1440, 1920, 3), 90, np.uint8)
    frame[200:312, 300:412] = fine
    to_frame = faces.place(1.0, 0, (300, 200))
    seen: list[np.ndarray] = []

    def keep(tensor: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(tensor.copy())
        return {"embedding": faces.run(tensor)}

    client = FakeClient({**scene([[faces.keypoints(to_frame)]], scale=1 / 3), "arcface": (spec(), keep)})
    jpeg: bytes = simplejpeg.encode_jpeg(frame, quality=97, colorsubsampling="444")
    (result,) = analyze(client, [jpeg], tmp_path)
    assert result.stages["face"].status == "ok"
    contrast = seen[0][0, 0, 60:100, 20:90].std()
    assert contrast > 0.7


def test_without_such_a_model_the_stage_is_disabled_for_that_reason(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1])
    (result,) = analyze(FakeClient(scene([poses])), [jpeg], tmp_path)
    assert (result.stages["face"].status, result.stages["face"].reason) == ("disabled", "not_served")
    wrong = FakeClient({**scene([poses]), "arcface": (spec(length=128), arcface()[1])})
    (result,) = analyze(wrong, [jpeg], tmp_path)
    assert result.stages["face"].status == "disabled"
    assert "[-1, 128]" in str(result.stages["face"].reason)
    assert result.stages["detect"].status == "ok"


def test_without_a_server_it_is_an_error(tmp_path: Path) -> None:
    client = FakeClient({})
    client.up = False
    (result,) = analyze(client, [frame_of([])[0]], tmp_path)
    assert (result.stages["face"].status, result.stages["face"].reason) == ("error", "inference_unavailable")


def test_faces_refused_are_counted_and_said(tmp_path: Path) -> None:
    small, turned = (faces.keypoints(faces.place(scale, 0, (300, 200))) for scale in (0.3, 0.8))
    turned[0, 0] += 25
    beside = turned - (250, 0, 0)
    jpeg, _ = frame_of([])
    before = {why: faces_counted(why) for why in ("too_small", "turned")}
    client = FakeClient({**scene([[small], [small, turned, beside], []]), "arcface": arcface()})
    first, second, third = analyze(client, [jpeg] * 3, tmp_path)
    assert (first.stages["face"].status, first.stages["face"].reason) == ("skipped", "too_small")
    assert (second.stages["face"].status, second.stages["face"].reason) == ("skipped", "turned")
    assert third.stages["face"].status == "ok"  # nobody there
    assert faces_counted("too_small") - before["too_small"] == 2
    assert "arcface" not in {name for name, _ in client.calls}


@pytest.mark.parametrize(("off", "reason"), [("pose", "no_poses"), ("detect", "no_detections")])
def test_it_needs_detection_and_pose(tmp_path: Path, off: str, reason: str) -> None:
    jpeg, poses = frame_of([1])
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": arcface()}), [jpeg], tmp_path, **{off: False})
    assert (result.stages["face"].status, result.stages["face"].reason) == ("skipped", reason)


def test_an_answer_without_length_is_an_error(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1])
    model = (spec(), lambda tensor: {"embedding": np.zeros((len(tensor), 512), np.float32)})
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": model}), [jpeg], tmp_path)
    assert result.stages["face"].status == "error"
    assert not any(isinstance(found, FaceDetection) for found in result.objects)
