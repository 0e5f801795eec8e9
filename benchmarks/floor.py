"""A bare loop that only decodes, flows and calls Triton, a call a frame: no socket, threads, sessions, error handling.

    python -m benchmarks.floor --triton 127.0.0.1:8001 --frames FOLDER [--together]

As many loops as there are clips, one after the other on one event loop but for Triton's part: the JPEG is decoded
straight into the canvas that Triton has mapped, made small and grey, flow, one call, the rows that score, orjson.
`--together` saves calls, as the service does: each loop decodes a frame of up to eight clips and asks about all in one
call. Prints one JSON object: a `measure.Measured`, and `sample`, one of the last results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
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

from app.inference.shared_memory import Region
from app.pipeline.stages.motion import Flow
from app.process import tune
from benchmarks import photographs
from benchmarks.measure import Window

SIZE, TOP, K = 640, 80, 300
CONFIDENCE = 0.35
TOGETHER = 8
"""Frames in a call, as many as the service's own calls hold when all sessions are busy."""
PIXELS, ROW, POSE_ROW = SIZE * SIZE * 3, 6, 57


class Slot:
    """The canvases of one loop, one a clip, their outputs, and the request that never changes."""

    def __init__(self, model: str, region: Region, index: int, count: int) -> None:
        shapes = ((count, SIZE, SIZE, 3), (count, K, ROW), (count, K, POSE_ROW))
        start, views = region.slot_bytes * index, []
        for shape, dtype in zip(shapes, (np.uint8, np.float32, np.float32), strict=True):
            views.append(np.frombuffer(region.memory, dtype, math.prod(shape), start).reshape(shape))
            start += views[-1].nbytes
        canvases, self.found, self.posed = views
        canvases[:] = 114
        self.pictures = canvases[:, TOP : TOP + photographs.HEIGHT]
        self.request = service_pb2.ModelInferRequest(model_name=model)
        image = self.request.inputs.add(name="images", datatype="UINT8")
        image.shape.extend(canvases.shape)
        outputs = self.request.outputs
        start = region.slot_bytes * index
        for tensor, view in zip((image, outputs.add(name="detections"), outputs.add(name="poses")), views, strict=True):
            _place(tensor, region, start, view.nbytes)
            start += view.nbytes


def slot_bytes(count: int) -> int:
    """The bytes that this many images and their outputs take."""
    return count * (PIXELS + 4 * K * (ROW + POSE_ROW))


def _place(tensor: Any, region: Region, offset: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


async def loop(stub: Any, slot: Slot, clips: Sequence[Iterator[bytes]], window: Window) -> bytes:
    """Analyses the clips, a frame of each in a call, until the window is closed; returns the last result."""
    count = len(clips)
    flows, previous = [Flow("dis") for _ in clips], [np.zeros((120, 160), np.uint8)] * count
    motion, begun, result = [0.0] * count, [0.0] * count, b""
    while not window.closed:  # not cancelled: Triton may still write into the slot of a call that was
        for at, clip in enumerate(clips):
            begun[at] = perf_counter()
            picture = slot.pictures[at]
            simplejpeg.decode_jpeg(next(clip), "RGB", buffer=picture)
            grey = small_grey(picture)
            motion[at] = float(np.abs(flows[at](previous[at], grey)).mean())
            previous[at] = grey
        await stub.ModelInfer(slot.request, timeout=5)
        for at in range(count):
            found = {"objects": read(slot.found[at]), "poses": read(slot.posed[at]), "motion": motion[at]}
            result = orjson.dumps({"type": "result", **found})
            window.answered(perf_counter() - begun[at])
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
    size = TOGETHER if options.together else 1
    shares = [clips[at : at + size] for at in range(0, len(clips), size)]
    if options.together:
        shares *= 2  # one loop decodes while the other waits for Triton
    region = Region(slot_bytes(size), len(shares))
    async with grpc.aio.insecure_channel(options.triton) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        where = {"name": region.name, "key": f"/{region.name}", "offset": 0, "byte_size": region.size}
        await stub.SystemSharedMemoryRegister(service_pb2.SystemSharedMemoryRegisterRequest(**where))
        region.unlink()
        work = []
        for index, share in enumerate(shares):
            slot = Slot(options.model, region, index, len(share))
            work.append(asyncio.create_task(loop(stub, slot, [cycle(clip) for clip in share], window)))
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
    parser.add_argument("--frames", type=Path, required=True, help="folder of clips")
    parser.add_argument("--together", action="store_true", help="one call about frames of eight clips")
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--triton-pids", type=int, nargs="*", default=[], help="Triton's processes")
    json.dump(uvloop.run(run(parser.parse_args())), sys.stdout)


if __name__ == "__main__":
    main()
