"""What /health knows of the workers: when each was last at work, and what it could reach then."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

from app.fleet.connection import WORDS

SILENT_S = 15.0
"""A worker that has said nothing for so long hangs."""
_FIELDS = 4


class Vitals:
    """Shared by a parent and its worker processes; travels to them at their start."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        context = multiprocessing.get_context("spawn")
        # Each worker writes its own cells, a double at a time: there is nothing to lock.
        self._cells: Any = context.Array("d", _FIELDS * workers, lock=False)

    def pulse(self, worker: int) -> Pulse:
        return Pulse(self._cells, worker)

    def report(self) -> dict[str, Any]:
        """`state`: ok, starting, degraded (something cannot be reached) or silent (a worker hangs, or ended)."""
        workers = [self._one(index) for index in range(self.workers)]
        states = [worker["state"] for worker in workers]
        worst = max(states, key=("ok", "degraded", "starting", "silent").index)
        return {"state": worst, "workers": workers}

    def _one(self, index: int) -> dict[str, Any]:
        at, word, kafka, inference = self._cells[_FIELDS * index : _FIELDS * (index + 1)]
        says = WORDS[int(word)]
        reached = {"redis": at > 0 and not says, "kafka": bool(kafka), "inference": bool(inference)}
        age_s = time.monotonic() - at
        if at == 0.0:
            state = "starting"
        elif age_s > SILENT_S:
            state = "silent"
        else:
            state = "ok" if all(reached.values()) else "degraded"
        return {"state": state, "age_s": round(age_s, 1) if at else None, **reached, "redis_says": says or None}


@dataclass(frozen=True, slots=True)
class Pulse:
    """One worker's cells."""

    cells: Any
    worker: int

    def beat(self, *, redis_says: str = "", kafka: bool, inference: bool) -> None:
        """The worker is at work, and this is what answered it last. `redis_says`: what Redis said instead of an answer,
        one of `connection.WORDS`; empty: it answered.
        """
        start, word = _FIELDS * self.worker, float(WORDS.index(redis_says))
        # `time.monotonic` is the same clock in all processes of a machine (CLOCK_MONOTONIC).
        self.cells[start : start + _FIELDS] = [time.monotonic(), word, float(kafka), float(inference)]

    def clear(self) -> None:
        """The worker is being started."""
        start = _FIELDS * self.worker
        self.cells[start : start + _FIELDS] = [0.0] * _FIELDS
