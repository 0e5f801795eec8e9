"""A session's frames through the pipeline, and what came of each to its client, in order.

`realtime` has one frame at a time in the pipeline: whatever comes meanwhile gives way to the newest. `lossless` has as
many as the client may have unanswered, up to `AHEAD`: the next is decoded while the last is at the models.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.errors import FrameError
from app.live.batches import Batches, Wish
from app.live.ledger import Ledger
from app.live.queue import DropQueue
from app.live.telling import Telling
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.messages import Error, Result, ServerMessage, StreamSettings
from app.protocol.result import FrameResult

log = logging.getLogger(__name__)

AHEAD = 4
"""Frames of a `lossless` session in the pipeline at a time: each has an input tensor of its own, a megabyte or more."""

Send = Callable[[ServerMessage], Awaitable[bool]]
"""False: the session is over."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A frame in the pipeline."""

    number: int
    """The service's."""
    frame: Frame
    settings: StreamSettings
    wish: Wish


class Answering:
    """One session's."""

    def __init__(
        self,
        session_id: str,
        batches: Batches,
        memory: StreamMemory,
        ledger: Ledger,
        telling: Telling,
        send: Send,
    ) -> None:
        self._session_id = session_id
        self._batches = batches
        self._memory = memory
        self._ledger = ledger
        self._telling = telling
        self._send = send
        self._begun: deque[_Begun] = deque()

    def __len__(self) -> int:
        """Frames in the pipeline."""
        return len(self._begun)

    async def run(
        self, line: DropQueue[tuple[int, Frame]], settings: Callable[[], StreamSettings], at_once: int
    ) -> None:
        """Until the line is closed and empty, or the session is over.

        Args:
            settings: those in force for the frame that is begun now.
            at_once: frames in the pipeline at a time.
        """
        begun = self._begun
        nudge = line.nudge if at_once > 1 else None
        try:
            while True:
                while len(begun) < at_once and (item := line.take()) is not None:
                    if not await self._begin(*item, settings(), nudge):
                        return
                if begun and (len(begun) == at_once or line.closed or begun[0].wish.answer.done()):
                    if not await self._answer(begun[0]):
                        return
                    begun.popleft()
                elif line.closed:
                    return
                else:
                    await line.news()  # a frame more, or the first one's answer
        finally:
            for one in begun:
                one.wish.give_up()

    async def _begin(
        self, number: int, frame: Frame, settings: StreamSettings, nudge: Callable[[], None] | None
    ) -> bool:
        waited_ms = (time.perf_counter() - frame.received) * 1000
        if settings.mode == "realtime" and waited_ms > settings.max_age_ms:
            self._ledger.dropped("stale")
            late = f"waited {waited_ms:.0f} ms; max_age_ms is {settings.max_age_ms:g}"
            return await self._send(Error("stale", late, seq=frame.seq))
        wish = self._batches.submit(FrameJob(frame, self._memory, settings))
        if nudge is not None:
            wish.answer.add_done_callback(lambda _: nudge())
        self._begun.append(_Begun(number, frame, settings, wish))
        return True

    async def _answer(self, one: _Begun) -> bool:
        seq = one.frame.seq
        try:
            found = await one.wish.answer
        except Exception:  # the door's per-frame boundary: logged, counted, answered; the session goes on
            log.exception("a frame of session %s failed", self._session_id)
            self._ledger.failed("pipeline")
            return await self._send(Error("internal", "this frame could not be analysed", seq=seq))
        if isinstance(found, FrameError):
            self._ledger.dropped(found.code)
            return await self._send(Error(found.code, str(found), seq=seq))
        return await self._send_result(one, found)

    async def _send_result(self, one: _Begun, found: FrameResult) -> bool:
        frame = one.frame
        age_s = time.perf_counter() - frame.received
        sent = await self._send(
            Result(
                session_id=self._session_id,
                frame_id=one.number,
                seq=frame.seq,
                captured_at_ms=frame.received_at_ms if frame.captured_at_ms is None else frame.captured_at_ms,
                frame=found,
                age_ms=round(age_s * 1000, 3),
                dropped=self._ledger.tell_dropped(),
            )
        )
        if sent:
            self._ledger.processed(age_s, found.timings_ms)
            self._telling.offer(one.number, found, frame.received_at_ms, one.settings)
        return sent
