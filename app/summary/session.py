"""The summaries of one session: what is offered gathers, and is told at an interval that adapts.

Two tasks of its own: `_tell_on` writes and sends, `_watch_on` says when what waits gets too much. Nothing of it is
ever awaited on the way of a frame.
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
from app.summary.observations import Observation, Observer, fold
from app.summary.prompt import MOST_BYTES, MOST_OBSERVATIONS, Prompts
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


# --- what a session has seen and not told yet ---


class Gathering:
    """One session's, from its results to the observations of the next summary."""

    def __init__(self, session_id: str, settings: SummarySettings, spill: Spill) -> None:
        self.taken: list[Observation] = []
        """Out of the backlog, not told yet; at most one request's."""
        self.pace = Pace(settings, time.monotonic())
        self._observer = Observer()
        self._backlog = Backlog(session_id, settings, spill)

    def offer(self, frame_id: int, result: FrameResult, at_ms: float) -> None:
        """One result, in the order of its frames. Microseconds; never fails for load."""
        seen = self._observer.add(frame_id, result, at_ms)
        if seen is not None:
            self._add(seen)

    def flush(self) -> None:
        """What was seen counts as it is, without waiting for its second to be full."""
        seen = self._observer.flush()
        if seen is not None:
            self._add(seen)
        else:
            self._add_quiet()

    def _add(self, seen: Observation) -> None:
        self._add_quiet()
        self.pace.gathered(time.monotonic())
        self._backlog.offer(seen)

    def _add_quiet(self) -> None:
        """Frames that showed nothing are told with what was there before them; alone they are no news."""
        quiet = self._observer.quiet()
        if quiet is not None and self.waiting:
            self._backlog.offer(quiet)

    @property
    def waiting(self) -> int:
        """Observations in the backlog, in memory and on disk."""
        counts = self._backlog.counts
        return counts.in_ram + counts.on_disk

    @property
    def backlog_pressure(self) -> float:
        """See `Backlog.pressure`."""
        return self._backlog.pressure

    @property
    def pressure(self) -> float:
        """0 to 1: how full the backlog is, or one request, whichever is fuller."""
        return max(self._backlog.pressure, min(1.0, self.waiting / MOST_OBSERVATIONS))

    @property
    def due(self) -> bool:
        """Whether it is time for a summary."""
        return self.pace.due(time.monotonic(), self.pressure)

    async def take(self, *, everything: bool) -> None:
        """Adds what waits to `taken`: as much as one request holds, or all of it, folded to that.

        Cancelling loses nothing.
        """
        self.pace.emptied()
        while self.waiting:
            more = await self._backlog.take(max_items=MOST_OBSERVATIONS, max_bytes=MOST_BYTES)
            self.taken = fold([*self.taken, *more], MOST_OBSERVATIONS)
            if not everything or not more:
                break
        if self.waiting:
            self.pace.gathered(time.monotonic())

    async def close(self) -> None:
        """What waits is kept on disk for the next start."""
        await self._backlog.close(keep=self.waiting > 0)


# --- how long to wait between two summaries ---

EAGER_AT = 0.5
"""Pressure from which a session asks as often as it may: half full is time enough to act before things are merged."""
REST = 2.0
"""Least pause over the seconds of the last answer."""
_MOST_DOUBLINGS = 16


def interval_s(pressure: float, *, failures: int, answer_s: float, least_s: float, most_s: float) -> float:
    """Seconds from the end of one summary to the start of the next.

    Args:
        pressure: what waits, 0 (nothing) to 1 (the bounds are reached).
        failures: requests for this session that failed in a row.
        answer_s: seconds that the last answer took; 0 for a digest.
        least_s: SUMMARY_MIN_INTERVAL_S.
        most_s: SUMMARY_MAX_INTERVAL_S; taken as `least_s` where it is smaller.

    Returns:
        Between `least_s` and `most_s`, always.
    """
    most_s = max(least_s, most_s)
    pull = min(1.0, max(0.0, pressure) / EAGER_AT)
    wanted = most_s - (most_s - least_s) * pull
    wanted = max(wanted * 2.0 ** min(max(0, failures), _MOST_DOUBLINGS), answer_s * REST)
    return float(min(most_s, max(least_s, wanted)))


class Pace:
    """When a session's next summary is due. `now`: seconds of a monotonic clock."""

    def __init__(self, settings: SummarySettings, now: float) -> None:
        self._least_s = settings.summary_min_interval_s
        self._most_s = settings.summary_max_interval_s
        self._since: float | None = None
        self._told_at = now
        self._told = False
        self._failures = 0
        self._answer_s = 0.0

    def gathered(self, now: float) -> None:
        """Something waits. The first of it starts the clock."""
        if self._since is None:
            self._since = now

    def emptied(self) -> None:
        """Nothing waits any more."""
        self._since = None

    def told(self, now: float, *, failed: bool = False, answer_s: float = 0.0) -> None:
        """A summary was made. `failed`: the model should have written it, and did not."""
        self._told, self._told_at, self._answer_s = True, now, answer_s
        self._failures = self._failures + 1 if failed else 0

    def interval_s(self, pressure: float) -> float:
        """Seconds between two summaries as things stand. The first comes as soon as any may."""
        if not self._told:
            return self._least_s
        return interval_s(
            pressure, failures=self._failures, answer_s=self._answer_s, least_s=self._least_s, most_s=self._most_s
        )

    def due(self, now: float, pressure: float) -> bool:
        """Whether to tell now: the interval is over, and what waits is more than its first moment."""
        if self._since is None or now - self._since < self._least_s:
            return False
        return now - self._told_at >= self.interval_s(pressure)


# --- whether summaries fall behind ---

BEHIND, CAUGHT_UP = 0.5, 0.2
"""Pressure of the backlog (0.5: memory is full) from which it is said, and below which it is over."""


class Lag:
    """Says every change once."""

    def __init__(self) -> None:
        self._behind = False

    def change(self, pressure: float, waiting: int) -> str | None:
        """What to tell now, or None. `pressure`: 0 to 1; `waiting`: observations."""
        if not self._behind and pressure >= BEHIND:
            self._behind = True
            return f"summaries are behind: {waiting} observations wait"
        if self._behind and pressure <= CAUGHT_UP:
            self._behind = False
            return "summaries have caught up"
        return None


# --- how long the end waits for the disk ---

log = logging.getLogger(__name__)

PATIENCE_S = 1.0


class Patience:
    """Waits for the last work of a session, but not for long; the work goes on all the same.

    Cancelled half-way it would leave rows on disk that nobody owns up to while the process lives.
    """

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begins it, and does not wait at all."""
        task = asyncio.create_task(work, name=f"end of the summaries {self._session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def wait(self, work: Coroutine[None, None, None]) -> None:
        """PATIENCE_S at most. Work that fails is logged."""
        task = self.start(work)
        await asyncio.wait({task}, timeout=PATIENCE_S)
        if not task.done():
            log.warning("session %s ended before the disk took its summaries", self._session_id)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the summaries of session %s could not be ended", self._session_id, exc_info=error)
