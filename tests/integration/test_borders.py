"""Batches of changing sizes through a real Triton and shared memory: each picture keeps its letterbox's border."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from app.pipeline.startup import open_pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import FrameResult
from app.settings import Settings, TritonSettings
from benchmarks import canned
from tests.support.service import require_environment, running_triton

# Says how many pixels of the 80 rows above each 640x480 picture are not the border's grey, as a box: x2 is 20 and
# a hundredth of them.
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            found = np.zeros((len(images), 300, 6), np.float32)
            # Where a batch is answered in the memory of its pictures, this is no grey.
            poses = np.full((len(images), 300, 57), 0.01, np.float32)
            poses[:, :, 4] = 0
            for index, image in enumerate(images):
                wrong = (image[:80] != 114).any(axis=-1).sum()
                found[index, 0] = 10, 100, 20 + wrong / 100, 300, 0.9, 0
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("detections", found), pb_utils.Tensor("poses", poses)])
            )
        return responses
"""


def test_a_smaller_batch_leaves_the_borders_of_the_next_larger_one(tmp_path: Path, jpeg: bytes) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    repository = canned.write(tmp_path / "repository")
    (repository / "vision" / "1" / "model.py").write_text(MODEL)
    wish = StreamSettings(stages=Stages(ocr=False, motion=False, track=False))

    async def analyzed(url: str) -> list[tuple[int, list[int]]]:
        """The size of each batch, and the model's count of wrong border pixels for each frame in it."""
        settings = Settings(triton_url=url, triton_shm="on", ocr="off", state_dir=tmp_path / "service")
        said: list[tuple[int, list[int]]] = []
        async with open_pipeline(settings) as opened:
            async with asyncio.timeout(30):
                while True:  # the memory that all of these batches share is mapped after the first
                    buffer = opened.client.buffer((4, canned.SIZE, canned.SIZE, 3), "UINT8")
                    buffer.release()
                    if buffer.slot is not None:
                        break
                    await asyncio.sleep(0.02)
            for count in (4, 3, 4, 3, 3, 4):
                jobs = [
                    FrameJob(Frame(str(number), jpeg, time.perf_counter(), 0.0, 1), StreamMemory(), wish)
                    for number in range(count)
                ]
                answers = await opened.pipeline.analyze(jobs)
                said.append((count, [wrong(answer) for answer in answers]))
        return said

    with running_triton(repository, tmp_path / "triton") as url:
        said = asyncio.run(analyzed(url))
    assert said == [(count, [0] * count) for count in (4, 3, 4, 3, 3, 4)]


def wrong(answer: object) -> int:
    """The number of border pixels that are not the letterbox's grey."""
    assert isinstance(answer, FrameResult)
    assert answer.stages["detect"].status == "ok"
    return round((answer.objects[0].box.x2 - 20) * 100)
