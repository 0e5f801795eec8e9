"""The service against NVIDIA's perf_analyzer: what is lost on the way to the models when the models are the limit.

Both press the same Triton and the same model, which takes 5 ms a frame, one at a time. perf_analyzer sends nothing but
requests, their tensors in shared memory: eight images in flight, one per request, or eight in a request with one or two
in flight. The limit is the best of the three, for a request has a price of its own. The service does everything else as
well: sockets, decoding, flow, results. At least 90% is wanted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop
from rich.console import Console

from app.inference.triton import TritonClient
from app.settings import TritonSettings
from benchmarks import analyzer, canned, harness, service, turns
from benchmarks.harness import BenchmarkError
from benchmarks.measure import Measured
from benchmarks.turns import Figures, Ratio

SESSIONS = 8
MODEL_S = 0.005
WAYS = ((1, 8), (8, 1), (8, 2))
"""Ways to load the models: images per request, requests in flight."""
VARIANTS = {
    "service": "the service, 8 lossless sessions",
    "bare": "the models pressed directly, the best of three ways",
}
RATIOS = (
    Ratio(
        "the service over the models pressed directly, the best of three ways", "rate", "service", "bare", at_least=0.9
    ),
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 3.0
    warm_up_s: float = 1.0
    turns: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def repository(folder: Path) -> Path:
    """Models that take MODEL_S a frame."""
    return canned.write(folder, frame_s=MODEL_S)


def pressed_by_service(stand: service.Bench, plan: Plan) -> Figures:
    with service.served(stand, stand.cores.tested) as running:
        found = service.pressed(stand, running, service.init("lossless"), plan.warm_up_s, plan.seconds)
    return turns.of(Measured(**{field.name: found[field.name] for field in fields(Measured)}))


def pressed_directly(stand: service.Bench, plan: Plan, tool: analyzer.Analyzer | None) -> Figures:
    """The rate of every way, and the best of them as `rate`."""
    rates = {figure(way): _rate(stand, plan, tool, way) for way in WAYS}
    return {"rate": max(rates.values()), **rates}


def figure(way: tuple[int, int]) -> str:
    """What a way's own rate is called."""
    return "rate_{}x{}".format(*way)


def _rate(stand: service.Bench, plan: Plan, tool: analyzer.Analyzer | None, way: tuple[int, int]) -> float:
    if tool is not None:
        return analyzer.rate(tool, stand.triton_url, "vision", way, plan.seconds, stand.cores.tested)
    arguments = ["benchmarks.to_the_limit", "--triton", stand.triton_url, f"--seconds={plan.seconds}"]
    arguments += [f"--pictures={way[0]}", f"--in-flight={way[1]}"]
    return float(harness.answer(arguments, stand.cores.tested, 60 + plan.seconds)["rate"])


async def press(url: str, way: tuple[int, int], seconds: float, warm_up_s: float = 0.5) -> Figures:
    """Sends requests only, with tensors in shared memory. `way`: images per request, requests in flight."""
    pictures, in_flight = way
    client = TritonClient(url, TritonSettings(triton_shm="auto", triton_max_in_flight=in_flight))
    await client.open()
    spec = await client.describe("vision")
    if spec is None:
        raise BenchmarkError("Triton does not serve the canned model `vision`")
    begin, answered = perf_counter() + warm_up_s, 0

    async def call(stream: str) -> None:
        nonlocal answered
        while (now := perf_counter()) < begin + seconds:
            buffer = client.buffer((pictures, canned.SIZE, canned.SIZE, 3), "UINT8")
            try:
                await client.infer(spec, buffer, stream=stream)
            finally:
                buffer.release()
            answered += pictures * (now >= begin)

    await asyncio.gather(*(call(str(number)) for number in range(in_flight)))
    await client.close()
    return {"rate": answered / (perf_counter() - begin)}


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    tool, told = analyzer.find()
    by = told if tool is not None else f"our own client, since perf_analyzer is not to be had ({told})"
    say(f"pressed directly by {by}")
    with service.bench(repository, SESSIONS) as stand:

        def measure_turn(variant: str) -> Figures:
            return pressed_by_service(stand, plan) if variant == "service" else pressed_directly(stand, plan, tool)

        found = turns.run("to_the_limit", plan, measure_turn, RATIOS, say, shown="rate")
    return {**found, "by": by}


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    ways = {figure(way): "{} × {}".format(*way) for way in WAYS}
    columns = {"rate": "frames/s", **ways, "cpu_us": "CPU µs a frame", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}
    caption = f"directly: by {results['by']}; pictures a request × requests in flight"
    title = f"to_the_limit: a model of {MODEL_S * 1000:g} ms"
    turns.show(results, title, VARIANTS, columns, console, caption)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=press.__doc__)
    parser.add_argument("--triton", required=True, help="host:port of its gRPC")
    parser.add_argument("--pictures", type=int, default=1, help="of a request")
    parser.add_argument("--in-flight", type=int, default=SESSIONS, help="requests")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    way = options.pictures, options.in_flight
    json.dump(uvloop.run(press(options.triton, way, options.seconds)), sys.stdout)


if __name__ == "__main__":
    main()
