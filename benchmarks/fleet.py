"""A fleet worker against the plain loop, and against decoding alone; from 1 camera to 256.

Redis is filled beforehand; Kafka is librdkafka's mock cluster; the models' time is taken out with the client that ships
for tests, and left in once with canned models on a real Triton. In turns A B C A B C, every variant a fresh process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import canned, fleet_servers, harness, photographs
from benchmarks.harness import BenchmarkError, Cores, Spread, spread

TARGETS = {"over_plain": 3.0, "of_floor": 0.7, "many_over_some": 0.9}
MOST_PER_S = 3000
"""Frames a second that are laid in: more than any variant takes on one core."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: float = 3.0
    warm_up_s: float = 1.0
    turns: int = 3
    variants: tuple[str, ...] = ("cameras-1", "cameras-32", "cameras-256", "triton-32", "plain-32", "floor")


@dataclass(frozen=True, slots=True)
class Stand:
    """What all variants of a run share."""

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
    """User and system time of the process under test, all its threads."""

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a frame."""
        return self.cpu_s / self.frames * 1e6


@dataclass(frozen=True, slots=True)
class Variant:
    title: str
    loop: str
    cameras: int = 0
    triton: bool = False
    per_s: int = MOST_PER_S

    def run(self, stand: Stand) -> Measured:
        """One turn.

        Raises:
            BenchmarkError: it failed, or an answer is missing.
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
            raise BenchmarkError(f"{self.title}: {read} frames were read, {answered} answers are in Kafka")
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


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan; everything that was measured.

    Raises:
        BenchmarkError: a process failed, or answers are missing.
    """
    places = harness.cores()
    turns: dict[str, list[Measured]] = {name: [] for name in plan.variants}
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
            for turn in range(plan.turns):
                for variant in plan.variants:
                    one = VARIANTS[variant].run(stand)
                    turns[variant].append(one)
                    say(f"turn {turn + 1}: {variant}: {one.rate:,.1f} frames/s, {one.cpu_us:,.0f} CPU µs a frame")
    return {
        "benchmark": "fleet",
        "machine": harness.machine(),
        "plan": {**asdict(plan), "mean_jpeg_bytes": round(sum(sizes) / len(sizes))},
        "targets": TARGETS,
        "variants": {name: _summary(measured) for name, measured in turns.items()},
        "ratios": ratios(turns),
        "turns": {name: [asdict(one) for one in measured] for name, measured in turns.items()},
    }


def _summary(measured: Sequence[Measured]) -> dict[str, Any]:
    figures: dict[str, Callable[[Measured], float]] = {
        "frames_per_s": lambda one: one.rate,
        "cpu_us_per_frame": lambda one: one.cpu_us,
        "core_busy": lambda one: one.cpu_s / one.seconds,
    }
    return {name: asdict(spread([figure(one) for one in measured])) for name, figure in figures.items()}


def ratios(turns: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Turn by turn, by rate and by CPU: over the plain loop, of the floor, and 256 cameras over 32."""
    out: dict[str, Any] = {}
    pairs = [(name, "plain-32", "over_plain") for name in turns if name.startswith("cameras-")]
    pairs += [(name, "floor", "of_floor") for name in turns if name.startswith("cameras-")]
    pairs.append(("cameras-256", "cameras-32", "many_over_some"))
    for name, other, label in pairs:
        if name in turns and other in turns:
            both = list(zip(turns[name], turns[other], strict=True))
            out.setdefault(name, {})[label] = {
                "by_rate": asdict(spread([a.rate / b.rate for a, b in both])),
                "by_cpu": asdict(spread([b.cpu_us / a.cpu_us for a, b in both])),
            }
    return out


def show(results: dict[str, Any], console: Console) -> None:
    """The tables."""
    table = Table(title="fleet: one worker on one core", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for column in ("frames/s", "CPU µs a frame", "core busy"):
        table.add_column(column, justify="right")
    for name, row in results["variants"].items():
        table.add_row(VARIANTS[name].title, *(str(Spread(**figure)) for figure in row.values()))
    console.print(table)
    table = Table(title="ratios, turn by turn: median (least–most)", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for column in ("by rate", "by CPU", "wanted"):
        table.add_column(column, justify="right")
    titles = {"over_plain": "over the plain loop", "of_floor": "of the floor", "many_over_some": "over 32 cameras"}
    for name, found in results["ratios"].items():
        for label, one in found.items():
            figures = (str(Spread(**one["by_rate"])), str(Spread(**one["by_cpu"])))
            table.add_row(f"{VARIANTS[name].title} {titles[label]}", *figures, f"{TARGETS[label]:g}")
    console.print(table)


def plan_from(**given: Any) -> Plan:
    """The plan with what was asked for; None leaves a default."""
    known = {field.name for field in fields(Plan)}
    return Plan(**{name: value for name, value in given.items() if name in known and value is not None})
