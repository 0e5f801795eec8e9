"""The average colour of an object is that of the pixels in its box."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import numpy as np
from sightline_average_colour import AverageColour

from app.inference.client import ModelSpec, TensorSpec
from app.inference.fake import FakeClient
from app.pipeline import registry
from app.pipeline.multimodal import Pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.stream import StreamSettings
from app.settings import Settings

SIZE = 640
BOX = (100.0, 200.0, 300.0, 400.0)


def answer(images: np.ndarray) -> dict[str, np.ndarray]:
    rows = np.zeros((len(images), 10, 6), np.float32)
    rows[:, 0] = (*BOX, 0.9, 0)
    return {"detections": rows}


def test_it_is_the_mean_of_the_box(tmp_path: Path) -> None:
    registry.register(AverageColour)
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[200:401, 100:301] = (250, 120, 10)
    tensors = (TensorSpec("images", "UINT8", (-1, SIZE, SIZE, 3)),), (TensorSpec("detections", "FP32", (-1, 10, 6)),)
    spec = ModelSpec("yolo", "1", *tensors, 8, {"class_names": json.dumps(["ball"])})
    frame = Frame("a", b"", time.perf_counter(), 0.0, 1, pixels=pixels)

    async def run() -> object:
        pipeline = Pipeline(FakeClient({"yolo": (spec, answer)}), Settings(ocr="off", state_dir=tmp_path))
        try:
            (result,) = await pipeline.analyze([FrameJob(frame, StreamMemory(), StreamSettings())])
        finally:
            pipeline.close()
        return result

    result = asyncio.run(run())
    assert result.stages["average_colour"].status == "ok"
    (colour,) = result.colours
    assert (colour.rgb, colour.hex) == ((250, 120, 10), "#fa780a")
    assert colour.box == result.objects[0].box
