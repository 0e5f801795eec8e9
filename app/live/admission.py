"""Who is served, who waits and who is turned away."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from app import metrics
from app.errors import SightlineError
from app.settings import AccessSettings, LiveSettings

_PICTURE_S = 1.0
"""After which a place for a picture may be free."""


class Rejected(SightlineError):
    """No place, not even to wait. `retry_after_s` says when it may be worth another try."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Place:
    """A session's place in the line, then its slot."""

    def __init__(self) -> None:
        self.granted = False
        self.moved = asyncio.Event()
        """Set whenever the position changes, also to a slot."""
        self.position = 0
        """1 is next; 0 has a slot."""


class Admission:
    """Slots for sessions, first come first served, and a bounded line in front of them."""

    def __init__(self, live: LiveSettings, access: AccessSettings) -> None:
        self._live = live
        self._access = access
        self._line: deque[Place] = deque()
        self._active = 0
        self._by_token: Counter[str] = Counter()
        self._by_address: Counter[str] = Counter()
        self._lasted: deque[float] = deque(maxlen=32)

    @property
    def active(self) -> int:
        return self._active

    @property
    def waiting(self) -> int:
        return len(self._line)

    @contextmanager
    def place(self, *, token: str | None, address: str) -> Iterator[Place]:
        """A slot at once, or a place in the line; given back at the end.

        Raises:
            Rejected: the waiting room is full, or too many sessions come from this token or address.
        """
        retry = self.eta_s(1) or 5.0
        self._check(token, address, retry)
        full = self._active >= self._live.max_sessions
        if full and len(self._line) >= self._live.max_waiting:
            raise Rejected("all sessions are taken and the waiting room is full", retry)
        with self._counted(token, address):
            yield from self._placed()

    @contextmanager
    def picture(self, *, token: str | None, address: str) -> Iterator[None]:
        """A picture by HTTP: as long as it is in hand it counts as a session of its token and of its address.

        Raises:
            Rejected: too many come from this token or address.
        """
        self._check(token, address, _PICTURE_S)
        with self._counted(token, address):
            yield

    @contextmanager
    def _counted(self, token: str | None, address: str) -> Iterator[None]:
        self._by_address[address] += 1
        if token is not None:
            self._by_token[token] += 1
        try:
            yield
        finally:
            self._by_address -= Counter({address: 1})
            if token is not None:
                self._by_token -= Counter({token: 1})

    def _placed(self) -> Iterator[Place]:
        place = Place()
        if self._active < self._live.max_sessions and not self._line:
            self._grant(place)
        else:
            self._line.append(place)
            self._renumber()
        started = time.monotonic()
        try:
            yield place
        finally:
            self._leave(place, started)

    def eta_s(self, position: int) -> float | None:
        """When the place at `position` may be served, from how long sessions lasted lately; None while unknown."""
        if not self._lasted:
            return None
        average = sum(self._lasted) / len(self._lasted)
        return round(average * position / self._live.max_sessions, 1)

    def _check(self, token: str | None, address: str, retry: float) -> None:
        access = self._access
        if token is not None and self._by_token[token] >= access.max_sessions_per_token:
            metrics.AUTH_FAILURES.labels("token_limit").inc()
            raise Rejected(f"this token has {access.max_sessions_per_token} sessions open, which is its limit", retry)
        if self._by_address[address] >= access.max_sessions_per_address:
            metrics.AUTH_FAILURES.labels("address_limit").inc()
            raise Rejected(
                f"this address has {access.max_sessions_per_address} sessions open, which is its limit", retry
            )

    def _grant(self, place: Place) -> None:
        self._active += 1
        place.position = 0
        place.granted = True
        place.moved.set()
        metrics.SESSIONS_ACTIVE.inc()

    def _leave(self, place: Place, started: float) -> None:
        if place.granted:
            self._active -= 1
            metrics.SESSIONS_ACTIVE.dec()
            self._lasted.append(time.monotonic() - started)
            while self._line and self._active < self._live.max_sessions:
                self._grant(self._line.popleft())
        else:
            self._line.remove(place)
        self._renumber()

    def _renumber(self) -> None:
        for position, place in enumerate(self._line, 1):
            if place.position != position:
                place.position = position
                place.moved.set()
        metrics.SESSIONS_WAITING.set(len(self._line))
