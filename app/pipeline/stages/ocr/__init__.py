"""Text reading beside the frames: no frame waits for it, and each result shows the age of its texts.

`Ocr.attach` returns at once with the last finished texts, and queues the frame when a run is due. One task serves the
queue in order, one run at a time, through one process that is replaced when it has grown too large, hangs or dies. A
stream has at most one frame in the queue: its newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ConfigurationError
from app.metrics import OCR_RUNS, OCR_SECONDS
from app.pipeline.stage import PipelineStage, StatusListener
from app.pipeline.stages.ocr.policy import JpegSource, OcrMemory, Text, due, has_changed, stage
from app.pipeline.stages.ocr.process import OcrProcess, OcrProcessError, OcrSupervisor, OcrUnreadable, why_off
from app.pipeline.types import Batch, FrameJob, FrameState, StreamMemory
from app.protocol.result import FrameResult, Stage
from app.protocol.stages import Part, Shape
from app.settings import OcrSettings, Settings

__all__ = ["Ocr", "OcrMemory", "OcrStage", "Text"]

log = logging.getLogger(__name__)

OnChange = Callable[[bool, str | None], None]


_LEAST_LETTERS = 2
"""Least letters and digits of an uncertain reading that counts as a line of text: a leaf may look like one letter."""


def _is_a_line(text: Text) -> bool:
    return sum(map(str.isalnum, text.text)) >= _LEAST_LETTERS


class Ocr:
    """Reads text; one instance a service process. All methods must be called in the event loop's thread.

    `on_change(available, reason)` is called when text reading fails (`reason` is the error) or works again.

    Raises:
        ConfigurationError: OCR=on and its environment is missing, or OCR_MODELS holds no models.
    """

    def __init__(self, settings: OcrSettings, *, state_dir: Path, on_change: OnChange | None = None) -> None:
        self._settings = settings
        self.on_change = on_change
        self._off = why_off(settings)
        self._broken: str | None = None
        self._last_problem: str | None = None
        self._supervisor = OcrSupervisor(settings, state_dir.resolve() / "ocr", self._changed)
        self._queue: deque[OcrMemory] = deque()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._runs = 0

    @property
    def available(self) -> bool:
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why text cannot be read; None while it can."""
        return self._off or self._broken

    @property
    def broken(self) -> str | None:
        """Why text cannot be read for now, though OCR is installed and switched on; else None."""
        return self._broken if self._off is None else None

    @property
    def name(self) -> str:
        """Name of the models, for clients."""
        return "PP-OCRv6 small" if self._settings.ocr_models is None else self._settings.ocr_models.name

    def attach(
        self, memory: OcrMemory, still: JpegSource, grey: NDArray[np.uint8] | None, *, now: float
    ) -> tuple[list[Text], Stage]:
        """The stream's last texts and how current they are for this frame. Queues a run when one is due.

        `grey` is the frame, uint8 `[height, width]`, of any small size that stays the same along a stream; None counts
        as changed. `now` is monotonic seconds of the same clock in every call. Takes microseconds.
        """
        if self._off is not None:
            return [], Stage("disabled", self._off)
        if self._broken is not None:
            return [], Stage("error", self._broken)
        changed = has_changed(memory, grey, threshold=self._settings.ocr_change_threshold)
        if memory.waiting is not None:
            memory.ask(still, grey, now)
        elif due(memory, changed=changed, min_interval_s=self._settings.ocr_min_interval_s, now=now):
            memory.ask(still, grey, now)
            self._queue.append(memory)
            self.warm()
        status = stage(memory, changed=changed, now=now)
        return ([] if status.status == "error" else memory.texts), status

    def warm(self) -> None:
        """Starts the process now instead of with the first frame. Returns at once."""
        if self._off is None:
            self._wanted.set()
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._serve(), name="ocr")

    def forget(self, memory: OcrMemory) -> None:
        """Removes an ended stream from the queue, so that no run is spent on its frame."""
        with contextlib.suppress(ValueError):
            self._queue.remove(memory)
            memory.waiting = None

    def health(self) -> dict[str, Any]:
        """The state for /health/ready.

        `state`: ok (also before the first frame, when there is no process yet), starting, degraded (the last run or
        start failed; `reason` is the error) or disabled.
        """
        process = self._supervisor.process
        return {
            "state": self._state(),
            "reason": self.reason or self._last_problem,
            "pid": process.pid if process else None,
            "rss_bytes": process.rss if process else 0,
            "runs": self._runs,
            "restarts": self._supervisor.restarts,
            "waiting": len(self._queue),
        }

    async def close(self) -> None:
        """Ends the process. Queued frames are not read any more."""
        self._off = "the service is stopping"
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._supervisor.drop()

    def _state(self) -> str:
        if self._off is not None:
            return "disabled"
        if self._broken is not None or self._last_problem is not None:
            return "degraded"
        return "starting" if self._supervisor.starting else "ok"

    async def _serve(self) -> None:
        while True:
            await self._wanted.wait()
            # Also right after a process was dropped, so that the next one starts between two runs and not in one.
            process = await self._supervisor.ready()
            if self._queue:
                await self._run(process, self._queue.popleft())
            else:
                self._wanted.clear()

    async def _run(self, process: OcrProcess, memory: OcrMemory) -> None:
        self._runs += 1
        failed = False
        try:
            still = memory.begin()
            jpeg = still if isinstance(still, bytes) else await asyncio.to_thread(still)
            begun = time.perf_counter()
            reading = await process.read(jpeg, timeout_s=self._settings.ocr_timeout_s)
            OCR_SECONDS.observe(time.perf_counter() - begun)
        except OcrUnreadable as error:
            self._failed(memory, error.outcome, str(error))
        except OcrProcessError as error:
            failed = True
            self._failed(memory, error.outcome, str(error))
            self._last_problem = str(error)
        except Exception as error:
            # The boundary of one run: after any error the queue goes on with a fresh process.
            failed = True
            log.exception("OCR run")
            self._failed(memory, "failed", f"{type(error).__name__}: {error}")
        else:
            self._last_problem = None
            texts = [text for text in reading.texts if text.confidence >= self._settings.ocr_min_confidence]
            unreadable = not texts and any(_is_a_line(text) for text in reading.texts)
            memory.succeed(texts, reading.width, reading.height, unreadable=unreadable)
            OCR_RUNS.labels("ok" if texts else "unreadable" if unreadable else "empty").inc()
        await self._supervisor.release(process, failed=failed)

    def _failed(self, memory: OcrMemory, outcome: str, problem: str) -> None:
        log.warning("OCR run %s: %s", outcome, problem)
        OCR_RUNS.labels(outcome).inc()
        memory.fail(problem)

    def _changed(self, broken: str | None) -> None:
        before, self._broken = self._broken, broken
        while broken is not None and self._queue:
            self._queue.popleft().fail(broken)
        if (before is None) == (broken is None):
            return
        if broken is None:
            log.info("text reading works again")
        else:
            log.error("text reading fails: %s", broken)
        if self.on_change is not None:
            self.on_change(broken is None, broken)


_POLL_S = 0.02


class OcrStage(PipelineStage):
    """Text reading as a stage: each frame gets the last texts of its stream at once.

    Args:
        used: whether any stream may read text. If not, no process is started.
    """

    name = "ocr"
    title = "Text"
    description = "Lines of text. They are read beside the frames, and each result says how old they are."
    part = Part(
        "texts",
        list[Text],
        shapes=(Shape("polygon", "polygon", label="{text}", colour="#ffe14d"),),
        late=True,
    )
    model_type = str
    needs_grey = True
    runs = "loop"

    def __init__(self, settings: Settings, *, used: bool = True) -> None:
        super().__init__(settings, used=used)
        chosen = settings.ocr if used else settings.ocr.model_copy(update={"ocr": "off"})
        self.ocr = Ocr(chosen, state_dir=settings.server.state_dir)

    def listen(self, listener: StatusListener) -> None:
        self.ocr.on_change = partial(listener, self.name)

    def load(self) -> None:
        if self.settings.ocr.ocr == "on" and self.used and not self.ocr.available:
            raise ConfigurationError(f"OCR='on': {self.ocr.reason}")

    async def close(self) -> None:
        await self.ocr.close()

    def forget(self, memory: StreamMemory) -> None:
        if "ocr" in memory.parts:
            self.ocr.forget(memory.parts["ocr"])

    def health(self) -> dict[str, Any]:
        return self.ocr.health()

    @property
    def broken(self) -> str | None:
        return self.ocr.broken

    @property
    def absent(self) -> str:
        return f"off ({self.ocr.reason})"

    def offer(self, readers: Mapping[str, Any]) -> str | None:
        return self.ocr.name if self.ocr.available else None

    def write(self, state: FrameState, batch: Batch) -> list[Text]:
        job = state.job
        now = time.perf_counter() if job.frame.at_s is None else job.frame.at_s
        memory = job.memory.parts.get("ocr")
        texts, state.stages["ocr"] = self.ocr.attach(
            _memory(job.memory) if memory is None else memory, state.still or job.frame.still, state.grey, now=now
        )
        return texts

    async def settle(self, job: FrameJob, result: FrameResult) -> FrameResult:
        """Waits for the run of the frame, which may queue behind another one."""
        memory, timeout_s = _memory(job.memory), self.settings.ocr.ocr_timeout_s
        if not memory.pending:
            return result
        try:
            async with asyncio.timeout(2 * timeout_s) as clock:
                while memory.pending:
                    await asyncio.sleep(_POLL_S)
                    if self.ocr.health()["state"] == "starting":  # the start has a time limit of its own
                        clock.reschedule(asyncio.get_running_loop().time() + 2 * timeout_s)
        except TimeoutError:
            late = Stage("error", f"its turn did not come within {2 * timeout_s:g} seconds, twice OCR_TIMEOUT_S")
            return result.replace(stages={**result.stages, "ocr": late})
        finally:
            self.ocr.forget(memory)
        texts, outcome = self.ocr.attach(memory, job.frame.jpeg, job.memory.grey, now=time.perf_counter())
        return result.replace(texts=texts, stages={**result.stages, "ocr": outcome})


def _memory(memory: StreamMemory) -> OcrMemory:
    found: OcrMemory | None = memory.parts.get("ocr")
    if found is None:
        found = memory.parts["ocr"] = OcrMemory()
    return found
