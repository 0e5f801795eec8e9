"""Requests to the language model: each returns the content of a summary, or raises `NoAnswer` with the reason.

A request goes out when a slot of LLM_MAX_IN_FLIGHT is free, the time that the server asked for is over, the circuit
breaker is closed and the budget has room. A request that fails in transit is retried with jitter; after an
invalid answer or a refusal, one more request is sent.

In this file: `LanguageModel`, then what it alone uses: the client, the circuit breaker, the budget, and how failures
are classified and retried. The last three do no I/O; their callers pass the time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from app import metrics
from app.errors import SightlineError
from app.settings import LlmSettings
from app.summary import provider
from app.summary.answer import InvalidAnswer, SummaryAnswer, SummaryContent, correction, parse_answer, schema_prompt
from app.summary.provider import UnusableAnswer

log = logging.getLogger(__name__)

Messages = list[tuple[str, str]]
"""Role (`system`, `human`) and text."""

_POLL_S = 1.0
"""Seconds between two checks of the breaker while a request waits for the time that the server asked for."""
_HINTS: dict[str, str] = {
    "unauthorized": "the server rejects the key, see LLM_API_KEY",
    "rejected": "the server rejects the request, see LLM_MODEL and LLM_BASE_URL",
    "timeout": "no answer within LLM_TIMEOUT_S",
    "rate_limited": "the server limits the rate of requests",
    "unavailable": "the server cannot be reached, or fails",
}
_FORM_WORDS = re.compile("response_format|schema|grammar|tool|function", re.IGNORECASE)


class NoAnswer(SightlineError):
    """The model gave no summary, so that a digest is due. `reason` is the counter's outcome."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BudgetSpent(SightlineError):
    """Nothing was sent, because the request would exceed a bound of the budget. The message names its variable."""


class LanguageModel:
    """One per process. LLM_MAX_IN_FLIGHT, the hourly budget and the breaker hold over all its sessions."""

    def __init__(self, settings: LlmSettings, workers: int = 1) -> None:
        """`workers`: processes that share LLM_MAX_IN_FLIGHT and the hourly budget; this one gets its part of both."""
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.part(workers).llm_max_in_flight)
        self._breaker = CircuitBreaker(settings.llm_breaker_failures, settings.llm_breaker_s)
        self._client = _ModelClient(settings, workers)
        self._asked_until = float("-inf")
        """Monotonic seconds until which nothing is sent for any session, because the server asked for that time."""

    async def open(self) -> None:
        """Imports the provider and makes the client; sends nothing.

        Raises:
            ConfigurationError: LLM_MODEL, its key or its package is wrong.
            Exception: anything else that keeps the client from being made, such as a proxy of an unknown kind.
        """
        await self._client.open()
        metrics.LLM_BREAKER_OPEN.set(0)

    async def close(self) -> None:
        """Closes the connections. Nothing may be asked afterwards."""
        await self._client.close()

    @property
    def form(self) -> str | None:
        """The form in which the model is asked to answer: `json_schema`, or a simpler one; None before `open`."""
        return self._client.form

    @property
    def name(self) -> str:
        """LLM_MODEL."""
        return self._settings.llm_model or ""

    @property
    def breaker(self) -> BreakerState:
        """State of the circuit breaker."""
        return self._breaker.state(time.monotonic())

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[bool]:
        """Waits for a slot of LLM_MAX_IN_FLIGHT, first come first served, and holds it. Yields whether there is one.

        While the breaker is open it yields False at once; that stays False even if the breaker closes meanwhile.
        """
        if self.breaker == "open":
            yield False
            return
        async with self._slots:
            yield True

    async def ask(self, system: str, question: str, session: Spent, *, slot: bool) -> SummaryContent:
        """Asks for a summary. Call it within `slot`; cancelling abandons the request.

        Args:
            system: the rules, and the operator's prompt.
            question: the fenced observations.
            session: what the session has spent so far; this request is added.
            slot: what `slot` yielded. Without a slot nothing is sent.

        Raises:
            NoAnswer: with the reason.
        """
        if not slot:
            raise self._breaker_open()
        messages: Messages = [("system", system), ("human", question)]
        form = self._client.form
        try:
            return await self._valid(messages, session)
        except InvalidAnswer as error:
            if not error.refused:
                self._client.simplify(form)
            # The second request carries the reason and not the first answer, which may be long, or be the cause.
            messages.append(("human", correction(str(error))))
        form = self._client.form
        try:
            return await self._valid(messages, session)
        except InvalidAnswer as error:
            if not error.refused:
                self._client.simplify(form)
                self._client.doubt(form)
            reason: Reason = "refused" if error.refused else "unparsable"
            if not error.refused:  # a refusal concerns what one session showed, so it must not open the breaker for all
                self._failed("its answer is not a summary")
            cause = f" ({self._brief(error.__cause__)})" if error.__cause__ is not None else ""
            raise NoAnswer(reason, f"{self.name} answered twice without a summary: {error}{cause}") from None

    async def _valid(self, messages: Messages, session: Spent) -> SummaryContent:
        try:
            content = parse_answer(await self._with_retries(messages, session))
        except InvalidAnswer as error:
            metrics.LLM_REQUESTS.labels("refused" if error.refused else "unparsable").inc()
            self._breaker.released()
            raise
        metrics.LLM_REQUESTS.labels("ok").inc()
        self._client.confirm()
        before = self.breaker
        self._breaker.succeeded(time.monotonic())
        if before != "closed" and self.breaker == "closed":
            log.info("the language model %s answers again", self.name)
            metrics.LLM_BREAKER_OPEN.set(0)
        return content

    async def _with_retries(self, messages: Messages, session: Spent) -> Any:
        attempt = 0
        while True:
            attempt += 1
            await self._wait_as_asked()
            if not self._breaker.allows(time.monotonic()):
                raise self._breaker_open()
            form = self._client.form
            try:
                return await self._client.send(messages, session)
            except BudgetSpent as error:
                self._breaker.released()
                raise NoAnswer("budget", str(error)) from None
            except asyncio.CancelledError:
                self._breaker.released()
                raise
            except Exception as error:  # the boundary of one request: classified and counted
                if _may_reject_form(error) and self._client.simplify(form):
                    metrics.LLM_REQUESTS.labels("rejected").inc()
                    self._breaker.released()
                    attempt -= 1
                    continue
                asked_s = self._note(error)
                again = reason_of(error) in WORTH_REPEATING and attempt <= self._settings.llm_retries
                if not again or self.breaker != "closed":
                    reason = reason_of(error)
                    raise NoAnswer(reason, f"{self.name}: {_HINTS[reason]} ({self._brief(error)})") from None
            await asyncio.sleep(pause_s(attempt, asked_s, random.random()))

    async def _wait_as_asked(self) -> None:
        """Waits until the time that the server asked for is over, or the breaker opens, so that a digest is due."""
        while (left_s := self._asked_until - time.monotonic()) > 0 and self.breaker != "open":  # noqa: ASYNC110  others move both
            await asyncio.sleep(min(_POLL_S, pause_s(1, left_s, random.random())))

    def _breaker_open(self) -> NoAnswer:
        return NoAnswer("breaker_open", f"the circuit breaker of {self.name} is open after failures")

    def _note(self, error: Exception) -> float | None:
        """Counts a failed request; returns the seconds that the server asked for.

        Raises:
            InvalidAnswer: the answer was not a chat completion, so that something other than a model listens there.
        """
        reason, asked_s = reason_of(error), retry_after_s(error)
        if reason == "unparsable":
            raise InvalidAnswer("it is no chat completion") from error
        metrics.LLM_REQUESTS.labels(reason).inc()
        hold_s = None
        if asked_s is not None and asked_s > self._settings.llm_timeout_s:
            hold_s = asked_s  # longer than any session waits for an answer, so the breaker opens at once
        elif asked_s is not None:
            self._asked_until = max(self._asked_until, time.monotonic() + asked_s)
        self._failed(f"{_HINTS[reason]} ({self._brief(error)})", hold_s)
        return asked_s

    def _failed(self, why: str, hold_s: float | None = None) -> None:
        before, now = self.breaker, time.monotonic()
        self._breaker.failed(now)
        if hold_s is not None:
            self._breaker.hold(now, hold_s)
        if self.breaker == "open":
            metrics.LLM_BREAKER_OPEN.set(1)
            if before != "open":
                log.warning(
                    "the circuit breaker of the language model %s opens, so that summaries are digests: %s",
                    self.name,
                    why,
                )

    def _brief(self, error: BaseException) -> str:
        """The error for the log: one line, without the key that some servers quote."""
        known = unusable(error)
        text = str(known) if known is not None else f"{type(error).__name__}: {error}".removesuffix(": ")
        text = text.replace("\n", " ")
        for key in (self._settings.llm_api_key, self._settings.openai_api_key, self._settings.anthropic_api_key):
            if key is not None and key.get_secret_value():
                text = text.replace(key.get_secret_value(), "…")
        return text[:200]


def _may_reject_form(error: BaseException) -> bool:
    """Whether the server may have rejected the request because of the form that the answer was asked for in.

    Servers that do not know `json_schema` report it in many ways, so a simpler form is tried after any of these.
    """
    status = getattr(error, "status_code", None)
    return status in (400, 415, 422, 501) or (status == 500 and _FORM_WORDS.search(str(error)) is not None)


# --- the client ---


class _ModelClient:
    """Sends one request: within LLM_TIMEOUT_S and the budget, in the form that the model takes, and traced nowhere."""

    def __init__(self, settings: LlmSettings, workers: int) -> None:
        self._settings = settings
        self._budget = Budget(settings.part(workers))
        self._chat: provider.ChatModel | None = None
        self._forms: list[provider.Form] = []
        self._form = 0
        self._confirmed = False
        """Whether the model has answered in this form, so that one invalid answer does not show that it cannot."""
        self._tracing: Any = None
        self._reached: Bound | None = None
        """The bound that was reached last, so that it is logged once."""

    async def open(self) -> None:
        """As `LanguageModel.open`."""
        self._chat = await asyncio.to_thread(provider.connect, self._settings)
        self._forms = list(self._chat.forms)
        # LangChain reports every request to LangSmith if LANGSMITH_TRACING (or LANGCHAIN_TRACING_V2) is set, perhaps
        # for another program on the machine. What cameras showed must go to the model and to nothing else.
        from langsmith import tracing_context

        self._tracing = tracing_context

    async def close(self) -> None:
        if self._chat is not None:
            chat, self._chat = self._chat, None
            await chat.close()

    @property
    def form(self) -> provider.Form | None:
        """The form in which the model is asked to answer; None before `open`."""
        return self._forms[self._form] if self._forms else None

    def confirm(self) -> None:
        """Records that the model answered in the current form."""
        self._confirmed = True

    def simplify(self, form: provider.Form | None) -> bool:
        """Goes on to a simpler form than `form`, unless the model has answered in it.

        After the simplest it starts again with the first, because then the form was not the cause.

        Returns:
            Whether the request should be repeated.
        """
        if form != self.form:  # a request of another session has gone on to the next form meanwhile
            return True
        if self._confirmed:
            return False
        self._form = (self._form + 1) % len(self._forms)
        self._confirmed = False
        if not self._form:
            return False
        log.info("%s does not answer in the form %s; trying %s", self._settings.llm_model, form, self.form)
        return True

    def doubt(self, form: provider.Form | None) -> None:
        """Records that the model no longer answers in this form."""
        if form == self.form:
            self._confirmed = False

    async def send(self, messages: Messages, session: Spent) -> Any:
        """Sends one request; returns the answer, an AIMessage of LangChain.

        Raises:
            BudgetSpent: nothing was sent.
            Exception: what the provider's client raises, and TimeoutError after LLM_TIMEOUT_S; see `reason_of`.
        """
        assert self._chat is not None, "sent before open or after close"
        form = self._forms[self._form]
        if form in ("json_object", "text"):  # with the other forms the schema is a part of the request
            (role, rules), *rest = messages
            messages = [(role, f"{rules}\n\n{schema_prompt()}"), *rest]
        estimate = _FORM_TOKENS + sum(estimate_tokens(text) for _, text in messages)
        begun = time.monotonic()
        reservation = self._reserve(begun, session, estimate)
        used = (0, 0)
        unseen = 0
        try:
            with self._tracing(enabled=False):
                async with asyncio.timeout(self._settings.llm_timeout_s):
                    answer = await self._chat.forms[form].ainvoke(messages)
            used = _usage(answer, estimate)
            return answer
        except asyncio.CancelledError:
            used, unseen = (estimate, 0), self._settings.llm_max_output_tokens
            metrics.LLM_REQUESTS.labels("cancelled").inc()
            raise
        except Exception as error:
            if reason_of(error) in ("timeout", "unparsable"):
                used, unseen = (estimate, 0), self._settings.llm_max_output_tokens
            raise
        finally:
            now = time.monotonic()
            # The provider charges for an answer that never arrived, and does not report its length: count the longest.
            self._budget.settle(now, session, reservation, used[0], used[1] + unseen)
            metrics.LLM_SECONDS.observe(now - begun)
            metrics.LLM_TOKENS.labels("input").inc(used[0])
            metrics.LLM_TOKENS.labels("output").inc(used[1])

    def _reserve(self, now: float, session: Spent, estimate: int) -> Reservation:
        reservation = self._budget.reserve(now, session, estimate, self._settings.llm_max_output_tokens)
        if isinstance(reservation, Reservation):
            if self._reached != "session_tokens":  # that another session has room changes nothing for this bound
                self._reached = None
            return reservation
        if reservation != self._reached:
            self._reached = reservation
            log.warning("%s is reached: summaries are digests until there is room again", VARIABLES[reservation])
        raise BudgetSpent(f"{VARIABLES[reservation]} is reached")


def _usage(answer: Any, estimate: int) -> tuple[int, int]:
    """Input and output tokens as the server reports them; an estimate where it reports none."""
    reported = getattr(answer, "usage_metadata", None) or {}
    output = reported.get("output_tokens") or estimate_tokens(str(getattr(answer, "content", "")))
    return int(reported.get("input_tokens") or estimate), int(output)


# --- the circuit breaker ---

BreakerState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Opens after N failures in a row; half-open admits one probe. `now` is seconds of a monotonic clock.

    closed ──failures in a row──▶ open ──a pause──▶ half-open ──one success──▶ closed
                                               ▲                          │
                                               └────────one failure───────┘
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self._allowed = failures
        self._open_s = open_s
        self._failures = 0
        self._until: float | None = None
        self._held_until = float("-inf")
        self._probing = False

    def state(self, now: float) -> BreakerState:
        """The state at `now`."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now. Half-open, this is True once: the caller must then report the outcome."""
        state = self.state(now)
        if state == "half-open" and not self._probing:
            self._probing = True
            return True
        return state == "closed"

    def succeeded(self, now: float) -> None:
        """Records a success. A `hold` stays in force, because the answer may be to a request sent before it."""
        self._failures, self._probing = 0, False
        if now >= self._held_until:
            self._until = None

    def failed(self, now: float) -> None:
        """Records a failure."""
        self._failures += 1
        if self._probing or self._failures >= self._allowed:
            self._until = max(self._until or 0.0, now + self._open_s)
        self._probing = False

    def released(self) -> None:
        """Records that a request ended without showing whether the model works, so that the next one may probe."""
        self._probing = False

    def hold(self, now: float, seconds: float) -> None:
        """Opens for this long, because the server asked for it (429 with Retry-After)."""
        self._until = self._held_until = max(self._until or 0.0, now + seconds)
        self._probing = False


# --- the budget ---

HOUR_S = 3600.0
Bound = Literal["session_tokens", "hour_tokens"]
VARIABLES: dict[Bound, str] = {
    "session_tokens": "LLM_SESSION_TOKENS",
    "hour_tokens": "LLM_HOUR_TOKENS",
}


def estimate_tokens(text: str) -> int:
    """An upper estimate of the tokens of a text: three UTF-8 bytes a token, where English has about four.

    No tokenizer is used, because those download their tables.
    """
    return len(text.encode("utf-8", "replace")) // 3 + 1


_FORM_TOKENS = estimate_tokens(json.dumps(SummaryAnswer.model_json_schema()))
"""Tokens of the answer's schema, which every request carries."""


@dataclass(slots=True)
class Spent:
    """The tokens that a session has used or reserved."""

    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """An estimate that counts as spent until it is settled."""

    tokens: int


class Budget:
    """Bounds the tokens of each session, and of all sessions in any hour. A setting of 0 is no bound.

    A request reserves an estimate before it is sent, so that concurrent requests cannot exceed a bound together, and
    settles what it really used. `now` is seconds of a monotonic clock.
    """

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self._hour: deque[tuple[float, int]] = deque()
        self._tokens = 0
        self._reserved = 0

    def reserve(self, now: float, session: Spent, input_tokens: int, output_tokens: int) -> Reservation | Bound:
        """Reserves an estimate; returns the bound that it would exceed, if any."""
        self._forget(now)
        bounds, tokens = self._settings, input_tokens + output_tokens
        if bounds.llm_session_tokens and session.tokens + tokens > bounds.llm_session_tokens:
            return "session_tokens"
        if bounds.llm_hour_tokens and self._tokens + self._reserved + tokens > bounds.llm_hour_tokens:
            return "hour_tokens"
        session.tokens += tokens
        self._reserved += tokens
        return Reservation(tokens)

    def settle(
        self, now: float, session: Spent, reservation: Reservation, input_tokens: int, output_tokens: int
    ) -> None:
        """Replaces the estimate by what the request used; 0 and 0 if it never reached the model."""
        self._reserved -= reservation.tokens
        tokens = input_tokens + output_tokens
        session.tokens += tokens - reservation.tokens
        if tokens:
            self._hour.append((now, tokens))
            self._tokens += tokens

    def spent(self, now: float) -> int:
        """Tokens of the last hour."""
        self._forget(now)
        return self._tokens

    def _forget(self, now: float) -> None:
        while self._hour and now - self._hour[0][0] >= HOUR_S:
            self._tokens -= self._hour.popleft()[1]


# --- failures: their reasons, and when to try again ---

# LangChain's integrations raise the exceptions of their providers' SDKs. Most carry an HTTP status; the others are
# recognised by the names of the classes of `langchain_core.exceptions` and httpx, so that neither must be imported.

Reason = Literal[
    "timeout",
    "rate_limited",
    "unavailable",
    "unauthorized",
    "rejected",
    "refused",
    "unparsable",
    "breaker_open",
    "budget",
]
"""Why there is no answer; the counter's outcome."""
WORTH_REPEATING: frozenset[Reason] = frozenset({"rate_limited", "unavailable"})
"""A timeout is not: the model had LLM_TIMEOUT_S, and the next summary covers newer observations as well."""

FIRST_S = 0.5
LONGEST_S = 20.0
"""Bounds of the pause before the second attempt, and before any attempt."""
MOST_ASKED_S = 3600.0
"""Longest pause that a server may ask for, so that a misconfigured proxy cannot stop the summaries for good."""
_BY_STATUS: dict[int, Reason] = {401: "unauthorized", 403: "unauthorized", 404: "rejected", 408: "timeout"}
_BY_STATUS |= {409: "unavailable", 425: "unavailable", 429: "rate_limited"}
_BY_CLASS: dict[str, Reason] = {
    "ModelAuthenticationError": "unauthorized",
    "ModelPermissionDeniedError": "unauthorized",
    "ModelRateLimitError": "rate_limited",
    "ModelTimeoutError": "timeout",
    "ModelConnectionError": "unavailable",
    "ModelAPIError": "unavailable",
    "ModelInvalidRequestError": "rejected",
    "ModelNotFoundError": "rejected",
    "ContextOverflowError": "rejected",
    "TimeoutException": "timeout",  # httpx
    "TransportError": "unavailable",
}


def unusable(error: BaseException) -> UnusableAnswer | None:
    """The `UnusableAnswer` among the causes of an SDK's error."""
    return next((cause for cause in _causes(error) if isinstance(cause, UnusableAnswer)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def reason_of(error: BaseException) -> Reason:
    """Why a request failed. An error of neither the network nor the server is `unparsable`: an invalid answer."""
    if unusable(error) is not None:
        return "rejected"
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return _BY_STATUS.get(status, "unavailable" if status >= 500 else "rejected")
    for base in type(error).__mro__:
        if base.__name__ in _BY_CLASS:
            return _BY_CLASS[base.__name__]
    if isinstance(error, TimeoutError):
        return "timeout"
    return "unavailable" if isinstance(error, OSError) else "unparsable"


def retry_after_s(error: BaseException, now: datetime | None = None) -> float | None:
    """Seconds that the server asked to wait: `retry-after-ms`, or `Retry-After` as seconds or a date.

    Returns:
        Between 0 and MOST_ASKED_S; None if it asked for nothing that can be read.
    """
    headers = getattr(getattr(error, "response", None), "headers", None)
    if not isinstance(headers, Mapping):
        return None
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _bounded(float(milliseconds) / 1000)
        if (wanted := headers.get("retry-after")) is None:
            return None
        if wanted.strip().replace(".", "", 1).isdigit():
            return _bounded(float(wanted))
        moment = parsedate_to_datetime(wanted)
        return _bounded((moment - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None  # neither a number nor a date


def _bounded(seconds: float) -> float:
    return min(MOST_ASKED_S, max(0.0, seconds))


def pause_s(attempt: int, asked_s: float | None, chance: float) -> float:
    """Seconds before the next attempt: full jitter under an exponential bound, plus what the server asked for.

    Args:
        attempt: attempts that failed so far, from 1.
        asked_s: what `retry_after_s` returned.
        chance: uniform in [0, 1), so that sessions that failed together do not come back together.
    """
    bound = min(LONGEST_S, FIRST_S * 2.0 ** min(attempt - 1, 16))
    return (asked_s or 0.0) + chance * bound
