"""`--workers 2` against one: what a second process costs, and whether sessions fall evenly on both.

Closed loop, as many sessions a worker in either variant, so that their batches of frames are of one size. What can be
measured depends on the machine. With four cores or more each worker has a core of its own, Triton and the load have
others, and the rates are compared. With fewer, Triton and the load share the workers' cores: rates then say what that
machine gives, which cannot be twice as much. CPU time a frame is still each variant's own: if a frame of two workers
costs as much as one of one worker, two full cores give twice the frames of one; what a second process adds (caches,
memory, smaller batches) shows as less.

The kernel deals connections out over the workers by address and port, as good as by dice, and they stay there: with all
sessions on one worker, two give no more than one. The measure is the fullest worker's sessions over an even share; of
24 sessions one worker gets more than 18 less than once in a hundred times. The two figures are to be read together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks import canned, harness, ledger, service, turns
from benchmarks.harness import BenchmarkError
from benchmarks.measure import Measured
from benchmarks.service import Running
from benchmarks.turns import Figures, Ratio

SESSIONS = 12
"""Of each worker."""
OWN_CORES = len(os.sched_getaffinity(0)) >= 4
"""Whether both workers, Triton and the load have cores of their own."""
VARIANTS = {"1": f"one worker, {SESSIONS} sessions", "2": f"two workers, {2 * SESSIONS} sessions"}
_BY_CPU = Ratio(
    "CPU time a frame: one worker's over that of two, times 2 (2: a second one costs nothing)",
    "per_cpu_s",
    "2",
    "1",
    at_least=1.8,
)
_BY_RATE = (
    Ratio("frames a second: two workers over one, a core each", "rate", "2", "1", at_least=1.8)
    if OWN_CORES
    else Ratio("frames a second: two workers over one, Triton and the load on the same two cores", "rate", "2", "1")
)
RATIOS = (
    _BY_CPU,
    Ratio("sessions of the fullest of two workers, over an even share", "fullest", "2", at_most=1.5),
    _BY_RATE,
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 3.0
    warm_up_s: float = 1.5
    turns: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure_turn(stand: service.Bench, plan: Plan, workers: int) -> Figures:
    """One turn."""
    count = SESSIONS * workers
    limits = {"MAX_SESSIONS": str(count), "MAX_SESSIONS_PER_ADDRESS": str(count), "WORKERS": str(workers)}
    mine = sorted(os.sched_getaffinity(0))[:workers]
    with service.served(stand, frozenset(mine), **limits) as running, ThreadPoolExecutor(1) as beside:
        if OWN_CORES:
            _apart(running, mine)
        before = ledger.batches(running.url)
        spread = beside.submit(_spread, running, count)
        first = service.init("lossless")
        found = service.pressed(stand, running, first, plan.warm_up_s, plan.seconds, sessions=count)
        frames, requests = (b - a for a, b in zip(before, ledger.batches(running.url), strict=True))
        fullest = max(spread.result()) / SESSIONS
    measured = Measured(**{field.name: found[field.name] for field in fields(Measured)})
    return {
        **turns.of(measured),
        "per_cpu_s": workers / measured.cpu_us * 1e6,
        "fullest": fullest,
        "batch": frames / max(1, requests),
    }


def _apart(running: Running, cores: Sequence[int]) -> None:
    """Each process that serves onto a core of its own, with all its threads."""
    serving = [pid for pid in running.pids if _connections(pid, running.port, psutil.CONN_LISTEN)]
    for number, pid in enumerate(serving[-len(cores) :]):  # the first of several only watches over the others
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cores[number]})


def _spread(running: Running, count: int) -> list[int]:
    """Sessions of each process, once they all are there.

    Raises:
        BenchmarkError: they never are.
    """
    pids, deadline = running.pids, time.monotonic() + harness.START_S
    while sum(found := [_connections(pid, running.port, psutil.CONN_ESTABLISHED) for pid in pids]) < count:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{sum(found)} of {count} sessions in {harness.START_S:g} s")
        time.sleep(0.05)
    return found


def _connections(pid: int, port: int, state: str) -> int:
    """Sockets of the service's port that a process holds."""
    open_now = psutil.Process(pid).net_connections("inet")
    return sum(connection.status == state and connection.laddr.port == port for connection in open_now)


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    places = harness.cores(tested=2 if OWN_CORES else 1)
    with service.bench(canned.write, SESSIONS, places) as stand:
        return turns.run("workers", plan, lambda variant: measure_turn(stand, plan, int(variant)), RATIOS, say)


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {
        "rate": "frames/s",
        "cpu_us": "CPU µs a frame",
        "batch": "frames a request",
        "fullest": "fullest worker, of an even share",
        "busy": "cores busy",
        "p99_ms": "p99 ms",
    }
    shared = results["machine"]["cores"] < 4
    caption = "Triton and the load share the workers' cores here: go by CPU time" if shared else None
    turns.show(results, f"workers: {SESSIONS} sessions each", VARIANTS, columns, console, caption)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, {**given, "sessions": None})
