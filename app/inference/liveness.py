"""Whether a server and its models still answer: when silence is a hang, and when it is only slowness. Pure.

A hung process differs from a slow one by evidence:

- it is *stopped* (SIGSTOP): the kernel says so;
- a question put to it is old, and *nothing at all* was answered since for two deadlines; or
- a question put to it is old, and a *later one was answered*: questions are taken in order, so that somebody sits on
  it.

How old is old grows with how slow the answers are: three times the slowest (or the later one's own) at least. All is
measured in *awake* seconds: a look that comes late, since the machine was suspended or gave us no time, counts as one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DEADLINES = 2
"""A model that has not answered for so many deadlines is hung."""
_OLD = 1.5
"""Deadlines after which an unanswered question is old; questions are put twice a deadline, so two pass at most."""
_SLOW = 3.0
_LEAST_DEADLINE_S = 1.0
_LOOK_S = 1.0
"""The most that one look counts."""


def _limit(deadline_s: float) -> float:
    """Two deadlines, less what may pass before anybody looks."""
    return deadline_s * DEADLINES - min(_LOOK_S, deadline_s / 4)


class Awake:
    """A clock that stands still while we do."""

    def __init__(self) -> None:
        self.now = 0.0
        self._last: float | None = None

    def tick(self, monotonic: float) -> float:
        """Takes the time, and returns the awake seconds since the first look."""
        if self._last is not None:
            self.now += min(max(0.0, monotonic - self._last), _LOOK_S)
        self._last = monotonic
        return self.now


@dataclass(slots=True)
class Pulse:
    """Of one model, or of the server itself: what it was asked, and when it answered. Times are awake seconds.

    A model that has never answered is not called hung: to start it anew would not help (its first answers may take
    long, and readiness says that there are none).
    """

    deadline_s: float
    asked: dict[int, float] = field(default_factory=dict)
    """Questions not answered yet: by number, when they were put."""
    slowest_s: float = 0.0
    """Of all answers in this life."""
    last: float | None = None
    """When it last answered anything; None: never."""
    sick: float | None = None
    """Since when some of its processes say of themselves that they are not well; None: none does."""
    latest: tuple[float, float] | None = None
    """Of the question put last that was answered: when it was put, and how long its answer took."""
    _number: int = 0

    def __post_init__(self) -> None:
        self.deadline_s = max(self.deadline_s, _LEAST_DEADLINE_S)

    @property
    def interval_s(self) -> float:
        """Between two rounds of questions."""
        return self.deadline_s / 2

    def ask(self, now: float) -> int:
        """Notes a question; returns its number."""
        self._number += 1
        self.asked[self._number] = now
        return self._number

    def answer(self, number: int, now: float) -> None:
        """Notes its answer, good or bad: whoever refuses a question is alive."""
        put = self.asked.pop(number, None)
        if put is None:
            return
        took = now - put
        self.slowest_s = max(self.slowest_s, took)
        self.last = now
        if self.latest is None or put >= self.latest[0]:
            self.latest = (put, took)

    def withdraw(self, number: int) -> None:
        """Notes that a question could not be put, or its connection broke: that is no silence."""
        self.asked.pop(number, None)

    def refuse(self, number: int, now: float) -> None:
        """Notes that a process that is not well answered in place of the model."""
        self.asked.pop(number, None)
        self.sick = now if self.sick is None else self.sick

    def recover(self) -> None:
        """Notes that a whole round of questions was answered."""
        self.sick = None

    def sign(self, now: float) -> None:
        """Notes that it answered somebody else."""
        self.last = now

    def old(self, now: float) -> bool:
        """Whether a question waits for so long that it is worth a look whether others are answered."""
        return any(now - put >= self.deadline_s * _OLD for put in self.asked.values())

    def hung(self, now: float) -> str | None:
        """Why it is hung, in words; None where it is not, or nobody can tell."""
        if self.sick is not None and now - self.sick >= self.deadline_s * _OLD:
            return f"has had a process that is not well for {now - self.sick:.0f} s"
        if self.last is None or self.latest is None or not self.asked:
            return None  # nobody knows yet how slow it is
        oldest = min(self.asked.values())
        age, silent = now - oldest, now - self.last
        if age >= max(self.deadline_s * _OLD, _SLOW * self.slowest_s) and silent >= max(
            _limit(self.deadline_s), _SLOW * self.slowest_s
        ):
            return f"has answered nothing for {silent:.0f} s"
        put, took = self.latest
        if put - oldest >= self.interval_s / 2 and age >= max(self.deadline_s * _OLD, _SLOW * took):
            return f"has not answered for {age:.0f} s what it was asked before it answered another"
        return None


@dataclass(slots=True)
class Standstill:
    """How long processes have been stopped by a signal, by process id. Times are awake seconds."""

    deadline_s: float
    since: dict[int, float] = field(default_factory=dict)

    def look(self, stopped: set[int], now: float) -> int | None:
        """Takes which are stopped now; returns one that has been for two deadlines."""
        self.since = {pid: self.since.get(pid, now) for pid in stopped}
        limit = _limit(max(self.deadline_s, _LEAST_DEADLINE_S))
        return next((pid for pid, start in self.since.items() if now - start >= limit), None)
