"""The plan of a load: the clients, when their frames are due, and which of them misbehave. Does no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The load as asked for. All times are seconds."""

    sessions: int = 8
    """Clients at once; each has one session at a time."""
    fps: float = 15.0
    """Frames per second of each client."""
    duration: float = 30.0
    """Length of the measurement."""
    ramp: float = 2.0
    """The clients begin one after the other over this time."""
    warm_up: float = 0.0
    """Follows the ramp. Frames due before its end are sent and answered, but count only in the comparison of the
    client's counts with the service's."""
    churn: float = 0.0
    """Mean length of a session, exponentially distributed; the client then opens another. 0: sessions do not end."""
    bare: float = 0.0
    """Share of the clients whose frames have no header."""
    slow_readers: int = 0
    """Clients that read one message per second. They show how they affect the others, so they have figures apart."""
    seed: int = 1

    @property
    def measured_from(self) -> float:
        """Start of the measurement, seconds from the start of the load."""
        return self.ramp + self.warm_up

    @property
    def end(self) -> float:
        """No frame is due after this."""
        return self.measured_from + self.duration


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """One simulated client. Its sessions follow each other."""

    number: int
    begin: float
    """Seconds from the start of the load."""
    bare: bool
    """Its frames have no header."""
    slow: bool
    """It reads one message per second."""
    lengths: tuple[float, ...]
    """Seconds that its sessions last, in order; the last session lasts to the end."""


def plan_clients(plan: LoadPlan) -> list[ClientPlan]:
    """Plans every client; the same seed gives the same clients."""
    rng = random.Random(plan.seed)
    bare_count = round(plan.bare * plan.sessions)
    order = list(range(plan.sessions))
    rng.shuffle(order)
    bare, slow = set(order[:bare_count]), set(order[-plan.slow_readers :] if plan.slow_readers else ())
    return [
        ClientPlan(
            number,
            # Clients begin spread over the ramp and by a fraction of a frame, so that frames do not come in bursts.
            begin=plan.ramp * number / plan.sessions + rng.random() / plan.fps,
            bare=number in bare,
            slow=number in slow,
            lengths=_session_lengths(plan, rng),
        )
        for number in range(plan.sessions)
    ]


def _session_lengths(plan: LoadPlan, rng: random.Random) -> tuple[float, ...]:
    if plan.churn <= 0:
        return (plan.end,)
    lengths: list[float] = []
    while sum(lengths) < plan.end:
        lengths.append(max(0.2, rng.expovariate(1 / plan.churn)))
    return tuple(lengths)
