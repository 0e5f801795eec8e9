"""Queues that never make their producer wait."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class DropQueue(Generic[T]):
    """Bounded; when full, the oldest item gives way to the newest and is handed back to be counted.

    One consumer, on one event loop; not thread-safe.
    """

    def __init__(self, maxsize: int = 1) -> None:
        if maxsize < 1:
            raise ValueError(f"maxsize is {maxsize}: want at least 1")
        self._items: deque[T] = deque()
        self._maxsize = maxsize
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, item: T) -> T | None:
        """Adds `item`; returns the one that had to give way, if any. After `close` that is `item` itself."""
        if self._closed:
            return item
        dropped = self._items.popleft() if len(self._items) >= self._maxsize else None
        self._items.append(item)
        self._arrived.set()
        return dropped

    def take(self) -> T | None:
        """The oldest item kept, if there is one."""
        if not self._items:
            return None
        self._taken.set()
        return self._items.popleft()

    async def news(self) -> None:
        """Waits until there is an item, a `nudge`, or no more to come."""
        self._arrived.clear()
        if not self._items and not self._closed:
            await self._arrived.wait()

    def nudge(self) -> None:
        """Wakes the consumer, who waits for something else too."""
        self._arrived.set()

    async def room(self) -> None:
        """Waits until an item can be put without dropping one, or the queue is closed."""
        while len(self._items) >= self._maxsize and not self._closed:
            self._taken.clear()
            await self._taken.wait()

    def close(self) -> None:
        """No more items; `take` still hands out those that are in."""
        self._closed = True
        self._arrived.set()
        self._taken.set()

    def drain(self) -> list[T]:
        """Takes out everything that is left."""
        left = list(self._items)
        self._items.clear()
        return left
