"""Runs one variant of the benchmark `fleet` in this process; prints the measurements as one JSON object.

python -m benchmarks.fleet_loops worker --redis URL --kafka HOST:PORT [--triton HOST:PORT]
python -m benchmarks.fleet_loops plain  --redis URL --kafka HOST:PORT
python -m benchmarks.fleet_loops floor  --frames FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import redis
import simplejpeg
import uvloop
from confluent_kafka import Producer
from numpy.typing import NDArray

from app.fleet.supervisor import YOUNG
from app.fleet.worker import Worker, WorkerHeartbeats
from app.inference.client import InferenceClient, ModelSpec, Reply, TensorSpec
from app.inference.fake import FakeClient
from app.inference.shared_memory import Buffer
from app.inference.triton import TritonClient
from app.pipeline.multimodal import Pipeline
from app.pipeline.registry import create, fleet_stages
from app.process import freeze_gc, tune
from app.settings import Settings
from benchmarks import canned, naive, photographs
from benchmarks.fleet_servers import GROUP, TOPIC

DETECTIONS = canned.detections([canned.PERSON, canned.DOG])
POSES = canned.poses([canned.person_pose()])


@dataclass
class Window:
    """Frames and CPU seconds of a period of `seconds`, which begins `warm_up_s` after the first frame."""

    warm_up_s: float
    seconds: float
    frames: int = 0
    first: float = 0.0
    opened: tuple[float, float, int] | None = None
    closed: tuple[float, float, int] | None = None

    def add(self, count: int) -> None:
        """Counts analysed frames. Not thread-safe."""
        now = time.perf_counter()
        self.frames += count
        self.first = self.first or now
        if self.opened is None and now - self.first >= self.warm_up_s:
            self.opened = now, time.process_time(), self.frames
        elif self.opened and self.closed is None and now - self.opened[0] >= self.seconds:
            self.closed = now, time.process_time(), self.frames

    def measured(self) -> dict[str, float]:
        if self.opened is None or self.closed is None:
            sys.exit(f"all {self.frames} frames were analysed before the time was over: fill Redis with more")
        seconds, cpu_s, frames = (b - a for a, b in zip(self.opened, self.closed, strict=True))
        return {"frames": frames, "seconds": seconds, "cpu_s": cpu_s}


class Counted:
    """An inference client that counts the frames of its requests."""

    def __init__(self, client: InferenceClient, window: Window) -> None:
        self._client = client
        self._window = window

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str) -> Reply:
        count = len(buffer.array)
        reply = await self._client.infer(model, buffer, stream=stream)
        self._window.add(count)
        return reply


def fake() -> FakeClient:
    """A client that answers at once with a person, its pose and a dog, in the prepared models' tensors."""
    answers = {"detections": DETECTIONS, "poses": POSES}
    batches = {count: {name: np.stack([output] * count) for name, output in answers.items()} for count in range(1, 65)}
    picture = (TensorSpec("images", "UINT8", (-1, canned.SIZE, canned.SIZE, 3)),)
    heads = {name: TensorSpec(name, "FP32", (-1, *output.shape)) for name, output in answers.items()}
    names = {"class_names": json.dumps(["person", *(f"class_{number}" for number in range(1, 80))])}
    served = {"yolo": ("detections",), "yolo_pose": ("detections",), "vision": ("detections", "poses")}
    poses = TensorSpec("detections", "FP32", heads["poses"].shape)
    return FakeClient(
        {
            name: (
                ModelSpec(
                    name, "1", picture, (poses,) if name == "yolo_pose" else tuple(map(heads.get, outputs)), 16, names
                ),  # type: ignore[arg-type]
                lambda images: batches[len(images)],
            )
            for name, outputs in served.items()
        }
    )


async def worker(options: argparse.Namespace) -> dict[str, float]:
    """`fleet work` in one process with FLEET_PROFILE=throughput; on a fake client or a Triton."""
    tune()
    settings = Settings(
        redis_url=options.redis,
        kafka_bootstrap_servers=options.kafka,
        fleet_profile="throughput",
        frame_staleness_ms=1e9,  # Redis was filled beforehand
        ocr="off",
        state_dir=Path(options.state),
    )
    window = Window(options.warm_up, options.seconds)
    if options.triton:
        triton = TritonClient(options.triton, settings.triton)
        await triton.open()
        client: InferenceClient = triton
    else:
        client = fake()
    pipeline = Pipeline(
        Counted(client, window),  # type: ignore[arg-type]
        settings,
        create(settings, fleet_stages(settings.fleet)),
    )
    await pipeline.load()
    fleet_worker = Worker(pipeline, settings, WorkerHeartbeats(1).of(0))
    freeze_gc(threshold=YOUNG)
    running = asyncio.create_task(fleet_worker.run())
    while window.closed is None and not running.done():
        await asyncio.sleep(0.05)
        if window.first and time.perf_counter() - window.first > options.warm_up + 4 * options.seconds + 10:
            break
    fleet_worker.stop()
    await running
    await asyncio.to_thread(pipeline.close)
    await client.close()
    return window.measured()


def plain(options: argparse.Namespace) -> dict[str, float]:
    """The loop that the tutorials show, without needless slowness: it does not flush after every message."""
    window = Window(options.warm_up, options.seconds)
    client = redis.Redis.from_url(options.redis)
    producer = Producer({"bootstrap.servers": options.kafka})
    streams = sorted(client.scan_iter(match="frames:*", _type="stream"))
    heads = canned.raw(DETECTIONS)[None], canned.raw(POSES)[None]
    for stream in cycle(streams):
        found: Any = client.xreadgroup(GROUP, "plain", {stream: ">"}, count=1)
        if not found:
            break
        ((entry, fields),) = found[0][1]
        frame: Any = cv2.imdecode(np.frombuffer(fields[b"frame"], np.uint8), cv2.IMREAD_COLOR)
        tensor, scale, left, top = naive.preprocess(frame, canned.SIZE)
        assert tensor.shape == (1, 3, canned.SIZE, canned.SIZE)
        value = {
            "camera_id": fields[b"camera_id"].decode(),
            "captured_at_ms": float(fields[b"captured_at_ms"]),
            "objects": naive.detections(heads[0], scale, left, top),
            "poses": naive.keypoints(heads[1], scale, left, top),
        }
        producer.produce(TOPIC, json.dumps(value).encode(), fields[b"camera_id"])
        producer.poll(0)
        client.xack(stream, GROUP, entry)
        window.add(1)
        if window.closed:
            break
    producer.flush(30)
    client.close()
    return window.measured()


def floor(options: argparse.Namespace) -> dict[str, float]:
    """Decode and letterbox only, one thread per core: no worker on these cores can be faster."""
    window, lock = Window(options.warm_up, options.seconds), threading.Lock()
    clips = photographs.read(options.frames)
    top = (canned.SIZE - photographs.HEIGHT) // 2

    def loop(clip: list[bytes]) -> None:
        canvas: NDArray[np.uint8] = np.full((canned.SIZE, canned.SIZE, 3), 114, np.uint8)
        picture = canvas[top : top + photographs.HEIGHT]
        for jpeg in cycle(clip):
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=picture)
            with lock:
                window.add(1)
            if window.closed:
                return

    every = [jpeg for group in zip(*clips, strict=True) for jpeg in group]
    threads = [threading.Thread(target=loop, args=(every,)) for _ in os.sched_getaffinity(0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return window.measured()


def main() -> None:
    variants: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
        "worker": lambda options: uvloop.run(worker(options)),
        "plain": plain,
        "floor": floor,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=variants)
    parser.add_argument("--redis")
    parser.add_argument("--kafka")
    parser.add_argument("--triton")
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--state", default=".")
    parser.add_argument("--warm-up", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    sys.stdout.write(orjson.dumps(variants[options.variant](options)).decode() + "\n")


if __name__ == "__main__":
    main()
