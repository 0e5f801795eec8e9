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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.metrics import OCR_RUNS, OCR_SECONDS
from app.pipeline.stages.ocr.policy import JpegSource, OcrMemory, due, has_changed, stage
from app.pipeline.stages.ocr.process import OcrProcess, OcrProcessError, OcrSupervisor, OcrUnreadable, why_off
from app.protocol.result import Stage, Text
from app.settings import OcrSettings

__all__ = ["Ocr", "OcrMemory"]

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
