"""The worker in mode `async`, inside this process, on a fake model, with a real Redis and Kafka."""

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
from app.fleet.worker import Worker, WorkerHeartbeats
from app.inference.client import ModelSpec, Reply, TensorSpec
from app.inference.fake import FakeClient
from app.pipeline.multimodal import Pipeline
from app.settings import Settings
from benchmarks import canned
from tests.fleet.work import add_frames, pending, topic_values
from tests.support.kafka import Broker
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio
FRAMES = 60
PICTURE = TensorSpec("images", "UINT8", (-1, 640, 640, 3))
FOUND = TensorSpec("detections", "FP32", (-1, 300, 6))
SERVED = ModelSpec("yolo", "1", (PICTURE,), (FOUND,), 16, {"class_names": json.dumps(["person"])})


def settings_of(
    redis_server: RedisServer, kafka: Broker, folder: Path, *, batch_size: int, **others: object
) -> Settings:
    given: dict[str, Any] = {
        "redis_url": redis_server.url,
        "kafka_bootstrap_servers": kafka.bootstrap,
        "kafka_topic": f"worker-{uuid.uuid4().hex[:12]}",
        "batch_size": batch_size,
        "fleet_batches_in_flight": 1,
        "fleet_stages": ("detect",),
        "frame_staleness_ms": 3_600_000,
        "ocr": "off",
        "state_dir": folder,
    }
    return Settings(**{**given, **others})


def persons(batch: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
    return {"detections": np.repeat(canned.detections([canned.PERSON])[None], len(batch), 0)}


async def test_a_batch_that_the_models_are_too_small_for_is_not_asked_for_again(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, jpeg: bytes, tmp_path: Path
) -> None:
    sizes: list[int] = []

    def model(batch: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        sizes.append(len(batch))
        if len(batch) > 4:
            raise InferenceError("CUDA out of memory")
        return persons(batch)

    settings = settings_of(redis_server, kafka, tmp_path, batch_size=8)
    for number in range(FRAMES):
        add_frames(redis, f"cam-{number}", [jpeg])
    client = FakeClient({"yolo": (SERVED, model)})
    pipeline = Pipeline(client, settings)
    try:
        worker = Worker(pipeline, settings, WorkerHeartbeats(1).of(0))
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


class Gated(FakeClient):
    """A client that answers only as many requests as the test releases."""

    def __init__(self) -> None:
        super().__init__({"yolo": (SERVED, persons)})
        self.let = asyncio.Semaphore(0)
        self.asked = 0

    async def infer(self, *given: Any, **options: Any) -> Reply:
        self.asked += 1
        await self.let.acquire()
        return await super().infer(*given, **options)


async def test_what_a_worker_has_in_hand_grows_to_two_batches_and_no_further(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, jpeg: bytes, tmp_path: Path
) -> None:
    for number in range(40):
        add_frames(redis, f"cam-{number}", [jpeg] * 3)
    settings = settings_of(redis_server, kafka, tmp_path, batch_size=2)
    client = Gated()
    pipeline = Pipeline(client, settings)
    held = []
    try:
        worker = Worker(pipeline, settings, WorkerHeartbeats(1).of(0))
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(40):
            for done in range(7):
                # The next batch is with the model; what was answered before is acknowledged; nothing more can be read.
                while client.asked <= done or worker.in_flight.room(1, 0) or not settled(worker):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                held.append(pending(redis))
                client.let.release()
            worker.stop()
            for _ in range(60):
                client.let.release()
            await running
    finally:
        pipeline.close()
    # A batch at the beginning, as many as in the settings once the models have shown that they are fast enough.
    assert held == [2, 3, 3, 3, 4, 4, 4]
    assert pending(redis) == 0


def settled(worker: Worker) -> bool:
    """Whether all frames in flight are at the models or wait for them."""
    return len(worker.in_flight) == worker.in_flight.frames > 0


async def test_in_mode_sync_a_request_has_one_frame_and_as_many_as_there_are_threads_are_asked_at_once(
    redis: redis_library.Redis, redis_server: RedisServer, kafka: Broker, jpeg: bytes, tmp_path: Path
) -> None:
    for number in range(10):
        add_frames(redis, f"cam-{number}", [jpeg] * 2)
    settings = settings_of(redis_server, kafka, tmp_path, batch_size=8, fleet_mode="sync", fleet_threads=3)
    client = Gated()
    pipeline = Pipeline(client, settings)
    try:
        worker = Worker(pipeline, settings, WorkerHeartbeats(1).of(0))
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(40):
            while client.asked < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            assert client.asked == 3
            for done in range(1, 18):
                client.let.release()
                while client.asked < 3 + done:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            for _ in range(3):
                client.let.release()
            while pending(redis):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        worker.stop()
        await running
    finally:
        pipeline.close()
    assert client.asked == len(topic_values(kafka.bootstrap, settings.kafka.kafka_topic)) == 20
