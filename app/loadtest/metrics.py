"""Results of a load: the counts of its clients, the figures computed from them, and the objectives. Does no I/O."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import ConfigurationError
from app.loadtest.plan import LoadPlan

_GROWTH = 1.01
_LOG = math.log(_GROWTH)


class AgeHistogram:
    """Ages in milliseconds, from 0 up, in buckets of constant relative width.

    It is small, histograms merge by adding, and quantiles are within half a percent.
    """

    def __init__(self, counts: Counter[int] | None = None) -> None:
        self._counts: Counter[int] = Counter() if counts is None else counts
        self.highest = 0.0

    def add(self, age_ms: float) -> None:
        """Adds an age in milliseconds."""
        self._counts[math.floor(math.log(max(age_ms, 0.01)) / _LOG)] += 1
        self.highest = max(self.highest, age_ms)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def quantile(self, q: float) -> float | None:
        """The age in milliseconds that the share `q` of all ages does not exceed (nearest rank); None if empty."""
        total = len(self)
        if not total:
            return None
        rank, seen = math.ceil(q * total), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return min(round(math.exp((bucket + 0.5) * _LOG), 3), self.highest)
        raise AssertionError("a rank beyond all counts")

    @staticmethod
    def merged(parts: Iterable[AgeHistogram]) -> AgeHistogram:
        """A new histogram with the ages of all parts."""
        out = AgeHistogram()
        for part in parts:
            out._counts.update(part._counts)
            out.highest = max(out.highest, part.highest)
        return out


# --- counts ---


@dataclass(slots=True)
class SessionStats:
    """One session, as its client counted it and as the service reported it."""

    client: int
    """Number of the client."""
    slow: bool = False
    seconds: float = 0.0
    """Seconds from `ready` to the end of the session; 0 if it was never ready."""
    sent: int = 0
    results: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Frames that the service answered with `error`, by code."""
    outcome: str = "lost"
    """`bye.reason`; `lost` if no `bye` came, `queued` or `refused` if the session was never ready."""
    report: dict[str, Any] | None = None
    """The service's report from `bye`."""
    why: str = ""
    """Why the session was never ready, in words."""

    def disagreements(self) -> list[str]:
        """Where the client's counts and the service's differ. A missing report is a disagreement, too.

        Slow readers are not compared, because they lose answers; nor are sessions that the service ended, because
        frames were on their way.
        """
        report = self.report
        if report is None and self.sent and not self.slow:
            return [f"client {self.client}: {self.sent} frames sent, and no report came ({self.outcome})"]
        if report is None or self.slow or self.outcome != "stopped":
            return []
        dropped: dict[str, int] = report["dropped"]
        silent = sum(count for reason, count in dropped.items() if reason not in self.errors)
        reported = {reason: dropped.get(reason, 0) for reason in self.errors if reason != "internal"}
        received = {reason: count for reason, count in self.errors.items() if reason != "internal"}
        pairs = (
            ("frames sent and received", self.sent, report["received"]),
            ("results", self.results, report["processed"]),
            ("failed frames", self.errors["internal"], report["failed"]),
            ("refused frames", received, reported),
            ("frames without an answer", self.sent - self.results - self.errors.total(), silent),
        )
        return [
            f"client {self.client}: {what}: {ours} here, {theirs} at the service"
            for what, ours, theirs in pairs
            if ours != theirs
        ]


@dataclass(slots=True)
class SecondStats:
    """The frames that were due in one second."""

    due: int = 0
    sent: int = 0
    unsent: Counter[str] = field(default_factory=Counter)
    """Frames due but not sent: `no_session` (none was ready), `blocked` (the socket took no more)."""
    ages: AgeHistogram = field(default_factory=AgeHistogram)
    """Ages of the results of these frames."""
    errors: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    """Results in which a stage had status `error`."""

    def add(self, other: SecondStats) -> None:
        """Adds the counts that another process has for the same second."""
        self.due += other.due
        self.sent += other.sent
        self.unsent.update(other.unsent)
        self.errors.update(other.errors)
        self.degraded += other.degraded
        self.ages = AgeHistogram.merged([self.ages, other.ages])


Seconds = defaultdict[int, SecondStats]
"""Counts by due time, in whole seconds from the end of the warm-up. Figures leave out seconds below 0."""


@dataclass(slots=True)
class ClientStats:
    """Frames due and results of one client, after the warm-up."""

    due: int = 0
    results: int = 0


class LoadStats:
    """Everything that the clients of one or more processes counted."""

    def __init__(self) -> None:
        self.seconds: Seconds = defaultdict(SecondStats)
        self.slow: Seconds = defaultdict(SecondStats)
        """Slow readers, apart, because their ages show how they read and not how the service serves."""
        self.clients: defaultdict[int, ClientStats] = defaultdict(ClientStats)
        """By number of the client; without slow readers."""
        self.sessions: list[SessionStats] = []
        self.open = 0
        """Sessions that are ready now."""
        self.let_in = False
        """Whether the service has accepted or queued any session."""
        self.refusals = 0
        """Sessions refused for a reason that another try does not change."""
        self.given_up = False
        self.late = AgeHistogram()
        """Milliseconds by which this tool sent its frames late: a limit of this tool, not of the service."""

    def merge(self, other: LoadStats) -> None:
        """Adds another process's counts."""
        for mine, theirs in ((self.seconds, other.seconds), (self.slow, other.slow)):
            for at, second in theirs.items():
                mine[at].add(second)
        for number, client in other.clients.items():
            self.clients[number].due += client.due
            self.clients[number].results += client.results
        self.sessions += other.sessions
        self.late = AgeHistogram.merged([self.late, other.late])

    def trouble(self) -> str | None:
        """Why there was no load at all, in words; None if there was one."""
        if not self.given_up and any(session.seconds for session in self.sessions):
            return None
        what = f"given up after {self.refusals} tries" if self.given_up else "no session was ever ready"
        never_ready = [session for session in self.sessions if not session.seconds]
        reasons = sorted(
            {f"{session.outcome}: {session.why}" if session.why else session.outcome for session in never_ready}
        )
        question = "; is the service there?" if any(session.outcome == "refused" for session in never_ready) else ""
        return f"{what} ({'; '.join(reasons) or 'none began'}){question}"


# --- figures ---


@dataclass(frozen=True, slots=True)
class SlowReaderFigures:
    """Figures of the clients that read one message per second."""

    sessions: int
    due: int
    results: int
    reasons: dict[str, int]
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of the frames due after the warm-up, without slow readers."""

    sessions: int
    due: int
    results: int
    results_per_s: float
    p50_age_ms: float | None
    """Median age of a result, counted from the due time of its frame, milliseconds."""
    p95_age_ms: float | None
    p99_age_ms: float | None
    max_age_ms: float | None
    dropped: float | None
    """Share of the frames due that got no result, dropped by the service or by this tool; None if no frame was due."""
    failed: float | None
    """Share of the frames due on which the service failed; None if no frame was due."""
    degraded: float | None
    """Share of the results with a stage of status `error`, because models were away or too slow. None if no result."""
    fairness: float | None
    """Jain's index over the share of its frames for which each client got results, served or not: 1 if all get the
    same, 1/n if one client gets everything. None if no result."""
    reasons: dict[str, int]
    """Frames without a result, by reason: the service's reasons, and this tool's `no_session` and `blocked`. Frames of
    the warm-up are among them."""
    outcomes: dict[str, int]
    """Sessions by how they ended."""
    disagreements: list[str]
    late_p99_ms: float | None
    """Milliseconds by which this tool sent its frames late, 99th percentile."""
    slow: SlowReaderFigures


def compute_figures(plan: LoadPlan, stats: LoadStats) -> Figures:
    """The figures of a load that is over."""
    seconds = _measured(stats.seconds)
    ages = AgeHistogram.merged(second.ages for second in seconds)
    due, results = sum(second.due for second in seconds), len(ages)
    shares = [client.results / client.due for client in stats.clients.values() if client.due]
    sessions = [session for session in stats.sessions if not session.slow]
    return Figures(
        sessions=len(sessions),
        due=due,
        results=results,
        results_per_s=round(results / plan.duration, 2),
        p50_age_ms=ages.quantile(0.50),
        p95_age_ms=ages.quantile(0.95),
        p99_age_ms=ages.quantile(0.99),
        max_age_ms=round(ages.highest, 3) if results else None,
        dropped=_ratio(due - results, due),
        failed=_ratio(sum(second.errors["internal"] for second in seconds), due),
        degraded=_ratio(sum(second.degraded for second in seconds), results),
        fairness=round(jain_index(shares), 5) if results else None,
        reasons=_reasons(stats.seconds, sessions),
        outcomes=_outcomes(sessions),
        disagreements=[line for session in stats.sessions for line in session.disagreements()],
        late_p99_ms=stats.late.quantile(0.99),
        slow=_slow_readers(stats),
    )


def _slow_readers(stats: LoadStats) -> SlowReaderFigures:
    seconds = _measured(stats.slow)
    sessions = [session for session in stats.sessions if session.slow]
    return SlowReaderFigures(
        sessions=len(sessions),
        due=sum(second.due for second in seconds),
        results=sum(len(second.ages) for second in seconds),
        reasons=_reasons(stats.slow, sessions),
        outcomes=_outcomes(sessions),
    )


def _measured(seconds: Mapping[int, SecondStats]) -> list[SecondStats]:
    return [second for at, second in seconds.items() if at >= 0]


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None


def _reasons(seconds: Mapping[int, SecondStats], sessions: Sequence[SessionStats]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for second in seconds.values():
        reasons.update(second.unsent)
    for session in sessions:
        reasons.update(session.report["dropped"] if session.report else session.errors)
    return {reason: count for reason, count in sorted(reasons.items()) if count}


def _outcomes(sessions: Sequence[SessionStats]) -> dict[str, int]:
    return dict(sorted(Counter(session.outcome for session in sessions).items()))


def jain_index(rates: Sequence[float]) -> float:
    """Jain, Chiu and Hawe 1984: (sum x)^2 / (n sum x^2); 1 for no rates at all."""
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if squares else 1.0


# --- objectives ---

AT_MOST = ("p50_age_ms", "p95_age_ms", "p99_age_ms", "max_age_ms", "dropped", "failed", "degraded")
AT_LEAST = ("results_per_s", "fairness")
SHARES = ("dropped", "failed", "degraded", "fairness")


@dataclass(frozen=True, slots=True)
class Objective:
    """A figure and its bound."""

    name: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.name in AT_MOST else '>='} {self.bound:g}"

    def missed(self, figures: Figures) -> str | None:
        """How the objective was missed, in words; None if it was met. A figure that is None misses it."""
        value = getattr(figures, self.name)
        if value is None:
            return f"{self}: it is none, no frame was {'answered' if figures.due else 'due'}"
        if value <= self.bound if self.name in AT_MOST else value >= self.bound:
            return None
        return f"{self}: it is {value:g}"


def parse_objective(text: str) -> Objective:
    """Reads an objective such as `p95_age_ms=150`.

    Raises:
        ConfigurationError: the figure is unknown, or cannot have this value.
    """
    name, _, bound = text.partition("=")
    known = (*AT_MOST, *AT_LEAST)
    if name not in known:
        raise ConfigurationError(f"--slo {text}: should be NAME=NUMBER with one of {', '.join(known)}")
    most = 1 if name in SHARES else math.inf
    try:
        value = float(bound)
    except ValueError:
        value = math.nan
    if not (0 <= value <= most and math.isfinite(value)):
        wanted = "a share, a number from 0 to 1," if name in SHARES else "a number, 0 or more,"
        raise ConfigurationError(f"--slo {text}: should have {wanted} after `{name}=`")
    return Objective(name, value)
