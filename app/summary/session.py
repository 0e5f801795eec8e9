"""The summaries of one session: what is offered gathers, and is told at an interval that adapts.

Two tasks of its own: `_tell_on` writes and sends, `_watch_on` says when what waits gets too much. Nothing of it is
ever awaited on the way of a frame.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

import orjson

from app import metrics
from app.protocol.messages import Notice, Summary
from app.protocol.result import FrameResult
from app.settings import SummarySettings
from app.summary.backlog import Backlog
from app.summary.budget import Spent
from app.summary.format import MOST_BYTES, MOST_OBSERVATIONS, fold
from app.summary.lag import Lag
from app.summary.observation import Observation
from app.summary.observer import Observer
from app.summary.prompts import Prompts
from app.summary.rate import Pace
from app.summary.spill import Spill
from app.summary.summarizer import Summarizer

log = logging.getLogger(__name__)

Send = Callable[[Summary | Notice], Awaitable[object]]
"""Sends to the client; what it returns is not looked at."""

_TICK_S = 1.0
_DISK_S = 1.0
"""That the end of a session waits for the disk."""


class SessionSummaries:
    """Made by `Summaries.session`; `finish` must be called when the session ends, however it ends."""

    def __init__(
        self,
        session_id: str,
        prompt: str,
        send: Send,
        settings: SummarySettings,
        *,
        prompts: Prompts,
        summarizer: Summarizer,
        spill: Spill,
        on_end: Callable[[SessionSummaries], None],
    ) -> None:
        self.id = session_id
        self.prompt = prompt
        """Name of the prompt in force."""
        self._send = send
        self._settings = settings
        self._prompts = prompts
        self._summarizer = summarizer
        self._spill = spill
        self._on_end = on_end
        self._observer = Observer()
        self._backlog = Backlog(session_id, settings, spill)
        self._spent = Spent()
        self._taken: list[Observation] = []
        """Out of the backlog, not told yet."""
        self._pace = Pace(settings, time.monotonic())
        self._ended = False
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"summaries {session_id}")

    def offer(self, frame_id: int, result: FrameResult, at_ms: float) -> None:
        """One result of the session, in the order of its frames. Returns in microseconds; never fails for load.

        Args:
            at_ms: when the frame was received, epoch milliseconds.
        """
        if self._ended:
            return
        seen = self._observer.add(frame_id, result, at_ms)
        if seen is not None:
            self._gather(seen)

    def _gather(self, seen: Observation) -> None:
        self._pace.gathered(time.monotonic())
        self._backlog.offer(seen)

    def choose(self, prompt: str | None) -> None:
        """The prompt of the summaries from now on; None: the operator's default.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        self.prompt = self._prompts.chosen(prompt)

    @property
    def interval_s(self) -> float:
        """Seconds between two summaries as things stand."""
        return self._pace.interval_s(self.pressure)

    @property
    def pressure(self) -> float:
        """0 to 1: how full the backlog is, or one request, whichever is fuller."""
        return max(self._backlog.pressure, min(1.0, self.waiting / MOST_OBSERVATIONS))

    @property
    def waiting(self) -> int:
        """Observations that wait, in memory and on disk."""
        counts = self._backlog.counts
        return counts.in_ram + counts.on_disk

    # --- while the session lasts ---

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_on())
            tasks.create_task(self._watch_on())

    async def _tell_on(self) -> None:
        tick_s = min(_TICK_S, self._settings.summary_min_interval_s / 4)
        while True:
            # Not in step: sessions that began together must not all write together.
            await asyncio.sleep(tick_s * random.uniform(0.5, 1.5))
            if not self._pace.due(time.monotonic(), self.pressure):
                continue
            try:
                summary = await self._tell()
                if summary is not None:
                    await self._keep(summary)
                    await self._send(summary)
                self._taken.clear()  # only now: what ends before this is told again at the end of the session
            except Exception:  # the boundary of one summary: logged and counted, the session goes on
                log.exception("a summary of session %s failed", self.id)
                metrics.SUMMARIES.labels("none", "error").inc()
                self._taken.clear()
                self._pace.told(time.monotonic(), failed=True)

    async def _tell(self, *, everything: bool = False) -> Summary | None:
        """Summarises what waits, and leaves it in `_taken`; None when nothing was seen."""
        self._flush()
        if not self.waiting and not self._taken:
            return None
        async with self._summarizer.turn():
            await self._take(everything)
            if not self._taken:
                return None
            begun = time.monotonic()
            summary, failed = await self._summarizer.summary(self._taken, self._prompts.text(self.prompt), self._spent)
        now = time.monotonic()
        self._pace.told(now, failed=failed, answer_s=now - begun)
        return summary

    async def _take(self, everything: bool) -> None:
        self._pace.emptied()
        while self.waiting:
            more = await self._backlog.take(max_items=MOST_OBSERVATIONS, max_bytes=MOST_BYTES)
            self._taken = fold([*self._taken, *more], MOST_OBSERVATIONS)
            if not everything or not more:
                break
        if self.waiting:
            self._pace.gathered(time.monotonic())

    async def _keep(self, summary: Summary) -> None:
        await self._spill.save_summary(self.id, summary.generated_at_ms, orjson.dumps(summary))

    def _flush(self) -> None:
        seen = self._observer.flush()
        if seen is not None:
            self._gather(seen)

    async def _watch_on(self) -> None:
        lag = Lag()
        while True:
            await asyncio.sleep(min(_TICK_S, self._settings.summary_min_interval_s / 4))
            told = lag.change(self._backlog.pressure, self.waiting)
            if told is None:
                continue
            try:
                await self._send(Notice("summary_backlog", told))
            except Exception:  # the boundary of one notice: a client that is gone must not end the summaries
                log.exception("a notice of session %s was not sent", self.id)

    # --- its end ---

    async def finish(self) -> Summary | None:
        """Ends the summaries, and tells what was seen since the last one: for `bye.report`.

        Takes SUMMARY_FINISH_S at most: what the model has not written by then is a digest. None when nothing was seen.
        A second call waits for the first, and returns None.
        """
        if self._ended:
            await self._over.wait()
            return None
        self._ended = True
        self._task.cancel()
        try:
            await asyncio.wait({self._task})
            summary = await self._last_word()
            if summary is not None:
                await self._at_most(_DISK_S, self._keep(summary))
            return summary
        finally:
            try:
                await self._at_most(_DISK_S, self._backlog.close(keep=self.waiting > 0))
            finally:
                self._on_end(self)
                self._over.set()

    async def _last_word(self) -> Summary | None:
        try:
            async with asyncio.timeout(self._settings.summary_finish_s):
                return await self._tell(everything=True)
        except TimeoutError:
            return self._summarizer.digest(self._taken, "finish") if self._taken else None

    async def _at_most(self, seconds: float, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            log.warning("session %s ended before the disk took its summaries", self.id)
