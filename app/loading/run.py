"""Runs a plan: in this process, or spread over several; a live table meanwhile."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import uvloop

from app.errors import SightlineError
from app.loading.plan import Plan, Seat, seats
from app.loading.score import Score
from app.loading.seat import Camera, Target

Look = Callable[[float, Score], None]
"""Called about twice a second with the time, seconds since the beginning, and the score so far."""
_LOOK_S = 0.5
_START_S = 60.0
"""Patience with the other processes."""
_gate: Barrier | None = None
"""In a process beside the first: all begin at once, so that their seconds are the same."""


def run(plan: Plan, target: Target, *, processes: int = 1, look: Look | None = None) -> Score:
    """Plays the plan to its end.

    Args:
        processes: that share the sessions; with more than one, `look` sees the first one's sessions only.

    Raises:
        SightlineError: no session ever was ready; a process did not start.
    """
    shares = [seats(plan)[index::processes] for index in range(processes)]
    if processes == 1:
        score = _play(plan, target, shares[0], look)
    else:
        context = multiprocessing.get_context("spawn")
        gate = context.Barrier(processes)
        with ProcessPoolExecutor(processes - 1, context, _enter, (gate,)) as pool:
            others = [pool.submit(_play_beside, plan, target, share) for share in shares[1:]]
            try:
                gate.wait(_START_S)
            except BrokenBarrierError:
                raise SightlineError(f"--processes {processes}: they did not start in {_START_S:g} s") from None
            score = _play(plan, target, shares[0], look)
            for other in others:
                score.merge(other.result())
    if not any(session.seconds for session in score.sessions):
        outcomes = ", ".join(sorted({session.outcome for session in score.sessions}))
        raise SightlineError(f"{target.url}: no session was ever ready ({outcomes}); is the service there?")
    return score


def _enter(gate: Barrier) -> None:
    global _gate
    _gate = gate


def _play_beside(plan: Plan, target: Target, share: list[Seat]) -> Score:
    assert _gate is not None
    _gate.wait(_START_S)
    return _play(plan, target, share)


def _play(plan: Plan, target: Target, share: list[Seat], look: Look | None = None) -> Score:
    return uvloop.run(_played(plan, target, share, look))


async def _played(plan: Plan, target: Target, share: list[Seat], look: Look | None) -> Score:
    score, started = Score(), time.perf_counter()
    watching = asyncio.create_task(_watch(score, started, look or (lambda *_: None)))
    try:
        async with asyncio.TaskGroup() as tasks:
            for seat in share:
                tasks.create_task(Camera(seat, plan, target, score, started).play())
    finally:
        watching.cancel()
    return score


async def _watch(score: Score, started: float, look: Look) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        look(time.perf_counter() - started, score)
