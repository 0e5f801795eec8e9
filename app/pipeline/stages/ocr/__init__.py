"""Text reading beside the frames: never awaited by one, always honest about how old its text is.

`attach` answers at once with the last finished texts and puts the frame in line when a run is due. One
task serves the line in order, one run at a time, through one process that is replaced when it has
grown, hangs or dies. A stream has at most one frame in line: its newest.
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
"""Letters and digits of a reading that shows a line of text, if one that cannot be read; a leaf may look like one."""


def _is_a_line(text: Text) -> bool:
    return sum(map(str.isalnum, text.text)) >= _LEAST_LETTERS


class Ocr:
    """One a service process. Everything is called from the event loop's thread.

    `on_change(available, reason)` is called when text reading goes (`reason` says why) or comes back.

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
        self._line: deque[OcrMemory] = deque()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._runs = 0

    @property
    def available(self) -> bool:
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why there is no text reading; None while there is."""
        return self._off or self._broken

    @property
    def broken(self) -> str | None:
        """Why there is none for now, though it is installed and switched on."""
        return self._broken if self._off is None else None

    @property
    def name(self) -> str:
        """Which models read."""
        return "PP-OCRv6 small" if self._settings.ocr_models is None else self._settings.ocr_models.name

    def attach(
        self, memory: OcrMemory, still: JpegSource, grey: NDArray[np.uint8] | None, *, now: float
    ) -> tuple[list[Text], Stage]:
        """The stream's last texts and how they relate to this frame; starts a run in the background when one is due.

        `grey` is the frame, uint8 `[height, width]`, of any small size that stays the same along a stream; None
        counts as changed. `now` is monotonic seconds, the same clock in every call. Takes microseconds.
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
            self._line.append(memory)
            self.warm()
        said = stage(memory, changed=changed, now=now)
        return ([] if said.status == "error" else memory.texts), said

    def warm(self) -> None:
        """Starts the process now rather than at the first frame. Returns at once."""
        if self._off is None:
            self._wanted.set()
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._serve(), name="ocr")

    def forget(self, memory: OcrMemory) -> None:
        """Takes an ended stream out of the line: no run is spent on a frame that nobody waits for."""
        with contextlib.suppress(ValueError):
            self._line.remove(memory)
            memory.waiting = None

    def health(self) -> dict[str, Any]:
        """For /health/ready.

        `state`: ok (also before the first frame, when there is no process yet), starting, degraded (the last
        run or start failed, `reason` says how) or disabled.
        """
        process = self._supervisor.process
        return {
            "state": self._state(),
            "reason": self.reason or self._last_problem,
            "pid": process.pid if process else None,
            "rss_bytes": process.rss if process else 0,
            "runs": self._runs,
            "restarts": self._supervisor.restarts,
            "waiting": len(self._line),
        }

    async def close(self) -> None:
        """Ends the process. Frames in line are given up."""
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
            # Also right after a process was dropped: the next one starts between two runs, not in the time of one.
            process = await self._supervisor.ready()
            if self._line:
                await self._run(process, self._line.popleft())
            else:
                self._wanted.clear()

    async def _run(self, process: OcrProcess, memory: OcrMemory) -> None:
        self._runs += 1
        spoilt = False
        try:
            still = memory.begin()
            jpeg = still if isinstance(still, bytes) else await asyncio.to_thread(still)
            begun = time.perf_counter()
            reading = await process.read(jpeg, timeout_s=self._settings.ocr_timeout_s)
            OCR_SECONDS.observe(time.perf_counter() - begun)
        except OcrUnreadable as error:
            self._failed(memory, error.outcome, str(error))
        except OcrProcessError as error:
            spoilt = True
            self._failed(memory, error.outcome, str(error))
            self._last_problem = str(error)
        except Exception as error:
            # The boundary of one run: whatever it was, the line goes on with a fresh process.
            spoilt = True
            log.exception("OCR run")
            self._failed(memory, "failed", f"{type(error).__name__}: {error}")
        else:
            self._last_problem = None
            texts = [text for text in reading.texts if text.confidence >= self._settings.ocr_min_confidence]
            unreadable = not texts and any(_is_a_line(text) for text in reading.texts)
            memory.succeed(texts, reading.width, reading.height, unreadable=unreadable)
            OCR_RUNS.labels("ok" if texts else "unreadable" if unreadable else "empty").inc()
        await self._supervisor.release(process, failed=spoilt)

    def _failed(self, memory: OcrMemory, outcome: str, problem: str) -> None:
        log.warning("OCR run %s: %s", outcome, problem)
        OCR_RUNS.labels(outcome).inc()
        memory.fail(problem)

    def _changed(self, broken: str | None) -> None:
        before, self._broken = self._broken, broken
        while broken is not None and self._line:
            self._line.popleft().fail(broken)
        if (before is None) == (broken is None):
            return
        if broken is None:
            log.info("text reading is back")
        else:
            log.error("text reading is gone: %s", broken)
        if self.on_change is not None:
            self.on_change(broken is None, broken)
