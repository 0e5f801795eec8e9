"""The summaries of one session: results become observations, and observations a summary at an interval that adapts.

Two tasks run for each session: `_summarize_loop` writes summaries and sends them, `_notify_loop` sends a notice
when summaries fall behind. No frame ever waits for either.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress

import orjson

from app import metrics
from app.protocol.messages import Notice, Summary
from app.protocol.result import FrameResult
from app.settings import SummarySettings
from app.summary.backlog import Backlog
from app.summary.llm import Spent
from app.summary.observations import Observation, ObservationBuilder, merge_evenly
from app.summary.prompt import MOST_BYTES, MOST_OBSERVATIONS, Prompts
from app.summary.spill import Spill
from app.summary.summarizer import Summarizer

log = logging.getLogger(__name__)

SendSummary = Callable[[Summary | Notice], Awaitable[object]]
"""Sends to the client; its result is ignored."""

CLOSE_WAIT_S = 1.0
"""Seconds that a session's end waits for the disk."""
_TICK_S = 1.0
"""Most seconds between two checks of a task."""


class SessionSummaries:
    """Created by `Summaries.session`. The caller must call `finish` when the session ends, also when it fails."""

    def __init__(
        self,
        session_id: str,
        prompt: str,
        send: SendSummary,
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
        self._builder = ObservationBuilder()
        self._backlog = Backlog(session_id, settings, spill)
        self._taken: list[Observation] = []
        """Taken from the backlog and not summarized yet; at most what one request holds."""
        self._schedule = SummarySchedule(settings, time.monotonic())
        self._spent = Spent()
        self._unsent: Summary | None = None
        """Written and saved, but not sent to the client yet."""
        self._ended = False
        self._closing: set[asyncio.Task[None]] = set()
        """Work of the session's end that continues after `finish` has stopped waiting for it."""
        self._finished = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"summaries {session_id}")

    def offer(self, frame_id: int, result: FrameResult, at_ms: float) -> None:
        """Adds one result of the session, in the order of its frames. Takes microseconds; never fails under load.

        Args:
            at_ms: when the frame was received, epoch milliseconds.
        """
        if not self._ended:
            observation = self._builder.add(frame_id, result, at_ms)
            if observation is not None:
                self._add(observation)

    def pause(self) -> None:
        """Ends the current observation, because no results follow for a while: it must not cover the gap."""
        self._flush()

    def set_prompt(self, prompt: str | None) -> None:
        """Sets the prompt of the summaries from now on; None is the operator's default.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        self.prompt = self._prompts.chosen(prompt)

    @property
    def interval_s(self) -> float:
        """Seconds between two summaries at the moment."""
        return self._schedule.interval_s(self.pressure)

    @property
    def pressure(self) -> float:
        """0 to 1: how full the backlog is, or one request, whichever is fuller."""
        return max(self._backlog.pressure, min(1.0, self.waiting / MOST_OBSERVATIONS))

    @property
    def waiting(self) -> int:
        """Observations in the backlog, in memory and on disk."""
        counts = self._backlog.counts
        return counts.in_ram + counts.on_disk

    # --- observations ---

    def _flush(self) -> None:
        observation = self._builder.flush()
        if observation is not None:
            self._add(observation)
        else:
            self._add_quiet()

    def _add(self, observation: Observation) -> None:
        self._add_quiet()
        self._schedule.observed(time.monotonic())
        self._backlog.offer(observation)

    def _add_quiet(self) -> None:
        """Adds frames that showed nothing, if an observation before them waits; alone they are not worth a summary."""
        quiet = self._builder.quiet()
        if quiet is not None and self.waiting:
            self._backlog.offer(quiet)

    async def _take(self, *, everything: bool) -> None:
        """Takes observations from the backlog: as many as one request holds, or all, merged to that number.

        Cancelling loses nothing.
        """
        self._schedule.emptied()
        while self.waiting:
            more = await self._backlog.take(max_items=MOST_OBSERVATIONS, max_bytes=MOST_BYTES)
            self._taken = merge_evenly([*self._taken, *more], MOST_OBSERVATIONS)
            if not everything or not more:
                break
        if self.waiting:
            self._schedule.observed(time.monotonic())

    # --- while the session lasts ---

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._summarize_loop())
            tasks.create_task(self._notify_loop())

    async def _summarize_loop(self) -> None:
        tick_s = min(_TICK_S, self._settings.summary_min_interval_s / 4)
        while True:
            # At random, so that sessions that began together do not all write together.
            await asyncio.sleep(tick_s * random.uniform(0.5, 1.5))
            if not self._schedule.due(time.monotonic(), self.pressure):
                continue
            try:
                summary = await self._summarize()
                # No await between these two: an end before them summarizes again, an end after them keeps the summary.
                self._taken.clear()
                self._unsent = summary
                if summary is not None:
                    await self._save(summary)
                    await self._send(summary)
                self._unsent = None
            except Exception:  # the boundary of one summary: logged and counted, the session goes on
                log.exception("a summary of session %s failed", self.id)
                metrics.SUMMARIES.labels("none", "error").inc()
                self._taken.clear()
                self._schedule.summarized(time.monotonic(), failed=True)

    async def _summarize(self, *, everything: bool = False) -> Summary | None:
        """Summarizes the waiting observations, and keeps them in `_taken`. None if there are none."""
        self._flush()
        if not self.waiting and not self._taken:
            return None
        async with self._summarizer.slot() as slot:
            await self._take(everything=everything)
            if not self._taken:
                return None
            begun = time.monotonic()
            prompt = self._prompts.text(self.prompt)
            summary, failed = await self._summarizer.summarize(self._taken, prompt, self._spent, slot=slot)
        now = time.monotonic()
        self._schedule.summarized(now, failed=failed, answer_s=now - begun)
        return summary

    async def _save(self, summary: Summary) -> None:
        await self._spill.save_summary(self.id, summary.generated_at_ms, orjson.dumps(summary))

    async def _notify_loop(self) -> None:
        lag = LagNotice()
        while True:
            await asyncio.sleep(min(_TICK_S, self._settings.summary_min_interval_s / 4))
            message = lag.change(self._backlog.pressure, self.waiting)
            if message is None:
                continue
            try:
                await self._send(Notice("summary_backlog", message))
            except Exception:  # the boundary of one notice: a client that has left must not end the summaries
                log.exception("a notice of session %s was not sent", self.id)

    # --- the end of the session ---

    async def finish(self) -> Summary | None:
        """Ends the summaries and summarizes what was observed since the last one, for `bye.report`.

        Takes `summary_finish_s`, and seconds more where the disk is slow. If the model has not answered by then, the
        summary is a digest. A second call waits until the first has ended, and returns None. If cancelled, it saves a
        digest of the observations taken so far; those in the backlog are left for the next start.

        Returns:
            None if nothing was observed.
        """
        if self._ended:
            await self._finished.wait()
            return None
        self._ended = True
        self._task.cancel()
        try:
            await asyncio.wait({self._task})
            summary = await self._last_summary()
            self._taken = []
            if summary is None:
                return self._unsent
            await self._bounded_wait(self._save(summary))
            return summary
        except asyncio.CancelledError:  # the service's own time to stop is over
            if taken := self._taken:
                self._start_closing(self._save(self._summarizer.digest(taken, "finish")))
            raise
        finally:
            await self._bounded_wait(self._close())

    async def _last_summary(self) -> Summary | None:
        try:
            async with asyncio.timeout(self._settings.summary_finish_s):
                return await self._summarize(everything=True)
        except TimeoutError:
            return await self._last_digest()
        except Exception:  # the boundary of one summary: logged and counted, the client gets its `bye`
            log.exception("the last summary of session %s failed", self.id)
            metrics.SUMMARIES.labels("none", "error").inc()
            return None

    async def _last_digest(self) -> Summary | None:
        """A digest of the observations taken, and of those that still wait because the model was busy."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WAIT_S):
                await self._take(everything=True)
        return self._summarizer.digest(taken, "finish") if (taken := self._taken) else None

    async def _close(self) -> None:
        """Closes the backlog; observations that wait stay on disk for the next start."""
        try:
            await self._backlog.close(keep=self.waiting > 0)
        finally:
            self._on_end(self)
            self._finished.set()

    def _start_closing(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Runs work of the session's end in a task of its own, which `finish` being cancelled does not cancel.

        If it were cancelled half-way, rows would stay on disk that no process adopts while this one lives.
        """
        task = asyncio.create_task(work, name=f"end of the summaries {self.id}")
        self._closing.add(task)
        task.add_done_callback(self._closed)
        return task

    async def _bounded_wait(self, work: Coroutine[None, None, None]) -> None:
        """Runs `work` and waits for it, CLOSE_WAIT_S at most; the work goes on after that. Its failure is logged."""
        task = self._start_closing(work)
        await asyncio.wait({task}, timeout=CLOSE_WAIT_S)
        if not task.done():
            log.warning("session %s ended before its summaries were written to disk", self.id)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the summaries of session %s could not be closed", self.id, exc_info=error)


# --- when the next summary is due ---

EAGER_PRESSURE = 0.5
"""Pressure from which the interval is the shortest: at half full there is still time before observations are merged."""
REST = 2.0
"""Least pause after an answer of the model, as a multiple of the seconds that the answer took."""
_MOST_DOUBLINGS = 16


def interval_s(pressure: float, *, failures: int, answer_s: float, least_s: float, most_s: float) -> float:
    """Seconds from the end of one summary to the start of the next.

    The more waits, the shorter the interval: a busy scene gives more to summarize, and observations that wait too long
    are merged and lose detail. This holds only while the model keeps up, because asking more often does not help a
    model that fails or is slow. Each failure in a row doubles the interval, and the pause is at least REST times the
    seconds of the last answer, so that a session keeps a slow model busy for a third of the time at most. These two
    outweigh the pressure: what arrives meanwhile waits, spills and is merged, and one summary covers all of it.

    Args:
        pressure: how much waits, 0 (nothing) to 1 (the bounds are reached).
        failures: requests for this session that failed in a row.
        answer_s: seconds that the last answer took; 0 for a digest.
        least_s: SUMMARY_MIN_INTERVAL_S.
        most_s: SUMMARY_MAX_INTERVAL_S; taken as `least_s` where it is smaller.

    Returns:
        Always between `least_s` and `most_s`.
    """
    most_s = max(least_s, most_s)
    pull = min(1.0, max(0.0, pressure) / EAGER_PRESSURE)
    wanted = most_s - (most_s - least_s) * pull
    wanted = max(wanted * 2.0 ** min(max(0, failures), _MOST_DOUBLINGS), answer_s * REST)
    return float(min(most_s, max(least_s, wanted)))


class SummarySchedule:
    """When a session's next summary is due. `now` is seconds of a monotonic clock. Does no I/O."""

    def __init__(self, settings: SummarySettings, now: float) -> None:
        self._least_s = settings.summary_min_interval_s
        self._most_s = settings.summary_max_interval_s
        self._waiting_since: float | None = None
        self._summarized_at = now
        self._first_done = False
        self._failures = 0
        self._answer_s = 0.0

    def observed(self, now: float) -> None:
        """Records that an observation waits. The first one starts the clock."""
        if self._waiting_since is None:
            self._waiting_since = now

    def emptied(self) -> None:
        """Records that nothing waits."""
        self._waiting_since = None

    def summarized(self, now: float, *, failed: bool = False, answer_s: float = 0.0) -> None:
        """Records that a summary was written. `failed`: the model failed; `answer_s`: seconds that it took."""
        self._first_done, self._summarized_at, self._answer_s = True, now, answer_s
        self._failures = self._failures + 1 if failed else 0

    def interval_s(self, pressure: float) -> float:
        """Seconds between two summaries at the moment. SUMMARY_MIN_INTERVAL_S before the first summary."""
        if not self._first_done:
            return self._least_s
        return interval_s(
            pressure, failures=self._failures, answer_s=self._answer_s, least_s=self._least_s, most_s=self._most_s
        )

    def due(self, now: float, pressure: float) -> bool:
        """Whether to summarize now: the interval is over, and observations have waited SUMMARY_MIN_INTERVAL_S."""
        if self._waiting_since is None or now - self._waiting_since < self._least_s:
            return False
        return now - self._summarized_at >= self.interval_s(pressure)


# --- notices that summaries fall behind ---

BEHIND, CAUGHT_UP = 0.5, 0.2
"""Pressure of the backlog (0.5: memory is full) at which a notice is sent, and below which the lag is over."""


class LagNotice:
    """Detects that summaries fall behind, and that they have caught up, once each. Does no I/O."""

    def __init__(self) -> None:
        self._behind = False

    def change(self, pressure: float, waiting: int) -> str | None:
        """The notice to send now, or None. `pressure`: 0 to 1; `waiting`: observations."""
        if not self._behind and pressure >= BEHIND:
            self._behind = True
            return f"summaries are behind: {waiting} observations wait"
        if self._behind and pressure <= CAUGHT_UP:
            self._behind = False
            return "summaries have caught up"
        return None
