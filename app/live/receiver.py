"""A session's frames from the socket to the queue of frames to be analysed: checked, numbered, counted."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Generic, TypeVar

from app.errors import FrameError, FrameTooLarge
from app.limits import TokenBucket
from app.live.stats import FrameStats
from app.pipeline.types import Frame
from app.protocol import header
from app.protocol.messages import Error, Mode
from app.settings import LiveSettings

_BURST_S = 2.0
"""A session may send this many seconds' worth of messages at once."""

T = TypeVar("T")


class DropQueue(Generic[T]):
    """A bounded queue that never makes its producer wait: when it is full, a new item replaces the oldest one.

    It has one consumer, on one event loop; not thread-safe.
    """

    def __init__(self, maxsize: int = 1) -> None:
        if maxsize < 1:
            raise ValueError(f"maxsize is {maxsize}: want at least 1")
        self.closed = False
        """To be read only; see `close`."""
        self._items: deque[T] = deque()
        self._maxsize = maxsize
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> T | None:
        """Adds `item`, and returns the item that it replaces, if any. After `close` it returns `item` itself."""
        if self.closed:
            return item
        dropped = self._items.popleft() if len(self._items) >= self._maxsize else None
        self._items.append(item)
        self._arrived.set()
        return dropped

    def take(self) -> T | None:
        """Removes and returns the oldest item; None if the queue is empty."""
        if not self._items:
            return None
        self._taken.set()
        return self._items.popleft()

    async def changed(self) -> None:
        """Waits until there is an item, the queue is closed, or `wake` is called."""
        self._arrived.clear()
        if not self._items and not self.closed:
            await self._arrived.wait()

    def wake(self) -> None:
        """Wakes the consumer although no item was put, because it also waits for another event."""
        self._arrived.set()

    async def space(self) -> None:
        """Waits until an item can be put without replacing another one, or the queue is closed."""
        while len(self._items) >= self._maxsize and not self.closed:
            self._taken.clear()
            await self._taken.wait()

    def close(self) -> None:
        """Accepts no more items. `take` still returns those in the queue."""
        self.closed = True
        self._arrived.set()
        self._taken.set()

    def drain(self) -> list[T]:
        """Removes and returns all items."""
        items = list(self._items)
        self._items.clear()
        return items


class Receiver:
    """Receives one session's frames.

    Args:
        stream: the session's id.
    """

    def __init__(self, stream: str, live: LiveSettings, stats: FrameStats) -> None:
        self._stream = stream
        self._live = live
        self._stats = stats
        self._rate = TokenBucket(live.max_messages_per_s, _BURST_S * live.max_messages_per_s)
        self._frame_ids = 0
        self.lossless = False
        self.queue: DropQueue[tuple[int, Frame]] = DropQueue(1)
        """Frames to be analysed, each with the number that the service gave it."""

    def set_mode(self, mode: Mode) -> None:
        """Sets the session's mode. Call it before the first frame, or never."""
        if mode == "lossless":
            self.lossless = True
            self.queue = DropQueue(self._live.credits)

    async def receive(self, data: bytes) -> Error | None:
        """Puts the frame of one binary message into the queue.

        In `lossless` it waits while the rate is exceeded.

        Returns:
            The answer to a frame that is refused; None for a frame in the queue.
        """
        now = time.perf_counter()
        self._stats.received(len(data))
        self._frame_ids += 1
        numbered = header.seq_of(data)
        seq = self._frame_ids if numbered is None else numbered
        if self.lossless:
            await self.within_rate()
        elif not self._rate.take():
            await asyncio.sleep(0)  # the messages of a flood come many at a time: other sessions get a turn in between
            limit = self._live.max_messages_per_s
            return self._refuse(seq, "rate_limited", f"more than MAX_MESSAGES_PER_S={limit:g} messages a second")
        try:
            if len(data) > self._live.max_frame_bytes + header.SIZE:
                raise FrameTooLarge(f"{len(data)} bytes; MAX_FRAME_BYTES is {self._live.max_frame_bytes}")
            _, captured_at_ms, jpeg = header.unpack(data)
        except FrameError as error:
            return self._refuse(seq, error.code, str(error))
        frame = Frame(
            stream=self._stream,
            jpeg=jpeg,
            received=now,
            received_at_ms=time.time() * 1000,
            seq=seq,
            captured_at_ms=captured_at_ms,
        )
        if self.queue.put((self._frame_ids, frame)) is not None:
            if not self.queue.closed:  # else the frame is too late, and is counted with the session's reason to end
                self._stats.dropped("superseded")
        elif not self.lossless:
            # Two frames may arrive in one read of the socket: lets the consumer take the first before the second comes.
            await asyncio.sleep(0)
        return None

    async def space(self) -> None:
        """In `lossless`, waits for space in the queue, so that frames wait in the client and none is lost."""
        if self.lossless:
            await self.queue.space()

    async def within_rate(self) -> None:
        """Waits until one more message is within the rate. Messages that are not read meanwhile wait in the client."""
        while not self._rate.take():  # noqa: ASYNC110  time alone fills the bucket
            await asyncio.sleep(self._rate.wait_s)

    def _refuse(self, seq: int, reason: str, message: str) -> Error:
        self._stats.dropped(reason)
        return Error(reason, message, seq=seq)
