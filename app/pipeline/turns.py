"""Several calls of `Pipeline.analyze` for one stream at a time: what must be in order is, and the models overlap.

What a stream remembers is used twice in a call: the last grey picture while its frames are prepared, tracks and texts
when they are finished. Both go in the order in which the turns were taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType


class Turn:
    """One call's. Every turn must `end`, whatever becomes of its call; `with turn:` around the call sees to it.

    Args:
        before: the last turns of the streams whose frames are in the call.
        then: called once those after may prepare theirs.
    """

    def __init__(self, before: Iterable[Turn] = (), then: Callable[[], None] | None = None) -> None:
        self._before = [turn for turn in before if not turn.over]
        self._then = then
        self._at_work = 0
        self._ended = False
        self._prepared = asyncio.Event()
        self._finished = asyncio.Event()

    @property
    def over(self) -> bool:
        """It has ended, and so have all before it: nobody needs to wait for it."""
        if not self._finished.is_set():
            return False
        self._before = [turn for turn in self._before if not turn.over]
        return not self._before

    async def prepare(self) -> None:
        """Waits until the calls before have prepared their frames."""
        for turn in self._all_before():
            await turn._prepared.wait()

    def prepared(self) -> None:
        """Those after may prepare theirs."""
        if not self._prepared.is_set():
            self._prepared.set()
            if self._then is not None:
                self._then()

    async def finish(self) -> None:
        """Waits until the calls before are over."""
        for turn in self._all_before():
            await turn._finished.wait()
        self._before = []

    def work(self) -> None:
        """A thread is at what the streams remember, until `rest`: a call that ends before is not over."""
        self._at_work += 1

    def rest(self) -> None:
        self._at_work -= 1
        if self._ended and not self._at_work:
            self._close()

    def end(self) -> None:
        """The call is over. Where it failed early, who comes after still waits for those before."""
        self._ended = True
        if not self._at_work:
            self._close()

    def _close(self) -> None:
        self._finished.set()
        self.prepared()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def _all_before(self) -> set[Turn]:
        """Each once: streams that share calls again and again make many ways to the same turn."""
        found: set[Turn] = set()
        to_look_at = [*self._before]
        while to_look_at:
            turn = to_look_at.pop()
            if turn not in found and not turn.over:
                found.add(turn)
                to_look_at += turn._before
        return found


class Turns:
    """Of one stream. Turns must be taken in the order of its frames."""

    def __init__(self) -> None:
        self._last = Turn()
        self._last.end()

    def take(self) -> Turn:
        turn = self._last = Turn([self._last])
        return turn
