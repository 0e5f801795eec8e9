"""How many TCP connections this process has, in which state and from which addresses; who is one too many."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass

from app import metrics
from app.settings import LiveSettings

try:
    import resource
except ImportError:  # no Unix: descriptors are not counted there
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

BEYOND = 64
"""Connections past the limits that are taken so that they can be told so; more are ended without a word."""
_SPARE = 24
"""Descriptors that open and close: files, the inference server, text reading, summaries' disk."""
_ELSEWHERE = 256
"""What the process may need besides, when the soft limit is raised at the start."""
STATES = ("handshake", "http", "websocket", "closing")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is not served."""

    reason: str
    """`full` or `address`."""
    words: str


class Entry:
    """One connection, from accept to its end."""

    def __init__(self, book: Admittance, address: str, refused: Refusal | None) -> None:
        self.state = "handshake"
        self.address = address
        self.refused = refused
        self._book = book
        self._left = False

    def move(self, state: str) -> None:
        """The connection is in another state now."""
        if not self._left and state != self.state:
            self._book.moved(self.state, state)
            self.state = state

    def claim(self, address: str | None) -> Refusal | None:
        """A request came over it, from this client; why it is not served, or None."""
        if self._left:
            return None
        if address is not None and address != self.address:
            self.refused = self._book.transferred(self, address)
            self.address = address
        return self.refused

    def leave(self) -> None:
        """The connection is gone. May be called again."""
        if not self._left:
            self._left = True
            self._book.left(self)


class Admittance:
    """The connections of one process."""

    def __init__(self, live: LiveSettings) -> None:
        self.most = live.max_connections
        self._most_per_address = live.max_connections_per_address
        self._by_address: Counter[str] = Counter()
        self._open = 0
        self._beyond = BEYOND
        self._fit = False
        self._states = {state: metrics.CONNECTIONS.labels(state) for state in STATES}

    def enter(self, address: str | None) -> Entry | None:
        """A connection was accepted; None where it is to be ended at once.

        Args:
            address: None for a peer without one, on a Unix socket; they all are one.
        """
        address = address or "local"
        if self._open >= self.most + self._beyond:
            metrics.CONNECTIONS_REFUSED.labels("full").inc()
            return None
        if self._by_address[address] >= self._most_per_address + self._beyond:
            metrics.CONNECTIONS_REFUSED.labels("address").inc()
            return None
        refused = self._full() if self._open >= self.most else self._crowded(address)
        self._open += 1
        self._by_address[address] += 1
        self._states["handshake"].inc()
        return Entry(self, address, refused)

    def moved(self, before: str, now: str) -> None:
        self._states[before].dec()
        self._states[now].inc()

    def transferred(self, entry: Entry, address: str) -> Refusal | None:
        """It counts for another address from now on."""
        self._forget(entry.address)
        refused = entry.refused if entry.refused and entry.refused.reason == "full" else self._crowded(address)
        self._by_address[address] += 1
        return refused

    def left(self, entry: Entry) -> None:
        self._open -= 1
        self._states[entry.state].dec()
        self._forget(entry.address)

    def fit_descriptors(self) -> None:
        """Takes no more connections than the process may have files open; called once everything else is open."""
        if resource is None:
            return
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            used = len(os.listdir("/proc/self/fd"))
        except OSError:  # no Linux
            used = 64
        beyond = min(BEYOND, allowed // 16)
        room = max(1, allowed - used - _SPARE - beyond)
        if allowed != resource.RLIM_INFINITY and room < self.most:
            log.warning(
                "this process may have %d files open (ulimit -n) and has %d: it takes %d connections, not "
                "MAX_CONNECTIONS=%d; allow it %d, or set MAX_CONNECTIONS to %d",
                allowed,
                used,
                room,
                self.most,
                needed(self.most),
                room,
            )
            self.most, self._beyond, self._fit = room, beyond, True

    def _full(self) -> Refusal:
        why = "as many as its limit of open files allows" if self._fit else "which is MAX_CONNECTIONS"
        return Refusal("full", f"{self.most} connections are open, {why}")

    def _crowded(self, address: str) -> Refusal | None:
        most = self._most_per_address
        if self._by_address[address] < most:
            return None
        return Refusal("address", f"this address has {most} connections open, as MAX_CONNECTIONS_PER_ADDRESS allows")

    def _forget(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def needed(connections: int) -> int:
    """Descriptors that a process with so many connections may want."""
    return connections + BEYOND + _ELSEWHERE


def raise_descriptors(live: LiveSettings) -> None:
    """Raises the soft limit of open files to what MAX_CONNECTIONS needs, as far as the hard limit allows."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed(live.max_connections)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.info("files that may be open (ulimit -n): raised from %d to %d", soft, wanted)


class DescriptorWatch:
    """Notices that no descriptor is left, and says so once until there is one again."""

    def __init__(self) -> None:
        self._out = False

    def look(self) -> None:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if not self._out:
                self._out = True
                metrics.CONNECTIONS_REFUSED.labels("descriptors").inc()
                log.error(
                    "no file can be opened, and no connection taken: %s. Allow the process more (ulimit -n), or set a "
                    "smaller MAX_CONNECTIONS",
                    error.strerror or error,
                )
            return
        if self._out:
            self._out = False
            log.warning("files can be opened again")
