"""What the load found, in figures, and whether they are good enough. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from app.errors import ConfigurationError
from app.loading.ages import Ages
from app.loading.plan import Plan
from app.loading.score import Score


@dataclass(frozen=True, slots=True)
class Figures:
    """Of what was due after the warm-up."""

    sessions: int
    due: int
    results: int
    results_per_s: float
    p50_age_ms: float | None
    """From due to answered."""
    p95_age_ms: float | None
    p99_age_ms: float | None
    max_age_ms: float | None
    dropped: float
    """Share of the frames due that got no result, whoever gave them up."""
    failed: float
    """Share of the frames due that the service failed on."""
    degraded: float
    """Share of the results in which a stage said `error`: the models were away, or too slow."""
    fairness: float
    """Jain's index over the sessions' results a second: 1 when all get the same, 1/n when one gets all."""
    reasons: dict[str, int]
    """Frames without a result, by reason: the service's, and `no_session` and `blocked` on our side. All sessions,
    the warm-up's frames among them."""
    outcomes: dict[str, int]
    """How sessions ended."""
    disagreements: list[str]
    late_p99_ms: float | None
    """How late our own sending was."""


def figures(plan: Plan, score: Score) -> Figures:
    """The figures of a load that is over."""
    seconds = score.between(plan.measured_from, plan.end)
    ages = Ages.merged(second.ages for second in seconds)
    due = sum(second.due for second in seconds)
    failed = sum(second.errors["internal"] for second in seconds)
    reasons: Counter[str] = Counter()
    for second in score.seconds.values():
        reasons.update(second.unsent)
    for session in score.sessions:
        reasons.update(session.report["dropped"] if session.report else session.errors)
    rates = [s.results / s.seconds for s in score.sessions if s.seconds >= 1 and not s.slow]
    return Figures(
        sessions=len(score.sessions),
        due=due,
        results=len(ages),
        # Whole seconds are counted: the one in which the warm-up ends is none.
        results_per_s=round(len(ages) / (plan.end - math.ceil(plan.measured_from)), 2),
        p50_age_ms=ages.at(0.50),
        p95_age_ms=ages.at(0.95),
        p99_age_ms=ages.at(0.99),
        max_age_ms=round(ages.highest, 3) if len(ages) else None,
        dropped=round(1 - len(ages) / due, 5) if due else 0.0,
        failed=round(failed / due, 5) if due else 0.0,
        degraded=round(sum(second.degraded for second in seconds) / len(ages), 5) if len(ages) else 0.0,
        fairness=round(jain(rates), 5),
        reasons={reason: count for reason, count in sorted(reasons.items()) if count},
        outcomes=dict(sorted(Counter(session.outcome for session in score.sessions).items())),
        disagreements=[line for session in score.sessions for line in session.disagreements()],
        late_p99_ms=score.late.at(0.99),
    )


def jain(rates: Sequence[float]) -> float:
    """Jain, Chiu and Hawe 1984: (sum x)^2 / (n sum x^2); 1 for no rates at all."""
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if squares else 1.0


AT_MOST = ("p50_age_ms", "p95_age_ms", "p99_age_ms", "max_age_ms", "dropped", "failed", "degraded")
AT_LEAST = ("results_per_s", "fairness")


@dataclass(frozen=True, slots=True)
class Objective:
    """A figure and its bound."""

    name: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.name in AT_MOST else '>='} {self.bound:g}"

    def missed(self, found: Figures) -> str | None:
        """In words, when it is; a figure that there is none of misses."""
        value = asdict(found)[self.name]
        if value is not None and (value <= self.bound if self.name in AT_MOST else value >= self.bound):
            return None
        return f"{self}: it is {'none, no frame was answered' if value is None else format(value, 'g')}"


def parse(text: str) -> Objective:
    """`p95_age_ms=150`.

    Raises:
        ConfigurationError: no such figure, or no number.
    """
    name, _, bound = text.partition("=")
    known = (*AT_MOST, *AT_LEAST)
    if name not in known:
        raise ConfigurationError(f"--slo {text}: should be NAME=NUMBER with one of {', '.join(known)}")
    try:
        return Objective(name, float(bound))
    except ValueError:
        raise ConfigurationError(f"--slo {text}: should have a number after `{name}=`") from None
