"""What the load is: how many sessions, which frames when, who misbehaves. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The load as asked for. All times are seconds."""

    sessions: int = 8
    fps: float = 15.0
    duration: float = 30.0
    ramp: float = 2.0
    """Over which the sessions begin, one after the other."""
    warm_up: float = 0.0
    """After the ramp; what is due before its end is sent and answered, and counts for nothing but the agreement."""
    churn: float = 0.0
    """Mean length of a session, exponentially distributed; a new one takes the place of each that ends. 0: no end."""
    bare: float = 0.0
    """Share of the sessions whose frames have no header."""
    slow_readers: int = 0
    """Sessions that read one message a second. They are there for the others' sake, and counted apart."""
    seed: int = 1

    @property
    def measured_from(self) -> float:
        return self.ramp + self.warm_up

    @property
    def end(self) -> float:
        """Nothing is due after it."""
        return self.measured_from + self.duration


@dataclass(frozen=True, slots=True)
class Seat:
    """One camera of the load: sessions follow each other in it, one at a time."""

    number: int
    begin: float
    bare: bool
    slow: bool
    lengths: tuple[float, ...]
    """How long the sessions in it last, one after the other; the last one lasts to the end."""


def seats(plan: Plan) -> list[Seat]:
    """Every seat of the plan; the same for the same seed."""
    chance = random.Random(plan.seed)
    bare = round(plan.bare * plan.sessions)
    order = list(range(plan.sessions))
    chance.shuffle(order)
    bare_ones, slow_ones = set(order[:bare]), set(order[-plan.slow_readers :] if plan.slow_readers else ())
    return [
        Seat(
            number,
            # Begins are spread over the ramp, and by a fraction of a frame, so that frames do not come in volleys.
            begin=plan.ramp * number / plan.sessions + chance.random() / plan.fps,
            bare=number in bare_ones,
            slow=number in slow_ones,
            lengths=_lengths(plan, chance),
        )
        for number in range(plan.sessions)
    ]


def _lengths(plan: Plan, chance: random.Random) -> tuple[float, ...]:
    if plan.churn <= 0:
        return (plan.end,)
    lengths: list[float] = []
    while sum(lengths) < plan.end:
        lengths.append(max(0.2, chance.expovariate(1 / plan.churn)))
    return tuple(lengths)
