"""A fleet worker against the plain loop, and against decoding alone; from 1 camera to 256.

Redis is filled beforehand, and Kafka is librdkafka's mock cluster. The fake inference client answers at once, so that
the models' time is left out; one variant includes it, with canned models on a real Triton. The variants run in turns A
B C A B C, each in a fresh process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import canned, fleet_servers, harness, photographs, turns
from benchmarks.harness import BenchmarkError, Cores
from benchmarks.turns import Figures, Ratio

MOST_PER_S = 3000
"""Frames per second of the plan that Redis is filled with: more than any variant analyses on one core."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: float = 3.0
    warm_up_s: float = 1.0
    turns: int = 3
    variants: tuple[str, ...] = ("cameras-1", "cameras-32", "cameras-256", "triton-32", "plain-32", "floor")


@dataclass(frozen=True, slots=True)
class Stand:
    """The servers and frames that all variants of a run share."""

    plan: Plan
    cores: Cores
    folder: Path
    redis: str
    kafka: str
    triton: str
    clips: Sequence[Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Measured:
    frames: int
    seconds: float
    cpu_s: float
    """User and system time of all threads of the process under test."""

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a frame."""
        return self.cpu_s / self.frames * 1e6

    @property
    def figures(self) -> Figures:
        return {"rate": self.rate, "cpu_us": self.cpu_us, "busy": self.cpu_s / self.seconds}


@dataclass(frozen=True, slots=True)
class Variant:
    title: str
    loop: str
    cameras: int = 0
    triton: bool = False
    per_s: int = MOST_PER_S

    def run(self, stand: Stand) -> Measured:
        """Measures one turn.

        Raises:
            BenchmarkError: the process failed, or a result is missing.
        """
        plan = stand.plan
        arguments = [f"--seconds={plan.seconds}", f"--warm-up={plan.warm_up_s}", f"--state={stand.folder}"]
        patience_s = 60 + 6 * (plan.seconds + plan.warm_up_s)
        if self.cameras == 0:
            arguments.append(f"--frames={stand.folder / 'frames'}")
            return Measured(**self._answer(stand, arguments, patience_s))
        frames = round((plan.seconds + plan.warm_up_s) * self.per_s)
        fleet_servers.fill(stand.redis, stand.clips, self.cameras, frames)
        before = fleet_servers.written(stand.kafka)
        arguments += [f"--redis={stand.redis}", f"--kafka={stand.kafka}"]
        if self.triton:
            arguments.append(f"--triton={stand.triton}")
        found = Measured(**self._answer(stand, arguments, patience_s))
        read, answered = fleet_servers.acknowledged(stand.redis), fleet_servers.written(stand.kafka) - before
        if read != answered:
            raise BenchmarkError(f"{self.title}: {read} frames were read, {answered} results are in Kafka")
        return found

    def _answer(self, stand: Stand, arguments: list[str], patience_s: float) -> dict[str, Any]:
        return harness.answer(["benchmarks.fleet_loops", self.loop, *arguments], stand.cores.tested, patience_s)


VARIANTS = {
    "cameras-1": Variant("1 camera", "worker", 1),
    "cameras-32": Variant("32 cameras", "worker", 32),
    "cameras-256": Variant("256 cameras", "worker", 256),
    "triton-32": Variant("32 cameras, canned models on Triton", "worker", 32, triton=True),
    "plain-32": Variant("32 cameras, the plain loop", "plain", 32, per_s=600),
    "floor": Variant("floor: decode and letterbox alone", "floor"),
}

_WORKERS = {
    name: variant.title for name, variant in VARIANTS.items() if variant.loop == "worker" and not variant.triton
}
RATIOS = (
    *(
        Ratio(f"a fleet worker, {title}: over the plain loop, by CPU", "cpu_us", "plain-32", name, at_least=3)
        for name, title in _WORKERS.items()
    ),
    *(
        Ratio(f"a fleet worker, {title}: of the floor, by CPU", "cpu_us", "floor", name, at_least=0.7)
        for name, title in _WORKERS.items()
    ),
    Ratio("a fleet worker: 256 cameras over 32, by CPU", "cpu_us", "cameras-32", "cameras-256", at_least=0.9),
    Ratio("a fleet worker, 32 cameras: over the plain loop, by rate", "rate", "cameras-32", "plain-32"),
    Ratio("a fleet worker, 32 cameras: of the floor, by rate", "rate", "cameras-32", "floor"),
)


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: a process failed, or results are missing.
    """
    places = harness.cores()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        clips = photographs.read(photographs.write(folder / "frames", len(photographs.NAMES)))
        sizes = [len(jpeg) for clip in clips for jpeg in clip]
        with ExitStack() as stack:
            redis = stack.enter_context(fleet_servers.redis_server(folder, places.load))
            kafka = stack.enter_context(fleet_servers.kafka(folder, places.load))
            triton = ""
            if any(VARIANTS[variant].triton for variant in plan.variants):
                models = canned.write(folder / "repository")
                triton, _ = stack.enter_context(harness.triton(models, folder / "state", places.triton))
            stand = Stand(plan, places, folder, redis, kafka, triton, clips)
            found = turns.run("fleet", plan, lambda variant: VARIANTS[variant].run(stand).figures, RATIOS, say)
    return {**found, "plan": {**asdict(plan), "mean_jpeg_bytes": round(sum(sizes) / len(sizes))}}


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {"rate": "frames/s", "cpu_us": "CPU µs a frame", "busy": "core busy"}
    titles = {name: variant.title for name, variant in VARIANTS.items()}
    turns.show(results, "fleet: one worker on one core", titles, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
