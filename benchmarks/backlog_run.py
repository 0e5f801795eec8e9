"""Runs one variant of the benchmark `backlog` in this process.

python -m benchmarks.backlog_run --variant spill --observations 10000
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import orjson
import typer
import uvloop

from app.settings import SummarySettings
from app.summary import Backlog, Entity, Movement, ObjectCount, Observation, Spill
from benchmarks.harness import BenchmarkError

SESSION = "session"
GROUP = 8
"""Observations offered in one turn of the event loop."""
FRAMES = 30
"""Frames of an observation."""
PROBE_S = 0.001

Span = tuple[int, int, int]
"""First and last frame id of an observation, and its frames."""

_BOUNDS: dict[str, dict[str, Any]] = {
    "memory": {"summary_ram_items": 10**9, "summary_ram_bytes": 10**12},
    "spill": {"summary_disk_items": 10**9, "summary_disk_bytes": 10**12},
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One variant in one turn."""

    offer_p50_us: float
    offer_p99_us: float
    lag_p99_ms: float
    """How late the probe ran while observations were offered, without the time that its thread waited for a core."""
    lag_max_ms: float
    take_lag_max_ms: float
    """The longest such delay while observations were taken back, milliseconds."""
    wall_lag_max_ms: float
    """The longest delay while observations were offered, with the wait for a core, which other programs cause."""
    spilled: int
    merged: int
    """Observations that were merged because the disk fell behind by more than memory may hold."""
    record_bytes: int


def observation(number: int) -> Observation:
    """An observation of a busy second: 30 frames, three classes, a few tracks, poses and texts."""
    return Observation(
        first_frame_id=number * FRAMES,
        last_frame_id=number * FRAMES + FRAMES - 1,
        started_at_ms=number * 1000.0,
        ended_at_ms=number * 1000.0 + 967,
        frames=FRAMES,
        objects=(
            ObjectCount("person", 3, 30, 71, 58_000),
            ObjectCount("car", 2, 28, 40, 30_000),
            ObjectCount("dog", 1, 12, 12, 7_400),
        ),
        arrived=(Entity(2 * number, "person"), Entity(2 * number + 1, "car")),
        arrivals=2,
        left=(Entity(2 * number - 2, "person"),),
        departures=1,
        poses=("standing", "sitting, one arm raised"),
        new_texts=(f"PLATE {number}",),
        texts=1,
        motion=Movement(30, 20, 4, 24, 9000, -2000, 120, -40, 700),
    )


class Probe:
    """A task that is due every millisecond and records its delays."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []

    async def run(self) -> None:
        while True:
            due, waited = perf_counter() + PROBE_S, waited_s()
            await asyncio.sleep(PROBE_S)
            late = perf_counter() - due
            self._late.append((max(0.0, late - (waited_s() - waited)) * 1000, late * 1000))

    def take(self) -> tuple[list[float], list[float]]:
        """Milliseconds late since the last call, in order of size: without the waiting for a core, and with it."""
        late, self._late = self._late or [(0.0, 0.0)], []
        own, wall = zip(*late, strict=True)
        return sorted(own), sorted(wall)


def waited_s() -> float:
    """Seconds that this thread was ready and had no core (sched-stats.rst of the kernel); 0 if it reports none."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


async def run(variant: str, count: int) -> Measured:
    settings = SummarySettings(**_BOUNDS[variant])
    given = [observation(number) for number in range(count)]
    gc.freeze()  # a session has them one by one; looking all of them over again and again would be the longest stall
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        spill = Spill(Path(folder), settings)
        await spill.open()
        await _warm_up(spill, settings)
        backlog = Backlog(SESSION, settings, spill)
        probe = Probe()
        async with asyncio.TaskGroup() as tasks:
            probing = tasks.create_task(probe.run())
            times = await _offer_all(backlog, given)
            counts, (late, wall) = backlog.counts, probe.take()
            back = await _take_all(backlog)
            take_late, _ = probe.take()
            probing.cancel()
        await backlog.close(keep=False)
        await spill.close()
    whole(variant, count, back)
    times.sort()
    return Measured(
        offer_p50_us=round(median(times) * 1e6, 2),
        offer_p99_us=round(times[int(0.99 * (len(times) - 1))] * 1e6, 2),
        lag_p99_ms=round(late[int(0.99 * (len(late) - 1))], 3),
        lag_max_ms=round(late[-1], 3),
        take_lag_max_ms=round(take_late[-1], 3),
        wall_lag_max_ms=round(wall[-1], 3),
        spilled=counts.on_disk,
        merged=counts.merged,
        record_bytes=given[0].size,
    )


def whole(variant: str, count: int, back: Sequence[Span]) -> None:
    """Raises BenchmarkError unless every frame came back, in order; some folded where the disk was behind."""
    due = 0
    for first, last, frames in back:
        if first != due or last + 1 != due + frames:
            raise BenchmarkError(f"{variant}: frame {due} was due, {first} came")
        due = last + 1
    if due != count * FRAMES:
        raise BenchmarkError(f"{variant}: {count * FRAMES} frames were offered, {due} came back")


async def _warm_up(spill: Spill, settings: SummarySettings) -> None:
    backlog = Backlog("warm-up", settings, spill)
    for number in range(1000):
        backlog.offer(observation(number))
        if number % GROUP == 0:
            await asyncio.sleep(PROBE_S)
    await backlog.close(keep=False)


async def _offer_all(backlog: Backlog, given: Sequence[Observation]) -> list[float]:
    times = []
    for number, offered in enumerate(given):
        begun = perf_counter()
        backlog.offer(offered)
        times.append(perf_counter() - begun)
        if number % GROUP == 0:
            await asyncio.sleep(PROBE_S)
    return times


async def _take_all(backlog: Backlog) -> list[Span]:
    back: list[Span] = []
    while found := await backlog.take():
        back += [(taken.first_frame_id, taken.last_frame_id, taken.frames) for taken in found]
        await asyncio.sleep(0)
    return back


def main(variant: Annotated[str, typer.Option()], observations: Annotated[int, typer.Option()]) -> None:
    """Prints one `Measured` as JSON."""
    print(orjson.dumps(asdict(uvloop.run(run(variant, observations)))).decode())


if __name__ == "__main__":
    typer.run(main)
