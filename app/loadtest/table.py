"""The load on a terminal: while it runs, and at its end."""

from __future__ import annotations

from rich.table import Table

from app.loadtest.ages import Ages
from app.loadtest.objectives import Figures, SlowReaders
from app.loadtest.plan import Plan
from app.loadtest.score import Score

_RECENT_S = 5


def now(plan: Plan, at: float, score: Score, processes: int = 1) -> Table:
    """What the last seconds were like.

    Args:
        at: seconds from the beginning of the load.
        processes: that share the load; the score is the first one's.
    """
    upto = at - plan.measured_from - 1
    recent = [second for begin, second in score.seconds.items() if upto - _RECENT_S <= begin < upto]
    seconds = max(1, len(recent))
    ages = Ages.merged(second.ages for second in recent)
    title = f"{min(at, plan.end):.0f} of {plan.end:.0f} s"
    if processes > 1:
        title += f", the first of {processes} processes alone"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("sessions", "sent/s", "results/s", "p50", "p95", "p99", "not sent/s", "errors/s"):
        table.add_column(name, justify="right")
    table.add_row(
        str(score.open),
        f"{sum(second.sent for second in recent) / seconds:.1f}",
        f"{len(ages) / seconds:.1f}",
        *(_ms(ages.at(quantile)) for quantile in (0.5, 0.95, 0.99)),
        f"{sum(second.unsent.total() for second in recent) / seconds:.1f}",
        f"{sum(second.errors.total() for second in recent) / seconds:.1f}",
    )
    return table


def final(found: Figures) -> Table:
    """The figures, one a line."""
    table = Table(box=None, show_header=False)
    rows = (
        ("sessions", f"{found.sessions}  ({counts(found.outcomes)})"),
        ("frames due", f"{found.due}"),
        ("results", f"{found.results}  ({found.results_per_s:g} a second)"),
        ("age p50 / p95 / p99", " / ".join(map(_ms, (found.p50_age_ms, found.p95_age_ms, found.p99_age_ms)))),
        ("oldest", _ms(found.max_age_ms)),
        ("dropped", f"{share(found.dropped)}  ({counts(found.reasons) or 'none'})"),
        ("failed", share(found.failed)),
        ("degraded", share(found.degraded)),
        ("fairness (Jain)", "–" if found.fairness is None else f"{found.fairness:.3f}"),
        *([("slow readers, apart", slow_readers(found.slow))] if found.slow.sessions else []),
    )
    for row in rows:
        table.add_row(*row)
    return table


def slow_readers(slow: SlowReaders) -> str:
    """In one line."""
    lost = counts(slow.reasons)
    return (
        f"{slow.sessions} session{'s' if slow.sessions > 1 else ''} ({counts(slow.outcomes)}), {slow.due} frames due, "
        f"{slow.results} results read" + (f" ({lost})" if lost else "")
    )


def share(value: float | None) -> str:
    """In percent."""
    return "–" if value is None else f"{value:.2%}"


def counts(of: dict[str, int]) -> str:
    """`stopped 7, lost 1`."""
    return ", ".join(f"{name} {count}" for name, count in of.items())


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"
