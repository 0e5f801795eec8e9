"""A pipeline whose fake models find the white square in videos that are made for them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import InferenceError
from app.inference.client import ModelSpec, Reply, TensorSpec
from app.inference.fake import FakeClient
from app.inference.shared_memory import Buffer
from app.pipeline.multimodal import Pipeline
from app.settings import Settings
from benchmarks import canned

SIDE = 64
"""The square's side, pixels."""
_INPUT = (TensorSpec("images", "UINT8", (-1, 640, 640, 3)),)
_OUTPUTS = (TensorSpec("detections", "FP32", (-1, 300, 6)), TensorSpec("poses", "FP32", (-1, 300, 57)))


def place(number: int) -> tuple[int, int]:
    """Upper left corner of the square in frame `number`; it never turns back within 60 frames."""
    return 8 + 3 * (number % 60), 6 + 2 * (number % 60)


def square(number: int, width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    frame = np.full((height, width, 3), 60, np.uint8)
    x, y = place(number)
    frame[y : y + SIDE, x : x + SIDE] = 255
    return frame


def squares(path: Path, count: int, *, fps: int = 25, **options: Any) -> Path:
    """Writes a video of `count` frames with the square, without audio.

    Args:
        options: `width`, `height`, `pix_fmt`, `times_ms`, and `rotation`: the degrees counter-clockwise by which the
            file asks players to turn it, and then to mirror it with `hflip`; it is stored turned the other way.
    """
    width, height = options.get("width", 320), options.get("height", 240)
    rotation, times = options.get("rotation", 0), options.get("times_ms")
    unit = Fraction(1, 1000) if times else Fraction(1, fps)
    with av.open(str(path), "w") as container:
        encoder = {"preset": "ultrafast", "crf": "12", "bf": "2"}
        video: Any = container.add_stream("libx264", rate=fps, options=encoder)
        turned = rotation in (90, 270)
        video.width, video.height = (height, width) if turned else (width, height)
        video.pix_fmt = options.get("pix_fmt", "yuv420p")
        video.codec_context.time_base = unit
        hflip = bool(options.get("hflip"))
        if rotation or hflip:
            video.set_display_rotation(rotation, hflip=hflip)
        for number in range(count):
            seen = square(number, width, height)[:, :: -1 if hflip else 1]
            stored = np.ascontiguousarray(np.rot90(seen, -rotation // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, unit
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


class Sight(FakeClient):
    """Returns the square as one person with a pose, after a delay that differs from call to call.

    Args:
        fails: whether the model fails on a frame, by the frame's number (known from the square's position).
        batched: whether the model declares dynamic batching.
        together: calls are held until so many are there at once, ten seconds at most.
    """

    def __init__(
        self, fails: Callable[[int], bool] = lambda number: False, *, batched: bool = False, together: int = 1
    ) -> None:
        names = {"class_names": json.dumps(["person", "face"])}
        super().__init__({"vision": (ModelSpec("vision", "1", _INPUT, _OUTPUTS, 16, names, batched), self._look)})
        for name, output in zip(("yolo", "yolo_pose"), _OUTPUTS, strict=True):
            self._models[name] = (ModelSpec(name, "1", _INPUT, (output,), 16, names, batched), self._look)
        self._fails = fails
        self._dice = random.Random(3)
        self._together, self._are_together = together, asyncio.Event()
        self.most = self._now = 0
        """The most calls at once so far."""
        self.seen = 0

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str, deadline_s: float | None = None) -> Reply:
        self._now += 1
        self.most = max(self.most, self._now)
        if self.most >= self._together:
            self._are_together.set()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._are_together.wait(), 10)
            await asyncio.sleep(self._dice.choice([0.0, 0.002, 0.02]))
            return await super().infer(model, buffer, stream=stream)
        finally:
            self._now -= 1

    def _look(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        found, posed = [], []
        for image in images:
            bright = cv2.threshold(image[..., 1], 180, 255, cv2.THRESH_BINARY)[1]
            x, y, width, height = cv2.boundingRect(bright)
            if self._fails(round(((x - 0) / 2 - 8) / 3)):
                raise InferenceError("the model fell over")
            self.seen += 1
            row = (x, y, x + width, y + height, 0.9, 0)
            points = [v for _ in range(17) for v in (x + width / 2, y + height / 2, 0.9)]
            found.append(canned.detections([row]))
            posed.append(canned.poses([(*row, *points)]))
        return {"detections": np.stack(found), "poses": np.stack(posed)}


@asynccontextmanager
async def pipeline_of(client: FakeClient, state: Path) -> AsyncIterator[tuple[Pipeline, Settings]]:
    settings = Settings(ocr="off", state_dir=state)
    pipeline = Pipeline(client, settings)
    try:
        yield pipeline, settings
    finally:
        pipeline.close()
