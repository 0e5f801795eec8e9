"""What one session's frames become, and in which order: `Results` over a pipeline that answers when it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.errors import FrameError, UndecodableFrame
from app.live.receiver import DropQueue
from app.live.sender import Results
from app.live.stats import FrameStats
from app.pipeline.batching import PendingFrame
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Error, Result, ServerMessage, StreamSettings
from app.protocol.result import FrameResult, Image

pytestmark = pytest.mark.anyio


class FakeBatcher:
    """Keeps what was handed in."""

    def __init__(self) -> None:
        self.submitted: list[PendingFrame] = []

    def submit(self, job: FrameJob) -> PendingFrame:
        pending = PendingFrame(job, asyncio.get_running_loop().create_future())
        self.submitted.append(pending)
        return pending

    def answer(self, seq: int, found: FrameResult | FrameError | Exception | None = None) -> None:
        pending = next(frame for frame in self.submitted if frame.job.frame.seq == seq)
        if isinstance(found, Exception) and not isinstance(found, FrameError):
            pending.answer.set_exception(found)
        else:
            pending.answer.set_result(found or FrameResult(Image(640, 480)))  # type: ignore[arg-type]


class FakeSummaries:
    def __init__(self) -> None:
        self.offered: list[int] = []

    def offer(self, frame_id: int, result: FrameResult, at_ms: float, settings: StreamSettings) -> None:
        self.offered.append(frame_id)


class Stand:
    """One session's parts."""

    def __init__(self, at_once: int, mode: str) -> None:
        self.batcher, self.summaries, self.stats = FakeBatcher(), FakeSummaries(), FrameStats()
        self.queue: DropQueue[tuple[int, Frame]] = DropQueue(8)
        self.settings = StreamSettings(mode=mode, max_age_ms=50)  # type: ignore[arg-type]
        self.said: list[ServerMessage] = []
        self.listens = True
        self.judged: list[bool] = []
        self.pipeline_results = Results(
            "s",
            self.batcher,  # type: ignore[arg-type]
            StreamMemory(),
            self.stats,
            self.summaries,  # type: ignore[arg-type]
            self._send,
            self.settings,
            lambda useful, _: self.judged.append(useful),
        )
        self.task = asyncio.create_task(self.pipeline_results.run(self.queue, at_once))

    async def _send(self, message: ServerMessage) -> bool:
        self.said.append(message)
        return self.listens

    def frame(self, *seqs: int, age_s: float = 0.0) -> None:
        for seq in seqs:
            self.stats.received(3)
            self.queue.put((seq, Frame("s", b"...", time.perf_counter() - age_s, 0.0, seq)))

    @property
    def begun(self) -> list[int]:
        return [pending.job.frame.seq for pending in self.batcher.submitted]

    @property
    def results(self) -> list[int]:
        return [said.seq for said in self.said if isinstance(said, Result)]


@asynccontextmanager
async def stand(at_once: int, mode: str = "lossless") -> AsyncIterator[Stand]:
    session = Stand(at_once, mode)
    try:
        yield session
    finally:
        session.task.cancel()
        await asyncio.gather(session.task, return_exceptions=True)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_as_allowed_are_begun_and_answered_in_their_order() -> None:
    async with stand(3) as session:
        session.frame(1, 2, 3, 4)
        await turns()
        assert session.begun == [1, 2, 3]
        assert len(session.pipeline_results) == 3
        for seq in (3, 2):
            session.batcher.answer(seq)
        await turns()
        assert session.results == []
        session.batcher.answer(1)
        await turns()
        assert session.results == [1, 2, 3]
        assert session.summaries.offered == [1, 2, 3]
        assert session.begun == [1, 2, 3, 4]


async def test_a_frame_that_comes_later_is_begun_beside_the_one_under_way() -> None:
    async with stand(2) as session:
        session.frame(1)
        await turns()
        session.frame(2)
        await turns()
        assert session.begun == [1, 2]
        session.batcher.answer(1)
        await turns()
        session.frame(3)
        await turns()
        assert (session.results, session.begun) == ([1], [1, 2, 3])


async def test_in_realtime_one_at_a_time_and_what_waited_too_long_is_refused() -> None:
    async with stand(1, "realtime") as session:
        session.frame(1)
        await turns()
        session.frame(2, age_s=1.0)
        session.frame(3)
        await turns()
        assert session.begun == [1]
        session.batcher.answer(1)
        await turns()
        assert session.begun == [1, 3]
        assert [(type(said), said.seq) for said in session.said if isinstance(said, Result | Error)] == [
            (Result, 1),
            (Error, 2),
        ]


async def test_errors_are_answered_in_order_too_and_every_frame_is_accounted_for() -> None:
    async with stand(4) as session:
        session.frame(1, 2, 3)
        await turns()
        session.batcher.answer(3)
        session.batcher.answer(2, RuntimeError("a bug"))
        session.batcher.answer(1, UndecodableFrame("no"))
        await turns()
        assert [(type(said), said.seq) for said in session.said if isinstance(said, Result | Error)] == [
            (Error, 1),
            (Error, 2),
            (Result, 3),
        ]
        report = session.stats.report()
        assert (report.received, report.processed, report.failed, sum(report.dropped.values())) == (3, 1, 1, 1)
        assert session.judged == [False, True]  # a bug of ours says nothing about the frame


async def test_a_closed_line_ends_it_once_all_is_answered() -> None:
    async with stand(2) as session:
        session.frame(1, 2, 3)
        await turns()
        session.queue.close()
        for seq in (1, 2):
            session.batcher.answer(seq)
        await turns()
        assert not session.task.done()
        session.batcher.answer(3)
        await asyncio.wait_for(session.task, 5)
        assert session.results == [1, 2, 3]


@pytest.mark.parametrize("how", ["cancelled", "client gone"])
async def test_when_the_session_is_over_what_is_under_way_is_given_up(how: str) -> None:
    async with stand(3) as session:
        session.frame(1, 2, 3)
        await turns()
        if how == "cancelled":
            session.task.cancel()
        else:
            session.listens = False
            session.batcher.answer(1)
        await asyncio.gather(session.task, return_exceptions=True)
        assert [pending.answer.cancelled() for pending in session.batcher.submitted] == [how == "cancelled", True, True]
