"""A film's frames on their way through the pipeline.

Three things go on at once: the next frames are decoded in a thread, some batches are in the pipeline, and those that
are done are drawn on and coded in another thread. Each hands over a batch at a time: only a few are in memory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app import metrics
from app.errors import FrameError, InferenceError, InferenceUnavailable
from app.pipeline.multimodal import Pipeline
from app.pipeline.ordering import Sequencer, Ticket
from app.pipeline.stages.ocr.policy import RUNNING, OcrMemory
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import OK, FrameResult
from app.protocol.stream import StreamSettings
from app.segments.keys import Mode
from app.segments.output import Found, Output
from app.segments.reel import DOOR, Reel, Shot
from app.segments.served import needed

log = logging.getLogger(__name__)

PACE = metrics.Pace(DOOR)
IN_FLIGHT = 4
"""Batches in the pipeline at once."""
BATCH = 4
LAG_S = 1.0
"""Seconds of film that texts may be behind."""
DEADLINE_S = 60.0
"""Of a request: nobody looks on live, and a frame that takes long on a busy machine is better than one unanalysed."""
_POLL_S = 0.01
_BATCH_PIXELS = 8_000_000
"""Of all frames of a batch: the larger they are, the fewer are handed over together."""


class FrameFailed(InferenceError):
    """A model failed on this frame."""

    code = "inference"


class Passage:
    """One film's frames, from the reel through the pipeline to the output.

    Raises:
        InferenceUnavailable: no model is served.
        InferenceError: the mode wants a model that is not served.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: StreamSettings,
        mode: Mode,
        reel: Reel,
        output: Output,
        on_frames: Callable[[int], None] | None,
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._mode = mode
        self._needed = needed(pipeline.model_set, mode)
        self._reel = reel
        self._output = output
        self._on_frames = on_frames
        self._stream = uuid.uuid4().hex
        self._memory = StreamMemory()
        self._turns = Sequencer()
        self._batch = max(1, min(BATCH, _BATCH_PIXELS // (reel.width * reel.height)))
        self._received = self._told = 0

    async def all(self) -> None:
        """Every frame, from the film to the output."""
        loop = asyncio.get_running_loop()
        flying: deque[tuple[list[Shot], asyncio.Task[list[Found]]]] = deque()
        with ThreadPoolExecutor(2, "film") as threads:
            reading = loop.run_in_executor(threads, self._reel.read, self._batch)
            writing: asyncio.Future[None] = loop.create_future()
            writing.set_result(None)
            try:
                while shots := await asyncio.shield(reading):
                    reading = loop.run_in_executor(threads, self._reel.read, self._batch)
                    self._take(len(shots))
                    flying.append((shots, asyncio.create_task(self._look(shots, self._turns.take()))))
                    if len(flying) == IN_FLIGHT:
                        writing = await self._hand_on(*flying.popleft(), writing, threads)
                while flying:
                    writing = await self._hand_on(*flying.popleft(), writing, threads)
                await asyncio.shield(writing)
                self._tell()
            finally:
                await self._end([task for _, task in flying], reading, writing)

    async def _hand_on(
        self,
        shots: list[Shot],
        task: asyncio.Task[list[Found]],
        writing: asyncio.Future[None],
        threads: ThreadPoolExecutor,
    ) -> asyncio.Future[None]:
        """From the pipeline to the output, once what is before it is written."""
        try:
            found = await task
            await asyncio.shield(writing)
        finally:
            task.cancel()  # where this was cancelled; else it is over
            await asyncio.gather(task, return_exceptions=True)
        self._tell()
        return asyncio.get_running_loop().run_in_executor(threads, self._output.write, shots, found)

    async def _end(self, tasks: list[asyncio.Task[list[Found]]], *threads: asyncio.Future[Any]) -> None:
        """Nothing goes on when this returns. Frames that nothing became of have failed: the film was given up."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*threads, *tasks, return_exceptions=True)
        self._pipeline.ocr.forget(self._memory.ocr)
        if given_up := self._received - self._output.frames:
            metrics.FRAMES_FAILED.labels(DOOR, "given_up").inc(given_up)

    async def _look(self, shots: list[Shot], turn: Ticket) -> list[Found]:
        """A batch through the pipeline; what each frame gave, or why it gave nothing."""
        with turn:
            jobs = [FrameJob(self._frame(shot), self._memory, self._settings, deadline_s=DEADLINE_S) for shot in shots]
            try:
                answers = await self._pipeline.analyze(jobs, entry=DOOR, ticket=turn)
            except Exception as error:
                # Whatever it is, the other frames must not suffer.
                log.exception("frames %d to %d of a film", shots[0].number, shots[-1].number)
                return [error] * len(shots)
            finally:
                for shot in shots:
                    shot.pixels = None
            needed(self._pipeline.model_set, self._mode)  # another server may have come meanwhile
            return [_found(answer, self._needed) for answer in await self._read(answers, float(shots[-1].at))]

    async def _read(
        self, answers: Sequence[FrameResult | FrameError], at_s: float
    ) -> Sequence[FrameResult | FrameError]:
        """Lets text reading catch up: it goes on beside the frames, and would stay behind where these are fast.

        Waits for the film's first reading, and where one lags by LAG_S of the film; OCR's own time limits bound it.
        """
        memory, waited = self._memory.ocr, False
        while memory.pending and memory.problem is None and _lags(memory, at_s):
            await asyncio.sleep(_POLL_S)
            waited = True
        if not waited or memory.problem is not None:
            return answers
        return [
            dataclasses.replace(one, texts=memory.texts, stages={**one.stages, "ocr": OK})
            if isinstance(one, FrameResult) and one.stages["ocr"] == RUNNING
            else one
            for one in answers
        ]

    def _frame(self, shot: Shot) -> Frame:
        return Frame(
            stream=self._stream,
            jpeg=b"",
            received=time.perf_counter(),
            received_at_ms=time.time() * 1000,
            seq=shot.number,
            pixels=shot.pixels,
            at_s=float(shot.at),
        )

    def _take(self, count: int) -> None:
        self._received += count
        metrics.FRAMES_RECEIVED.labels(DOOR).inc(count)
        metrics.LAST_ACTIVITY.set_to_current_time()

    def _tell(self) -> None:
        """How far the output has come."""
        new = self._output.frames - self._told
        self._told += new
        for _ in range(new):
            PACE.add()
        if new and self._on_frames is not None:
            self._on_frames(new)


def _lags(memory: OcrMemory, at_s: float) -> bool:
    return memory.read_at is None or (memory.asked_at is not None and at_s - memory.asked_at >= LAG_S)


def _found(answer: FrameResult | FrameError, stages: frozenset[str]) -> Found:
    """A frame on which a model failed, or that it did not see, has failed: its film is not played again.

    Args:
        stages: that it must have been through.

    Raises:
        InferenceUnavailable: the server is away, and will be for the frames to come.
    """
    if isinstance(answer, FrameError):
        return answer
    for name in ("detect", "pose"):
        stage = answer.stages[name]
        if stage.status == "error" or (stage.status == "disabled" and name in stages):
            if stage.reason == "inference_unavailable":
                raise InferenceUnavailable(
                    "the inference server went away, or was too slow, while the film was analysed"
                )
            return FrameFailed(f"{name}: {stage.reason}")
    return answer
