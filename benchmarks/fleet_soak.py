"""A fleet worker for ten minutes: whether its memory stays constant, and whether its counts add up in the end.

`fleet work` with default settings runs in a process of its own, on Redis, librdkafka's mock cluster and canned models
on Triton; cameras write as ingest does. The slope is that of a least-squares line through the worker's own resident
memory after the first fifth of the time. Memory shared with Triton is left out, because its budget bounds it and the
kernel decides how much of it counts as resident. The command `benchmarks` without names does not run it.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis
from rich.console import Console

from benchmarks import canned, fleet_servers, harness, ledger, memory, photographs, turns
from benchmarks.harness import BenchmarkError
from benchmarks.noise import Noise
from benchmarks.turns import Figures, Ratio

VARIANTS = {"worker": "a fleet worker"}
RATIOS = (Ratio("a fleet worker's own memory, MB a minute after warm-up", "own_slope_mb", "worker", at_most=1),)
STRICT = True
"""A missed target fails the run."""
MB = 1e6


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float = 600.0
    rate: float = 100.0
    """Frames per second of all cameras together."""
    cameras: int = 32
    look_s: float = 2.0
    turns: int = 1
    variants: tuple[str, ...] = tuple(VARIANTS)


@contextmanager
def sending_cameras(url: str, clips: Sequence[Sequence[bytes]], cameras: int, rate: float) -> Iterator[None]:
    """Adds frames as ingest does, `rate` a second over all cameras, while the block lasts."""
    ended = threading.Event()

    def run() -> None:
        with redis.Redis.from_url(url) as client:
            names = [f"cam{number:03}" for number in range(cameras)]
            client.sadd("fleet:cameras", *names)
            began, number = time.monotonic(), 0
            while not ended.wait(0.02):
                pipe = client.pipeline(transaction=False)
                while number < (time.monotonic() - began) * rate:
                    name, clip = names[number % cameras], clips[number % cameras % len(clips)]
                    now = f"{time.time() * 1000:.3f}"
                    fields = {"camera_id": name, "camera_type": "bench", "ingest_ts": now, "captured_at_ms": now}
                    jpeg = clip[number // cameras % len(clip)]
                    pipe.xadd(f"frames:{name}", {**fields, "frame": jpeg}, maxlen=100, approximate=True)  # type: ignore[dict-item]
                    number += 1
                pipe.execute()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def port_of(log: Path) -> int | None:
    """The port of the worker's metrics; None until its log names it."""
    found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/", log.read_text(errors="replace"))
    return int(found[1]) if found else None


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: a process did not start, or a frame is unaccounted for.
    """
    places, noise = harness.cores(), Noise()
    with tempfile.TemporaryDirectory(prefix="sightline-soak-") as name, ExitStack() as stack:
        folder = Path(name)
        clips = photographs.read(photographs.write(folder / "frames", 8))
        url = stack.enter_context(fleet_servers.redis_server(folder, places.load))
        kafka = stack.enter_context(fleet_servers.kafka(folder, places.load))
        triton, _ = stack.enter_context(
            harness.triton(canned.write(folder / "repository"), folder / "triton", places.triton)
        )
        settings = {"REDIS_URL": url, "KAFKA_BOOTSTRAP_SERVERS": kafka, "TRITON_URL": triton, "METRICS_PORT": "0"}
        settings["STATE_DIR"] = str(folder / "state")
        log = folder / "work.log"
        with noise.watched():
            child = stack.enter_context(harness.process(["app", "fleet", "work"], places.tested, log, **settings))
            deadline = time.monotonic() + harness.START_S
            while (port := port_of(log)) is None:
                harness.check(child, log, deadline)
                time.sleep(0.1)
            metrics = f"http://127.0.0.1:{port}"
            with sending_cameras(url, clips, plan.cameras, plan.rate):
                looks = list(_looks(plan, child.pid, metrics, say, lambda: harness.check(child, log, float("inf"))))
            time.sleep(3)  # until frames in flight are done, and written to the metrics
            final = ledger.read(metrics, "fleet")
        if not final.adds_up:
            raise BenchmarkError(f"the counts do not add up: {final}")
        lines = log.read_text(errors="replace").splitlines()
    steady = [look for look in looks if memory.WARM_UP * plan.seconds < look["at_s"] <= plan.seconds]
    slopes = {"worker": memory.slopes(steady, {"own_slope_mb": "worker"})}
    own = asdict(harness.spread([look["worker"] for look in steady]))
    return {
        "benchmark": "fleet_soak",
        "machine": harness.machine(),
        "noise": noise.told(),
        "plan": asdict(plan),
        "variants": {"worker": {"own_mb": own, **memory.trend(slopes["worker"])}},
        "ratios": memory.judged(RATIOS, slopes),
        "ledger": asdict(final),
        "samples": {"looks": looks, "log": lines[-100:]},
        "turns": slopes,
    }


def _looks(
    plan: Plan, pid: int, metrics: str, say: Callable[[str], None], check: Callable[[], None]
) -> Iterator[Figures]:
    began, reports = time.monotonic(), 0
    while (at := time.monotonic() - began) < plan.seconds:
        time.sleep(plan.look_s)
        check()
        own = memory.resident([pid])[1] / MB
        yield {"at_s": at, "worker": own}
        if at >= reports * plan.seconds / 20:
            reports += 1
            frames = ledger.read(metrics, "fleet")
            say(f"{at:.0f} s: the worker {own:.1f} MB of its own; {frames.processed:,} frames")


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the table and the frame counts."""
    minutes = round(results["plan"]["seconds"] / 60, 1)
    columns = {"own_mb": "its own MB", "own_slope_mb": "MB a minute"}
    caption, looks = "slope: over all looks (over either half)", "the looks after the warm-up"
    turns.show(results, f"fleet_soak: {minutes:g} minutes", VARIANTS, columns, console, caption, spread_of=looks)
    counts, plan = results["ledger"], results["plan"]
    console.print(
        f"{counts['received']:,} frames received = {counts['processed']:,} processed + {counts['dropped']:,} dropped "
        f"+ {counts['failed']:,} failed; {plan['cameras']} cameras, {plan['rate']:g} frames a second",
        highlight=False,
    )


def draw(results: dict[str, Any], axes: Any) -> None:
    """Draws memory over time with its least-squares line."""
    memory.draw(axes, results["samples"]["looks"], VARIANTS, "worker", results["plan"]["seconds"])


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, {**given, "turns": None, "variants": None})
