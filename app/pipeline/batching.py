"""Puts frames of several streams that arrive in the same turn of the event loop into batches, for live sessions.

No frame waits for others while a core is free: with little load a turn takes microseconds, and each frame goes alone.
While every core has a frame to prepare, a new frame could only wait for a thread, so the batcher collects such frames.
Therefore batches grow with the load, and most of a frame's costs besides its decoding (a request, its answer, a hop to
a thread, numpy's calls) arise once a batch.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from operator import itemgetter
from typing import Any

from app.errors import FrameError
from app.pipeline.multimodal import Pipeline
from app.pipeline.ordering import Ticket
from app.pipeline.preprocess import heavy
from app.pipeline.types import FrameJob
from app.protocol.result import FrameResult

log = logging.getLogger(__name__)

MAX_BATCH = 8
"""Most frames in a batch. More would gain next to nothing, and the first would wait until the last is decoded."""
LARGE = 512 * 1024
"""Bytes of a JPEG that takes so long to decode that it goes alone, so that no other frame waits for it."""


class PendingFrame:
    """A frame that was submitted, and its answer."""

    __slots__ = ("answer", "batch", "job")

    def __init__(self, job: FrameJob, answer: asyncio.Future[FrameResult | FrameError]) -> None:
        self.job = job
        self.answer = answer
        """The result, or the error of an unusable frame. Any other exception of the analysis is raised by awaiting it.
        A caller that no longer needs the answer calls `cancel`."""
        self.batch: _Batch | None = None

    def cancel(self) -> None:
        """Cancels the answer. The other frames of the batch are still analysed."""
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # marks a possible exception as retrieved, because it is not awaited any more
        if self.batch is not None:
            self.batch.cancel_if_done()

    def fail(self, error: Exception) -> None:
        """Sets the exception as the answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_exception(error)


class _Batch:
    """Frames that are analysed together, after the earlier frames of the same streams.

    Args:
        analyze: analyses the frames and sets their answers.
        prepared: called once the frames are prepared.
        context: the context variables of the batch's task.
    """

    def __init__(
        self,
        frames: list[PendingFrame],
        analyze: Callable[[list[PendingFrame], Ticket], Coroutine[Any, Any, None]],
        prepared: Callable[[], None],
        context: contextvars.Context,
    ) -> None:
        self._frames = frames
        memories = [frame.job.memory for frame in frames]
        self._ticket = Ticket({memory.ticket for memory in memories if memory.ticket is not None}, prepared)
        for frame, memory in zip(frames, memories, strict=True):
            memory.ticket = self._ticket
            frame.batch = self
        self.task = asyncio.create_task(analyze(frames, self._ticket), context=context)
        # Not in the task itself, which may be cancelled before it begins.
        self.task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._ticket.end()
        for frame in self._frames:
            frame.batch = None  # breaks a reference cycle that would keep the frame until the next garbage collection

    def cancel_if_done(self) -> None:
        """Cancels the batch once no answer of it is needed, so that clients that come and go leave no work behind."""
        if all(frame.answer.done() for frame in self._frames):
            self.task.cancel()


class LiveBatcher:
    """Submits live frames to the pipeline in batches. Bound to one event loop.

    A stream may submit several frames at a time. They are prepared and finished in their order, and overlap at the
    inference server.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        pipeline.when_less_busy(self._start_waiting)
        self._waiting: list[PendingFrame] = []
        self._scheduled = False
        """Whether `_start` is scheduled."""
        self._preparing = 0
        """Batches whose frames are not all prepared yet."""
        self._running: set[asyncio.Task[None]] = set()
        # A batch belongs to several sessions: its log lines must not carry the id of the one that submitted first.
        self._context = contextvars.Context()

    def submit(self, job: FrameJob) -> PendingFrame:
        """Analyses one frame as `Pipeline.analyze` does. Returns at once.

        The frame shares a batch with others only if the server batches by itself: a model on the CPU analyses the
        images of a batch one after the other, and the first would wait for the last.
        """
        loop = asyncio.get_running_loop()
        frame = PendingFrame(job, loop.create_future())
        if not self._scheduled:
            self._scheduled = True
            # After two turns of the loop, because it reads the data that the sockets hold now in between.
            loop.call_soon(loop.call_soon, self._start)
        self._waiting.append(frame)
        return frame

    def _start_waiting(self) -> None:
        if self._waiting and not self._scheduled:
            self._start()

    def _prepared(self) -> None:
        self._preparing -= 1
        self._start_waiting()

    def _start(self) -> None:
        self._scheduled = False
        if self._preparing and self._pipeline.busy:
            # The frames wait until `_start_waiting` is called. They never wait only for the work of other entry points,
            # because that may never end; they are submitted and queue beside it.
            return
        frames = [frame for frame in self._waiting if not frame.answer.done()]
        self._waiting.clear()
        for batch in [frames] if len(frames) == 1 else self._split(_round_robin(frames)):
            self._preparing += 1
            task = _Batch(batch, self._run, self._prepared, self._context).task
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _split(self, frames: list[PendingFrame]) -> Iterable[list[PendingFrame]]:
        """Yields batches in order, because no frame of a stream may overtake another one."""
        models = self._pipeline.model_set
        most = min(MAX_BATCH, self._pipeline.most_together, models.max_batch) if models.batched else 1
        batch: list[PendingFrame] = []
        for frame in frames:
            large = len(frame.job.frame.jpeg) > LARGE or heavy(frame.job)
            if batch and (large or len(batch) == most):
                yield batch
                batch = []
            if large:
                yield [frame]
            else:
                batch.append(frame)
        if batch:
            yield batch

    async def _run(self, frames: list[PendingFrame], ticket: Ticket) -> None:
        try:
            results = await self._pipeline.analyze([frame.job for frame in frames], ticket=ticket)
        except Exception as error:  # each frame's session logs and counts it
            if len(frames) == 1:
                frames[0].fail(error)
            else:
                await self._run_singly(frames, ticket, error)
            return
        for frame, result in zip(frames, results, strict=True):
            if frame.answer.done():  # its session has ended, so its stream must not stay in OCR's queue
                self._pipeline.forget(frame.job.memory)
            else:
                frame.answer.set_result(result)

    async def _run_singly(self, frames: list[PendingFrame], ticket: Ticket, error: Exception) -> None:
        """Analyses each frame of a failed batch again, alone, so that one faulty frame does not affect the others."""
        # Logged here, because the error may not happen again with single frames.
        log.error("%d frames together failed; each is tried alone", len(frames), exc_info=error)
        await ticket.finish()
        for frame in frames:
            memory = frame.job.memory
            if frame.answer.done():
                self._pipeline.forget(memory)  # the failed batch may have put it into OCR's queue
                continue
            # The next frame of its stream may be under way and use the previous image, so this one does without.
            alone = self._pipeline.without_image(memory)
            try:
                (result,) = await self._pipeline.analyze([dataclasses.replace(frame.job, memory=alone)])
            except Exception as own:
                frame.fail(own)
                continue
            self._pipeline.keep(memory, alone)
            if frame.answer.done():
                self._pipeline.forget(memory)
            else:
                frame.answer.set_result(result)


def _round_robin(frames: list[PendingFrame]) -> list[PendingFrame]:
    """All streams' first frames, then all second ones, so that a stream with several frames does not delay others."""
    taken: Counter[int] = Counter()
    rounds = []
    for frame in frames:
        stream = id(frame.job.memory)
        rounds.append(taken[stream])
        taken[stream] += 1
    if len(taken) == len(frames):
        return frames
    return [frame for _, frame in sorted(zip(rounds, frames, strict=True), key=itemgetter(0))]
