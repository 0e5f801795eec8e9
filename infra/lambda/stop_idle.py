"""`stop-idle`: on a schedule, stops the machine once it had no session for IDLE_MINUTES.

The service publishes its number of sessions (`ACTIVITY_METRIC=cloudwatch`). After the grace time of a start, missing
figures count as no sessions, because a service that hangs must not cost money for ever. If CloudWatch itself does not
answer, the function stops nothing and raises the error, so that an alarm reports it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import machine
from variables import Idle

log = logging.getLogger("sightline")
log.setLevel(logging.INFO)

METRIC = "ActiveSessions"
PERIOD_S = 60


@dataclass(frozen=True)
class Verdict:
    """Whether to stop the machine, and the reason."""

    stop: bool
    reason: str
    """`not_running`, `grace` (not up for long enough), `active`, `idle`, or `no_figures` (counts as idle)."""
    quiet_s: float = 0.0
    """Seconds without a session."""


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Checks the machine, and stops it if it is idle. With `{"dry_run": true}` in the event it only logs the verdict.

    Raises:
        ClientError, BotoCoreError: EC2 or CloudWatch did not answer; nothing was stopped.
    """
    settings = Idle.read()
    dry_run = settings.dry_run or event.get("dry_run") is True
    ec2, cloudwatch = machine.client("ec2"), machine.client("cloudwatch")
    verdict = judge(settings, ec2, cloudwatch)
    stopped = False
    if verdict.stop and not dry_run:
        # The service publishes a first session at once, so the second check sees a session that has just begun.
        time.sleep(settings.recheck_s)
        verdict = judge(settings, ec2, cloudwatch)
        if verdict.stop:
            ec2.stop_instances(InstanceIds=[settings.instance_id])
            stopped = True
    report = {"stopped": stopped, "reason": verdict.reason, "quiet_s": round(verdict.quiet_s), "dry_run": dry_run}
    log.log(logging.WARNING if verdict.reason == "no_figures" else logging.INFO, "%s: %s", settings.instance_id, report)
    return report


def judge(settings: Idle, ec2: Any, cloudwatch: Any) -> Verdict:
    """Decides by the machine's state and its figures of the last IDLE_MINUTES."""
    found = machine.look(ec2, settings.instance_id)
    if found.state != "running":
        return Verdict(False, "not_running")
    now = time.time()
    up_for = found.up_for(now)
    if up_for < settings.grace_s:
        return Verdict(False, "grace")
    figures = _figures(settings, cloudwatch, now)
    # A figure is for the minute that begins at its time.
    last_used = max((at + PERIOD_S for at, sessions in figures if sessions > 0), default=0.0)
    quiet_s = max(0.0, min(up_for, now - last_used))
    if quiet_s < settings.idle_s:
        return Verdict(False, "active" if last_used > found.launched_at else "grace", quiet_s)
    return Verdict(True, "idle" if figures else "no_figures", quiet_s)


def _figures(settings: Idle, cloudwatch: Any, now: float) -> list[tuple[float, float]]:
    """For each minute its epoch seconds and the largest published number of sessions; each worker publishes its own."""
    answer = cloudwatch.get_metric_statistics(
        Namespace=settings.namespace,
        MetricName=METRIC,
        Dimensions=[{"Name": "InstanceId", "Value": settings.instance_id}],
        # Two minutes more than needed, because CloudWatch rounds to whole minutes.
        StartTime=datetime.fromtimestamp(now - settings.idle_s - 2 * PERIOD_S, UTC),
        EndTime=datetime.fromtimestamp(now + PERIOD_S, UTC),
        Period=PERIOD_S,
        Statistics=["Maximum"],
    )
    return [(point["Timestamp"].timestamp(), point["Maximum"]) for point in answer["Datapoints"]]
