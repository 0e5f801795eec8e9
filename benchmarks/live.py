"""The whole service over its socket, against the naive service, and against bare loops that are no service at all.

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
from rich.console import Console

from benchmarks import canned, harness, live_report, photographs
from benchmarks.harness import BenchmarkError, Cores
from benchmarks.measure import Measured
from benchmarks.noise import Noise

SAME_WORK = {"stages": {"ocr": False, "track": False}}
DEFAULTS: dict[str, Any] = {"stages": {"ocr": False}}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: float = 3.0
    warm_up_s: float = 1.5
    turns: int = 3
    sessions: int = 8
    variants: tuple[str, ...] = ("ours", "tracking", "grpc", "naive", "floor", "floor-together")


@dataclass(frozen=True, slots=True)
class Stand:
    """The servers and frames that all variants of a run share."""

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


def floor(stand: Stand, *options: str) -> dict[str, Any]:
    arguments = ["benchmarks.floor", "--triton", stand.triton_url, *stand.timing, *options]
    arguments += ["--triton-pids", *map(str, stand.triton_pids)]
    return harness.answer(arguments, stand.cores.tested, stand.patience_s)


def _loaded(stand: Stand, service: list[str], port: int, extra: list[str], **settings: str) -> dict[str, Any]:
    """Starts a service for the load client; returns the client's measurements."""
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
    "floor": Variant("a bare loop, a call a frame", floor),
    "floor-together": Variant("a bare loop, eight frames a call", lambda stand: floor(stand, "--together")),
}
RATIOS = live_report.RATIOS


def repository(folder: Path, frame_s: float = 0.0) -> Path:
    """Prepared models as `make models` writes them, and the same answers as raw heads for FP32 images.

    Args:
        frame_s: seconds per frame of the prepared models; the raw ones answer at once.
    """
    canned.write(folder, frame_s=frame_s)
    for name, head in (
        ("raw_yolo", canned.detections([canned.PERSON, canned.DOG])),
        ("raw_yolo_pose", canned.poses([canned.person_pose()])),
    ):
        canned.model(folder, name, {"output0": canned.raw(head)}, dtype="FP32")
    return folder


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

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
            noise = Noise()
            for turn in range(plan.turns):
                for variant in plan.variants:
                    with noise.watched():
                        found = VARIANTS[variant].run(stand)
                    samples[variant] = found.pop("sample")
                    turn_figures = Measured(**found)
                    turns[variant].append(turn_figures)
                    rate, cpu_us = turn_figures.rate, turn_figures.cpu_us
                    say(f"turn {turn + 1}: {variant}: {rate:,.1f} frames/s, {cpu_us:,.0f} CPU µs a frame")
    agree(samples)
    return {
        "benchmark": "live",
        "machine": harness.machine(),
        "noise": noise.told(),
        "plan": {**asdict(plan), "mean_jpeg_bytes": round(sum(sizes) / len(sizes))},
        "variants": {name: live_report.summary(measured) for name, measured in turns.items()},
        "ratios": live_report.compared(turns),
        "samples": samples,
        "turns": {name: [asdict(turn_figures) for turn_figures in measured] for name, measured in turns.items()},
    }


def agree(samples: dict[str, Any], tolerance: float = 0.05) -> None:
    """Checks that all variants found the same boxes, and all services the same keypoints: a fast wrong one fails."""
    found = {name: places(sample) for name, sample in samples.items()}
    services = {name: boxes + points for name, (boxes, points) in found.items() if not name.startswith("floor")}
    for told in ({name: boxes for name, (boxes, _) in found.items()}, services):
        first, expected = next(iter(told.items()), ("", []))
        for name, numbers in told.items():
            same = len(numbers) == len(expected) > 0
            if not same or max(abs(a - b) for a, b in zip(numbers, expected, strict=True)) > tolerance:
                raise BenchmarkError(f"{name} and {first} did not find the same: {numbers} and {expected}")


def places(sample: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Every coordinate of a result's boxes, and of its keypoints, in frame pixels; a bare loop returns only boxes."""
    found = [*sample["objects"], *sample["poses"]]
    if isinstance(found[0] if found else None, list):
        return [value for row in found for value in row[:4]], []
    boxes = [detection["box"][side] for detection in found for side in ("x1", "y1", "x2", "y2")]
    return boxes, [point[axis] for pose in sample["poses"] for point in pose["keypoints"] for axis in ("x", "y")]


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    live_report.show(results, {name: variant.title for name, variant in VARIANTS.items()}, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    known = {field.name for field in fields(Plan)}
    return Plan(**{name: value for name, value in given.items() if name in known and value is not None})
