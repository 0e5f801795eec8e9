"""The language model: one question, and an answer of the right form or a reason why there is none.

Around every request: a free slot of LLM_MAX_IN_FLIGHT, the time that the server asked for, and the breaker. What failed
on the way is repeated with jitter; an answer that does not fit, or that is refused, is asked for once more.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app import metrics
from app.errors import SightlineError
from app.settings import LlmSettings
from app.summary.answer import NotFitting, Words, ask_again, words_of
from app.summary.breaker import Breaker, State
from app.summary.budget import Spent
from app.summary.request import BudgetSpent, Messages, Requests
from app.summary.retry import WORTH_REPEATING, Reason, pause_s, reason_of, retry_after_s, unusable

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""How often somebody who waits as the server asked looks whether the model is left alone by now."""
_HINTS: dict[str, str] = {
    "unauthorized": "it does not take the key, see LLM_API_KEY",
    "rejected": "it does not take the request, see LLM_MODEL and LLM_BASE_URL",
    "timeout": "no answer within LLM_TIMEOUT_S",
    "rate_limited": "it is asked too often",
    "unavailable": "it cannot be reached, or fails",
}


_NAMES_OF_FORMS = re.compile("response_format|schema|grammar|tool|function", re.IGNORECASE)


class NoAnswer(SightlineError):
    """The model gave no summary. `reason` is the counter's outcome."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LanguageModel:
    """One a process. LLM_MAX_IN_FLIGHT, the budget of an hour and the breaker hold over all its sessions."""

    def __init__(self, settings: LlmSettings, workers: int = 1) -> None:
        """`workers`: processes that share LLM_MAX_IN_FLIGHT and the budget of an hour; this one has its part."""
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.part(workers).llm_max_in_flight)
        self._breaker = Breaker(settings.llm_breaker_failures, settings.llm_breaker_s)
        self._requests = Requests(settings, workers)
        self._asked_until = float("-inf")
        """Monotonic seconds. Until then nothing is sent for any session: the server asked for that time."""

    async def open(self) -> None:
        """Raises ConfigurationError: LLM_MODEL, its key or its package is wrong."""
        await self._requests.open()
        metrics.LLM_BREAKER_OPEN.set(0)

    async def close(self) -> None:
        """Nothing may be asked any more."""
        await self._requests.close()

    @property
    def form(self) -> str | None:
        """How the model is made to answer with the form of a summary: `json_schema`, or a simpler one."""
        return self._requests.form

    @property
    def name(self) -> str:
        return self._settings.llm_model or ""

    @property
    def breaker(self) -> State:
        return self._breaker.state(time.monotonic())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Whether there is a slot of LLM_MAX_IN_FLIGHT, first come first served.

        While the model is left alone none is waited for, and none is had, should that time end meanwhile.
        """
        if self.breaker == "open":
            yield False
            return
        async with self._slots:
            yield True

    async def ask(self, system: str, question: str, session: Spent, *, slot: bool) -> Words:
        """The answer in words. Call it within `turn`; cancelling gives the request up.

        Args:
            slot: what `turn` gave. Without one nothing is sent.
            system: rules, and the operator's prompt.
            question: the fenced observations.
            session: what the session spent so far; added to.

        Raises:
            NoAnswer: with the reason; the digest is due.
        """
        if not slot:
            raise self._left_alone()
        messages: Messages = [("system", system), ("human", question)]
        form = self._requests.form
        try:
            return await self._fitting(messages, session)
        except NotFitting as error:
            if not error.refused:
                self._requests.simpler(form)
            # Asked again with the reason, not with the first answer, which may be long, or be the trouble itself.
            messages.append(("human", ask_again(str(error))))
        form = self._requests.form
        try:
            return await self._fitting(messages, session)
        except NotFitting as error:
            if not error.refused:
                self._requests.simpler(form)
                self._requests.doubt(form)
            reason: Reason = "refused" if error.refused else "unparsable"
            if not error.refused:  # a refusal is about what one session saw; it must not silence the others
                self._failed("no answer that fits")
            cause = f" ({self._short(error.__cause__)})" if error.__cause__ is not None else ""
            raise NoAnswer(reason, f"{self.name} answered twice without a summary: {error}{cause}") from None

    async def _fitting(self, messages: Messages, session: Spent) -> Words:
        try:
            words = words_of(await self._with_retries(messages, session))
        except NotFitting as error:
            metrics.LLM_REQUESTS.labels("refused" if error.refused else "unparsable").inc()
            self._breaker.unsaid()
            raise
        metrics.LLM_REQUESTS.labels("ok").inc()
        self._requests.fitted()
        before = self.breaker
        self._breaker.succeeded(time.monotonic())
        if before != "closed" and self.breaker == "closed":
            log.info("the language model %s answers again", self.name)
            metrics.LLM_BREAKER_OPEN.set(0)
        return words

    async def _with_retries(self, messages: Messages, session: Spent) -> Any:
        attempt = 0
        while True:
            attempt += 1
            await self._wait_as_asked()
            if not self._breaker.allows(time.monotonic()):
                raise self._left_alone()
            form = self._requests.form
            try:
                return await self._requests.send(messages, session)
            except BudgetSpent as error:
                self._breaker.unsaid()
                raise NoAnswer("budget", str(error)) from None
            except asyncio.CancelledError:
                self._breaker.unsaid()
                raise
            except Exception as error:  # the boundary of one request: classified and counted
                if _of_the_form(error) and self._requests.simpler(form):
                    metrics.LLM_REQUESTS.labels("rejected").inc()
                    self._breaker.unsaid()
                    attempt -= 1
                    continue
                asked_s = self._note(error)
                again = reason_of(error) in WORTH_REPEATING and attempt <= self._settings.llm_retries
                if not again or self.breaker != "closed":
                    reason = reason_of(error)
                    raise NoAnswer(reason, f"{self.name}: {_HINTS[reason]} ({self._short(error)})") from None
            await asyncio.sleep(pause_s(attempt, asked_s, random.random()))

    async def _wait_as_asked(self) -> None:
        """Not while the model is left alone: a digest is due at once."""
        while (left_s := self._asked_until - time.monotonic()) > 0 and self.breaker != "open":  # noqa: ASYNC110  others move both
            await asyncio.sleep(min(_LOOK_S, pause_s(1, left_s, random.random())))

    def _left_alone(self) -> NoAnswer:
        return NoAnswer("breaker_open", f"{self.name} is left alone after failures")

    def _note(self, error: Exception) -> float | None:
        """Counts a request that failed; returns the seconds that the server asked for.

        Raises:
            NotFitting: an answer came, but no chat completion: something else than a model listens there.
        """
        reason, asked_s = reason_of(error), retry_after_s(error)
        if reason == "unparsable":
            raise NotFitting("it is no chat completion") from error
        metrics.LLM_REQUESTS.labels(reason).inc()
        hold_s = None
        if asked_s is not None and asked_s > self._settings.llm_timeout_s:
            hold_s = asked_s  # more than anybody would wait for: the model is left alone at once
        elif asked_s is not None:
            self._asked_until = max(self._asked_until, time.monotonic() + asked_s)
        self._failed(f"{_HINTS[reason]} ({self._short(error)})", hold_s)
        return asked_s

    def _failed(self, why: str, hold_s: float | None = None) -> None:
        before, now = self.breaker, time.monotonic()
        self._breaker.failed(now)
        if hold_s is not None:
            self._breaker.hold(now, hold_s)
        if self.breaker == "open":
            metrics.LLM_BREAKER_OPEN.set(1)
            if before != "open":
                log.warning("the language model %s is left alone for a while, digests instead: %s", self.name, why)

    def _short(self, error: BaseException) -> str:
        """For the log: one line, without the key that some servers quote."""
        known = unusable(error)
        text = str(known) if known is not None else f"{type(error).__name__}: {error}".removesuffix(": ")
        text = text.replace("\n", " ")
        for key in (self._settings.llm_api_key, self._settings.openai_api_key, self._settings.anthropic_api_key):
            if key is not None and key.get_secret_value():
                text = text.replace(key.get_secret_value(), "…")
        return text[:200]


def _of_the_form(error: BaseException) -> bool:
    """Whether a server may have refused a request for the form that the answer was asked for in.

    Servers that do not know `json_schema` say so in many ways; a simpler form is tried after any of these.
    """
    status = getattr(error, "status_code", None)
    return status in (400, 415, 422, 501) or (status == 500 and _NAMES_OF_FORMS.search(str(error)) is not None)
