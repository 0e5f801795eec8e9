"""Several calls of `Pipeline.analyze` for one stream at a time: what must be in order is, and the models overlap.

What a stream remembers is used twice in a call: the last grey picture while its frames are prepared, tracks and texts
when they are finished. Both go in the order in which the turns were taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from types import TracebackType


class Turn:
    """One call's. Every turn must `end`, whatever becomes of its call; `with turn:` around the call sees to it.

    Args:
        before: the last turns of the streams whose frames are in the call.
    """

    def __init__(self, before: Iterable[Turn] = ()) -> None:
        self._before = [turn for turn in before if not turn.over]
        self._preparing = False
        self._prepared = asyncio.Event()
        self._finished = asyncio.Event()

    @property
    def over(self) -> bool:
        """It has ended, and so have all before it: nobody needs to wait for it."""
        return self._finished.is_set() and not self._preparing and not self._before

    async def prepare(self) -> None:
        """Waits until the calls before have prepared their frames."""
        for turn in self._all_before():
            await turn._prepared.wait()

    def preparing(self) -> None:
        """Threads are at it: those after wait until it is `prepared`, also where this call ends before."""
        self._preparing = True

    def prepared(self) -> None:
        self._preparing = False
        self._prepared.set()

    async def finish(self) -> None:
        """Waits until the calls before are over."""
        for turn in self._all_before():
            await turn._finished.wait()
        self._before = []

    def end(self) -> None:
        """The call is over. Where it failed early, who comes after still waits for those before."""
        self._before = [turn for turn in self._before if not turn.over]
        self._finished.set()
        if not self._preparing:
            self._prepared.set()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def _all_before(self) -> Iterator[Turn]:
        for turn in self._before:
            yield from turn._all_before()
            yield turn


class Turns:
    """Of one stream. Turns must be taken in the order of its frames."""

    def __init__(self) -> None:
        self._last = Turn()
        self._last.end()

    def take(self) -> Turn:
        turn = self._last = Turn([self._last])
        return turn
