"""What became of the frames: of one session, and of them all."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from app.loadtest.ages import Ages


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
    why: str = ""
    """In words, of one that never was ready."""

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

    def add(self, other: Second) -> None:
        self.due += other.due
        self.sent += other.sent
        self.unsent.update(other.unsent)
        self.errors.update(other.errors)
        self.degraded += other.degraded
        self.ages = Ages.merged([self.ages, other.ages])


Seconds = defaultdict[int, Second]
"""By when frames were due, in whole seconds from the end of the warm-up on: what is below 0 is not measured."""


@dataclass(slots=True)
class Share:
    """What one seat had of what it was due, after the warm-up."""

    due: int = 0
    results: int = 0


class Score:
    """All of it."""

    def __init__(self) -> None:
        self.seconds: Seconds = defaultdict(Second)
        self.slow: Seconds = defaultdict(Second)
        """The same of the slow readers: what they get says how they read, not how the service serves."""
        self.seats: defaultdict[int, Share] = defaultdict(Share)
        """By number; without slow readers."""
        self.sessions: list[SessionScore] = []
        self.open = 0
        self.let_in = False
        """The service had a place for us once, if only to wait."""
        self.refusals = 0
        """Sessions that were none, for a reason that another try does not change."""
        self.given_up = False
        self.late = Ages()
        """By how much our own sending was late: the load tool's own trouble, not the service's."""

    def merge(self, other: Score) -> None:
        """Adds another process's score."""
        for mine, theirs in ((self.seconds, other.seconds), (self.slow, other.slow)):
            for at, second in theirs.items():
                mine[at].add(second)
        for number, share in other.seats.items():
            self.seats[number].due += share.due
            self.seats[number].results += share.results
        self.sessions += other.sessions
        self.late = Ages.merged([self.late, other.late])

    def trouble(self) -> str | None:
        """Why this was no load at all, in words."""
        if not self.given_up and any(session.seconds for session in self.sessions):
            return None
        what = f"given up after {self.refusals} tries" if self.given_up else "no session was ever ready"
        never = [session for session in self.sessions if not session.seconds]
        whys = sorted({f"{one.outcome}: {one.why}" if one.why else one.outcome for one in never})
        question = "; is the service there?" if any(one.outcome == "refused" for one in never) else ""
        return f"{what} ({'; '.join(whys) or 'none began'}){question}"
