"""The load as a page of its own: figures, and the age of results over time. No script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app.loading.objectives import Figures, Objective
from app.loading.plan import Plan
from app.loading.score import Score

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 280, 60, 30
_LINES = ((0.99, "#d1495b", "p99"), (0.95, "#edae49", "p95"), (0.50, "#00798c", "p50"))
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1d2733; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td { padding: .2rem 1.2rem .2rem 0; vertical-align: top; }
td:first-child { color: #5b6b7b; } .missed { color: #b3261e; font-weight: 600; } .met { color: #1b7f4d; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #5b6b7b; }
"""


def page(plan: Plan, score: Score, found: Figures, objectives: Sequence[Objective], url: str) -> str:
    """HTML of the whole report."""
    missed = [objective.missed(found) for objective in objectives]
    promises = "".join(
        f"<tr><td>{escape(str(one))}</td><td class='{'missed' if miss else 'met'}'>"
        f"{escape(miss.partition(': ')[2]) if miss else 'met'}</td></tr>"
        for one, miss in zip(objectives, missed, strict=True)
    )
    rows = {
        "sessions": f"{found.sessions} ({_words(found.outcomes)})",
        "frames due": str(found.due),
        "results": f"{found.results}, {found.results_per_s:g} a second",
        "age p50, p95, p99, oldest": ", ".join(
            "–" if age is None else f"{age:.1f} ms"
            for age in (found.p50_age_ms, found.p95_age_ms, found.p99_age_ms, found.max_age_ms)
        ),
        "without a result": f"{found.dropped:.2%} ({_words(found.reasons) or 'none'})",
        "failed": f"{found.failed:.2%}",
        "results with a stage in error": f"{found.degraded:.2%}",
        "fairness (Jain's index)": f"{found.fairness:.3f}",
        "counts of client and service": "agree" if not found.disagreements else "; ".join(found.disagreements),
    }
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Load on {escape(url)}</title>"
        f"<style>{_STYLE}</style><h1>Load on {escape(url)}</h1>"
        f"<p>{plan.sessions} sessions, {plan.fps:g} frames a second each, {plan.duration:g} s measured after "
        f"{plan.measured_from:g} s.</p>"
        + (f"<h2>Objectives</h2><table>{promises}</table>" if promises else "")
        + f"<h2>Figures</h2><table>{table}</table>"
        f"<h2>Age of results, by when their frame was due</h2>{_chart(plan, score)}</html>\n"
    )


def _chart(plan: Plan, score: Score) -> str:
    seconds = [(at, one) for at, one in sorted(score.seconds.items()) if len(one.ages)]
    if not seconds:
        return "<p>No result came.</p>"
    top = max(one.ages.at(0.99) or 0.0 for _, one in seconds) * 1.1 or 1.0
    width, height = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - 10

    def x(at: float) -> float:
        return round(_LEFT + width * at / plan.end, 1)

    def y(age_ms: float) -> float:
        return round(10 + height * (1 - age_ms / top), 1)

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='Age of results over time'>"]
    if plan.measured_from:
        parts.append(
            f"<rect x='{_LEFT}' y='10' width='{x(plan.measured_from) - _LEFT:.1f}' height='{height}' fill='#eef1f4'/>"
        )
    for share in (0, 0.25, 0.5, 0.75, 1):
        line = y(top * share)
        parts.append(f"<path d='M{_LEFT} {line}H{_WIDTH - 10}' stroke='#dde3e9'/>")
        parts.append(f"<text x='{_LEFT - 6}' y='{line + 4}' text-anchor='end'>{top * share:.0f} ms</text>")
    for share in (0, 0.5, 1):
        at, below = plan.end * share, _HEIGHT - 8
        parts.append(f"<text x='{x(at)}' y='{below}' text-anchor='middle'>{at:.0f} s</text>")
    for number, (quantile, colour, name) in enumerate(_LINES):
        points = " ".join(f"{x(at + 0.5)},{y(one.ages.at(quantile) or 0.0)}" for at, one in seconds)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts.append(f"<text x='{_LEFT + 10 + 40 * number}' y='24' style='fill:{colour}'>{name}</text>")
    return "".join([*parts, "</svg>"])


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
