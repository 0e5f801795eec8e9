"""Writes a summary from observations: by the language model if it answers, else by rule."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from app import metrics
from app.errors import ConfigurationError
from app.protocol.messages import Summary
from app.settings import LlmSettings
from app.summary.answer import SummaryContent
from app.summary.digest import digest
from app.summary.llm import LanguageModel, NoAnswer, Spent
from app.summary.observations import Observation
from app.summary.prompt import question, system
from app.summary.provider import check

log = logging.getLogger(__name__)


class Summarizer:
    """Shared by all sessions of the process."""

    def __init__(self, settings: LlmSettings, workers: int = 1) -> None:
        """`workers`: processes that share the bounds over all sessions, see `LanguageModel`."""
        self._settings = settings
        self._workers = workers
        self._model = LanguageModel(settings, workers) if settings.llm_model else None
        self._last_reason: str | None = None
        self._trouble: str | None = None
        """Why the model's client could not be made. Summaries are then digests until the service is restarted."""

    def check(self) -> None:
        """Checks the settings without importing anything.

        Raises:
            ConfigurationError: see `provider.check`.
        """
        if self._model is not None:
            check(self._settings)

    async def open(self) -> None:
        """Makes the model's client. If that fails for another reason than the settings, summaries are digests.

        Raises:
            ConfigurationError: LLM_MODEL, its key or its package is wrong.
        """
        if self._model is not None:
            try:
                await self._model.open()
            except ConfigurationError:
                raise
            except Exception as error:  # the boundary of an optional part: a proxy of an unknown kind, a broken package
                self._trouble = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
                log.warning(
                    "LLM_MODEL=%s: its client cannot be made, so that summaries are digests until a restart; "
                    "check HTTPS_PROXY, ALL_PROXY and the installed packages: %s",
                    self._model.name,
                    self._trouble,
                )
                return
            log.info("summaries by %s", self._model.name)
            if self._workers > 1:
                mine = self._settings.part(self._workers)
                log.info(
                    "this worker's part (1 of %d): LLM_MAX_IN_FLIGHT %d, LLM_HOUR_TOKENS %d",
                    self._workers,
                    mine.llm_max_in_flight,
                    mine.llm_hour_tokens,
                )
        elif self._settings.llm_base_url or self._settings.llm_api_key:
            log.warning("LLM_BASE_URL or LLM_API_KEY is set, but LLM_MODEL is not: summaries are digests")

    async def close(self) -> None:
        """Closes the model's client."""
        if self._model is not None:
            await self._model.close()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[bool]:
        """Waits until the model may be asked, and yields True; yields False at once if it will not be asked.

        Take the observations only inside, so that the summary covers those that arrived during the wait.
        """
        if self._model is None or self._trouble is not None:
            yield False
            return
        async with self._model.slot() as slot:
            yield slot

    async def summarize(
        self, observations: Sequence[Observation], prompt: str, spent: Spent, *, slot: bool
    ) -> tuple[Summary, bool]:
        """Writes a summary. Call it within `slot`.

        Args:
            observations: of one session, oldest first; at least one.
            prompt: the operator's text.
            spent: what the session has spent so far; this request is added.
            slot: what `slot` yielded.

        Returns:
            The summary, and whether the model was asked and failed.
        """
        if self._model is None:
            return self.digest(observations, "no_model"), False
        if self._trouble is not None:
            return self.digest(observations, "unavailable"), False
        try:
            content = await self._model.ask(system(prompt), question(observations), spent, slot=slot)
        except NoAnswer as error:
            self._log(error)
            return self.digest(observations, error.reason), error.reason not in ("budget", "breaker_open")
        self._last_reason = None
        metrics.SUMMARIES.labels("llm", "ok").inc()
        return _message("llm", content, observations), False

    def digest(self, observations: Sequence[Observation], why: str) -> Summary:
        """Writes a summary by rule. `why`: the counter's outcome, which says why the model did not write it."""
        metrics.SUMMARIES.labels("digest", why).inc()
        return _message("digest", digest(observations), observations)

    def _log(self, error: NoAnswer) -> None:
        if error.reason != self._last_reason:  # so that a lasting failure is not logged with every summary
            self._last_reason = error.reason
            log.warning("the model wrote no summary, so a digest replaces it: %s", error)

    def health(self) -> dict[str, Any]:
        """`state`: ok; degraded while the circuit breaker is not closed, or if the client could not be made (`error`).

        `form`: how the model is made to answer in the form of a summary.
        """
        if self._model is None:
            return {"state": "ok", "model": None, "breaker": None, "form": None}
        known = {"model": self._model.name, "breaker": self._model.breaker, "form": self._model.form}
        if self._trouble is not None:
            return {"state": "degraded", **known, "error": self._trouble}
        return {"state": "ok" if self._model.breaker == "closed" else "degraded", **known}


def _message(source: Any, content: SummaryContent, observations: Sequence[Observation]) -> Summary:
    return Summary(
        source=source,
        title=content.title,
        scene=content.scene,
        activities=content.activities,
        visible_text=content.visible_text,
        concerns=content.concerns,
        confidence=content.confidence,
        first_frame_id=observations[0].first_frame_id,
        last_frame_id=observations[-1].last_frame_id,
        generated_at_ms=round(time.time() * 1000, 3),
    )
