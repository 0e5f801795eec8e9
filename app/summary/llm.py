"""The language model: one question, and an answer of the right form or a reason why there is none.

Around every request: a free slot of LLM_MAX_IN_FLIGHT, the time that the server asked for, and the breaker. What failed
on the way is repeated with jitter; an answer that does not fit, or that is refused, is asked for once more.
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
from app.summary.answer import Answer, NotFitting, Words, ask_again, form, words_of
from app.summary.provider import UnusableAnswer

# --- the language model ---

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


# --- one request ---

log = logging.getLogger(__name__)

Messages = list[tuple[str, str]]
"""Role (`system`, `human`) and text."""


class BudgetSpent(SightlineError):
    """Nothing was sent: a bound of the budget would be passed. The message names its variable."""


class Requests:
    """The open client, and what was spent on it."""

    def __init__(self, settings: LlmSettings, workers: int = 1) -> None:
        """`workers`: processes that share the budget of an hour."""
        self._settings = settings
        self._budget = Budget(settings.part(workers))
        self._chat: provider.Chat | None = None
        self._forms: list[provider.Form] = []
        self._form = 0
        self._proven = False
        """Whether the model ever answered in this form: then one bad answer does not say that it cannot."""
        self._tracing: Any = None
        self._bound: Bound | None = None
        """The one that was reached last; said once."""

    async def open(self) -> None:
        """Imports and makes the client; sends nothing.

        Raises:
            ConfigurationError: LLM_MODEL, its key or its package is wrong.
            Exception: whatever else keeps the client from being made, such as a proxy that it cannot speak to.
        """
        self._chat = await asyncio.to_thread(provider.connect, self._settings)
        self._forms = list(self._chat.forms)
        # LangChain reports every request to LangSmith where LANGSMITH_TRACING (or LANGCHAIN_TRACING_V2) is set, be it
        # for something else on the machine. What cameras saw goes to the model and to nobody else.
        from langsmith import tracing_context

        self._tracing = tracing_context

    async def close(self) -> None:
        """Closes the connections. Nothing may be sent any more."""
        if self._chat is not None:
            chat, self._chat = self._chat, None
            await chat.close()

    @property
    def form(self) -> provider.Form | None:
        """How the model is made to answer with the form of a summary; None before `open`."""
        return self._forms[self._form] if self._forms else None

    def fitted(self) -> None:
        """The model answered in this form."""
        self._proven = True

    def simpler(self, than: provider.Form | None) -> bool:
        """Goes on to a simpler form than this one, unless the model has answered in it. Whether to ask again.

        After the last one it begins anew: then the form was not what kept the model from answering.
        """
        if than != self.form:  # another session's request has gone on meanwhile
            return True
        if self._proven:
            return False
        self._form = (self._form + 1) % len(self._forms)
        self._proven = False
        if not self._form:
            return False
        log.info("%s does not answer as asked for; trying its form %s", self._settings.llm_model, self.form)
        return True

    def doubt(self, form: provider.Form | None) -> None:
        """The model no longer answers in this form."""
        if form == self.form:
            self._proven = False

    async def send(self, messages: Messages, session: Spent) -> Any:
        """The answer, an AIMessage of LangChain's.

        Raises:
            BudgetSpent: nothing was sent.
            Exception: whatever the provider's client raises, and TimeoutError after LLM_TIMEOUT_S; see `retry`.
        """
        assert self._chat is not None, "sent before open or after close"
        which = self._forms[self._form]
        if which in ("json_object", "text"):  # the schema goes with the others by itself
            (role, rules), *rest = messages
            messages = [(role, f"{rules}\n\n{form()}"), *rest]
        estimate = _FORM_TOKENS + sum(estimate_tokens(text) for _, text in messages)
        begun = time.monotonic()
        held = self._reserve(begun, session, estimate)
        used = (0, 0)
        unheard = 0
        try:
            with self._tracing(enabled=False):
                async with asyncio.timeout(self._settings.llm_timeout_s):
                    answer = await self._chat.forms[which].ainvoke(messages)
            used = _usage(answer, estimate)
            return answer
        except asyncio.CancelledError:
            used, unheard = (estimate, 0), self._settings.llm_max_output_tokens
            metrics.LLM_REQUESTS.labels("cancelled").inc()
            raise
        except Exception as error:
            if reason_of(error) in ("timeout", "unparsable"):
                used, unheard = (estimate, 0), self._settings.llm_max_output_tokens
            raise
        finally:
            now = time.monotonic()
            # What was sent was read. What was written in vain is paid for as well, untold: the most it can be.
            self._budget.settle(now, session, held, used[0], used[1] + unheard)
            metrics.LLM_SECONDS.observe(now - begun)
            metrics.LLM_TOKENS.labels("input").inc(used[0])
            metrics.LLM_TOKENS.labels("output").inc(used[1])

    def _reserve(self, now: float, session: Spent, estimate: int) -> Reservation:
        held = self._budget.reserve(now, session, estimate, self._settings.llm_max_output_tokens)
        if isinstance(held, Reservation):
            if self._bound not in OF_A_SESSION:  # another session has room: no news
                self._bound = None
            return held
        if held != self._bound:
            self._bound = held
            log.warning("%s is reached: digests until there is room again", VARIABLES[held])
        raise BudgetSpent(f"{VARIABLES[held]} is reached")


def _usage(answer: Any, estimate: int) -> tuple[int, int]:
    """Input and output tokens as the server says; our estimate where it says nothing, or none."""
    told = getattr(answer, "usage_metadata", None) or {}
    wrote = told.get("output_tokens") or estimate_tokens(str(getattr(answer, "content", "")))
    return int(told.get("input_tokens") or estimate), int(wrote)


# --- the circuit breaker ---

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Leaves a failing model alone, then lets one request try it."""

    def __init__(self, failures: int, open_s: float) -> None:
        self._allowed = failures
        self._open_s = open_s
        self._failures = 0
        self._until: float | None = None
        self._held_until = float("-inf")
        self._trying = False

    def state(self, now: float) -> State:
        """`now`: seconds of a monotonic clock, here and below."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may go now. True in `half-open` is given once: say then how it went."""
        state = self.state(now)
        if state == "half-open" and not self._trying:
            self._trying = True
            return True
        return state == "closed"

    def succeeded(self, now: float) -> None:
        """The model answered. What it asked for (`hold`) stands: the answer may be to a request sent before."""
        self._failures, self._trying = 0, False
        if now >= self._held_until:
            self._until = None

    def failed(self, now: float) -> None:
        """A request failed."""
        self._failures += 1
        if self._trying or self._failures >= self._allowed:
            self._until = max(self._until or 0.0, now + self._open_s)
        self._trying = False

    def unsaid(self) -> None:
        """A request ended without a word on the model's health: it was given up from our side."""
        self._trying = False

    def hold(self, now: float, seconds: float) -> None:
        """The model asked to be left alone for so long (429 with Retry-After)."""
        self._until = self._held_until = max(self._until or 0.0, now + seconds)
        self._trying = False


# --- the budget ---

HOUR_S = 3600.0
Bound = Literal["session_tokens", "session_cost", "hour_tokens", "hour_cost"]
VARIABLES: dict[Bound, str] = {
    "session_tokens": "LLM_SESSION_TOKENS",
    "session_cost": "LLM_SESSION_COST",
    "hour_tokens": "LLM_HOUR_TOKENS",
    "hour_cost": "LLM_HOUR_COST",
}


OF_A_SESSION: frozenset[Bound] = frozenset({"session_tokens", "session_cost"})


def estimate_tokens(text: str) -> int:
    """Tokens of a text, rather too many than too few: three UTF-8 bytes a token (English has about four).

    Counted here, not by a tokenizer: those load their tables from the network.
    """
    return len(text.encode("utf-8", "replace")) // 3 + 1


_FORM_TOKENS = estimate_tokens(json.dumps(Answer.model_json_schema()))
"""The form of the answer goes with every request and is read as well."""


@dataclass(slots=True)
class Spent:
    """What a session took, or has reserved."""

    tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """An estimate that is held until it is settled."""

    tokens: int
    cost: float


class Budget:
    """The bounds of all sessions. 0 in the settings: no bound."""

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self._hour: deque[tuple[float, int, float]] = deque()
        self._tokens = 0
        self._cost = 0.0
        self._held_tokens = 0
        self._held_cost = 0.0

    def reserve(self, now: float, session: Spent, input_tokens: int, output_tokens: int) -> Reservation | Bound:
        """Holds an estimate, or says which bound it would pass."""
        self._forget(now)
        bounds, tokens = self._settings, input_tokens + output_tokens
        cost = self.cost(input_tokens, output_tokens)
        if bounds.llm_session_tokens and session.tokens + tokens > bounds.llm_session_tokens:
            return "session_tokens"
        if bounds.llm_session_cost and session.cost + cost > bounds.llm_session_cost:
            return "session_cost"
        if bounds.llm_hour_tokens and self._tokens + self._held_tokens + tokens > bounds.llm_hour_tokens:
            return "hour_tokens"
        if bounds.llm_hour_cost and self._cost + self._held_cost + cost > bounds.llm_hour_cost:
            return "hour_cost"
        session.tokens += tokens
        session.cost += cost
        self._held_tokens += tokens
        self._held_cost += cost
        return Reservation(tokens, cost)

    def settle(self, now: float, session: Spent, held: Reservation, input_tokens: int, output_tokens: int) -> None:
        """What the request really took, in place of the estimate; 0 and 0 when it never reached the model."""
        self._held_tokens -= held.tokens
        self._held_cost -= held.cost
        tokens, cost = input_tokens + output_tokens, self.cost(input_tokens, output_tokens)
        session.tokens += tokens - held.tokens
        session.cost += cost - held.cost
        if tokens:
            self._hour.append((now, tokens, cost))
            self._tokens += tokens
            self._cost += cost

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """In the unit of LLM_INPUT_PRICE and LLM_OUTPUT_PRICE, which are prices of a million tokens."""
        prices = self._settings
        return (input_tokens * prices.llm_input_price + output_tokens * prices.llm_output_price) / 1e6

    def spent(self, now: float) -> tuple[int, float]:
        """Tokens and cost of the last hour."""
        self._forget(now)
        return self._tokens, self._cost

    def _forget(self, now: float) -> None:
        while self._hour and now - self._hour[0][0] >= HOUR_S:
            _, tokens, cost = self._hour.popleft()
            self._tokens -= tokens
            self._cost -= cost
        if not self._hour:
            self._cost = 0.0  # what rounding left over


# --- failures: their reasons, and when to try again ---

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
WORTH_REPEATING: frozenset[Reason] = frozenset({"rate_limited", "unavailable"})
"""A timeout is not: the model had LLM_TIMEOUT_S, and what gathered meanwhile is better summarised anew."""

FIRST_S = 0.5
LONGEST_S = 20.0
MOST_ASKED_S = 3600.0
"""Of what a server asks for: a proxy's slip must not silence the summaries for good."""
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
    """The `UnusableAnswer` that an SDK made an error of its own from."""
    return next((cause for cause in _causes(error) if isinstance(cause, UnusableAnswer)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def reason_of(error: BaseException) -> Reason:
    """Why a request failed. What is no error of the way there is an answer that could not be read: `unparsable`."""
    if unusable(error) is not None:
        return "rejected"
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return _BY_STATUS.get(status, "unavailable" if status >= 500 else "rejected")
    for one in type(error).__mro__:
        if one.__name__ in _BY_CLASS:
            return _BY_CLASS[one.__name__]
    if isinstance(error, TimeoutError):
        return "timeout"
    return "unavailable" if isinstance(error, OSError) else "unparsable"


def retry_after_s(error: BaseException, now: datetime | None = None) -> float | None:
    """Seconds that the server asked to be left alone: `retry-after-ms`, or `Retry-After` as seconds or a date.

    Between 0 and MOST_ASKED_S.
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
        return None  # not a number, not a date: as if nothing was said


def _bounded(seconds: float) -> float:
    return min(MOST_ASKED_S, max(0.0, seconds))


def pause_s(attempt: int, asked_s: float | None, chance: float) -> float:
    """Seconds before the next attempt: full jitter over an exponential bound, on top of what the server asked for.

    Args:
        attempt: those that failed so far, from 1.
        asked_s: what `retry_after_s` found.
        chance: uniform in [0, 1). Without it, all sessions that failed together would come back together.
    """
    bound = min(LONGEST_S, FIRST_S * 2.0 ** min(attempt - 1, 16))
    return (asked_s or 0.0) + chance * bound
