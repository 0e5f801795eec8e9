"""Tensors on their way to Triton and back: FP32 and raw heads in the messages, bytes and picked rows, shared memory.

Canned models on the embedded Triton; the client alone on its core, a few requests in flight. Counted is the client's
CPU time a call; Triton's own is beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpcclient
import uvloop
from rich.console import Console

from app.inference.client import ModelSpec
from app.inference.triton import TritonClient
from app.process import tune
from app.settings import TritonSettings
from benchmarks import harness, live, turns
from benchmarks.harness import BenchmarkError
from benchmarks.measure import Measured, Window
from benchmarks.turns import Figures, Ratio

IN_FLIGHT = 4
VARIANTS = {
    "fp32-raw": "FP32 [3, 640, 640] in, [84, 8400] out",
    "uint8-small": "bytes [640, 640, 3] in, [300, 6] out",
    "shared": "the same through shared memory",
}
RATIOS = (
    Ratio("a call to Triton: bytes in, picked rows out", "cpu_us", "fp32-raw", "uint8-small", at_least=6),
    Ratio("a call to Triton: the same through shared memory", "cpu_us", "fp32-raw", "shared", at_least=12),
)
Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 1.5
    warm_up_s: float = 0.5
    variants: tuple[str, ...] = tuple(VARIANTS)


async def naive_call(url: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    """As `benchmarks.naive` does it; and how to end it."""
    client = grpcclient.InferenceServerClient(url=url)
    tensor = np.zeros((1, 3, 640, 640), np.float32)

    async def call() -> Any:
        image = grpcclient.InferInput("images", list(tensor.shape), "FP32")
        image.set_data_from_numpy(tensor)
        outputs = [grpcclient.InferRequestedOutput("output0")]
        answer = await client.infer(model_name="raw_yolo", inputs=[image], outputs=outputs)
        return answer.as_numpy("output0")

    return call, client.close


async def our_call(url: str, shm: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    """The service's own client."""
    client = TritonClient(url, TritonSettings(triton_shm=shm))  # type: ignore[arg-type]
    await client.open()
    found = await client.describe("yolo")
    if found is None:
        raise BenchmarkError("Triton does not serve the canned model `yolo`")
    spec: ModelSpec = found

    async def call() -> Any:
        buffer = client.buffer((1, 640, 640, 3), "UINT8")
        try:
            reply = await client.infer(spec, buffer, stream="one")
            return reply.outputs["detections"].copy()
        finally:
            buffer.release()

    return call, client.close


async def run(variant: str, url: str, warm_up_s: float, seconds: float, triton: Sequence[int]) -> dict[str, Any]:
    """Keeps IN_FLIGHT calls going for as long as asked."""
    tune()
    make = naive_call(url) if variant == "fp32-raw" else our_call(url, "on" if variant == "shared" else "off")
    call, close = await make
    window = Window([os.getpid()], triton, own_load=False)

    async def keep_calling() -> None:
        while not window.closed:
            begun = perf_counter()
            found = await call()
            window.answered(perf_counter() - begun)
            if not found.any():
                raise BenchmarkError(f"{variant}: the answer is empty")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.create_task(keep_calling())
        await asyncio.sleep(warm_up_s)
        window.open()
        await asyncio.sleep(seconds)
        window.close()
    await close()
    return asdict(window.measured())


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    places = harness.cores()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        with harness.triton(live.repository(folder / "repository"), folder / "state", places.triton) as (url, pids):

            def measure_turn(variant: str) -> Figures:
                arguments = ["benchmarks.triton_wire", variant, f"--triton={url}"]
                arguments += [f"--warm-up={plan.warm_up_s}", f"--seconds={plan.seconds}"]
                arguments += ["--triton-pids", *map(str, pids)]
                found = Measured(**harness.answer(arguments, places.tested, 60 + plan.seconds))
                return turns.of(found)

            return turns.run("triton_wire", plan, measure_turn, RATIOS, say)


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {
        "rate": "calls/s",
        "cpu_us": "client: CPU µs a call",
        "triton_us": "Triton: CPU µs",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "faults": "page faults a call",
    }
    turns.show(results, f"triton_wire: {IN_FLIGHT} calls in flight", VARIANTS, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--triton", required=True, help="host:port of its gRPC")
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--triton-pids", type=int, nargs="*", default=[], help="Triton's processes")
    options = parser.parse_args()
    wanted = options.warm_up, options.seconds
    found = uvloop.run(run(options.variant, options.triton, *wanted, options.triton_pids))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
