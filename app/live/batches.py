"""Frames of live sessions that come in the same turn of the event loop go through the pipeline together.

Nothing waits for company: a turn is over in microseconds while there is little to do, and then each frame goes alone.
The busier the loop, the longer its turns and the larger the batches, and most of what a frame costs beside its
decoding – a request, its answer, a hop to a thread, numpy's calls – is paid once a batch.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from app.errors import FrameError
from app.pipeline.frames import Job
from app.pipeline.multimodal import Pipeline
from app.protocol.result import FrameResult

log = logging.getLogger(__name__)

MOST = 8
"""Frames in a batch: more gain next to nothing, and the first of them would wait for the last one's decoding."""
LARGE = 512 * 1024
"""Bytes of a JPEG that takes so long to decode that nobody should wait for it: it goes alone."""


@dataclass(slots=True)
class _Wish:
    """One frame, and who waits for it."""

    job: Job
    answer: asyncio.Future[FrameResult | FrameError]
    batch: _Batch | None = None


@dataclass(slots=True)
class _Batch:
    """Wishes that are looked at together."""

    wishes: list[_Wish]
    task: asyncio.Task[None] | None = None

    def abandon(self) -> None:
        """Gives it up once nobody waits for any of it, so that churning clients leave no work behind."""
        if self.task is not None and all(wish.answer.done() for wish in self.wishes):
            self.task.cancel()


class Batches:
    """The live door's way into the pipeline. One frame of a stream at a time; bound to one event loop."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._waiting: list[_Wish] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def analyze(self, job: Job) -> FrameResult | FrameError:
        """`Pipeline.analyze` of one frame.

        Together with others only where the server puts requests together itself: a model on the CPU does a batch one
        picture after the other, and the first would wait for the last. Cancelling gives the answer up, no other's.
        """
        if not self._pipeline.vision.batched or len(job.frame.jpeg) > LARGE:
            (found,) = await self._pipeline.analyze([job])
            return found
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # Two turns: what the sockets hold now is read in between.
            loop.call_soon(loop.call_soon, self._start)
        wish = _Wish(job, loop.create_future())
        self._waiting.append(wish)
        try:
            return await wish.answer
        except asyncio.CancelledError:
            if wish.batch is not None:
                wish.batch.abandon()
            raise

    def _start(self) -> None:
        wishes = [wish for wish in self._waiting if not wish.answer.done()]
        self._waiting.clear()
        most = min(MOST, self._pipeline.most_together, self._pipeline.vision.max_batch)
        for at in range(0, len(wishes), most):
            batch = _Batch(wishes[at : at + most])
            for wish in batch.wishes:
                wish.batch = batch
            batch.task = asyncio.create_task(self._run(batch.wishes))
            self._under_way.add(batch.task)
            batch.task.add_done_callback(self._under_way.discard)

    async def _run(self, wishes: list[_Wish]) -> None:
        try:
            found = await self._pipeline.analyze([wish.job for wish in wishes])
        except Exception as error:  # each frame's own session logs and counts it
            await self._one_by_one(wishes, error)
            return
        for wish, one in zip(wishes, found, strict=True):
            if wish.answer.done():  # its session ended meanwhile, and must not be left in OCR's line
                self._pipeline.ocr.forget(wish.job.memory.ocr)
            else:
                wish.answer.set_result(one)

    async def _one_by_one(self, wishes: list[_Wish], error: Exception) -> None:
        """One frame's fault must not be the others': each is tried again alone."""
        if len(wishes) > 1:
            # Said here: alone it may not come again, and then nobody else would tell of it.
            log.error("%d frames together failed; each is tried alone", len(wishes), exc_info=error)
            for wish in wishes:
                if not wish.answer.done():
                    await self._run([wish])
        elif not wishes[0].answer.done():
            wishes[0].answer.set_exception(error)
