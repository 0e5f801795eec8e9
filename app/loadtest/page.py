"""The load as a page of its own: figures, and how it went over time. No script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app.loadtest.chart import chart
from app.loadtest.objectives import Figures, Objective
from app.loadtest.plan import Plan
from app.loadtest.score import Score
from app.loadtest.table import counts, share, slow_readers

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1d2733; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td { padding: .2rem 1.2rem .2rem 0; vertical-align: top; }
td:first-child { color: #5b6b7b; } .missed { color: #b3261e; font-weight: 600; } .met { color: #1b7f4d; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #5b6b7b; }
.trouble { color: #b3261e; font-weight: 600; }
"""


def page(plan: Plan, score: Score, found: Figures, objectives: Sequence[Objective], url: str) -> str:
    """HTML of the whole report."""
    trouble = score.trouble()
    missed = [objective.missed(found) for objective in objectives]
    promises = "".join(
        f"<tr><td>{escape(str(one))}</td><td class='{'missed' if miss else 'met'}'>"
        f"{escape(miss.partition(': ')[2]) if miss else 'met'}</td></tr>"
        for one, miss in zip(objectives, missed, strict=True)
    )
    rows = {
        "sessions": f"{found.sessions} ({counts(found.outcomes)})",
        "frames due": str(found.due),
        "results": f"{found.results}, {found.results_per_s:g} a second",
        "age p50, p95, p99, oldest": ", ".join(
            "–" if age is None else f"{age:.1f} ms"
            for age in (found.p50_age_ms, found.p95_age_ms, found.p99_age_ms, found.max_age_ms)
        ),
        "without a result": f"{share(found.dropped)} ({counts(found.reasons) or 'none'})",
        "failed": share(found.failed),
        "results with a stage in error": share(found.degraded),
        "fairness (Jain's index)": "–" if found.fairness is None else f"{found.fairness:.3f}",
        "counts of client and service": "agree" if not found.disagreements else "; ".join(found.disagreements),
    }
    if found.slow.sessions:
        rows["slow readers, not in the figures above"] = slow_readers(found.slow)
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Load on {escape(url)}</title>"
        f"<style>{_STYLE}</style><h1>Load on {escape(url)}</h1>"
        f"<p>{plan.sessions} sessions, {plan.fps:g} frames a second each, {plan.duration:g} s measured after "
        f"{plan.measured_from:g} s.</p>"
        + (f"<p class='trouble'>{escape(trouble)}</p>" if trouble else "")
        + (f"<h2>Objectives</h2><table>{promises}</table>" if promises else "")
        + f"<h2>Figures</h2><table>{table}</table>"
        f"<h2>Over time, by when frames were due</h2>{chart(plan, score)}</html>\n"
    )
