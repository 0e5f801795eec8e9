"""Order among several concurrent calls of `Pipeline.analyze` for one stream, whose requests to the models overlap.

A call uses its stream's memory (`StreamMemory`) twice: the last grey frame while frames are prepared, and tracks and
texts while frames are finished. In both steps the calls go one after the other, in the order of their tickets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType


class Ticket:
    """The place of one call in the order. Each ticket must `end`, also when its call fails: `with ticket:` does that.

    Args:
        before: the last tickets of the streams whose frames are in the call.
        then: called once later calls may prepare their frames.
    """

    def __init__(self, before: Iterable[Ticket] = (), then: Callable[[], None] | None = None) -> None:
        self._before = [ticket for ticket in before if not ticket.over]
        """Earlier tickets that this one may have to wait for."""
        self._then = then
        self._threads_at_work = 0
        self._ended = False
        self._prepared = asyncio.Event()
        self._finished = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether this call and all calls before it have ended, so that no call needs to wait for this one."""
        if not self._finished.is_set():
            return False
        self._before = [ticket for ticket in self._before if not ticket.over]
        return not self._before

    async def prepare(self) -> None:
        """Waits until all earlier calls have prepared their frames."""
        if self._before:
            for ticket in self._all_before():
                await ticket._prepared.wait()

    def prepared(self) -> None:
        """Lets later calls prepare their frames."""
        if not self._prepared.is_set():
            self._prepared.set()
            if self._then is not None:
                self._then()

    async def finish(self) -> None:
        """Waits until all earlier calls are over."""
        if self._before:
            for ticket in self._all_before():
                await ticket._finished.wait()
            self._before = []

    def work(self) -> None:
        """Records that a thread uses the streams' memory until `rest`. A call that ends earlier is not over."""
        self._threads_at_work += 1

    def rest(self) -> None:
        """Records that a thread no longer uses the streams' memory; each `work` needs its `rest`."""
        self._threads_at_work -= 1
        if self._ended:
            self.end()

    def end(self) -> None:
        """Ends the call. After an early failure, later calls still wait for the calls before this one."""
        self._ended = True
        if not self._threads_at_work:
            self._finished.set()
            self.prepared()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def _all_before(self) -> set[Ticket]:
        """Each earlier ticket once: streams that share calls repeatedly make many paths to the same ticket."""
        found: set[Ticket] = set()
        unseen = [*self._before]
        while unseen:
            ticket = unseen.pop()
            if ticket not in found and not ticket.over:
                found.add(ticket)
                unseen += ticket._before
        return found


class Sequencer:
    """Gives the calls of one stream their tickets. Take them in the order of the stream's frames."""

    def __init__(self) -> None:
        self._last = Ticket()
        self._last.end()

    def take(self) -> Ticket:
        """A ticket behind all those taken before."""
        ticket = self._last = Ticket([self._last])
        return ticket
