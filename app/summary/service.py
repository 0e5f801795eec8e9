"""Summaries of live streams: `Summaries` is the one object of a process, opened by the lifespan, which makes sessions.

It also recovers the observations that ended processes left on disk: each of their sessions gets one last summary.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import orjson

from app import metrics
from app.protocol.messages import Summary
from app.settings import LlmSettings, SummarySettings
from app.summary.backlog import Backlog
from app.summary.llm import Spent
from app.summary.observations import Observation, merge_evenly
from app.summary.prompt import MOST_BYTES, MOST_OBSERVATIONS, Prompts, read_prompts
from app.summary.session import SendSummary, SessionSummaries
from app.summary.spill import Spill
from app.summary.summarizer import Summarizer

log = logging.getLogger(__name__)

GAUGES_S = 5.0
"""Seconds between two updates of the gauges."""
_RECOVERY_S = 60.0
"""Seconds between two recoveries: other workers that share the folder may end while this one runs."""
FINISH_SHARE = 0.3
"""Most of DRAIN_TIMEOUT_S that a last summary gets: frames need half of it, and the disk some seconds afterwards."""


class Summaries:
    """The summarizer, the prompts, the disk and the open sessions."""

    def __init__(
        self,
        settings: SummarySettings,
        llm: LlmSettings,
        state_dir: Path,
        *,
        workers: int = 1,
        drain_timeout_s: float | None = None,
    ) -> None:
        """Opens nothing.

        Args:
            state_dir: the summaries use its folder `summaries`.
            workers: processes of this service; each gets its part of the bounds that hold over all.
            drain_timeout_s: seconds that a stopping service gives its sessions; a last summary gets FINISH_SHARE of it
                at most.
        """
        finish_s = settings.summary_finish_s
        if drain_timeout_s is not None and finish_s > FINISH_SHARE * drain_timeout_s:
            finish_s = FINISH_SHARE * drain_timeout_s
            settings = settings.model_copy(update={"summary_finish_s": finish_s})
        self.settings = settings
        """With the bound that `drain_timeout_s` sets to `summary_finish_s`."""
        self._spill = Spill(state_dir / "summaries", settings)
        self._summarizer = Summarizer(llm, workers)
        self._prompts = Prompts({}, settings.summary_prompt)
        self._sessions: set[SessionSummaries] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def check(self) -> None:
        """Checks the settings and reads the prompts, without opening anything.

        Raises:
            ConfigurationError: as `open`.
        """
        read_prompts(self.settings)
        self._summarizer.check()

    async def open(self) -> None:
        """Reads the prompts, opens the model and the disk, and starts the recovery in the background.

        Raises:
            ConfigurationError: names the variable, its value and what it should be.
        """
        self._prompts = await asyncio.to_thread(read_prompts, self.settings)
        await self._summarizer.open()
        await self._spill.open()
        self._tasks = [
            asyncio.create_task(self._recover_loop(), name="recovery of summaries"),
            asyncio.create_task(self._gauges_loop(), name="gauges of summaries"),
        ]

    async def close(self) -> None:
        """Finishes all sessions at once, then closes the model and the disk."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(session.finish() for session in [*self._sessions]), return_exceptions=True)
        await self._summarizer.close()
        await self._spill.close()

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The names that a client may choose; for `ready.prompts`."""
        return self._prompts.names

    def prompt(self, name: str | None) -> str:
        """Checks the name that a client chose; returns it, or the operator's default for None.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        return self._prompts.chosen(name)

    def session(self, session_id: str, prompt: str | None, send: SendSummary) -> SessionSummaries:
        """Begins the summaries of a session. Call it on the event loop, and `finish` at the session's end.

        Args:
            prompt: name of the prompt; None is the operator's default.
            send: sends a `Summary` or a `Notice` to the client; called from a task of the session's summaries.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        session = SessionSummaries(
            session_id,
            self.prompt(prompt),
            send,
            self.settings,
            prompts=self._prompts,
            summarizer=self._summarizer,
            spill=self._spill,
            on_end=self._sessions.discard,
        )
        self._sessions.add(session)
        return session

    async def last(self, session_id: str, count: int) -> list[Summary]:
        """The last summaries of a session, oldest first: at most `count` and `summary_keep`; empty if it is unknown."""
        saved = await self._spill.summaries(session_id, min(max(count, 0), self.settings.summary_keep))
        return [summary for data in saved if (summary := _decode(data)) is not None]

    def health(self) -> dict[str, Any]:
        """For `/health/ready`: `state` (ok or degraded), `disk`, `backlog`, and the rest of `Summarizer.health`."""
        sessions = [*self._sessions]
        backlog = {
            "sessions": len(sessions),
            "waiting": sum(session.waiting for session in sessions),
            "pressure": round(max((session.pressure for session in sessions), default=0.0), 3),
        }
        model, disk = self._summarizer.health(), self._spill.health()
        ok = model["state"] == disk["state"] == "ok"
        return {**model, "state": "ok" if ok else "degraded", "disk": disk, "backlog": backlog}

    async def _gauges_loop(self) -> None:
        while True:
            intervals = [session.interval_s for session in self._sessions]
            metrics.SUMMARY_INTERVAL.set(sum(intervals) / len(intervals) if intervals else 0.0)
            await asyncio.sleep(GAUGES_S)

    # --- recovery: observations of ended processes ---

    async def _recover_loop(self) -> None:
        """Recovers now and every minute, after repeating the writes that failed.

        Orphans older than SUMMARY_ORPHAN_HOURS are deleted without a summary.
        """
        while True:
            try:
                await self._spill.catch_up()
                await self._spill.sweep(self.settings.summary_orphan_hours * 3600)
                for session_id in await self._spill.orphans():
                    await self._recover(session_id)
            except Exception:  # the boundary of one recovery: logged and counted; the next one finds what is left
                log.exception("observations of ended processes could not be summarized")
                metrics.SUMMARIES.labels("none", "error").inc()
            await asyncio.sleep(_RECOVERY_S)

    async def _recover(self, session_id: str) -> None:
        """Adopts a session's backlog, and saves one last summary of it."""
        backlog = await Backlog.adopt(session_id, self._spill)
        if backlog is None:
            return  # another worker adopted it first
        observations: list[Observation] = []
        """Taken from the backlog, so that they exist only here: they must be summarized whatever fails."""
        try:
            async with self._summarizer.slot() as slot:
                while more := await backlog.take(max_items=MOST_OBSERVATIONS, max_bytes=MOST_BYTES):
                    observations = merge_evenly([*observations, *more], MOST_OBSERVATIONS)
                if not observations:
                    return
                # The prompt that the session chose and the tokens that it spent are lost with its process.
                prompt = self._prompts.text(self._prompts.default)
                summary, _ = await self._summarizer.summarize(observations, prompt, Spent(), slot=slot)
        except asyncio.CancelledError:  # this process ends, too
            if observations:
                await self._save(session_id, self._summarizer.digest(observations, "finish"))
            raise
        except Exception:
            if observations:
                await self._save(session_id, self._summarizer.digest(observations, "error"))
            raise
        else:
            await self._save(session_id, summary)
            frames = sum(observation.frames for observation in observations)
            log.info("session %s, whose process ended: its last %d frames are summarized", session_id, frames)
        finally:
            await backlog.close(keep=backlog.counts.in_ram + backlog.counts.on_disk > 0)

    async def _save(self, session_id: str, summary: Summary) -> None:
        await self._spill.save_summary(session_id, summary.generated_at_ms, orjson.dumps(summary))


def _decode(data: bytes) -> Summary | None:
    """The summary; None, and counted, if the data is torn or of another version."""
    try:
        fields = orjson.loads(data)
        fields.pop("type", None)
        for name in ("activities", "visible_text", "concerns"):
            fields[name] = tuple(fields[name])
        return Summary(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        metrics.SUMMARY_DISK_ERRORS.labels("summary").inc()
        return None
