"""A disk buffer on a fake disk that completes when the test says so, for rare orders of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from app.settings import SummarySettings
from app.summary.database import AppendResult
from app.summary.observations import EncodedObservation
from app.summary.spill import DiskBuffer, DiskFailure

pytestmark = pytest.mark.anyio

ROWS = [EncodedObservation(1, 1, b"one"), EncodedObservation(2, 1, b"two")]


class Disk:
    """A fake disk that keeps the callbacks of its requests, in order."""

    accepting = True

    def __init__(self) -> None:
        self.waiting: list[Callable[[Any], None]] = []

    def post(self, work: object, done: Callable[[Any], None]) -> None:
        self.waiting.append(done)

    async def answers(self, outcome: Any) -> None:
        """Completes the oldest waiting request with this outcome."""
        self.waiting.pop(0)(outcome)
        await asyncio.sleep(0)


class Memory:
    def __init__(self) -> None:
        self.came: list[EncodedObservation] = []
        self.dropped = 0

    def arrived(self, rows: Sequence[EncodedObservation]) -> None:
        self.came += rows

    def returned(self, rows: Sequence[EncodedObservation]) -> None:
        assert not rows

    def changed(self, *, merged: int = 0, dropped: int = 0) -> None:
        self.dropped += dropped


async def test_rows_that_are_read_after_they_were_given_up_are_not_counted_twice() -> None:
    disk, memory = Disk(), Memory()
    buffer = DiskBuffer(disk, SummarySettings(), "a", memory)  # type: ignore[arg-type]
    buffer.put(ROWS)
    await disk.answers(AppendResult(0, 0, items=2, size=6))
    fetches = [asyncio.create_task(buffer.fetch(9, 999)) for _ in range(4)]  # all but the last by takes cut short
    await asyncio.sleep(0)
    for _ in range(3):
        await disk.answers(DiskFailure("io"))
    assert (buffer.items, memory.dropped) == (0, 2)  # given up
    await disk.answers(ROWS)
    assert [await fetch for fetch in fetches] == [False] * 4
    assert (buffer.items, buffer.size, memory.dropped, memory.came) == (0, 0, 2, [])
