"""Summaries of live streams: what a service has one of. The lifespan opens it, the live door asks it for sessions."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path
from typing import Any

import orjson

from app import metrics
from app.protocol.messages import Summary
from app.settings import LlmSettings, SummarySettings
from app.summary.backlog import Backlog
from app.summary.llm import Spent
from app.summary.observations import Observation, fold
from app.summary.prompt import MOST_BYTES, MOST_OBSERVATIONS, Prompts, read_prompts
from app.summary.session import Send, SessionSummaries
from app.summary.spill import Spill
from app.summary.summarizer import Summarizer

__all__ = ["Send", "SessionSummaries", "Summaries"]

log = logging.getLogger(__name__)

_FIGURES_S = 5.0
FINISH_SHARE = 0.3
"""Of DRAIN_TIMEOUT_S: half of it is the frames', and the disk wants some seconds after the summary is written."""


class Summaries:
    """The summarizer, the prompts, the disk and the sessions now summarised."""

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
            workers: processes of this service; each has its part of the bounds that hold over all.
            drain_timeout_s: what a stopping service gives its sessions; a last summary gets FINISH_SHARE of it at most.
        """
        finish_s = settings.summary_finish_s
        if drain_timeout_s is not None and finish_s > FINISH_SHARE * drain_timeout_s:
            finish_s = FINISH_SHARE * drain_timeout_s
            if "summary_finish_s" in settings.model_fields_set:
                log.warning(
                    "SUMMARY_FINISH_S=%g: DRAIN_TIMEOUT_S=%g leaves a last summary %.3g s, and then it is a digest; "
                    "for more, DRAIN_TIMEOUT_S should be %g at least",
                    settings.summary_finish_s,
                    drain_timeout_s,
                    finish_s,
                    math.ceil(settings.summary_finish_s / FINISH_SHARE),
                )
            settings = settings.model_copy(update={"summary_finish_s": finish_s})
        self._settings = settings
        self._spill = Spill(state_dir / "summaries", settings)
        self._summarizer = Summarizer(llm, workers)
        self._prompts = Prompts({}, settings.summary_prompt)
        self._sessions: set[SessionSummaries] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def check(self) -> None:
        """Looks the settings over, without opening anything.

        Raises:
            ConfigurationError: as `open`.
        """
        read_prompts(self._settings)
        self._summarizer.check()

    async def open(self) -> None:
        """Reads the prompts, opens the disk and the model; takes up what dead sessions left, beside everything else.

        Raises:
            ConfigurationError: names the variable, the value seen and what would be right.
        """
        self._prompts = await asyncio.to_thread(read_prompts, self._settings)
        await self._summarizer.open()
        await self._spill.open()
        self._tasks = [
            asyncio.create_task(self._orphans(), name="orphaned summaries"),
            asyncio.create_task(self._figures(), name="figures of summaries"),
        ]

    async def close(self) -> None:
        """Ends every session's summaries as `finish` does, all at once, then the disk and the model."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(one.finish() for one in [*self._sessions]), return_exceptions=True)
        await self._summarizer.close()
        await self._spill.close()

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """What a client may choose; for `ready.prompts`."""
        return self._prompts.names

    def prompt(self, name: str | None) -> str:
        """The name of the prompt in force where a client names this one; the operator's default for None.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        return self._prompts.chosen(name)

    def session(self, session_id: str, prompt: str | None, send: Send) -> SessionSummaries:
        """Begins the summaries of a session. Call it on the event loop, and `finish` at the session's end.

        Args:
            prompt: its name; None: the operator's default.
            send: sends a `Summary` or a `Notice` to the client; called from a task of ours.

        Raises:
            ProtocolError: no prompt has this name; lists those known.
        """
        one = SessionSummaries(
            session_id,
            self.prompt(prompt),
            send,
            self._settings,
            prompts=self._prompts,
            summarizer=self._summarizer,
            spill=self._spill,
            on_end=self._sessions.discard,
        )
        self._sessions.add(one)
        return one

    async def last(self, session_id: str, count: int) -> list[Summary]:
        """The last summaries of a session, oldest first, at most `count` and SUMMARY_KEEP; empty for an unknown one."""
        kept = await self._spill.summaries(session_id, min(max(count, 0), self._settings.summary_keep))
        return [one for data in kept if (one := _decode(data)) is not None]

    def health(self) -> dict[str, Any]:
        """For `/health/ready`: `state` ok or degraded, `model`, `breaker`, the `disk`, and what waits."""
        sessions = [*self._sessions]
        backlog = {
            "sessions": len(sessions),
            "waiting": sum(one.waiting for one in sessions),
            "pressure": round(max((one.pressure for one in sessions), default=0.0), 3),
        }
        model, disk = self._summarizer.health(), self._spill.health()
        well = model["state"] == disk["state"] == "ok"
        return {**model, "state": "ok" if well else "degraded", "disk": disk, "backlog": backlog}

    async def _figures(self) -> None:
        while True:
            intervals = [one.interval_s for one in self._sessions]
            metrics.SUMMARY_INTERVAL.set(sum(intervals) / len(intervals) if intervals else 0.0)
            await asyncio.sleep(_FIGURES_S)

    async def _orphans(self) -> None:
        await take_up_for_ever(self._spill, self._summarizer, self._prompts, self._settings)


def _decode(data: bytes) -> Summary | None:
    """None, counted, for what is no summary: torn, or of another version."""
    try:
        fields = orjson.loads(data)
        fields.pop("type", None)
        for name in ("activities", "visible_text", "concerns"):
            fields[name] = tuple(fields[name])
        return Summary(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        metrics.SUMMARY_DISK_ERRORS.labels("summary").inc()
        return None


# --- what ended processes left ---

log = logging.getLogger(__name__)

_AGAIN_S = 60.0
"""Other workers on this folder may die while we live."""


async def take_up_for_ever(spill: Spill, summarizer: Summarizer, prompts: Prompts, settings: SummarySettings) -> None:
    """At once, and again every minute, after what the disk did not take lately is tried again.

    What is older than SUMMARY_ORPHAN_HOURS is swept, untold.
    """
    while True:
        try:
            await spill.catch_up()
            await spill.sweep(settings.summary_orphan_hours * 3600)
            for session_id in await spill.orphans():
                await _tell(session_id, spill, summarizer, prompts.text(prompts.default))
        except Exception:  # the boundary of one round: logged and counted; what is left is there for the next
            log.exception("what ended sessions left could not be summarised")
            metrics.SUMMARIES.labels("none", "error").inc()
        await asyncio.sleep(_AGAIN_S)


async def _tell(session_id: str, spill: Spill, summarizer: Summarizer, prompt: str) -> None:
    left = await Backlog.adopt(session_id, spill)
    if left is None:
        return  # another worker was quicker
    observations: list[Observation] = []
    """Out of the backlog: in our hands alone, whatever comes."""
    try:
        async with summarizer.turn() as slot:
            while more := await left.take(max_items=MOST_OBSERVATIONS, max_bytes=MOST_BYTES):
                observations = fold([*observations, *more], MOST_OBSERVATIONS)
            if not observations:
                return
            # Of what the session chose and spent nothing is known any more.
            summary, _ = await summarizer.summary(observations, prompt, Spent(), slot=slot)
    except asyncio.CancelledError:  # we end, too
        if observations:
            await _keep(session_id, spill, summarizer.digest(observations, "finish"))
        raise
    except Exception:
        if observations:
            await _keep(session_id, spill, summarizer.digest(observations, "error"))
        raise
    else:
        await _keep(session_id, spill, summary)
        frames = sum(one.frames for one in observations)
        log.info("session %s was left by a process that ended: its last %d frames are told", session_id, frames)
    finally:
        await left.close(keep=left.counts.in_ram + left.counts.on_disk > 0)


async def _keep(session_id: str, spill: Spill, summary: Summary) -> None:
    await spill.save_summary(session_id, summary.generated_at_ms, orjson.dumps(summary))
