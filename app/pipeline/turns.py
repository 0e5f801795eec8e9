"""Several calls of `Pipeline.analyze` for one stream at a time: what must be in order is, and the models overlap.

What a stream remembers is used twice in a call: the last grey picture while its frames are prepared, tracks and texts
when they are finished. Both go in the order in which the turns were taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import TracebackType


class Turns:
    """Of one stream. Turns must be taken in the order of its frames, and every one that was taken be used."""

    def __init__(self) -> None:
        self._last: Turn | None = None

    def take(self) -> Turn:
        turn = self._last = Turn(self._last)
        return turn


class Turn:
    """One call's. Use it as `with turn:` around the call, so that the next ones go on whatever becomes of it."""

    def __init__(self, before: Turn | None) -> None:
        self._before = before
        self._prepared = asyncio.Event()
        self._finished = asyncio.Event()

    async def prepare(self) -> None:
        """Waits until the calls before have prepared their frames."""
        for turn in self._all_before():
            await turn._prepared.wait()

    def prepared(self) -> None:
        self._prepared.set()

    async def finish(self) -> None:
        """Waits until the calls before are over."""
        for turn in self._all_before():
            await turn._finished.wait()

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None and self._before._finished.is_set():
            self._before = None  # else this one failed early, and who comes after must still wait for that one
        self._prepared.set()
        self._finished.set()

    def _all_before(self) -> Iterator[Turn]:
        turn = self._before
        while turn is not None:
            yield turn
            turn = turn._before
