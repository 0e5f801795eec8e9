"""Admission: which sessions are served, which wait for a slot, and which are rejected."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from app import metrics
from app.errors import SightlineError
from app.settings import AccessSettings, LiveSettings

_IMAGE_RETRY_S = 1.0
"""Seconds after which another image by HTTP may be accepted."""


class Rejected(SightlineError):
    """A session or an image is rejected by a limit. Another try may succeed after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WaitingSession:
    """A session that waits for a slot, or has one."""

    def __init__(self) -> None:
        self.granted = False
        self.moved = asyncio.Event()
        """Set whenever `position` changes, also when the session gets its slot."""
        self.position = 0
        """Place in the queue: 1 gets the next slot; 0 means that the session has a slot."""


class Admission:
    """Slots for sessions, first come first served, and a bounded queue of sessions that wait."""

    def __init__(self, live: LiveSettings, access: AccessSettings) -> None:
        self._live = live
        self._access = access
        self._queue: deque[WaitingSession] = deque()
        self._active = 0
        self._by_token: Counter[str] = Counter()
        self._by_address: Counter[str] = Counter()
        self._durations: deque[float] = deque(maxlen=32)

    @property
    def active(self) -> int:
        """Number of sessions with a slot."""
        return self._active

    @property
    def waiting(self) -> int:
        """Number of sessions that wait for a slot."""
        return len(self._queue)

    @contextmanager
    def admit(self, *, token: str | None, address: str) -> Iterator[WaitingSession]:
        """Gives a session a slot, or a place in the queue, for as long as the block lasts.

        Raises:
            Rejected: the queue is full, or this token or address has too many sessions.
        """
        retry = self.eta_s(1) or 5.0
        self._check(token, address, retry)
        full = self._active >= self._live.max_sessions
        if full and len(self._queue) >= self._live.max_waiting:
            raise Rejected("all sessions are taken and the waiting room is full", retry)
        with self._counted(token, address):
            yield from self._admitted()

    @contextmanager
    def admit_image(self, *, token: str | None, address: str) -> Iterator[None]:
        """Counts an image by HTTP as a session of its token and address for as long as the block lasts.

        Raises:
            Rejected: this token or address has too many sessions.
        """
        self._check(token, address, _IMAGE_RETRY_S)
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

    def _admitted(self) -> Iterator[WaitingSession]:
        session = WaitingSession()
        if self._active < self._live.max_sessions and not self._queue:
            self._grant(session)
        else:
            self._queue.append(session)
            self._renumber()
        started = time.monotonic()
        try:
            yield session
        finally:
            self._leave(session, started)

    def eta_s(self, position: int) -> float | None:
        """Seconds until the session at `position` may get a slot, by how long recent ones lasted; None if unknown."""
        if not self._durations:
            return None
        average = sum(self._durations) / len(self._durations)
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

    def _grant(self, session: WaitingSession) -> None:
        self._active += 1
        session.position = 0
        session.granted = True
        session.moved.set()
        metrics.SESSIONS_ACTIVE.inc()

    def _leave(self, session: WaitingSession, started: float) -> None:
        if session.granted:
            self._active -= 1
            metrics.SESSIONS_ACTIVE.dec()
            self._durations.append(time.monotonic() - started)
            while self._queue and self._active < self._live.max_sessions:
                self._grant(self._queue.popleft())
        else:
            self._queue.remove(session)
        self._renumber()

    def _renumber(self) -> None:
        for position, session in enumerate(self._queue, 1):
            if session.position != position:
                session.position = position
                session.moved.set()
        metrics.SESSIONS_WAITING.set(len(self._queue))
