"""Runs a stage's `finish` and `write` in a thread of its own, with a time limit: for stages that take milliseconds.

A stage that exceeds the limit loses its part of those frames, which count as errors. A thread cannot be stopped, so it
runs on; until it is done, the stage is skipped, and the frames go on without it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app import metrics
from app.pipeline.stage import PipelineStage, defines, raised
from app.pipeline.types import Batch, FrameState
from app.protocol.result import Stage

LIMIT_S = 1.0
"""Seconds that a stage may take for a batch of up to `FRAMES` frames, and for as many again. A frame that can wait
longer for a model (`FrameJob.deadline_s`) waits as long for a stage."""
FRAMES = 8
_BUSY = Stage("skipped", "busy")


class StageThread:
    """One stage's thread. All methods must be called in the event loop's thread."""

    def __init__(self, stage: PipelineStage) -> None:
        self.stage = stage
        self._executor = ThreadPoolExecutor(1, f"stage-{stage.name}")
        self._late: asyncio.Future[Any] | None = None

    def close(self) -> None:
        """Ends the thread once it is idle. Does not wait."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def run(self, batch: Batch) -> None:
        """Finishes and writes the usable frames whose streams run the stage."""
        stage = self.stage
        states = [
            state
            for state in batch.frames
            if state.error is None
            and state.job.settings.stages.get(stage.name)
            and (stage.name in state.found or not stage.has_model)
        ]
        if not states:
            return
        if self._late is not None and not self._late.done():
            metrics.STAGE_FRAMES_WITHOUT.labels(stage.name, "busy").inc(len(states))
            for state in states:
                state.stages[stage.name] = _BUSY
            return
        limit_s = states[0].job.deadline_s or LIMIT_S * math.ceil(len(states) / FRAMES)
        batch.hold()
        parts: list[Any] = []
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._work, states, batch, parts)
        work.add_done_callback(lambda done: _release(batch, done))
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(work)
        except TimeoutError:
            self._late = work
        field = stage.part.field if stage.part and defines(stage, "write") else None
        done = len(parts)  # the thread may still add some
        if late := states[done:]:
            metrics.STAGE_FRAMES_WITHOUT.labels(stage.name, "late").inc(len(late))
            outcome = Stage("error", f"it took more than {limit_s:g} s")
            for state in late:
                state.stages[stage.name] = outcome
        for state, part in zip(states[:done], parts[:done], strict=True):
            if isinstance(part, _Raised):
                raised(stage, state, part.error)
            elif field is not None:
                state.parts[field] = part

    def _work(self, states: Sequence[FrameState], batch: Batch, parts: list[Any]) -> None:
        """Adds the part of each frame to `parts`."""
        for state in states:
            try:
                self.stage.finish(state, batch)
                parts.append(self.stage.write(state, batch))
            except Exception as error:  # whatever a stage raises must not cost the others their results
                parts.append(_Raised(error))


class _Raised:
    """In place of a part: what the stage raised."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _release(batch: Batch, done: asyncio.Future[Any]) -> None:
    batch.release()
    if not done.cancelled():
        done.exception()  # read, so that asyncio does not log it
