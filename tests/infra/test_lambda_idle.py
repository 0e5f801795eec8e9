"""`stop-idle` and `watch-start`, over boto3 on moto's EC2 and CloudWatch."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.infra.ec2 import Ec2
from tests.infra.health import Health

COLD_STARTS = "sightline:cold-starts"
HOUR = 3600.0


def figure(ec2: Ec2, minutes_ago: float, most: int, *, now: int = 0) -> None:
    """Publishes the activity metric as the service does: a minute with at most `most` open sessions."""
    ec2.aws.client("cloudwatch").put_metric_data(
        Namespace="Sightline",
        MetricData=[
            {
                "MetricName": "ActiveSessions",
                "Dimensions": [{"Name": "InstanceId", "Value": ec2.instance_id}],
                "Timestamp": datetime.now(UTC) - timedelta(minutes=minutes_ago),
                "StatisticValues": {"SampleCount": 60, "Sum": most, "Minimum": now, "Maximum": most},
                "Unit": "Count",
            }
        ],
    )


def run(event: dict[str, Any] | None = None) -> dict[str, Any]:
    from stop_idle import handler

    told: dict[str, Any] = handler(event or {}, None)
    return told


def test_a_machine_that_nobody_used_for_long_is_stopped(ec2: Ec2) -> None:
    ec2.runs(HOUR)
    figure(ec2, 30, 3)
    for minutes in range(14):
        figure(ec2, minutes, 0)
    told = run()
    assert (told["stopped"], told["reason"]) == (True, "idle")
    assert told["quiet_s"] >= 15 * 60
    assert ec2.state == "stopped"
    assert run() == {"stopped": False, "reason": "not_running", "quiet_s": 0, "dry_run": False}
    assert ec2.asked["StopInstances"] == 1


@pytest.mark.parametrize("minutes_ago", [0.0, 5.0, 14.0])
def test_it_is_never_stopped_under_a_session(ec2: Ec2, minutes_ago: float) -> None:
    ec2.runs(HOUR)
    figure(ec2, 0.2, 0)
    figure(ec2, minutes_ago, 1)
    told = run()
    assert (told["stopped"], told["reason"]) == (False, "active")
    assert ec2.asked["StopInstances"] == 0


def test_one_worker_with_a_session_among_idle_ones_is_enough(ec2: Ec2) -> None:
    ec2.runs(HOUR)
    for most in (0, 1, 0):
        figure(ec2, 3, most)
    assert run()["reason"] == "active"


def test_no_figures_after_the_grace_time_count_as_idle(ec2: Ec2) -> None:
    ec2.runs(9 * 60)
    assert run()["reason"] == "grace"
    ec2.launched(12 * 60)  # past the grace, and not yet idle for long enough
    assert run()["reason"] == "grace"
    ec2.launched(15 * 60 + 1)
    told = run()
    assert (told["stopped"], told["reason"]) == (True, "no_figures")
    assert ec2.state == "stopped"


def test_a_session_before_the_last_start_does_not_keep_it_up(ec2: Ec2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLE_MINUTES", "60")
    ec2.runs(50 * 60)
    figure(ec2, 55, 2)
    assert run()["reason"] == "grace"
    monkeypatch.setenv("IDLE_MINUTES", "45")
    assert run()["stopped"]


@pytest.mark.parametrize("minutes", [5, 1380])
def test_the_shortest_and_the_longest_idle_time_are_within_what_cloudwatch_answers(
    ec2: Ec2, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    monkeypatch.setenv("IDLE_MINUTES", str(minutes))
    ec2.runs(48 * HOUR)
    figure(ec2, minutes - 1, 1)
    assert run()["reason"] == "active"
    ec2.renew()
    monkeypatch.setenv("INSTANCE_ID", ec2.instance_id)
    ec2.runs(48 * HOUR)
    figure(ec2, minutes + 2, 1)
    assert run()["stopped"]


@pytest.mark.parametrize("state", ["pending", "stopping", "shutting-down", "terminated", "stopped"])
def test_only_a_running_machine_is_looked_at(ec2: Ec2, state: str) -> None:
    ec2.runs(HOUR)
    ec2.shows(state)
    assert run()["reason"] == "not_running"
    assert ec2.asked["GetMetricStatistics"] == 0


@pytest.mark.parametrize("how", ["event", "variable"])
def test_a_dry_run_only_tells(ec2: Ec2, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ec2.runs(HOUR)
    if how == "variable":
        monkeypatch.setenv("DRY_RUN", "true")
    told = run({"dry_run": True} if how == "event" else None)
    assert (told["stopped"], told["reason"], told["dry_run"]) == (False, "no_figures", True)
    assert (ec2.state, ec2.asked["StopInstances"]) == ("running", 0)


def test_a_session_that_comes_at_the_last_moment_is_seen(ec2: Ec2) -> None:
    ec2.runs(HOUR)
    figure(ec2, 0.1, 0)
    ec2.after("GetMetricStatistics", lambda: figure(ec2, 0, 1))
    told = run()
    assert (told["stopped"], told["reason"]) == (False, "active")
    assert ec2.asked["GetMetricStatistics"] == 2
    assert ec2.asked["StopInstances"] == 0


def test_a_start_between_the_looks_is_seen(ec2: Ec2) -> None:
    ec2.runs(HOUR)
    ec2.after("GetMetricStatistics", lambda: ec2.launched(5))  # its owner stopped and started it
    assert run()["reason"] == "grace"
    assert ec2.asked["StopInstances"] == 0


@pytest.mark.parametrize("operation", ["DescribeInstances", "GetMetricStatistics"])
def test_nothing_is_stopped_where_amazon_does_not_answer(ec2: Ec2, operation: str) -> None:
    from botocore.exceptions import ClientError

    ec2.runs(HOUR)
    ec2.refuse(operation, "ThrottlingException", 400, times=3)
    with pytest.raises(ClientError, match="Throttling"):
        run()
    assert ec2.asked[operation] == 3
    assert (ec2.state, ec2.asked["StopInstances"]) == ("running", 0)
    assert run()["stopped"]  # the next one on the schedule


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IDLE_MINUTES", "4"),
        ("IDLE_MINUTES", "1381"),
        ("IDLE_MINUTES", "soon"),
        ("GRACE_MINUTES", "-1"),
        ("RECHECK_SECONDS", "999"),
    ],
)
def test_a_wrong_variable_is_named(ec2: Ec2, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    from variables import WrongVariable

    monkeypatch.setenv(name, value)
    with pytest.raises(WrongVariable, match=f"{name}='{value}': should be a number from"):
        run()


class Context:
    """The context that Lambda passes to a function: the remaining time."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(1000 * (self._until - time.monotonic()))


def watch(ec2: Ec2, seconds: float = 60) -> dict[str, Any]:
    from watch_start import handler

    event = {
        "version": "0",
        "detail-type": "EC2 Instance State-change Notification",
        "source": "aws.ec2",
        "detail": {"instance-id": ec2.instance_id, "state": "running"},
    }
    told: dict[str, Any] = handler(event, Context(seconds))
    return told


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the function poll without a pause."""
    import watch_start

    monkeypatch.setattr(watch_start, "POLL_S", 0.01)


def kept(ec2: Ec2) -> list[int]:
    """Seconds that the starts in the tag took, oldest first."""
    return [int(entry.partition("=")[2]) for entry in ec2.tags[COLD_STARTS].split()]


@pytest.mark.usefixtures("hasty")
def test_how_long_a_start_took_is_kept_for_the_next(ec2: Ec2, health: Health) -> None:
    from tests.infra.test_lambda_start import ask

    for took in (30, 40, 90):
        ec2.runs(took)
        health.ready, health.asked, health.ready_after = False, 0, 3
        told = watch(ec2)
        assert told["noted"]
        assert took <= told["took_s"] < took + 5
        assert health.asked == 4
    assert [took // 10 for took in kept(ec2)] == [9, 4, 3]  # by when the starts were
    ec2.shows("stopped")
    assert 40 <= ask("GET")["eta_s"] < 45


@pytest.mark.usefixtures("hasty")
def test_a_start_that_is_told_twice_counts_once(ec2: Ec2, health: Health) -> None:
    health.ready = True
    ec2.runs(42)
    watch(ec2)
    first = ec2.tags[COLD_STARTS]
    watch(ec2)
    assert ec2.tags[COLD_STARTS] == first
    assert ec2.asked["CreateTags"] == 1


@pytest.mark.usefixtures("hasty")
def test_five_starts_are_kept(ec2: Ec2, health: Health) -> None:
    health.ready = True
    ec2.tag(COLD_STARTS, " ".join(f"{1763000000 + n}={n}" for n in range(5)))
    ec2.runs(44)
    watch(ec2)
    assert kept(ec2)[:4] == [1, 2, 3, 4]
    assert 44 <= kept(ec2)[4] < 49


@pytest.mark.usefixtures("hasty")
def test_a_service_that_never_comes_up_ends_the_watch_in_an_error(ec2: Ec2, health: Health) -> None:
    from watch_start import NeverAnswered

    ec2.runs(20)
    with pytest.raises(NeverAnswered, match=f"{ec2.instance_id} was started 2. s ago, and {health.url}"):
        watch(ec2, seconds=7.1)
    assert health.asked >= 2
    assert COLD_STARTS not in ec2.tags


@pytest.mark.usefixtures("hasty")
def test_a_machine_that_is_stopped_again_is_not_waited_for(ec2: Ec2, health: Health) -> None:
    ec2.shows("stopping")
    assert watch(ec2) == {"noted": False, "state": "stopping"}
    assert health.asked == 0


@pytest.mark.usefixtures("hasty")
def test_without_a_health_address_the_machine_itself_counts(ec2: Ec2) -> None:
    ec2.runs(25)
    assert watch(ec2)["noted"]
    assert 25 <= kept(ec2)[0] < 30
