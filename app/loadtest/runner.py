"""Runs a load: plays the plan in one or more processes, shows it live, evaluates it and writes the files."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from threading import BrokenBarrierError

import orjson
import uvloop
from rich.console import Console
from rich.live import Live

from app.client import address
from app.errors import SightlineError
from app.loadtest import report as reports
from app.loadtest.client import LoadClient, Target, load_frames
from app.loadtest.metrics import LoadStats, Objective, compute_figures
from app.loadtest.plan import ClientPlan, LoadPlan, plan_clients

OnProgress = Callable[[float, LoadStats], None]
"""Called about twice a second with the seconds since the start and the counts so far."""
_TICK_S = 0.5
_START_TIMEOUT_S = 60.0
"""Seconds for the other processes to start."""
_MAX_REFUSALS = 3
"""Refusals before any session was accepted, after which the load is given up. There is no trial connection before the
load, because the service would count it."""
_LATE_MS = 20.0
"""p99 of this tool's own lateness beyond which it reports that the ages are too long."""


def run_load(
    url: str,
    plan: LoadPlan,
    *,
    source: str,
    objectives: Sequence[Objective],
    token: str | None = None,
    processes: int = 1,
    json: Path | None = None,
    report: Path | None = None,
) -> int:
    """Runs the plan against a service and prints the figures on stderr.

    Args:
        json: file for the figures; also written if no session was ever ready.
        report: file for the HTML report; likewise.

    Returns:
        0 if every objective is met and the service's counts agree with the clients', else 1.

    Raises:
        ConfigurationError: `url` is not the address of a service.
        SightlineError: no session was ever ready, the source cannot be read, or a file cannot be written.
    """
    for option, path in (("--json", json), ("--report", report)):
        _check_writable(option, path)
    console = Console(stderr=True)

    def on_damage(problem: str, code: str) -> None:
        console.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)

    target = Target(address(url), load_frames(source, on_damage), token)
    with Live(console=console, refresh_per_second=2, transient=True) as live:

        def on_progress(at: float, stats: LoadStats) -> None:
            live.update(reports.live_table(plan, at, stats, processes))

        stats = run_plan(plan, target, processes=processes, on_progress=on_progress)
    figures, trouble = compute_figures(plan, stats), stats.trouble()
    missed = [miss for objective in objectives if (miss := objective.missed(figures))]
    if json is not None:
        written = {"url": url, "plan": asdict(plan), "figures": asdict(figures), "missed": missed, "trouble": trouble}
        json.write_bytes(orjson.dumps(written, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if report is not None:
        report.write_text(reports.html_report(plan, stats, figures, objectives, url))
    if trouble is not None:
        raise SightlineError(f"{target.url}: {trouble}")
    console.print(reports.final_table(figures))
    if figures.late_p99_ms is not None and figures.late_p99_ms > _LATE_MS:
        console.print(
            f"[yellow]This tool sent its frames late: {figures.late_p99_ms:.0f} ms at p99, and the ages are too long "
            "by as much. Give it more --processes, or another machine.[/]"
        )
    for miss in missed:
        console.print(f"[red]missed[/] {miss}", highlight=False)
    for line in figures.disagreements:
        console.print(f"[red]counts disagree[/] {line}", highlight=False)
    return 1 if missed or figures.disagreements else 0


def _check_writable(option: str, path: Path | None) -> None:
    """Fails before the load instead of after it; leaves no file behind."""
    if path is None:
        return
    existed = path.exists()
    try:
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise SightlineError(f"{option} {path}: {error.strerror}") from None


def run_plan(plan: LoadPlan, target: Target, *, processes: int = 1, on_progress: OnProgress | None = None) -> LoadStats:
    """Runs the plan to its end.

    Args:
        processes: processes that share the clients; `on_progress` gets the counts of the first one only.

    Raises:
        SightlineError: a process did not start.
    """
    shares = [plan_clients(plan)[index::processes] for index in range(processes)]
    if processes == 1:
        return _run(plan, target, shares[0], _refused_only, on_progress)
    context = multiprocessing.get_context("spawn")
    start, stop = context.Barrier(processes), context.Event()
    with ProcessPoolExecutor(processes - 1, context, _init_process, (start, stop)) as pool:
        others = [pool.submit(_run_in_process, plan, target, share) for share in shares[1:]]
        try:
            start.wait(_START_TIMEOUT_S)
        except BrokenBarrierError:
            raise SightlineError(f"--processes {processes}: they did not start in {_START_TIMEOUT_S:g} s") from None
        stats = _run(plan, target, shares[0], _refused_only, on_progress)
        if stats.given_up:
            stop.set()
        for other in others:
            stats.merge(other.result())
    return stats


def _refused_only(stats: LoadStats) -> bool:
    """Whether the service refused enough sessions, and accepted none, so that the load is given up."""
    return stats.refusals >= _MAX_REFUSALS and not stats.let_in


_start: Barrier | None = None
"""In a further process: all processes begin at once, so that their seconds are the same."""
_stop: Event | None = None
"""In a further process: set once the load is given up."""


def _init_process(start: Barrier, stop: Event) -> None:
    global _start, _stop
    _start, _stop = start, stop


def _run_in_process(plan: LoadPlan, target: Target, share: list[ClientPlan]) -> LoadStats:
    start, stop = _start, _stop
    assert start is not None
    assert stop is not None
    start.wait(_START_TIMEOUT_S)
    return _run(plan, target, share, lambda _: stop.is_set())


def _run(
    plan: LoadPlan,
    target: Target,
    share: list[ClientPlan],
    give_up: Callable[[LoadStats], bool],
    on_progress: OnProgress | None = None,
) -> LoadStats:
    return uvloop.run(_run_clients(plan, target, share, give_up, on_progress))


async def _run_clients(
    plan: LoadPlan,
    target: Target,
    share: list[ClientPlan],
    give_up: Callable[[LoadStats], bool],
    on_progress: OnProgress | None,
) -> LoadStats:
    stats, started = LoadStats(), time.perf_counter()
    running = asyncio.create_task(_all([LoadClient(client, plan, target, stats, started) for client in share]))
    try:
        while not (await asyncio.wait({running}, timeout=_TICK_S))[0]:
            if on_progress is not None:
                on_progress(time.perf_counter() - started, stats)
            if give_up(stats):
                stats.given_up = True
                break
        else:
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return stats


async def _all(clients: list[LoadClient]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.run())
