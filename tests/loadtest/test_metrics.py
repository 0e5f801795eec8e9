"""The load's arithmetic: percentiles, fairness, objectives, the plan."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from app.errors import ConfigurationError
from app.loadtest.metrics import (
    AgeHistogram,
    ClientStats,
    Figures,
    LoadStats,
    SessionStats,
    compute_figures,
    jain_index,
    parse_objective,
)
from app.loadtest.plan import LoadPlan, plan_clients
from app.loadtest.report import final_table, live_table

AGES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=200)


def ages(values: list[float]) -> AgeHistogram:
    out = AgeHistogram()
    for value in values:
        out.add(value)
    return out


@given(AGES, st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_within_a_percent_of_the_exact_one(values: list[float], quantile: float) -> None:
    exact = sorted(values)[math.ceil(quantile * len(values)) - 1]
    assert ages(values).quantile(quantile) == pytest.approx(exact, rel=0.01)


@given(AGES, AGES)
def test_parts_merge_to_the_whole(some: list[float], others: list[float]) -> None:
    whole, merged = ages(some + others), AgeHistogram.merged([ages(some), ages(others)])
    assert len(merged) == len(whole)
    assert merged.highest == whole.highest
    assert [merged.quantile(q) for q in (0.1, 0.5, 0.9)] == [whole.quantile(q) for q in (0.1, 0.5, 0.9)]


def test_no_ages_have_no_percentile() -> None:
    assert AgeHistogram().quantile(0.5) is None


def test_fairness_is_one_for_equals_and_one_over_n_for_one_who_gets_all() -> None:
    assert jain_index([3.0, 3.0, 3.0]) == pytest.approx(1)
    assert jain_index([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([]) == 1


def test_clients_are_the_same_for_the_same_seed_and_spread_over_the_ramp() -> None:
    plan = LoadPlan(sessions=20, ramp=4, bare=0.25, slow_readers=3, churn=2, duration=10)
    first = plan_clients(plan)
    assert first == plan_clients(plan)
    assert sum(client.bare for client in first) == 5
    assert sum(client.slow for client in first) == 3
    begins = np.array([client.begin for client in first])
    assert begins.min() >= 0
    assert begins.max() <= 4 + 1 / plan.fps
    assert np.histogram(begins, 4, (0, 4))[0].min() >= 4
    assert all(sum(client.lengths) >= plan.end for client in first)


def test_without_churn_a_session_lasts_to_the_end() -> None:
    assert {client.lengths for client in plan_clients(LoadPlan(sessions=3))} == {(LoadPlan().end,)}


# --- figures of counts ---


def scored() -> tuple[LoadPlan, LoadStats]:
    """Two seconds of warm-up, then two measured; one frame of four is answered late, one never."""
    plan, stats = LoadPlan(sessions=1, ramp=1, warm_up=1, duration=2), LoadStats()
    for at in range(-2, 2):
        stats.seconds[at].due = 2
    stats.seconds[-2].ages.add(9999)
    stats.seconds[0].ages.add(10)
    stats.seconds[0].ages.add(40)
    stats.seconds[1].ages.add(20)
    stats.seconds[1].unsent["blocked"] += 1
    stats.clients[0] = ClientStats(due=4, results=3)
    report = {"received": 7, "processed": 4, "dropped": {"superseded": 2, "stale": 1}, "failed": 0}
    stats.sessions.append(SessionStats(0, False, 2.0, 7, 4, Counter(stale=1), "stopped", report))
    return plan, stats


def test_figures_are_of_what_was_due_after_the_warm_up() -> None:
    found = compute_figures(*scored())
    assert (found.due, found.results, found.results_per_s) == (4, 3, 1.5)
    assert found.p50_age_ms == pytest.approx(20, rel=0.01)
    assert found.max_age_ms == 40
    assert found.dropped == 0.25
    assert found.reasons == {"blocked": 1, "stale": 1, "superseded": 2}
    assert found.disagreements == []


@pytest.mark.parametrize(
    ("change", "word"),
    [({"received": 8}, "sent and received"), ({"processed": 5}, "results"), ({"dropped": {"stale": 3}}, "refused")],
)
def test_counts_that_differ_from_the_services_are_told(change: dict[str, object], word: str) -> None:
    plan, stats = scored()
    report = stats.sessions[0].report
    assert report is not None
    report |= change
    assert any(word in line for line in compute_figures(plan, stats).disagreements)


def test_a_report_that_never_came_is_told() -> None:
    plan, stats = scored()
    stats.sessions[0].report, stats.sessions[0].outcome = None, "lost"
    assert compute_figures(plan, stats).disagreements == ["client 0: 7 frames sent, and no report came (lost)"]


def test_results_a_second_are_of_the_time_measured() -> None:
    stats = LoadStats()
    for at, count in {-1: 5, 0: 10, 1: 10, 2: 10, 3: 5}.items():  # half a second of ramp, and half of one at the end
        stats.seconds[at].due = count
        for _ in range(count):
            stats.seconds[at].ages.add(5)
    found = compute_figures(LoadPlan(ramp=0.5, warm_up=0, duration=3.5), stats)
    assert (found.due, found.results, found.results_per_s) == (35, 35, 10)


def test_results_with_a_stage_in_error_are_a_share_of_the_results() -> None:
    plan, stats = scored()
    stats.seconds[-2].degraded, stats.seconds[1].degraded = 1, 1
    assert compute_figures(plan, stats).degraded == pytest.approx(1 / 3, abs=1e-4)
    other = LoadStats()
    other.merge(stats)
    assert other.seconds[1].degraded == 1


def test_a_slow_readers_counts_are_not_compared() -> None:
    plan, stats = scored()
    stats.sessions[0].slow, stats.sessions[0].sent = True, 99
    assert compute_figures(plan, stats).disagreements == []


def with_a_slow_reader() -> tuple[LoadPlan, LoadStats]:
    """As `scored`, and one more who read one old answer."""
    plan, stats = scored()
    stats.slow[-1].due = 5
    stats.slow[0].due, stats.slow[0].unsent["no_session"] = 10, 7
    stats.slow[0].ages.add(9000)
    stats.sessions.append(SessionStats(1, True, 2.0, 8, 1, outcome="lost"))
    return plan, stats


def test_slow_readers_are_in_no_figure_but_their_own() -> None:
    plan, stats = with_a_slow_reader()
    whole, merged = compute_figures(plan, stats), LoadStats()
    for _ in range(2):
        merged.merge(stats)
    apart, twice = whole.slow, compute_figures(plan, merged)
    assert (apart.sessions, apart.due, apart.results) == (1, 10, 1)
    assert (apart.reasons, apart.outcomes) == ({"no_session": 7}, {"lost": 1})
    assert (twice.slow.due, twice.slow.results, twice.slow.reasons) == (20, 2, {"no_session": 14})
    assert (twice.due, twice.results, twice.fairness) == (8, 6, 1)
    assert replace(whole, slow=compute_figures(*scored()).slow) == compute_figures(*scored())


def test_those_who_are_not_served_count_for_fairness() -> None:
    """Two of 64 served, the others in line: 1/32, not 1."""
    plan, stats = scored()
    stats.clients.clear()
    for number in range(64):
        stats.clients[number] = ClientStats(due=20, results=20 if number < 2 else 0)
    assert compute_figures(plan, stats).fairness == pytest.approx(2 / 64, abs=1e-4)


def test_fairness_is_of_what_each_was_due() -> None:
    """Who begins late is due less, and is not treated worse for it."""
    plan, stats = scored()
    stats.clients[1], stats.clients[2] = ClientStats(due=40, results=30), ClientStats(due=0, results=0)
    assert compute_figures(plan, stats).fairness == 1


def test_what_there_is_none_of_is_no_figure() -> None:
    nothing_due = compute_figures(LoadPlan(), LoadStats())
    assert nothing_due.dropped is nothing_due.failed is nothing_due.degraded is nothing_due.fairness is None
    plan, stats = scored()
    for second in stats.seconds.values():
        second.ages = AgeHistogram()
    stats.clients[0].results = 0
    nothing_came = compute_figures(plan, stats)
    assert (nothing_came.dropped, nothing_came.failed) == (1, 0)
    assert nothing_came.degraded is nothing_came.fairness is None


@pytest.mark.parametrize("text", ["dropped=0", "failed=1", "degraded=1", "fairness=0", "p50_age_ms=1e9"])
def test_objectives_on_nothing_are_missed(text: str) -> None:
    assert "none, no frame was due" in (parse_objective(text).missed(compute_figures(LoadPlan(), LoadStats())) or "")


def drawn(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as told:
        console.print(table)
    return told.get()


def test_the_last_table_has_a_line_for_slow_readers_and_dashes_for_what_there_is_none_of() -> None:
    lines = drawn(final_table(compute_figures(*with_a_slow_reader()))).splitlines()
    assert "1 session (lost 1), 10 frames due, 1 results read (no_session 7)" in lines[-1]
    nothing = drawn(final_table(compute_figures(LoadPlan(), LoadStats())))
    assert "slow" not in nothing
    for name in ("dropped", "failed", "degraded", "fairness"):
        assert any(line.strip().startswith(name) and "–" in line for line in nothing.splitlines())


def test_the_live_table_says_whose_sessions_it_shows() -> None:
    plan, stats = scored()
    stats.open = 4
    assert "of 4 s, the first of 3 processes alone" in drawn(live_table(plan, 4.0, stats, 3))
    assert "process" not in drawn(live_table(plan, 4.0, stats))


def test_the_live_table_is_of_the_seconds_that_are_over() -> None:
    plan, stats = scored()
    stats.seconds[1].sent = 60  # until the load is 4 s old
    stats.seconds[0].sent, stats.seconds[-1].sent, stats.seconds[-2].sent = 6, 3, 3
    assert drawn(live_table(plan, 3.9, stats)).splitlines()[2].split()[1] == "4.0"
    assert drawn(live_table(plan, 4.2, stats)).splitlines()[2].split()[1] == "18.0"


@pytest.fixture
def found() -> Figures:
    return compute_figures(*scored())


@pytest.mark.parametrize("text", ["p50_age_ms=21", "max_age_ms=40", "dropped=0.25", "results_per_s=1.5", "fairness=1"])
def test_objectives_that_are_met(found: Figures, text: str) -> None:
    assert parse_objective(text).missed(found) is None


@pytest.mark.parametrize("text", ["p99_age_ms=39", "dropped=0.2", "results_per_s=2"])
def test_objectives_that_are_missed_say_by_what(found: Figures, text: str) -> None:
    missed = parse_objective(text).missed(found)
    assert missed is not None
    assert missed.startswith(str(parse_objective(text)))


def test_an_age_objective_without_any_result_is_missed() -> None:
    plan, stats = LoadPlan(), LoadStats()
    stats.seconds[0].due = 1
    assert "no frame was answered" in (parse_objective("p95_age_ms=100").missed(compute_figures(plan, stats)) or "")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("speed=3", "p95_age_ms"),
        ("dropped=little", "from 0 to 1"),
        ("dropped", "from 0 to 1"),
        ("dropped=5", "from 0 to 1"),
        ("fairness=90", "from 0 to 1"),
        ("failed=1.01", "from 0 to 1"),
        ("degraded=-0.1", "from 0 to 1"),
        ("dropped=nan", "from 0 to 1"),
        ("p95_age_ms=nan", "0 or more"),
        ("p95_age_ms=inf", "0 or more"),
        ("results_per_s=-1", "0 or more"),
        ("max_age_ms=soon", "0 or more"),
    ],
)
def test_a_wrong_objective_is_named(text: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        parse_objective(text)
