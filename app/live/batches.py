"""Frames of live sessions that come in the same turn of the event loop go through the pipeline together.

Nothing waits for company: a turn is over in microseconds while there is little to do, and then each frame goes alone.
The busier the loop, the longer its turns and the larger the batches, and most of what a frame costs beside its
decoding – a request, its answer, a hop to a thread, numpy's calls – is paid once a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from app.errors import FrameError
from app.pipeline.frames import Job
from app.pipeline.multimodal import Pipeline
from app.protocol.result import FrameResult

MOST = 8
"""Frames in a batch: more gain next to nothing, and the first of them would wait for the last one's decoding."""
LARGE = 512 * 1024
"""Bytes of a JPEG that takes so long to decode that nobody should wait for it: it goes alone."""
_Waiting = tuple[Job, "asyncio.Future[FrameResult | FrameError]"]


class Batches:
    """The live door's way into the pipeline. One frame of a stream at a time; bound to one event loop."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._waiting: list[_Waiting] = []
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
        answer: asyncio.Future[FrameResult | FrameError] = loop.create_future()
        if not self._waiting:
            # Two turns: what the sockets hold now is read in between.
            loop.call_soon(loop.call_soon, self._start)
        self._waiting.append((job, answer))
        return await answer

    def _start(self) -> None:
        waiting = [one for one in self._waiting if not one[1].done()]
        self._waiting.clear()
        most = min(MOST, self._pipeline.most_together)
        for at in range(0, len(waiting), most):
            task = asyncio.create_task(self._run(waiting[at : at + most]))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            found = await self._pipeline.analyze([job for job, _ in batch])
        except Exception as error:  # each frame's own session logs and counts it
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (job, answer), one in zip(batch, found, strict=True):
            if answer.done():  # its session ended meanwhile, and must not be left in OCR's line
                self._pipeline.ocr.forget(job.memory.ocr)
            else:
                answer.set_result(one)
