"""Frames of live sessions that come in the same turn of the event loop go through the pipeline together.

Nothing waits for company while a core is free: a turn is over in microseconds while there is little to do, and then
each frame goes alone. While every core has a frame to prepare, frames gather that could only wait for a thread. So the
busier the service, the larger its batches, and most of what a frame costs beside its decoding – a request, its answer,
a hop to a thread, numpy's calls – is paid once a batch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from operator import itemgetter
from typing import Any

from app.errors import FrameError
from app.pipeline.multimodal import Pipeline
from app.pipeline.ordering import Ticket
from app.pipeline.preprocess import heavy
from app.pipeline.types import FrameJob
from app.protocol.result import FrameResult

log = logging.getLogger(__name__)

MOST = 8
"""Frames in a batch: more gain next to nothing, and the first of them would wait for the last one's decoding."""
LARGE = 512 * 1024
"""Bytes of a JPEG that takes so long to decode that nobody should wait for it: it goes alone."""


class Wish:
    """One frame that was handed in, and its answer."""

    def __init__(self, job: FrameJob, answer: asyncio.Future[FrameResult | FrameError]) -> None:
        self.job = job
        self.answer = answer
        """Raises what broke on this frame. Whoever wants it no more calls `give_up`."""
        self._batch: _Batch | None = None

    def give_up(self) -> None:
        """Nobody waits for the answer any more. Takes no other frame with it."""
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # it had one, perhaps: nobody will ask
        if self._batch is not None:
            self._batch.abandon()

    def failed(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def joins(self, batch: _Batch | None) -> None:
        self._batch = batch


class _Batch:
    """Wishes that are looked at together, after those of the same streams that came before.

    Args:
        then: called once its frames are prepared.
    """

    def __init__(
        self,
        wishes: list[Wish],
        analyze: Callable[[list[Wish], Ticket], Coroutine[Any, Any, None]],
        then: Callable[[], None],
    ) -> None:
        self._wishes = wishes
        memories = [wish.job.memory for wish in wishes]
        self._turn = Ticket({memory.ticket for memory in memories if memory.ticket is not None}, then)
        for wish, memory in zip(wishes, memories, strict=True):
            memory.ticket = self._turn
            wish.joins(self)
        self.task = asyncio.create_task(analyze(wishes, self._turn))
        # Not in the task, which may be cancelled before it begins.
        self.task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._turn.end()
        for wish in self._wishes:
            wish.joins(None)  # a circle, and with it the frame, would wait for the garbage collector

    def abandon(self) -> None:
        """Gives it up once nobody waits for any of it, so that churning clients leave no work behind."""
        if all(wish.answer.done() for wish in self._wishes):
            self.task.cancel()


class Batches:
    """The live door's way into the pipeline. Bound to one event loop.

    A stream may hand in several frames at a time: they are prepared and finished in their order, and overlap at the
    server.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        pipeline.when_less_busy(self._go_on)
        self._waiting: list[Wish] = []
        self._called = False
        """Whether `_start` will come by itself."""
        self._preparing = 0
        """Batches of ours that threads have not prepared yet."""
        self._under_way: set[asyncio.Task[None]] = set()

    def submit(self, job: FrameJob) -> Wish:
        """`Pipeline.analyze` of one frame.

        Together with others only where the server puts requests together itself: a model on the CPU does a batch one
        picture after the other, and the first would wait for the last.
        """
        loop = asyncio.get_running_loop()
        wish = Wish(job, loop.create_future())
        if not self._called:
            self._called = True
            # Two turns: what the sockets hold now is read in between.
            loop.call_soon(loop.call_soon, self._start)
        self._waiting.append(wish)
        return wish

    def _go_on(self) -> None:
        if self._waiting and not self._called:
            self._start()

    def _prepared(self) -> None:
        self._preparing -= 1
        self._go_on()

    def _start(self) -> None:
        self._called = False
        if self._preparing and self._pipeline.busy:
            # Until `_go_on`. Never behind others' work alone: where that does not end, frames stand in line with it.
            return
        wishes = [wish for wish in self._waiting if not wish.answer.done()]
        self._waiting.clear()
        for together in self._parted(_in_rounds(wishes)):
            self._preparing += 1
            task = _Batch(together, self._run, self._prepared).task
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    def _parted(self, wishes: list[Wish]) -> Iterator[list[Wish]]:
        """In order: of one stream no frame may pass another."""
        vision = self._pipeline.model_set
        most = min(MOST, self._pipeline.most_together, vision.max_batch) if vision.batched else 1
        batch: list[Wish] = []
        for wish in wishes:
            large = len(wish.job.frame.jpeg) > LARGE or heavy(wish.job)
            if batch and (large or len(batch) == most):
                yield batch
                batch = []
            if large:
                yield [wish]
            else:
                batch.append(wish)
        if batch:
            yield batch

    async def _run(self, wishes: list[Wish], turn: Ticket) -> None:
        try:
            found = await self._pipeline.analyze([wish.job for wish in wishes], ticket=turn)
        except Exception as error:  # each frame's own session logs and counts it
            if len(wishes) == 1:
                wishes[0].failed(error)
            else:
                await self._one_by_one(wishes, turn, error)
            return
        for wish, one in zip(wishes, found, strict=True):
            self._answer(wish, one)

    async def _one_by_one(self, wishes: list[Wish], turn: Ticket, error: Exception) -> None:
        """One frame's fault must not be the others': each is tried again alone."""
        # Said here: alone it may not come again, and then nobody else would tell of it.
        log.error("%d frames together failed; each is tried alone", len(wishes), exc_info=error)
        await turn.finish()
        for wish in wishes:
            memory = wish.job.memory
            if wish.answer.done():
                self._pipeline.ocr.forget(memory.ocr)  # the failed round may have put it in line
                continue
            # The next frame of its stream may be under way, with the last picture: this one goes without.
            alone = dataclasses.replace(memory, grey=None, flow=None)
            try:
                (found,) = await self._pipeline.analyze([dataclasses.replace(wish.job, memory=alone)])
            except Exception as own:
                wish.failed(own)
            else:
                memory.tracker = alone.tracker
                self._answer(wish, found)

    def _answer(self, wish: Wish, found: FrameResult | FrameError) -> None:
        if wish.answer.done():  # its session ended meanwhile, and must not be left in OCR's line
            self._pipeline.ocr.forget(wish.job.memory.ocr)
        else:
            wish.answer.set_result(found)


def _in_rounds(wishes: list[Wish]) -> list[Wish]:
    """Every stream's first frame, then every second one: who hands in several must not hold up who hands in one."""
    taken: Counter[int] = Counter()
    rounds = []
    for wish in wishes:
        stream = id(wish.job.memory)
        rounds.append(taken[stream])
        taken[stream] += 1
    if len(taken) == len(wishes):
        return wishes
    return [wish for _, wish in sorted(zip(rounds, wishes, strict=True), key=itemgetter(0))]
