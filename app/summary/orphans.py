"""What sessions of ended processes left on disk: told in one last summary each, then removed."""

from __future__ import annotations

import asyncio
import logging

import orjson

from app import metrics
from app.protocol.messages import Summary
from app.settings import SummarySettings
from app.summary.budget import Spent
from app.summary.format import MOST_BYTES, MOST_OBSERVATIONS, fold
from app.summary.observation import Observation
from app.summary.prompts import Prompts
from app.summary.spill import Spill
from app.summary.summarizer import Summarizer

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
    left = await spill.adopt(session_id)
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
