"""The worker of mode `async` in this process, on a model of the tests, with the real Redis and Kafka."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_library
from numpy.typing import NDArray

from app.errors import InferenceError
from app.fleet.vitals import Vitals
from app.fleet.worker import Worker
from app.inference.client import ModelSpec, TensorSpec
from app.inference.fake import FakeClient
from app.pipeline.multimodal import Pipeline
from app.pipeline.ocr import Ocr
from app.settings import Settings
from benchmarks import canned
from tests.fleet.work import film, pending, topic_values
from tests.support.kafka import Broker
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio
FRAMES = 60


async def test_a_batch_that_the_models_are_too_small_for_is_not_asked_for_again(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, jpeg: bytes, tmp_path: Path
) -> None:
    sizes: list[int] = []

    def model(batch: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        sizes.append(len(batch))
        if len(batch) > 4:
            raise InferenceError("CUDA out of memory")
        return {"detections": np.repeat(canned.detections([canned.PERSON])[None], len(batch), 0)}

    picture = TensorSpec("images", "UINT8", (-1, 640, 640, 3))
    found = TensorSpec("detections", "FP32", (-1, 300, 6))
    served = ModelSpec("yolo", "1", (picture,), (found,), 16, {"class_names": json.dumps(["person"])})
    settings = Settings(
        redis_url=redis_server.url,
        kafka_bootstrap_servers=kafka.bootstrap,
        kafka_topic=f"worker-{uuid.uuid4().hex[:12]}",
        batch_size=8,
        fleet_batches_in_flight=1,
        fleet_stages=("detect",),
        frame_staleness_ms=3_600_000,
        ocr="off",
        state_dir=tmp_path,
    )
    for number in range(FRAMES):
        film(redis, f"cam-{number}", [jpeg])
    client, ocr = FakeClient({"yolo": (served, model)}), Ocr(settings.ocr, state_dir=tmp_path)
    pipeline = Pipeline(client, ocr, settings.pipeline, settings.triton, settings.live)
    try:
        worker = Worker(pipeline, settings, Vitals(1).pulse(0))
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(40):
            while sum(size for size in sizes if size <= 4) < FRAMES or pending(redis):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        worker.stop()
        await running
    finally:
        pipeline.close()
    assert [size for size in sizes if size > 4] == [8]
    values = topic_values(kafka.bootstrap, settings.kafka.kafka_topic)
    assert len({value["key"] for value in values}) == len(values) == FRAMES
