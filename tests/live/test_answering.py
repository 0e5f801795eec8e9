"""What one session's frames become, and in which order: `Answering` over a pipeline that answers when it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.errors import FrameError, UndecodableFrame
from app.live.answering import Answering
from app.live.batches import Wish
from app.live.ledger import Ledger
from app.live.queue import DropQueue
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Error, Result, ServerMessage, StreamSettings
from app.protocol.result import FrameResult, Image

pytestmark = pytest.mark.anyio


class Batches:
    """Keeps what was handed in."""

    def __init__(self) -> None:
        self.wishes: list[Wish] = []

    def submit(self, job: FrameJob) -> Wish:
        wish = Wish(job, asyncio.get_running_loop().create_future())
        self.wishes.append(wish)
        return wish

    def answer(self, seq: int, found: FrameResult | FrameError | Exception | None = None) -> None:
        wish = next(one for one in self.wishes if one.job.frame.seq == seq)
        if isinstance(found, Exception) and not isinstance(found, FrameError):
            wish.answer.set_exception(found)
        else:
            wish.answer.set_result(found or FrameResult(Image(640, 480)))  # type: ignore[arg-type]


class Telling:
    def __init__(self) -> None:
        self.offered: list[int] = []

    def offer(self, frame_id: int, result: FrameResult, at_ms: float, settings: StreamSettings) -> None:
        self.offered.append(frame_id)


class Stand:
    """One session's parts."""

    def __init__(self, at_once: int, mode: str) -> None:
        self.batches, self.telling, self.ledger = Batches(), Telling(), Ledger()
        self.line: DropQueue[tuple[int, Frame]] = DropQueue(8)
        self.settings = StreamSettings(mode=mode, max_age_ms=50)  # type: ignore[arg-type]
        self.said: list[ServerMessage] = []
        self.listens = True
        self.answering = Answering("s", self.batches, StreamMemory(), self.ledger, self.telling, self._send)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.answering.run(self.line, lambda: self.settings, at_once))

    async def _send(self, message: ServerMessage) -> bool:
        self.said.append(message)
        return self.listens

    def frame(self, *seqs: int, age_s: float = 0.0) -> None:
        for seq in seqs:
            self.ledger.received(3)
            self.line.put((seq, Frame("s", b"...", time.perf_counter() - age_s, 0.0, seq)))

    @property
    def begun(self) -> list[int]:
        return [one.job.frame.seq for one in self.batches.wishes]

    @property
    def results(self) -> list[int]:
        return [one.seq for one in self.said if isinstance(one, Result)]


@asynccontextmanager
async def stand(at_once: int, mode: str = "lossless") -> AsyncIterator[Stand]:
    one = Stand(at_once, mode)
    try:
        yield one
    finally:
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_as_allowed_are_begun_and_answered_in_their_order() -> None:
    async with stand(3) as one:
        one.frame(1, 2, 3, 4)
        await turns()
        assert one.begun == [1, 2, 3]
        assert len(one.answering) == 3
        for seq in (3, 2):
            one.batches.answer(seq)
        await turns()
        assert one.results == []
        one.batches.answer(1)
        await turns()
        assert one.results == [1, 2, 3]
        assert one.telling.offered == [1, 2, 3]
        assert one.begun == [1, 2, 3, 4]


async def test_a_frame_that_comes_later_is_begun_beside_the_one_under_way() -> None:
    async with stand(2) as one:
        one.frame(1)
        await turns()
        one.frame(2)
        await turns()
        assert one.begun == [1, 2]
        one.batches.answer(1)
        await turns()
        one.frame(3)
        await turns()
        assert (one.results, one.begun) == ([1], [1, 2, 3])


async def test_in_realtime_one_at_a_time_and_what_waited_too_long_is_refused() -> None:
    async with stand(1, "realtime") as one:
        one.frame(1)
        await turns()
        one.frame(2, age_s=1.0)
        one.frame(3)
        await turns()
        assert one.begun == [1]
        one.batches.answer(1)
        await turns()
        assert one.begun == [1, 3]
        assert [(type(said), said.seq) for said in one.said if isinstance(said, Result | Error)] == [
            (Result, 1),
            (Error, 2),
        ]


async def test_errors_are_answered_in_order_too_and_every_frame_is_accounted_for() -> None:
    async with stand(4) as one:
        one.frame(1, 2, 3)
        await turns()
        one.batches.answer(3)
        one.batches.answer(2, RuntimeError("a bug"))
        one.batches.answer(1, UndecodableFrame("no"))
        await turns()
        assert [(type(said), said.seq) for said in one.said if isinstance(said, Result | Error)] == [
            (Error, 1),
            (Error, 2),
            (Result, 3),
        ]
        report = one.ledger.report()
        assert (report.received, report.processed, report.failed, sum(report.dropped.values())) == (3, 1, 1, 1)


async def test_a_closed_line_ends_it_once_all_is_answered() -> None:
    async with stand(2) as one:
        one.frame(1, 2, 3)
        await turns()
        one.line.close()
        for seq in (1, 2):
            one.batches.answer(seq)
        await turns()
        assert not one.task.done()
        one.batches.answer(3)
        await asyncio.wait_for(one.task, 5)
        assert one.results == [1, 2, 3]


@pytest.mark.parametrize("how", ["cancelled", "client gone"])
async def test_when_the_session_is_over_what_is_under_way_is_given_up(how: str) -> None:
    async with stand(3) as one:
        one.frame(1, 2, 3)
        await turns()
        if how == "cancelled":
            one.task.cancel()
        else:
            one.listens = False
            one.batches.answer(1)
        await asyncio.gather(one.task, return_exceptions=True)
        assert [wish.answer.cancelled() for wish in one.batches.wishes] == [how == "cancelled", True, True]
