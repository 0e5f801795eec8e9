"""Frames as they arrive: numbered, checked, counted, put in line."""

from __future__ import annotations

import asyncio
import time

from app.errors import FrameError, FrameTooLarge
from app.limits import TokenBucket
from app.live.ledger import Ledger
from app.live.queue import DropQueue
from app.pipeline.types import Frame
from app.protocol import header
from app.protocol.messages import Error, Mode
from app.settings import LiveSettings

_BURST_S = 2.0
"""A session may send this many seconds' worth of messages at once."""


class Intake:
    """The way of one session's frames from its socket to its line."""

    def __init__(self, stream: str, live: LiveSettings, ledger: Ledger) -> None:
        self._stream = stream
        self._live = live
        self._ledger = ledger
        self._rate = TokenBucket(live.max_messages_per_s, _BURST_S * live.max_messages_per_s)
        self._frame_ids = 0
        self._lossless = False
        self.line: DropQueue[tuple[int, Frame]] = DropQueue(1)
        """Frames with the service's numbers, to be analysed."""

    def choose(self, mode: Mode) -> None:
        """Called before the first frame, or never."""
        if mode == "lossless":
            self._lossless = True
            self.line = DropQueue(self._live.credits)

    async def take(self, data: bytes) -> Error | None:
        """Puts one message in line; the answer when it is refused. Waits in `lossless` while the rate is exceeded."""
        now = time.perf_counter()
        self._ledger.received(len(data))
        self._frame_ids += 1
        numbered = header.seq_of(data)
        seq = self._frame_ids if numbered is None else numbered
        if self._lossless:
            await self.turn()
        elif not self._rate.take():
            await asyncio.sleep(0)  # a flood arrives many at a time: others are served in between
            limit = self._live.max_messages_per_s
            return self._refuse(seq, "rate_limited", f"more than MAX_MESSAGES_PER_S={limit:g} messages a second")
        try:
            frame = self._frame(data, seq, now)
        except FrameError as error:
            return self._refuse(seq, error.code, str(error))
        if self.line.put((self._frame_ids, frame)) is not None:
            if not self.line.closed:  # else it came too late, and goes with the session for the session's reason
                self._ledger.dropped("superseded")
        elif not self._lossless:
            # Two frames may arrive as one piece of data: the first is taken out before the second supersedes it.
            await asyncio.sleep(0)
        return None

    async def room(self) -> None:
        """In `lossless`, waits for room: what is not received waits in the client, and nothing is lost."""
        if self._lossless:
            await self.line.room()

    async def turn(self) -> None:
        """Waits until one more message is within the rate; what is not read meanwhile waits in the client."""
        while not self._rate.take():  # noqa: ASYNC110  time alone fills the bucket
            await asyncio.sleep(self._rate.wait_s)

    def _frame(self, data: bytes, seq: int, received: float) -> Frame:
        if len(data) > self._live.max_frame_bytes + header.SIZE:
            raise FrameTooLarge(f"{len(data)} bytes; MAX_FRAME_BYTES is {self._live.max_frame_bytes}")
        _, captured_at_ms, jpeg = header.unpack(data)
        return Frame(
            stream=self._stream,
            jpeg=jpeg,
            received=received,
            received_at_ms=time.time() * 1000,
            seq=seq,
            captured_at_ms=captured_at_ms,
        )

    def _refuse(self, seq: int, reason: str, message: str) -> Error:
        self._ledger.dropped(reason)
        return Error(reason, message, seq=seq)
