"""What `sightline load` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.live import Live

from app.client import address
from app.errors import SightlineError
from app.loadtest import table
from app.loadtest.frames import frames
from app.loadtest.objectives import Objective, figures
from app.loadtest.page import page
from app.loadtest.plan import Plan
from app.loadtest.run import run
from app.loadtest.score import Score
from app.loadtest.seat import Target

_LATE_MS = 20.0


def load(
    url: str,
    plan: Plan,
    *,
    source: str,
    objectives: Sequence[Objective],
    token: str | None = None,
    processes: int = 1,
    json: Path | None = None,
    report: Path | None = None,
) -> int:
    """Plays the plan against the service and says how it went.

    Args:
        json: file of the figures; written also when no session was ever ready.
        report: file of the HTML report; likewise.

    Returns:
        0 when every objective is met and the service's counts agree with ours, else 1.

    Raises:
        ConfigurationError: `url` is no address of a service.
        SightlineError: no session was ever ready, the source cannot be read, or a file cannot be written.
    """
    for option, path in (("--json", json), ("--report", report)):
        _check(option, path)
    console = Console(stderr=True)

    def left_out(problem: str, code: str) -> None:
        console.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)

    target = Target(address(url), frames(source, left_out), token)
    with Live(console=console, refresh_per_second=2, transient=True) as live:

        def look(at: float, score: Score) -> None:
            live.update(table.now(plan, at, score, processes))

        score = run(plan, target, processes=processes, look=look)
    found, trouble = figures(plan, score), score.trouble()
    missed = [miss for objective in objectives if (miss := objective.missed(found))]
    if json is not None:
        told = {"url": url, "plan": asdict(plan), "figures": asdict(found), "missed": missed, "trouble": trouble}
        json.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if report is not None:
        report.write_text(page(plan, score, found, objectives, url))
    if trouble is not None:
        raise SightlineError(f"{target.url}: {trouble}")
    console.print(table.final(found))
    if found.late_p99_ms is not None and found.late_p99_ms > _LATE_MS:
        console.print(
            f"[yellow]This tool itself was late: {found.late_p99_ms:.0f} ms at p99, and the ages are too long by as "
            "much. Give it more --processes, or another machine.[/]"
        )
    for miss in missed:
        console.print(f"[red]missed[/] {miss}", highlight=False)
    for line in found.disagreements:
        console.print(f"[red]counts disagree[/] {line}", highlight=False)
    return 1 if missed or found.disagreements else 0


def _check(option: str, path: Path | None) -> None:
    """Before the load, not after it. Leaves everything as it is."""
    if path is None:
        return
    there = path.exists()
    try:
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise SightlineError(f"{option} {path}: {error.strerror}") from None
