"""The gate: how many requests are at the inference server at once, and who is next."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class Gate:
    """A semaphore that is fair between streams: round robin over the streams that wait, first in first out within one.

    A plain FIFO would let a stream with many requests waiting hold up one with a single request.
    Bound to one event loop; not thread-safe.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def acquire(self, stream: str) -> None:
        """Waits for a place. Cancelling the wait gives up the turn and leaks nothing."""
        if self._free > 0:  # then nobody waits: release hands a place straight on
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(stream, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # the place came in the same tick as the cancellation
            else:
                self._forget(stream, turn)
            raise

    def release(self) -> None:
        """Gives the place back, or on to whoever is next."""
        while self._waiting:
            stream, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[stream] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _forget(self, stream: str, turn: asyncio.Future[None]) -> None:
        """A turn that was given up must not cost its stream a round."""
        turns = self._waiting.get(stream)
        if turns is None or turn not in turns:
            return
        turns.remove(turn)
        if not turns:
            del self._waiting[stream]
