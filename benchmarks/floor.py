"""What no service can beat: a bare loop, without socket, threads, sessions, tracker, metrics or error handling.

    python -m benchmarks.floor --triton 127.0.0.1:8001 --frames FOLDER

As many loops as there are clips, one after the other on one event loop but for Triton's part: the JPEG is decoded
straight into the canvas that Triton has mapped, made small and grey, flow, one call, the rows that score, orjson.
Prints one JSON object: a `measure.Measured`, and `sample`, one of the last results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import grpc
import numpy as np
import orjson
import simplejpeg
import uvloop
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from app.inference.memory import Region
from app.pipeline.motion import Flow
from app.tuning import tune
from benchmarks import photographs
from benchmarks.measure import Window

SIZE, TOP, K = 640, 80, 300
CONFIDENCE = 0.35
PIXELS, ROW, POSE_ROW = SIZE * SIZE * 3, 6, 57
SLOT = PIXELS + 4 * K * (ROW + POSE_ROW)


class Slot:
    """The canvas of one loop, its outputs, and the request that never changes."""

    def __init__(self, model: str, region: Region, index: int) -> None:
        start = region.slot_bytes * index
        self.canvas = np.frombuffer(region.memory, np.uint8, PIXELS, start).reshape(SIZE, SIZE, 3)
        self.canvas[:] = 114
        self.found = np.frombuffer(region.memory, np.float32, K * ROW, start + PIXELS).reshape(K, ROW)
        after = start + PIXELS + self.found.nbytes
        self.posed = np.frombuffer(region.memory, np.float32, K * POSE_ROW, after).reshape(K, POSE_ROW)
        self.request = service_pb2.ModelInferRequest(model_name=model)
        image = self.request.inputs.add(name="images", datatype="UINT8")
        image.shape.extend((1, SIZE, SIZE, 3))
        _place(image, region, start, PIXELS)
        _place(self.request.outputs.add(name="detections"), region, start + PIXELS, self.found.nbytes)
        _place(self.request.outputs.add(name="poses"), region, after, self.posed.nbytes)


def _place(tensor: Any, region: Region, offset: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


async def loop(stub: Any, slot: Slot, clip: Iterator[bytes], window: Window) -> bytes:
    """Analyses the clip until the window is closed; returns the last result."""
    picture = slot.canvas[TOP : TOP + photographs.HEIGHT]
    flow, previous, result = Flow("dis"), np.zeros((120, 160), np.uint8), b""
    for jpeg in clip:
        if window.closed:  # not cancelled: Triton may still write into the slot of a call that was
            break
        begun = perf_counter()
        simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True, fastupsample=True, buffer=picture)
        grey = small_grey(picture)
        motion = float(np.abs(flow(previous, grey)).mean())
        previous = grey
        await stub.ModelInfer(slot.request, timeout=5)
        found = {"objects": read(slot.found), "poses": read(slot.posed), "motion": motion}
        result = orjson.dumps({"type": "result", **found})
        window.answered(perf_counter() - begun)
    return result


def small_grey(picture: NDArray[np.uint8]) -> Any:
    half = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (320, 240), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(half, (160, 120), interpolation=cv2.INTER_LINEAR)


def read(head: NDArray[np.float32]) -> list[list[float]]:
    """The rows that score, as the model gave them, their box moved to frame pixels."""
    rows = head[head[:, 4] > CONFIDENCE]
    rows[:, 1:4:2] -= TOP
    found: list[list[float]] = rows.tolist()
    return found


async def run(options: argparse.Namespace) -> dict[str, object]:
    tune()
    clips = photographs.read(options.frames)
    window = Window([os.getpid()], options.triton_pids, own_load=False)
    region = Region(SLOT, len(clips))
    async with grpc.aio.insecure_channel(options.triton) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        where = {"name": region.name, "key": f"/{region.name}", "offset": 0, "byte_size": region.size}
        await stub.SystemSharedMemoryRegister(service_pb2.SystemSharedMemoryRegisterRequest(**where))
        region.unlink()
        slots = [Slot(options.model, region, index) for index in range(len(clips))]
        work = [
            asyncio.create_task(loop(stub, slot, cycle(clip), window)) for slot, clip in zip(slots, clips, strict=True)
        ]
        for wait, do in ((options.warm_up, window.open), (options.seconds, window.close)):
            done, _ = await asyncio.wait(work, timeout=wait, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            do()
        results = await asyncio.gather(*work)
        await stub.SystemSharedMemoryUnregister(service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name))
    return {**asdict(window.measured()), "sample": json.loads(results[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", required=True, help="host:port of its gRPC")
    parser.add_argument("--model", default="vision")
    parser.add_argument("--frames", type=Path, required=True, help="folder of clips, one loop each")
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--triton-pids", type=int, nargs="*", default=[], help="Triton's processes")
    json.dump(uvloop.run(run(parser.parse_args())), sys.stdout)


if __name__ == "__main__":
    main()
