"""What the load found, in figures, and whether they are good enough. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.errors import ConfigurationError
from app.loadtest.ages import Ages
from app.loadtest.plan import Plan
from app.loadtest.score import Score, Second, SessionScore


@dataclass(frozen=True, slots=True)
class SlowReaders:
    """What became of those who read one message a second."""

    sessions: int
    due: int
    results: int
    reasons: dict[str, int]
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of what was due after the warm-up, slow readers left out."""

    sessions: int
    due: int
    results: int
    results_per_s: float
    p50_age_ms: float | None
    """From due to answered."""
    p95_age_ms: float | None
    p99_age_ms: float | None
    max_age_ms: float | None
    dropped: float | None
    """Share of the frames due that got no result, whoever gave them up; None when none was due."""
    failed: float | None
    """Share of the frames due that the service failed on; None when none was due."""
    degraded: float | None
    """Share of the results in which a stage said `error`: the models were away, or too slow. None without a result."""
    fairness: float | None
    """Jain's index over what share of its frames each seat got results for, served or not: 1 when all get the same,
    1/n when one gets all. None without a result."""
    reasons: dict[str, int]
    """Frames without a result, by reason: the service's, and `no_session` and `blocked` on our side. The warm-up's
    frames are among them."""
    outcomes: dict[str, int]
    """How sessions ended."""
    disagreements: list[str]
    late_p99_ms: float | None
    """How late our own sending was."""
    slow: SlowReaders


def figures(plan: Plan, score: Score) -> Figures:
    """The figures of a load that is over."""
    seconds = _measured(score.seconds)
    ages = Ages.merged(second.ages for second in seconds)
    due, results = sum(second.due for second in seconds), len(ages)
    shares = [share.results / share.due for share in score.seats.values() if share.due]
    sessions = [session for session in score.sessions if not session.slow]
    return Figures(
        sessions=len(sessions),
        due=due,
        results=results,
        results_per_s=round(results / plan.duration, 2),
        p50_age_ms=ages.at(0.50),
        p95_age_ms=ages.at(0.95),
        p99_age_ms=ages.at(0.99),
        max_age_ms=round(ages.highest, 3) if results else None,
        dropped=_share(due - results, due),
        failed=_share(sum(second.errors["internal"] for second in seconds), due),
        degraded=_share(sum(second.degraded for second in seconds), results),
        fairness=round(jain(shares), 5) if results else None,
        reasons=_reasons(score.seconds, sessions),
        outcomes=_outcomes(sessions),
        disagreements=[line for session in score.sessions for line in session.disagreements()],
        late_p99_ms=score.late.at(0.99),
        slow=_slow_readers(score),
    )


def _slow_readers(score: Score) -> SlowReaders:
    seconds = _measured(score.slow)
    sessions = [session for session in score.sessions if session.slow]
    return SlowReaders(
        sessions=len(sessions),
        due=sum(second.due for second in seconds),
        results=sum(len(second.ages) for second in seconds),
        reasons=_reasons(score.slow, sessions),
        outcomes=_outcomes(sessions),
    )


def _measured(seconds: Mapping[int, Second]) -> list[Second]:
    return [second for at, second in seconds.items() if at >= 0]


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None


def _reasons(seconds: Mapping[int, Second], sessions: Sequence[SessionScore]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for second in seconds.values():
        reasons.update(second.unsent)
    for session in sessions:
        reasons.update(session.report["dropped"] if session.report else session.errors)
    return {reason: count for reason, count in sorted(reasons.items()) if count}


def _outcomes(sessions: Sequence[SessionScore]) -> dict[str, int]:
    return dict(sorted(Counter(session.outcome for session in sessions).items()))


def jain(rates: Sequence[float]) -> float:
    """Jain, Chiu and Hawe 1984: (sum x)^2 / (n sum x^2); 1 for no rates at all."""
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if squares else 1.0


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

    def missed(self, found: Figures) -> str | None:
        """In words, when it is; a figure that there is none of misses."""
        value = getattr(found, self.name)
        if value is None:
            return f"{self}: it is none, no frame was {'answered' if found.due else 'due'}"
        if value <= self.bound if self.name in AT_MOST else value >= self.bound:
            return None
        return f"{self}: it is {value:g}"


def parse(text: str) -> Objective:
    """`p95_age_ms=150`.

    Raises:
        ConfigurationError: no such figure, or no number that it could have.
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
        right = "a share, a number from 0 to 1," if name in SHARES else "a number, 0 or more,"
        raise ConfigurationError(f"--slo {text}: should have {right} after `{name}=`")
    return Objective(name, value)
