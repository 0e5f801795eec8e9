"""What to do about a request to the language model that failed: its reason, and when to try again. Pure.

LangChain's integrations raise the exceptions of their providers' SDKs. Most carry an HTTP status; the others are known
by the classes of `langchain_core.exceptions` and httpx, by name, so that nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from app.errors import SightlineError

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


class UnusableAnswer(SightlineError):
    """An answer that is not read to its end: a redirect, or more bytes than any summary has. The message says which."""


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
