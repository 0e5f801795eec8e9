"""Batches through `Pipeline.analyze`, on the client that ships for that: what each frame of one gets."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from app.errors import FrameError, UndecodableFrame
from app.inference.client import ModelSpec, TensorSpec
from app.inference.fake import FakeClient, Model
from app.pipeline.multimodal import Pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import FrameResult
from app.settings import Settings
from benchmarks import canned
from tests.conftest import photograph

INPUT = (TensorSpec("images", "UINT8", (-1, 640, 640, 3)),)
NAMES = {"class_names": json.dumps(["person", *(f"class_{i}" for i in range(1, 80))])}
DETECTIONS, POSES = TensorSpec("detections", "FP32", (-1, 300, 6)), TensorSpec("poses", "FP32", (-1, 300, 57))


def served(*names: str) -> dict[str, tuple[ModelSpec, Model]]:
    """Models that answer one person; the more of the batch's canvas is white, the farther down is her box."""

    def found(images: np.ndarray) -> np.ndarray:
        shift = (images.mean(axis=(1, 2, 3)) > 200) * 40.0
        return np.stack([canned.detections([np.add(canned.PERSON, [0, down, 0, down, 0, 0])]) for down in shift])

    def posed(images: np.ndarray) -> np.ndarray:
        return np.stack([canned.poses([canned.person_pose()])] * len(images))

    outputs = {"yolo": (DETECTIONS,), "yolo_pose": (POSES,), "vision": (DETECTIONS, POSES)}
    answer = {"detections": found, "poses": posed}
    return {
        name: (
            ModelSpec(name, "1", INPUT, outputs[name], 16, NAMES if name != "yolo_pose" else {}),
            lambda images, name=name: {tensor.name: answer[tensor.name](images) for tensor in outputs[name]},
        )
        for name in names
    }


def analyze(client: FakeClient, jobs: Sequence[FrameJob], state: Path) -> list[FrameResult | FrameError]:
    async def run() -> list[FrameResult | FrameError]:
        pipeline = Pipeline(client, Settings(ocr="off", state_dir=state))
        try:
            return await pipeline.analyze(jobs)
        finally:
            pipeline.close()

    return asyncio.run(run())


def job(jpeg: bytes, stream: str = "a", **stages: bool) -> FrameJob:
    settings = StreamSettings(stages=Stages(**stages))
    return FrameJob(Frame(stream, jpeg, time.perf_counter(), 0.0, 1), StreamMemory(), settings)


def white() -> bytes:
    import simplejpeg

    jpeg: bytes = simplejpeg.encode_jpeg(np.full((640, 640, 3), 255, np.uint8))
    return jpeg


def test_a_batch_is_one_request_and_each_frame_gets_its_own_answer(tmp_path: Path) -> None:
    client = FakeClient(served("yolo", "yolo_pose", "vision"))
    dark, broken, light = analyze(client, [job(photograph()), job(b"\xff\xd8no", "b"), job(white(), "c")], tmp_path)
    assert client.calls == [("vision", "a")]
    assert isinstance(broken, UndecodableFrame)
    assert isinstance(dark, FrameResult)
    assert isinstance(light, FrameResult)
    assert (dark.objects[0].box.y1, light.objects[0].box.y1) == (40.0, 160.0)  # 80 rows of border above the first
    assert [len(result.poses) for result in (dark, light)] == [1, 1]


@pytest.mark.parametrize("names", [("yolo", "yolo_pose"), ("yolo", "yolo_pose", "vision")])
def test_frames_of_a_batch_may_want_different_stages(tmp_path: Path, names: tuple[str, ...]) -> None:
    client = FakeClient(served(*names))
    first, second = analyze(client, [job(photograph(), pose=False), job(photograph(), "b", detect=False)], tmp_path)
    assert isinstance(first, FrameResult)
    assert isinstance(second, FrameResult)
    assert {name for name, _ in client.calls} == ({"vision"} if "vision" in names else {"yolo", "yolo_pose"})
    assert (len(first.objects), len(first.poses)) == (1, 0)
    assert (len(second.objects), len(second.poses)) == (0, 1)
    assert (first.stages["detect"].status, first.stages["pose"].status) == ("ok", "disabled")
    assert (second.stages["detect"].status, second.stages["pose"].status) == ("disabled", "ok")


def test_motion_does_not_start_from_a_frame_before_it_was_off(tmp_path: Path) -> None:
    memory = StreamMemory()

    async def run() -> list[FrameResult | FrameError]:
        client = FakeClient(served("yolo", "yolo_pose", "vision"))
        pipeline = Pipeline(client, Settings(ocr="off", state_dir=tmp_path))
        try:
            return [
                (await pipeline.analyze([dataclasses.replace(job(photograph(), **wishes), memory=memory)]))[0]
                for wishes in (
                    {},
                    {},
                    {"motion": False},  # text alone looks at grey pictures too
                    {},
                    {"motion": False, "ocr": False},
                    {},
                    {},
                )
            ]
        finally:
            pipeline.close()

    said = [
        (answer.stages["motion"].status, answer.stages["motion"].reason)
        for answer in asyncio.run(run())
        if isinstance(answer, FrameResult)
    ]
    off, first, ok = ("disabled", "off"), ("skipped", "first_frame"), ("ok", None)
    assert said == [first, ok, off, ok, off, first, ok]


def test_more_frames_than_a_model_takes_go_in_several_batches(tmp_path: Path) -> None:
    models = {name: (dataclasses.replace(spec, max_batch=2), run) for name, (spec, run) in served("yolo").items()}
    client = FakeClient(models)
    jobs = [job(jpeg, stream) for stream, jpeg in zip("abcde", [photograph(), white()] * 3, strict=False)]
    answers = analyze(client, jobs, tmp_path)
    assert client.calls == [("yolo", "a"), ("yolo", "c"), ("yolo", "e")]
    assert [answer.objects[0].box.y1 for answer in answers if isinstance(answer, FrameResult)] == [40, 160, 40, 160, 40]


def test_without_a_server_every_frame_is_still_answered(tmp_path: Path) -> None:
    client = FakeClient(served("yolo", "yolo_pose", "vision"))
    client.up = False
    (answer,) = analyze(client, [job(photograph())], tmp_path)
    assert isinstance(answer, FrameResult)
    assert client.calls == []
    assert answer.stages["detect"] == answer.stages["pose"]
    assert (answer.stages["pose"].status, answer.stages["pose"].reason) == ("error", "inference_unavailable")
    assert (answer.image.width, answer.image.height) == (640, 480)


def test_a_model_that_is_not_served_says_so(tmp_path: Path) -> None:
    (answer,) = analyze(FakeClient(served("yolo")), [job(photograph())], tmp_path)
    assert isinstance(answer, FrameResult)
    assert (answer.stages["pose"].status, answer.stages["pose"].reason) == ("disabled", "not_served")
    assert answer.stages["detect"].status == "ok"
