"""The whole service over its socket, against the naive service, and against a loop that is no service at all.

Canned models on a real Triton, so that what is measured is everything around the models: eight lossless sessions
of 640x480 photographs, the service on one core, Triton on another. In turns A B C A B C, every variant a fresh process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import orjson
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import canned, harness, photographs
from benchmarks.harness import BenchmarkError, Cores, Spread, spread
from benchmarks.measure import Measured

SAME_WORK = {"stages": {"ocr": False, "track": False}}
DEFAULTS: dict[str, Any] = {"stages": {"ocr": False}}


QUIET = 0.1
"""Of a core, used by others: more, and the rates of one turn cannot be compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: float = 3.0
    warm_up_s: float = 1.5
    turns: int = 3
    sessions: int = 8
    variants: tuple[str, ...] = ("ours", "tracking", "grpc", "naive", "floor")


@dataclass(frozen=True, slots=True)
class Stand:
    """What all variants of a run share."""

    plan: Plan
    cores: Cores
    folder: Path
    triton_url: str
    triton_pids: Sequence[int]

    @property
    def frames(self) -> Path:
        return self.folder / "frames"

    @property
    def timing(self) -> list[str]:
        plan = self.plan
        return [f"--warm-up={plan.warm_up_s}", f"--seconds={plan.seconds}", f"--frames={self.frames}"]

    @property
    def patience_s(self) -> float:
        return 60 + self.plan.warm_up_s + self.plan.seconds


def ours(stand: Stand, init: dict[str, Any], **settings: str) -> dict[str, Any]:
    port = harness.free_port()
    settings = {
        "TRITON_URL": stand.triton_url,
        "OCR": "off",
        "PORT": str(port),
        "STATE_DIR": str(stand.folder / "state"),
        "MAX_MESSAGES_PER_S": "100000",
        **settings,
    }
    message = orjson.dumps({"type": "init", "mode": "lossless", **init}).decode()
    return _loaded(stand, ["app", "serve"], port, ["--init", message], **settings)


def naive(stand: Stand) -> dict[str, Any]:
    port = harness.free_port()
    return _loaded(stand, ["benchmarks.naive", "--triton", stand.triton_url, "--port", str(port)], port, [])


def floor(stand: Stand) -> dict[str, Any]:
    arguments = ["benchmarks.floor", "--triton", stand.triton_url, *stand.timing]
    arguments += ["--triton-pids", *map(str, stand.triton_pids)]
    return harness.answer(arguments, stand.cores.tested, stand.patience_s)


def _loaded(stand: Stand, service: list[str], port: int, extra: list[str], **settings: str) -> dict[str, Any]:
    """What the load client saw of a service started for it."""
    log = stand.folder / "service.log"
    with harness.process(service, stand.cores.tested, log, **settings) as child:
        harness.wait_until_ready(child, f"http://127.0.0.1:{port}", log)
        load = ["benchmarks.load", "--url", f"ws://127.0.0.1:{port}/ws/inference", *stand.timing, *extra]
        load += ["--watch", str(child.pid), "--triton", *map(str, stand.triton_pids)]
        return harness.answer(load, stand.cores.load, stand.patience_s)


@dataclass(frozen=True, slots=True)
class Variant:
    title: str
    run: Callable[[Stand], dict[str, Any]]


VARIANTS = {
    "ours": Variant("ours, the same work", lambda stand: ours(stand, SAME_WORK)),
    "tracking": Variant("ours, defaults (+ tracking)", lambda stand: ours(stand, DEFAULTS)),
    "grpc": Variant("… tensors over gRPC", lambda stand: ours(stand, DEFAULTS, TRITON_SHM="off")),
    "naive": Variant("naive", naive),
    "floor": Variant("floor: no service", floor),
}


def repository(folder: Path) -> Path:
    """Prepared models as `make models` writes them, and the same answers as raw heads behind FP32 pictures."""
    canned.write(folder)
    for name, head in (
        ("raw_yolo", canned.detections([canned.PERSON, canned.DOG])),
        ("raw_yolo_pose", canned.poses([canned.person_pose()])),
    ):
        canned.model(folder, name, {"output0": canned.raw(head)}, dtype="FP32")
    return folder


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan; everything that was measured.

    Raises:
        BenchmarkError: a process failed, or the variants did not find the same things.
    """
    places = harness.cores()
    turns: dict[str, list[Measured]] = {name: [] for name in plan.variants}
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        frames = photographs.write(folder / "frames", plan.sessions)
        sizes = [path.stat().st_size for path in frames.rglob("*.jpg")]
        models = repository(folder / "repository")
        with harness.triton(models, folder / "state", places.triton) as (url, pids):
            stand = Stand(plan, places, folder, url, pids)
            for turn in range(plan.turns):
                for variant in plan.variants:
                    found = VARIANTS[variant].run(stand)
                    samples[variant] = found.pop("sample")
                    one = Measured(**found)
                    turns[variant].append(one)
                    say(f"turn {turn + 1}: {variant}: {one.rate:,.1f} frames/s, {one.cpu_us:,.0f} CPU µs a frame")
    agree(samples)
    return {
        "benchmark": "live",
        "machine": harness.machine(),
        "plan": {**asdict(plan), "mean_jpeg_bytes": round(sum(sizes) / len(sizes))},
        "variants": {name: summary(measured) for name, measured in turns.items()},
        "ratios": ratios(turns),
        "samples": samples,
        "turns": {name: [asdict(one) for one in measured] for name, measured in turns.items()},
    }


def agree(samples: dict[str, Any], tolerance: float = 0.05) -> None:
    """All services found the same boxes and keypoints; a fast wrong answer is no result."""
    found = {name: places(sample) for name, sample in samples.items() if name != "floor"}
    if not found:
        return
    first, expected = next(iter(found.items()))
    for name, numbers in found.items():
        same = len(numbers) == len(expected) > 0
        if not same or max(abs(a - b) for a, b in zip(numbers, expected, strict=True)) > tolerance:
            raise BenchmarkError(f"{name} and {first} did not find the same: {numbers} and {expected}")


def places(sample: dict[str, Any]) -> list[float]:
    """Every coordinate of a result, in one list."""
    found = [*sample["objects"], *sample["poses"]]
    boxes = [one["box"][side] for one in found for side in ("x1", "y1", "x2", "y2")]
    return boxes + [point[axis] for pose in sample["poses"] for point in pose["keypoints"] for axis in ("x", "y")]


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """Every figure over the turns."""
    figures: dict[str, Callable[[Measured], float]] = {
        "frames_per_s": lambda one: one.rate,
        "cpu_us_per_frame": lambda one: one.cpu_us,
        "p50_ms": lambda one: one.p50_ms,
        "p99_ms": lambda one: one.p99_ms,
        "core_busy": lambda one: one.cpu_s / one.seconds,
        "triton_busy": lambda one: one.triton_cpu_s / one.seconds,
        "load_busy": lambda one: one.load_cpu_s / one.seconds,
        "others_busy": lambda one: others_s(one) / one.seconds,
        "stolen": lambda one: one.stolen_s / one.seconds,
    }
    return {name: asdict(spread([figure(one) for one in measured])) for name, figure in figures.items()}


def others_s(one: Measured) -> float:
    """CPU time of whatever else ran on the machine. Its clocks count in ticks: a little under 0 is none."""
    return max(0.0, one.machine_busy_s - one.cpu_s - one.triton_cpu_s - one.load_cpu_s)


def ratios(turns: dict[str, list[Measured]]) -> dict[str, Any]:
    """Of every variant of ours: how many times the naive service, and what share of the floor. Turn by turn."""
    out: dict[str, Any] = {}
    for name in ("ours", "tracking", "grpc"):
        for other, label in (("naive", "over_naive"), ("floor", "of_floor")):
            if name in turns and other in turns:
                pairs = list(zip(turns[name], turns[other], strict=True))
                out.setdefault(name, {})[label] = {
                    "by_rate": asdict(spread([a.rate / b.rate for a, b in pairs])),
                    "by_cpu": asdict(spread([b.cpu_us / a.cpu_us for a, b in pairs])),
                }
    return out


def bottleneck(summary: dict[str, Any]) -> str:
    """Which of the two cores was full."""
    core, far = (summary["core_busy"]["median"], summary["triton_busy"]["median"] + summary["load_busy"]["median"])
    return "its core" if core > 0.9 else "Triton's core" if far > 0.9 else "neither"


def show(results: dict[str, Any], console: Console) -> None:
    """The tables."""
    plan = results["plan"]
    title = f"live: {plan['sessions']} sessions, 640x480, {plan['mean_jpeg_bytes'] / 1000:.0f} KB a JPEG"
    rates = Table(title=title, box=SIMPLE, caption="busy: shares of one core, by who used it")
    columns = ("frames/s", "CPU µs a frame", "p50 / p99 ms", "service", "Triton", "load", "others", "full")
    rates.add_column("", no_wrap=True)
    for column in columns:
        rates.add_column(column, justify="right")
    for name, one in results["variants"].items():
        latency = f"{one['p50_ms']['median']:,.1f} / {one['p99_ms']['median']:,.1f}"
        shares = [f"{one[part]['median']:.0%}" for part in ("core_busy", "triton_busy", "load_busy", "others_busy")]
        rate, cpu = (str(Spread(**one[figure])) for figure in ("frames_per_s", "cpu_us_per_frame"))
        rates.add_row(VARIANTS[name].title, rate, cpu, latency, *shares, bottleneck(one))
    console.print(rates)
    compared = Table(title="turn by turn: median (least–most)", box=SIMPLE)
    for column in ("", "× naive, by rate", "× naive, by CPU", "of floor, by rate", "of floor, by CPU"):
        compared.add_column(column, justify="right" if column else "left")
    for name, one in results["ratios"].items():
        cells = [
            str(Spread(**one[label][by])) if label in one else "–"
            for label in ("over_naive", "of_floor")
            for by in ("by_rate", "by_cpu")
        ]
        compared.add_row(VARIANTS[name].title, *cells)
    console.print(compared)
    noise = max(one["others_busy"]["most"] + one["stolen"]["most"] for one in results["variants"].values())
    if noise > QUIET:
        console.print(
            f"others used up to {noise:.0%} of a core: rates are not to be trusted, go by CPU", style="yellow"
        )


def plan_from(**given: Any) -> Plan:
    """The plan with what was asked for; None leaves a default."""
    known = {field.name for field in fields(Plan)}
    return Plan(**{name: value for name, value in given.items() if name in known and value is not None})
