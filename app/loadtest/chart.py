"""The load over time, as an SVG: ages of results, the share that got none, results a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from app.loadtest.plan import Plan
from app.loadtest.score import Score

_LEFT, _RIGHT, _WIDTH = 60, 10, 900
_AGES, _DROPPED, _RATE = (24, 224), (264, 314), (354, 414)
"""Top and bottom of each panel, one below the other."""
_HEIGHT = 446
_LINES = ((0.99, "#d1495b", "p99"), (0.95, "#edae49", "p95"), (0.50, "#00798c", "p50"))
_OUTAGE, _WARM_UP, _GRID, _DUE, _CAME = "#f8d7da", "#eef1f4", "#dde3e9", "#8a97a5", "#00798c"


def chart(plan: Plan, score: Score) -> str:
    """Second by second, without slow readers: a line ends where no result came, and such seconds are shaded."""
    seconds = {at: one for at, one in sorted(score.seconds.items()) if one.due}
    if not any(len(one.ages) for one in seconds.values()):
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
        """Through the middles of seconds that follow each other; one alone is as long as it lasts."""
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
    silent = _runs(at for at, one in seconds.items() if not len(one.ages))
    parts += [band(begins[run[0]], ends[run[-1]], _OUTAGE, "outage") for run in silent]

    # Ages.
    answered = {at: one.ages for at, one in seconds.items() if len(one.ages)}
    step = _round(max(ages.at(0.99) or 0.0 for ages in answered.values()) / 4)
    y = _scale(_AGES, 4 * step)
    parts += [_rule(y(step * number), f"{step * number:g} ms") for number in range(5)]
    for number, (quantile, colour, name) in enumerate(_LINES):
        values = {at: ages.at(quantile) or 0.0 for at, ages in answered.items()}
        parts += [line(values, y, colour, name), _label(_LEFT + 30 + 34 * number, _AGES[0], name, colour)]
    parts.append(_label(_LEFT, _AGES[0], "age", _DUE))

    # The share that got no result: its height is what one looks for, so that it is filled.
    y = _scale(_DROPPED, 1)
    parts += [_rule(y(part), f"{part:.0%}") for part in (0, 1)]
    bars = "".join(
        f"M{x(begins[at])} {y(0)}V{y(1 - len(one.ages) / one.due)}H{x(ends[at])}V{y(0)}Z"
        for at, one in seconds.items()
        if len(one.ages) < one.due
    )
    parts.append(f"<path class='dropped' d='{bars}' fill='#d1495b'/>")
    parts.append(_label(_LEFT, _DROPPED[0], "without a result", "#d1495b"))

    # What was due, and what came of it; the few frames of a small part of a second are no rate.
    lasted = {at: ends[at] - begins[at] for at in seconds if ends[at] - begins[at] >= 0.5}
    due = {at: seconds[at].due / lasted[at] for at in lasted}
    came = {at: len(seconds[at].ages) / lasted[at] for at in lasted}
    most = max(due.values(), default=1.0)
    y = _scale(_RATE, most)
    parts += [_rule(y(part), f"{part:.{0 if most >= 10 else 1}f}/s") for part in (0, most)]
    parts += [line(due, y, _DUE, "due"), _label(_LEFT, _RATE[0], "due", _DUE)]
    parts += [line(came, y, _CAME, "results"), _label(_LEFT + 32, _RATE[0], "results", _CAME)]
    parts += [
        f"<text x='{x(plan.end * part)}' y='{_HEIGHT - 10}' text-anchor='{anchor}'>{plan.end * part:.0f} s</text>"
        for part, anchor in ((0, "middle"), (0.5, "middle"), (1, "end"))
    ]
    return "".join([*parts, "</svg>"])


def _runs(seconds: Iterable[int]) -> list[list[int]]:
    """Those that follow each other, together."""
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


def _round(least: float) -> float:
    """1, 2, 2.5, 5 times a power of ten, not under this."""
    power = 10.0 ** math.floor(math.log10(least or 1.0))
    return next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= least)


def _rule(y: float, text: str) -> str:
    return (
        f"<path d='M{_LEFT} {y}H{_WIDTH - _RIGHT}' stroke='{_GRID}'/>"
        f"<text x='{_LEFT - 6}' y='{y + 4}' text-anchor='end'>{text}</text>"
    )


def _label(x: float, top: float, text: str, colour: str) -> str:
    return f"<text x='{x}' y='{top - 8}' style='fill:{colour}'>{text}</text>"
