"""Sequencer: in order where it must be, nobody left waiting, and nothing that grows."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.pipeline.ordering import Sequencer, Ticket
from app.pipeline.postprocess import Finisher
from app.pipeline.preprocess import Preprocessor
from app.pipeline.types import Batch, FrameJob, StreamMemory
from tests.pipeline.test_pixels import SETTINGS, frame
from tests.support.seeing import Sight, pipeline_of, square

pytestmark = pytest.mark.anyio


async def settled(*waiting: asyncio.Task[None]) -> list[bool]:
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in waiting]


async def test_a_turn_of_several_streams_waits_for_all_of_them() -> None:
    first, second = Ticket(), Ticket()
    both = Ticket([first, second])
    preparing, finishing = asyncio.create_task(both.prepare()), asyncio.create_task(both.finish())
    first.prepared()
    assert await settled(preparing, finishing) == [False, False]
    second.prepared()
    first.end()
    assert await settled(preparing, finishing) == [True, False]
    second.end()
    assert await settled(finishing) == [True]


async def test_a_turn_that_ends_while_a_thread_is_at_work_is_over_when_that_is_done() -> None:
    told: list[str] = []
    first = Ticket(then=lambda: told.append("prepared"))
    first.work()
    second = Ticket([first])
    waiting = asyncio.create_task(second.prepare()), asyncio.create_task(second.finish())
    first.end()
    assert await settled(*waiting) == [False, False]
    assert (told, first.over) == ([], False)
    first.rest()
    assert await settled(*waiting) == [True, True]
    assert (told, first.over) == (["prepared"], True)


async def test_turns_that_fail_early_over_and_over_leave_nothing_behind() -> None:
    turns = Sequencer()
    slow = turns.take()
    for _ in range(3000):
        turns.take().end()
        if slow is not None:
            slow.end()
    last = turns.take()
    await asyncio.wait_for(last.prepare(), 5)
    await asyncio.wait_for(last.finish(), 5)
    assert last._all_before() == set()


async def test_streams_that_share_calls_again_and_again_are_waited_for_once_each() -> None:
    """Every turn after every one of the layer before: as many ways as 4 to the power of 30."""
    layer = [Ticket() for _ in range(4)]
    every = [*layer]
    for _ in range(30):
        layer = [Ticket(layer) for _ in range(4)]
        every += layer
    began = time.process_time()
    last = Ticket(layer)
    assert len(last._all_before()) == len(every)
    for turn in every:
        turn.end()
    await asyncio.wait_for(last.finish(), 5)
    assert time.process_time() - began < 5


class Watched:
    """Notes how many threads are at one stream's memory at a time."""

    def __init__(self) -> None:
        self.now: Counter[int] = Counter()
        self.most = 0
        self._lock = threading.Lock()

    def at(self, memories: set[int]) -> None:
        with self._lock:
            self.now.update(memories)
            self.most = max(self.most, *self.now.values())
        time.sleep(0.1)
        with self._lock:
            self.now.subtract(memories)


@pytest.mark.parametrize("max_batch", [16, 1])
@pytest.mark.parametrize("where", ["prepare", "write"])
async def test_a_cancelled_calls_thread_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_batch: int, where: str
) -> None:
    """Also where more frames are handed in than the model takes at once; whether it prepares or writes down."""
    watched = Watched()
    real_prepare, real_write = Preprocessor._prepare, Finisher.run_all

    def slow_prepare(preparation: Preprocessor, batch: Batch, index: int, piece: Any) -> None:
        if where == "prepare":
            watched.at({id(batch.frames[index].job.memory)})
        real_prepare(preparation, batch, index, piece)

    def slow_write(finisher: Finisher, batch: Batch) -> None:
        watched.at({id(look.job.memory) for look in batch.frames})
        real_write(finisher, batch)

    monkeypatch.setattr(Preprocessor, "_prepare", slow_prepare)
    monkeypatch.setattr(Finisher, "run_all", slow_write)
    monkeypatch.setattr("app.pipeline.multimodal.crowded", lambda look: where == "write")
    client = Sight()
    client._models = {
        name: (dataclasses.replace(spec, max_batch=max_batch), run) for name, (spec, run) in client._models.items()
    }
    async with pipeline_of(client, tmp_path) as (pipeline, _):
        await pipeline.load()
        memory, turns = StreamMemory(), Sequencer()

        async def call(number: int, turn: Ticket) -> None:
            with turn:
                jobs = [FrameJob(frame(square(n), number=n), memory, SETTINGS) for n in (number, number + 1)]
                await pipeline.analyze(jobs, ticket=turn)

        calls = [asyncio.create_task(call(2 * number, turns.take())) for number in range(3)]
        deadline = time.monotonic() + 5
        while not watched.most and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        calls[0].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0.25)
    assert [call.cancelled() for call in calls] == [True, False, False]
    assert watched.most == 1
