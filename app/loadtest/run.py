"""Runs a plan: in this process, or spread over several; a live table meanwhile."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier, Event
from threading import BrokenBarrierError

import uvloop

from app.errors import SightlineError
from app.loadtest.plan import Plan, Seat, seats
from app.loadtest.score import Score
from app.loadtest.seat import Camera, Target

Look = Callable[[float, Score], None]
"""Called about twice a second with the time, seconds since the beginning, and the score so far."""
Over = Callable[[Score], bool]
"""Asked as often, whether to give up."""
_LOOK_S = 0.5
_START_S = 60.0
"""Patience with the other processes."""
_HOPELESS = 3
"""Refusals, before anyone was let in, after which the service is taken not to be there. No connection is tried before
the load: the service would count it."""
_gate: Barrier | None = None
"""In a process beside the first: all begin at once, so that their seconds are the same."""
_off: Event | None = None
"""In a process beside the first: it is given up."""


def run(plan: Plan, target: Target, *, processes: int = 1, look: Look | None = None) -> Score:
    """Plays the plan to its end.

    Args:
        processes: that share the sessions; with more than one, `look` sees the first one's sessions only.

    Raises:
        SightlineError: a process did not start.
    """
    shares = [seats(plan)[index::processes] for index in range(processes)]
    if processes == 1:
        score = _play(plan, target, shares[0], _hopeless, look)
    else:
        context = multiprocessing.get_context("spawn")
        gate, off = context.Barrier(processes), context.Event()
        with ProcessPoolExecutor(processes - 1, context, _enter, (gate, off)) as pool:
            others = [pool.submit(_play_beside, plan, target, share) for share in shares[1:]]
            try:
                gate.wait(_START_S)
            except BrokenBarrierError:
                raise SightlineError(f"--processes {processes}: they did not start in {_START_S:g} s") from None
            score = _play(plan, target, shares[0], _hopeless, look)
            if score.given_up:
                off.set()
            for other in others:
                score.merge(other.result())
    return score


def _hopeless(score: Score) -> bool:
    return score.refusals >= _HOPELESS and not score.let_in


def _enter(gate: Barrier, off: Event) -> None:
    global _gate, _off
    _gate, _off = gate, off


def _play_beside(plan: Plan, target: Target, share: list[Seat]) -> Score:
    gate, off = _gate, _off
    assert gate is not None
    assert off is not None
    gate.wait(_START_S)
    return _play(plan, target, share, lambda _: off.is_set())


def _play(plan: Plan, target: Target, share: list[Seat], over: Over, look: Look | None = None) -> Score:
    return uvloop.run(_played(plan, target, share, over, look))


async def _played(plan: Plan, target: Target, share: list[Seat], over: Over, look: Look | None) -> Score:
    score, started = Score(), time.perf_counter()
    playing = asyncio.create_task(_all([Camera(seat, plan, target, score, started) for seat in share]))
    try:
        while not (await asyncio.wait({playing}, timeout=_LOOK_S))[0]:
            if look is not None:
                look(time.perf_counter() - started, score)
            if over(score):
                score.given_up = True
                break
        else:
            await playing
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
    return score


async def _all(cameras: list[Camera]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for camera in cameras:
            tasks.create_task(camera.play())
