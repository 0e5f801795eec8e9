"""One request to the language model: within its time and within the budget, counted, and seen by nobody else."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

from app import metrics
from app.errors import SightlineError
from app.settings import LlmSettings
from app.summary import provider
from app.summary.answer import Answer, form
from app.summary.budget import OF_A_SESSION, VARIABLES, Bound, Budget, Reservation, Spent, estimate_tokens
from app.summary.retry import reason_of

log = logging.getLogger(__name__)

Messages = list[tuple[str, str]]
"""Role (`system`, `human`) and text."""
_FORM_TOKENS = estimate_tokens(json.dumps(Answer.model_json_schema()))
"""The form of the answer goes with every request and is read as well."""


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
