"""The load on a terminal: while it runs, and at its end."""

from __future__ import annotations

from rich.table import Table

from app.loading.ages import Ages
from app.loading.objectives import Figures
from app.loading.plan import Plan
from app.loading.score import Score

_RECENT_S = 5


def now(plan: Plan, at: float, score: Score) -> Table:
    """What the last seconds were like."""
    recent = score.between(max(0, at - _RECENT_S - 1), at - 1)
    seconds = max(1, len(recent))
    ages = Ages.merged(second.ages for second in recent)
    table = Table(title=f"{min(at, plan.end):.0f} of {plan.end:.0f} s", title_justify="left", box=None)
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
        ("sessions", f"{found.sessions}  ({_counts(found.outcomes)})"),
        ("frames due", f"{found.due}"),
        ("results", f"{found.results}  ({found.results_per_s:g} a second)"),
        ("age p50 / p95 / p99", " / ".join(map(_ms, (found.p50_age_ms, found.p95_age_ms, found.p99_age_ms)))),
        ("oldest", _ms(found.max_age_ms)),
        ("dropped", f"{found.dropped:.2%}  ({_counts(found.reasons) or 'none'})"),
        ("failed", f"{found.failed:.2%}"),
        ("degraded", f"{found.degraded:.2%}"),
        ("fairness (Jain)", f"{found.fairness:.3f}"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
