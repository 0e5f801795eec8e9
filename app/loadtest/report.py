"""Reports of a load: a table on the terminal while it runs and at its end, and an HTML report with charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from rich.table import Table

from app.loadtest.metrics import AgeHistogram, Figures, LoadStats, Objective, SlowReaderFigures
from app.loadtest.plan import LoadPlan

# --- on the terminal ---

_RECENT_S = 5


def live_table(plan: LoadPlan, at: float, stats: LoadStats, processes: int = 1) -> Table:
    """Rates and ages of the last seconds.

    Args:
        at: seconds since the start of the load.
        stats: counts of the first process.
        processes: processes that share the load.
    """
    upto = at - plan.measured_from - 1
    recent = [second for begin, second in stats.seconds.items() if upto - _RECENT_S <= begin < upto]
    seconds = max(1, len(recent))
    ages = AgeHistogram.merged(second.ages for second in recent)
    title = f"{min(at, plan.end):.0f} of {plan.end:.0f} s"
    if processes > 1:
        title += f", the first of {processes} processes alone"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("sessions", "sent/s", "results/s", "p50", "p95", "p99", "not sent/s", "errors/s"):
        table.add_column(name, justify="right")
    table.add_row(
        str(stats.open),
        f"{sum(second.sent for second in recent) / seconds:.1f}",
        f"{len(ages) / seconds:.1f}",
        *(_ms(ages.quantile(quantile)) for quantile in (0.5, 0.95, 0.99)),
        f"{sum(second.unsent.total() for second in recent) / seconds:.1f}",
        f"{sum(second.errors.total() for second in recent) / seconds:.1f}",
    )
    return table


def final_table(figures: Figures) -> Table:
    """The figures, one per line."""
    table = Table(box=None, show_header=False)
    rows = (
        ("sessions", f"{figures.sessions}  ({_counts(figures.outcomes)})"),
        ("frames due", f"{figures.due}"),
        ("results", f"{figures.results}  ({figures.results_per_s:g} per second)"),
        ("age p50 / p95 / p99", " / ".join(map(_ms, (figures.p50_age_ms, figures.p95_age_ms, figures.p99_age_ms)))),
        ("oldest", _ms(figures.max_age_ms)),
        ("dropped", f"{_percent(figures.dropped)}  ({_counts(figures.reasons) or 'none'})"),
        ("failed", _percent(figures.failed)),
        ("degraded", _percent(figures.degraded)),
        ("fairness (Jain)", "–" if figures.fairness is None else f"{figures.fairness:.3f}"),
        *([("slow readers, apart", _slow_readers(figures.slow))] if figures.slow.sessions else []),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _slow_readers(slow: SlowReaderFigures) -> str:
    lost = _counts(slow.reasons)
    return (
        f"{slow.sessions} session{'s' if slow.sessions > 1 else ''} ({_counts(slow.outcomes)}), {slow.due} frames due, "
        f"{slow.results} results read" + (f" ({lost})" if lost else "")
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _counts(counts: dict[str, int]) -> str:
    """Such as `stopped 7, lost 1`."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


# --- as HTML: no script, nothing fetched ---

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1d2733; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td { padding: .2rem 1.2rem .2rem 0; vertical-align: top; }
td:first-child { color: #5b6b7b; } .missed { color: #b3261e; font-weight: 600; } .met { color: #1b7f4d; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #5b6b7b; }
.trouble { color: #b3261e; font-weight: 600; }
"""


def html_report(plan: LoadPlan, stats: LoadStats, figures: Figures, objectives: Sequence[Objective], url: str) -> str:
    """The report as one HTML document."""
    trouble = stats.trouble()
    missed = [objective.missed(figures) for objective in objectives]
    objective_rows = "".join(
        f"<tr><td>{escape(str(objective))}</td><td class='{'missed' if miss else 'met'}'>"
        f"{escape(miss.partition(': ')[2]) if miss else 'met'}</td></tr>"
        for objective, miss in zip(objectives, missed, strict=True)
    )
    rows = {
        "sessions": f"{figures.sessions} ({_counts(figures.outcomes)})",
        "frames due": str(figures.due),
        "results": f"{figures.results}, {figures.results_per_s:g} per second",
        "age p50, p95, p99, oldest": ", ".join(
            "–" if age is None else f"{age:.1f} ms"
            for age in (figures.p50_age_ms, figures.p95_age_ms, figures.p99_age_ms, figures.max_age_ms)
        ),
        "without a result": f"{_percent(figures.dropped)} ({_counts(figures.reasons) or 'none'})",
        "failed": _percent(figures.failed),
        "results with a stage in error": _percent(figures.degraded),
        "fairness (Jain's index)": "–" if figures.fairness is None else f"{figures.fairness:.3f}",
        "counts of client and service": "agree" if not figures.disagreements else "; ".join(figures.disagreements),
    }
    if figures.slow.sessions:
        rows["slow readers, not in the figures above"] = _slow_readers(figures.slow)
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Load on {escape(url)}</title>"
        f"<style>{_STYLE}</style><h1>Load on {escape(url)}</h1>"
        f"<p>{plan.sessions} sessions, {plan.fps:g} frames per second each, {plan.duration:g} s measured after "
        f"{plan.measured_from:g} s.</p>"
        + (f"<p class='trouble'>{escape(trouble)}</p>" if trouble else "")
        + (f"<h2>Objectives</h2><table>{objective_rows}</table>" if objective_rows else "")
        + f"<h2>Figures</h2><table>{table}</table>"
        f"<h2>Over time, by due time</h2>{_chart(plan, stats)}</html>\n"
    )


_LEFT, _RIGHT, _WIDTH = 60, 10, 900
_AGES, _DROPPED, _RATE = (24, 224), (264, 314), (354, 414)
"""Top and bottom of each panel."""
_HEIGHT = 446
_LINES = ((0.99, "#d1495b", "p99"), (0.95, "#edae49", "p95"), (0.50, "#00798c", "p50"))
_OUTAGE, _WARM_UP, _GRID, _DUE, _RESULTS = "#f8d7da", "#eef1f4", "#dde3e9", "#8a97a5", "#00798c"


def _chart(plan: LoadPlan, stats: LoadStats) -> str:
    """An SVG of ages, frames without a result, and results per second, without slow readers.

    A line ends where no result came, and such seconds are shaded.
    """
    seconds = {at: second for at, second in sorted(stats.seconds.items()) if second.due}
    if not any(len(second.ages) for second in seconds.values()):
        return "<p>No result came.</p>"
    begins = {at: max(0.0, plan.measured_from + at) for at in seconds}
    ends = {at: min(plan.end, plan.measured_from + at + 1) for at in seconds}

    def x(at: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * at / plan.end, 1)

    def band(begin: float, end: float, colour: str, name: str) -> str:
        top, bottom = _AGES[0], _RATE[1]
        return (
            f"<rect class='{name}' x='{x(begin)}' y='{top}' width='{x(end) - x(begin):.1f}' "
            f"height='{bottom - top}' fill='{colour}'/>"
        )

    def line(values: Mapping[int, float], y: Callable[[float], float], colour: str, name: str) -> str:
        """Connects the middles of consecutive seconds; a second alone becomes a line of its own length."""
        path = ""
        for run in _runs(values):
            if len(run) == 1:
                path += f"M{x(begins[run[0]])} {y(values[run[0]])}H{x(ends[run[0]])}"
            else:
                path += "M" + "L".join(f"{x((begins[at] + ends[at]) / 2)} {y(values[at])}" for at in run)
        return (
            f"<path class='{name}' d='{path}' fill='none' stroke='{colour}' stroke-width='2' stroke-linecap='round'/>"
        )

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='The load over time'>"]
    if plan.measured_from:
        parts.append(band(0, plan.measured_from, _WARM_UP, "warm-up"))
    silent = _runs(at for at, second in seconds.items() if not len(second.ages))
    parts += [band(begins[run[0]], ends[run[-1]], _OUTAGE, "outage") for run in silent]

    # Ages.
    answered = {at: second.ages for at, second in seconds.items() if len(second.ages)}
    step = _round_up(max(ages.quantile(0.99) or 0.0 for ages in answered.values()) / 4)
    y = _scale(_AGES, 4 * step)
    parts += [_rule(y(step * number), f"{step * number:g} ms") for number in range(5)]
    for number, (quantile, colour, name) in enumerate(_LINES):
        values = {at: ages.quantile(quantile) or 0.0 for at, ages in answered.items()}
        parts += [line(values, y, colour, name), _label(_LEFT + 30 + 34 * number, _AGES[0], name, colour)]
    parts.append(_label(_LEFT, _AGES[0], "age", _DUE))

    # The share without a result: filled, because its height matters.
    y = _scale(_DROPPED, 1)
    parts += [_rule(y(part), f"{part:.0%}") for part in (0, 1)]
    bars = "".join(
        f"M{x(begins[at])} {y(0)}V{y(1 - len(second.ages) / second.due)}H{x(ends[at])}V{y(0)}Z"
        for at, second in seconds.items()
        if len(second.ages) < second.due
    )
    parts.append(f"<path class='dropped' d='{bars}' fill='#d1495b'/>")
    parts.append(_label(_LEFT, _DROPPED[0], "without a result", "#d1495b"))

    # Frames due and results; less than half a second gives no meaningful rate.
    lasted = {at: ends[at] - begins[at] for at in seconds if ends[at] - begins[at] >= 0.5}
    due = {at: seconds[at].due / lasted[at] for at in lasted}
    answered_rate = {at: len(seconds[at].ages) / lasted[at] for at in lasted}
    most = max(due.values(), default=1.0)
    y = _scale(_RATE, most)
    parts += [_rule(y(part), f"{part:.{0 if most >= 10 else 1}f}/s") for part in (0, most)]
    parts += [line(due, y, _DUE, "due"), _label(_LEFT, _RATE[0], "due", _DUE)]
    parts += [line(answered_rate, y, _RESULTS, "results"), _label(_LEFT + 32, _RATE[0], "results", _RESULTS)]
    parts += [
        f"<text x='{x(plan.end * part)}' y='{_HEIGHT - 10}' text-anchor='{anchor}'>{plan.end * part:.0f} s</text>"
        for part, anchor in ((0, "middle"), (0.5, "middle"), (1, "end"))
    ]
    return "".join([*parts, "</svg>"])


def _runs(seconds: Iterable[int]) -> list[list[int]]:
    """Groups consecutive seconds."""
    runs: list[list[int]] = []
    for at in seconds:
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return runs


def _scale(panel: tuple[int, int], most: float) -> Callable[[float], float]:
    top, bottom = panel
    return lambda value: round(bottom - (bottom - top) * value / most, 1)


def _round_up(least: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least or 1.0))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least)


def _rule(y: float, text: str) -> str:
    return (
        f"<path d='M{_LEFT} {y}H{_WIDTH - _RIGHT}' stroke='{_GRID}'/>"
        f"<text x='{_LEFT - 6}' y='{y + 4}' text-anchor='end'>{text}</text>"
    )


def _label(x: float, top: float, text: str, colour: str) -> str:
    return f"<text x='{x}' y='{top - 8}' style='fill:{colour}'>{text}</text>"
