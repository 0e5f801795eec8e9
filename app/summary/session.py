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
from contextlib import suppress

import orjson

from app import metrics
from app.protocol.messages import Notice, Summary
from app.protocol.result import FrameResult
from app.settings import SummarySettings
from app.summary.budget import Spent
from app.summary.gathering import Gathering
from app.summary.lag import Lag
from app.summary.patience import PATIENCE_S, Patience
from app.summary.prompts import Prompts
from app.summary.spill import Spill
from app.summary.summarizer import Summarizer

log = logging.getLogger(__name__)

Send = Callable[[Summary | Notice], Awaitable[object]]
"""Sends to the client; what it returns is not looked at."""

_TICK_S = 1.0


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
        self._gathering = Gathering(session_id, settings, spill)
        self._spent = Spent()
        self._unheard: Summary | None = None
        """Written and kept, on its way to the client."""
        self._ended = False
        self._patience = Patience(session_id)
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"summaries {session_id}")

    def offer(self, frame_id: int, result: FrameResult, at_ms: float) -> None:
        """One result of the session, in the order of its frames. Returns in microseconds; never fails for load.

        Args:
            at_ms: when the frame was received, epoch milliseconds.
        """
        if not self._ended:
            self._gathering.offer(frame_id, result, at_ms)

    def rest(self) -> None:
        """No results come for a while: what was seen so far stands for itself, not for the time up to the next."""
        self._gathering.flush()

    def choose(self, prompt: str | None) -> None:
        """The prompt of the summaries from now on; None: the operator's default.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        self.prompt = self._prompts.chosen(prompt)

    @property
    def interval_s(self) -> float:
        """Seconds between two summaries as things stand."""
        return self._gathering.pace.interval_s(self.pressure)

    @property
    def pressure(self) -> float:
        """0 to 1: how full the backlog is, or one request, whichever is fuller."""
        return self._gathering.pressure

    @property
    def waiting(self) -> int:
        """Observations that wait, in memory and on disk."""
        return self._gathering.waiting

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
            if not self._gathering.due:
                continue
            try:
                summary = await self._tell()
                # No await between these two: what ends before them is told again at the end, what ends later is kept.
                self._gathering.taken.clear()
                self._unheard = summary
                if summary is not None:
                    await self._keep(summary)
                    await self._send(summary)
                self._unheard = None
            except Exception:  # the boundary of one summary: logged and counted, the session goes on
                log.exception("a summary of session %s failed", self.id)
                metrics.SUMMARIES.labels("none", "error").inc()
                self._gathering.taken.clear()
                self._gathering.pace.told(time.monotonic(), failed=True)

    async def _tell(self, *, everything: bool = False) -> Summary | None:
        """Summarises what waits, and leaves it in `taken`; None when nothing was seen."""
        gathering = self._gathering
        gathering.flush()
        if not gathering.waiting and not gathering.taken:
            return None
        async with self._summarizer.turn() as slot:
            await gathering.take(everything=everything)
            if not gathering.taken:
                return None
            begun = time.monotonic()
            prompt = self._prompts.text(self.prompt)
            summary, failed = await self._summarizer.summary(gathering.taken, prompt, self._spent, slot=slot)
        now = time.monotonic()
        gathering.pace.told(now, failed=failed, answer_s=now - begun)
        return summary

    async def _keep(self, summary: Summary) -> None:
        await self._spill.save_summary(self.id, summary.generated_at_ms, orjson.dumps(summary))

    async def _watch_on(self) -> None:
        lag = Lag()
        while True:
            await asyncio.sleep(min(_TICK_S, self._settings.summary_min_interval_s / 4))
            told = lag.change(self._gathering.backlog_pressure, self.waiting)
            if told is None:
                continue
            try:
                await self._send(Notice("summary_backlog", told))
            except Exception:  # the boundary of one notice: a client that is gone must not end the summaries
                log.exception("a notice of session %s was not sent", self.id)

    # --- its end ---

    async def finish(self) -> Summary | None:
        """Ends the summaries, and tells what was seen since the last one: for `bye.report`.

        Takes SUMMARY_FINISH_S, and seconds more where the disk is slow: what the model has not written by then is a
        digest. None when nothing was seen. A second call waits until the first left nothing behind, and returns None.
        Cancelled, it keeps a digest of what is in hand; what was not taken yet is left for the next start.
        """
        if self._ended:
            await self._over.wait()
            return None
        self._ended = True
        self._task.cancel()
        try:
            await asyncio.wait({self._task})
            summary = await self._last_word()
            self._gathering.taken = []
            if summary is None:
                return self._unheard
            await self._patience.wait(self._keep(summary))
            return summary
        except asyncio.CancelledError:  # the service's own time to stop is over
            if taken := self._gathering.taken:
                self._patience.start(self._keep(self._summarizer.digest(taken, "finish")))
            raise
        finally:
            await self._patience.wait(self._close())

    async def _last_word(self) -> Summary | None:
        try:
            async with asyncio.timeout(self._settings.summary_finish_s):
                return await self._tell(everything=True)
        except TimeoutError:
            return await self._last_digest()
        except Exception:  # the boundary of one summary: logged and counted, the client gets its `bye`
            log.exception("the last summary of session %s failed", self.id)
            metrics.SUMMARIES.labels("none", "error").inc()
            return None

    async def _last_digest(self) -> Summary | None:
        """Of what was at the model, and of what never got there because other sessions took its time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._gathering.take(everything=True)
        return self._summarizer.digest(taken, "finish") if (taken := self._gathering.taken) else None

    async def _close(self) -> None:
        try:
            await self._gathering.close()
        finally:
            self._on_end(self)
            self._over.set()
