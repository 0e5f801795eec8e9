"""The language model: one question, and an answer of the right form or a reason why there is none.

Around every request: a free slot of LLM_MAX_IN_FLIGHT, the breaker, the budget, LLM_TIMEOUT_S. What failed on the way
is repeated with jitter; an answer that does not fit, or that is refused, is asked for once more.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app import metrics
from app.errors import SightlineError
from app.settings import LlmSettings
from app.summary import provider
from app.summary.answer import NotFitting, Words, ask_again, words_of
from app.summary.breaker import Breaker, State
from app.summary.budget import VARIABLES, Budget, Reservation, Spent, estimate_tokens
from app.summary.retry import WORTH_REPEATING, Reason, pause_s, reason_of, retry_after_s

log = logging.getLogger(__name__)

_HINTS: dict[str, str] = {
    "unauthorized": "it does not take the key: see LLM_API_KEY",
    "rejected": "it does not take the request: see LLM_MODEL and LLM_BASE_URL",
    "timeout": "no answer within LLM_TIMEOUT_S",
}


class NoAnswer(SightlineError):
    """The model gave no summary. `reason` is the counter's outcome."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LanguageModel:
    """One a process. `LLM_MAX_IN_FLIGHT`, the budget an hour and the breaker hold over all its sessions."""

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.llm_max_in_flight)
        self._breaker = Breaker(settings.llm_breaker_failures, settings.llm_breaker_s)
        self._budget = Budget(settings)
        self._chat: provider.Chat | None = None
        self._tracing: Any = None
        self._bound: str | None = None
        """The bound of the budget that was reached last; said once."""

    async def open(self) -> None:
        """Imports and makes the client; sends nothing.

        Raises:
            ConfigurationError: LLM_MODEL, its key or its package is wrong.
        """
        self._chat = await asyncio.to_thread(provider.connect, self._settings)
        # LangChain reports every request to LangSmith where LANGSMITH_TRACING (or LANGCHAIN_TRACING_V2) is set, be it
        # for something else on the machine. What cameras saw goes to the model and to nobody else.
        from langsmith.run_helpers import tracing_context

        self._tracing = tracing_context
        metrics.LLM_BREAKER_OPEN.set(0)

    async def close(self) -> None:
        """Closes the connections. Nothing may be asked any more."""
        if self._chat is not None:
            chat, self._chat = self._chat, None
            await chat.close()

    @property
    def name(self) -> str:
        return self._settings.llm_model or ""

    @property
    def breaker(self) -> State:
        return self._breaker.state(time.monotonic())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A slot of LLM_MAX_IN_FLIGHT, first come first served. None is waited for while the model is left alone."""
        if self.breaker == "open":
            yield
            return
        async with self._slots:
            yield

    async def ask(self, system: str, question: str, session: Spent) -> Words:
        """The answer in words. Call it within `turn`.

        Args:
            system: rules, and the operator's prompt.
            question: the fenced observations.
            session: what the session spent so far; added to.

        Raises:
            NoAnswer: with the reason; the digest is due.
        """
        messages: list[tuple[str, str]] = [("system", system), ("human", question)]
        try:
            return await self._fitting(messages, session)
        except NotFitting as error:
            # Asked again with the reason, not with the first answer, which may be long, or be the trouble itself.
            messages.append(("human", ask_again(str(error))))
        try:
            return await self._fitting(messages, session)
        except NotFitting as error:
            self._failed()
            reason: Reason = "refused" if error.refused else "unparsable"
            raise NoAnswer(reason, f"{self.name} answered twice without a summary: {error}") from None

    async def _fitting(self, messages: list[tuple[str, str]], session: Spent) -> Words:
        answer = await self._with_retries(messages, session)
        try:
            words = words_of(answer)
        except NotFitting as error:
            metrics.LLM_REQUESTS.labels("refused" if error.refused else "unparsable").inc()
            self._breaker.unsaid()
            raise
        metrics.LLM_REQUESTS.labels("ok").inc()
        if self._breaker.state(time.monotonic()) != "closed":
            log.info("the language model %s answers again", self.name)
        self._breaker.succeeded()
        metrics.LLM_BREAKER_OPEN.set(0)
        return words

    async def _with_retries(self, messages: list[tuple[str, str]], session: Spent) -> dict[str, Any]:
        attempt = 0
        while True:
            attempt += 1
            if not self._breaker.allows(time.monotonic()):
                raise NoAnswer("breaker_open", f"{self.name} is left alone after failures")
            try:
                return await self._request(messages, session)
            except NoAnswer:
                raise
            except Exception as error:  # the boundary of one request: classified and counted
                reason, asked_s = reason_of(error), retry_after_s(error)
                metrics.LLM_REQUESTS.labels(reason).inc()
                if reason == "unparsable":
                    # A 200 whose body is no chat completion: something else than a model listens there.
                    raise NotFitting(f"no chat completion ({type(error).__name__})") from None
                too_long = asked_s is not None and asked_s > self._settings.llm_timeout_s
                self._failed(f"{_HINTS.get(reason, reason)} ({_short(error)})", asked_s if too_long else None)
                if reason not in WORTH_REPEATING or attempt > self._settings.llm_retries or self.breaker != "closed":
                    raise NoAnswer(reason, f"{self.name}: {_short(error)}") from None
            await asyncio.sleep(pause_s(attempt, asked_s, random.random()))

    async def _request(self, messages: list[tuple[str, str]], session: Spent) -> dict[str, Any]:
        """One request on the wire, paid for."""
        assert self._chat is not None, "asked before open or after close"
        estimate = sum(estimate_tokens(text) for _, text in messages)
        begun = time.monotonic()
        held = self._reserve(begun, session, estimate)
        used = (0, 0)
        try:
            with self._tracing(enabled=False):
                async with asyncio.timeout(self._settings.llm_timeout_s):
                    answer: dict[str, Any] = await self._chat.structured.ainvoke(messages)
            used = _usage(answer, estimate)
            return answer
        except asyncio.CancelledError:
            used = (estimate, 0)  # it was sent, so it was read; what was written in vain nobody tells us
            self._breaker.unsaid()
            raise
        except Exception as error:
            if reason_of(error) in ("timeout", "unparsable"):
                used = (estimate, 0)
            raise
        finally:
            now = time.monotonic()
            self._budget.settle(now, session, held, *used)
            metrics.LLM_SECONDS.observe(now - begun)
            metrics.LLM_TOKENS.labels("input").inc(used[0])
            metrics.LLM_TOKENS.labels("output").inc(used[1])

    def _reserve(self, now: float, session: Spent, estimate: int) -> Reservation:
        held = self._budget.reserve(now, session, estimate, self._settings.llm_max_output_tokens)
        if isinstance(held, Reservation):
            if self._bound in ("hour_tokens", "hour_cost"):
                self._bound = None
            return held
        self._breaker.unsaid()
        if held != self._bound:
            self._bound = held
            log.warning("%s is reached: digests until there is room again", VARIABLES[held])
        raise NoAnswer("budget", f"{VARIABLES[held]} is reached")

    def _failed(self, why: str = "no answer that fits", hold_s: float | None = None) -> None:
        """`hold_s`: the server asked to be left alone for longer than anybody would wait."""
        before, now = self.breaker, time.monotonic()
        self._breaker.failed(now)
        if hold_s is not None:
            self._breaker.hold(now, hold_s)
        if self.breaker == "open":
            metrics.LLM_BREAKER_OPEN.set(1)
            if before != "open":
                log.warning("the language model %s is left alone for a while, digests instead: %s", self.name, why)


def _usage(answer: dict[str, Any], estimate: int) -> tuple[int, int]:
    """Input and output tokens as the server says; our estimate where it says nothing."""
    raw = answer.get("raw")
    told = getattr(raw, "usage_metadata", None)
    if told:
        return int(told.get("input_tokens") or 0), int(told.get("output_tokens") or 0)
    return estimate, estimate_tokens(str(getattr(raw, "content", "")))


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
