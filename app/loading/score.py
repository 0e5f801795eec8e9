"""What became of the frames: of one session, and of them all."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from app.loading.ages import Ages


@dataclass(slots=True)
class SessionScore:
    """One session, as its client saw it and as the service reported it."""

    seat: int
    slow: bool = False
    seconds: float = 0.0
    """From `ready` to the end."""
    sent: int = 0
    results: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Frames that were answered by an `error`, by its code."""
    outcome: str = "lost"
    """`bye.reason`; `lost` without one, `queued` or `refused` when it never was ready."""
    report: dict[str, Any] | None = None
    """The service's, out of `bye`."""

    def disagreements(self) -> list[str]:
        """Where the client's counts and the service's differ; a report that never came is one, too.

        A reader that is too slow loses answers, and a session that the service ended has frames on their way: neither
        is compared.
        """
        report = self.report
        if report is None and self.sent and not self.slow:
            return [f"seat {self.seat}: {self.sent} frames sent, and no report came ({self.outcome})"]
        if report is None or self.slow or self.outcome != "stopped":
            return []
        dropped: dict[str, int] = report["dropped"]
        silent = sum(count for reason, count in dropped.items() if reason not in self.errors)
        answered = {reason: dropped.get(reason, 0) for reason in self.errors if reason != "internal"}
        said = {reason: count for reason, count in self.errors.items() if reason != "internal"}
        pairs = (
            ("frames sent and received", self.sent, report["received"]),
            ("results", self.results, report["processed"]),
            ("failed frames", self.errors["internal"], report["failed"]),
            ("refused frames", said, answered),
            ("frames without an answer", self.sent - self.results - self.errors.total(), silent),
        )
        return [
            f"seat {self.seat}: {what}: {ours} here, {theirs} there" for what, ours, theirs in pairs if ours != theirs
        ]


@dataclass(slots=True)
class Second:
    """What was due in one second."""

    due: int = 0
    sent: int = 0
    unsent: Counter[str] = field(default_factory=Counter)
    """Due and not sent: `no_session` (none was ready), `blocked` (the socket took no more)."""
    ages: Ages = field(default_factory=Ages)
    """Of results, by when their frame was due."""
    errors: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    """Results in which a stage said `error`."""


class Score:
    """All of it; seconds count from the beginning of the load."""

    def __init__(self) -> None:
        self.seconds: defaultdict[int, Second] = defaultdict(Second)
        self.sessions: list[SessionScore] = []
        self.open = 0
        self.late = Ages()
        """By how much our own sending was late: the load tool's own trouble, not the service's."""

    def between(self, begin: float, end: float) -> list[Second]:
        return [one for at, one in sorted(self.seconds.items()) if begin <= at < end]

    def merge(self, other: Score) -> None:
        """Adds another process's score."""
        for at, one in other.seconds.items():
            mine = self.seconds[at]
            mine.due += one.due
            mine.sent += one.sent
            mine.unsent.update(one.unsent)
            mine.errors.update(one.errors)
            mine.degraded += one.degraded
            mine.ages = Ages.merged([mine.ages, one.ages])
        self.sessions += other.sessions
        self.late = Ages.merged([self.late, other.late])
