"""The report's page: what is drawn where nothing came, and what is written."""

from __future__ import annotations

import re
from collections.abc import Iterable

from app.loadtest.metrics import LoadStats, SessionStats, compute_figures, parse_objective
from app.loadtest.plan import LoadPlan
from app.loadtest.report import html_report

PLAN = LoadPlan(sessions=1, fps=4, ramp=0, duration=10)


def scored(silent: Iterable[int], seconds: int = 10) -> LoadStats:
    """Four frames a second, all answered but for these seconds."""
    stats = LoadStats()
    for at in range(seconds):
        stats.seconds[at].due = 4
        for _ in range(0 if at in silent else 4):
            stats.seconds[at].ages.add(20)
    stats.sessions.append(SessionStats(0, seconds=10, outcome="stopped"))
    return stats


def drawn(stats: LoadStats, plan: LoadPlan = PLAN, url: str = "http://host") -> str:
    return html_report(plan, stats, compute_figures(plan, stats), [parse_objective("dropped=0.5")], url)


def path(html: str, name: str) -> str:
    found = re.search(rf"<path class='{name}' d='([^']*)'", html)
    assert found is not None
    return found[1]


def bands(html: str) -> list[tuple[float, float]]:
    """Seconds at which shaded ones begin and end."""
    found = re.findall(r"<rect class='outage' x='([\d.]+)' y='\d+' width='([\d.]+)'", html)
    return [(round((float(x) - 60) / 83, 2), round((float(x) - 60 + float(width)) / 83, 2)) for x, width in found]


def test_a_line_ends_where_no_result_came_and_the_time_is_shaded() -> None:
    html = drawn(scored(silent=(3, 4, 5, 8)))
    assert bands(html) == [(3, 6), (8, 9)]
    for name in ("p50", "p95", "p99"):
        assert [piece.count("L") for piece in path(html, name).split("M")[1:]] == [2, 1, 0]
        assert path(html, name).split("M")[3].count("H") == 1  # the last second alone: across it
    assert path(html, "dropped").count("M") == 4
    assert path(html, "results").count("M") == path(html, "due").count("M") == 1  # these know a zero


def test_a_load_without_a_gap_is_one_line_and_nothing_is_shaded() -> None:
    html = drawn(scored(silent=()))
    assert bands(html) == []
    assert path(html, "p99").count("M") == 1
    assert path(html, "dropped") == ""


def test_a_second_in_which_nothing_was_due_is_no_outage() -> None:
    stats = scored(silent=(4,))
    stats.seconds[4].due = 0
    html = drawn(stats)
    assert bands(html) == []
    assert path(html, "p50").count("M") == 2


def test_parts_of_seconds_are_drawn_as_long_as_they_are() -> None:
    plan, stats = LoadPlan(sessions=1, fps=4, ramp=0.25, warm_up=0.5, duration=8.1), scored(silent=(8,), seconds=9)
    stats.seconds[-1].due = 3
    html = drawn(stats, plan)
    width = 830 / 8.85
    found = re.findall(r"<rect class='outage' x='([\d.]+)' y='\d+' width='([\d.]+)'", html)
    assert [(round((float(x) - 60) / width, 2), round(float(w) / width, 2)) for x, w in found] == [
        (0, 0.75),
        (8.75, 0.1),
    ]
    assert path(html, "due").count("L") == 8  # a tenth of a second is no rate
    assert "4.0/s" in html


def test_no_result_at_all_is_said() -> None:
    html = drawn(scored(silent=range(10)))
    assert "No result came." in html
    assert "<svg" not in html
    assert "it is 1" in html
    nothing = drawn(LoadStats())
    assert "it is none, no frame was due" in nothing
    assert "no session was ever ready (none began)" in nothing


def test_slow_readers_have_a_line_of_their_own() -> None:
    stats = scored(silent=())
    assert "slow readers" not in drawn(stats)
    stats.slow[2].due = 30
    stats.sessions.append(SessionStats(1, slow=True, seconds=10))
    assert "1 session (lost 1), 30 frames due, 0 results read" in drawn(stats)


def test_what_comes_from_elsewhere_is_written_as_text() -> None:
    stats = scored(silent=())
    stats.sessions.append(SessionStats(1, outcome="<i>odd</i>"))
    html = drawn(stats, url="http://host/<script>alert('1')</script>?a&b")
    assert "<script>" not in html
    assert "http://host/&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;?a&amp;b" in html
    assert "<i>odd" not in html
    assert "&lt;i&gt;odd&lt;/i&gt; 1" in html
