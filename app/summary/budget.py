"""What the language model may cost: tokens and money, a session and an hour. Pure: the caller passes the time.

A request is reserved with an estimate before it goes, so that requests in flight together cannot all slip under a
bound, and settled with what it really took.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from app.settings import LlmSettings

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
