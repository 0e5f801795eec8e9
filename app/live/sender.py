"""A session's messages to its client: results in the order of their frames, and summaries. Detects slow readers.

`Results` analyses the session's frames. In `realtime` one frame at a time is in the pipeline, and each new frame
replaces the one that waits. In `lossless` the pipeline holds as many frames as the client may have unanswered, up to
`AHEAD`, so that it decodes the next frame while the models work on the one before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from app.errors import FrameError
from app.live.receiver import DropQueue
from app.live.stats import FrameStats
from app.pipeline.batching import LiveBatcher, PendingFrame
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol import messages
from app.protocol.messages import CLOSE_CODES, Bye, Error, Result, ServerMessage, StreamSettings, Summary
from app.protocol.result import FrameResult
from app.protocol.stream import SUMMARY
from app.sinks import Feed, SinkMessage
from app.summary import SendSummary, SessionSummaries, Summaries

log = logging.getLogger(__name__)

AHEAD = 4
"""Frames of a `lossless` session in the pipeline at once. Each has an input tensor of a megabyte or more."""
CONNECTION = "sightline.connection"
"""Key of the ASGI scope's extension with the socket itself, if the server provides it (`connections.LiveSocket`)."""
_BYE_S = 1.0
"""Seconds that a client has to read `bye`."""


class TooSlow(Exception):
    """The client read nothing for SEND_TIMEOUT_S."""


class Gone(Exception):
    """The client has left."""


class Sender:
    """Sends messages over one socket."""

    def __init__(self, socket: WebSocket, send_timeout_s: float) -> None:
        self._socket = socket
        self._send_timeout_s = send_timeout_s
        self._connection: Any = socket.scope.get("extensions", {}).get(CONNECTION)

    def on_shutdown(self, end: Callable[[float], None]) -> None:
        """Registers `end`, called when the service stops, with the seconds that it waits for its sessions."""
        if self._connection is not None:
            self._connection.end_session = end

    def trust(self) -> None:
        """Allows messages of the full size, because the client may use the service."""
        if self._connection is not None:
            self._connection.trusted = True

    @property
    def left(self) -> bool:
        """Whether the client is known to have left, without reading what it sent."""
        return self._connection is not None and bool(self._connection.left)

    async def send(self, message: ServerMessage) -> None:
        """Sends a message; waits while the transport's buffer is full.

        Raises:
            TooSlow: the client read nothing for SEND_TIMEOUT_S.
            Gone: the socket is closed.
        """
        text = messages.encode(message)
        if self._connection is None or not self._connection.try_send(text):
            await self._send_event({"type": "websocket.send", "text": text.decode()}, self._send_timeout_s)

    async def _send_event(self, event: Message, timeout_s: float) -> None:
        """Sends an event; waits as long as the client reads anything within each `timeout_s` seconds.

        Raises:
            TooSlow: the client read nothing for `timeout_s`.
            Gone: the socket is closed.
        """
        unread = None
        while True:
            before, unread = unread, self._connection.unread if self._connection is not None else 0
            if before is not None and unread >= before:
                raise TooSlow
            try:
                async with asyncio.timeout(timeout_s):
                    await self._socket.send(event)
            except TimeoutError:  # nothing was sent
                continue
            except (WebSocketDisconnect, RuntimeError):  # Starlette raises RuntimeError if the socket is closed
                raise Gone from None
            return

    async def close(self, bye: Bye) -> None:
        """Sends `bye` and the close frame; aborts the connection of a client that does not read them."""
        if self._socket.client_state == WebSocketState.DISCONNECTED:
            return
        close = {"type": "websocket.close", "code": CLOSE_CODES[bye.reason], "reason": bye.reason}
        try:
            await self._send_event({"type": "websocket.send", "text": messages.encode(bye).decode()}, _BYE_S)
            await self._send_event(close, self._send_timeout_s)
        except TooSlow:
            if self._connection is not None:
                self._connection.abort()
        except Gone:
            pass


class SummaryStream:
    """A session's summaries, by its settings in force: on or off, and with which prompt.

    They begin with the first result for which summaries are on. When they are switched off, the results until then are
    summarized, and no more results are taken.
    """

    def __init__(self, session_id: str, summaries: Summaries, send: SendSummary) -> None:
        self._session_id = session_id
        self._summaries = summaries
        self._send = send
        self._session: SessionSummaries | None = None

    def offer(self, frame_id: int, result: FrameResult, at_ms: float, settings: StreamSettings) -> None:
        """Takes one result after it was sent. Never waits."""
        if not settings.stages[SUMMARY]:
            if self._session is not None:
                self._session.pause()
            return
        if self._session is None:
            self._session = self._summaries.session(self._session_id, settings.summary_prompt, self._send)
        elif self._session.prompt != settings.summary_prompt:
            self._session.set_prompt(settings.summary_prompt)
        self._session.offer(frame_id, result, at_ms)

    async def finish(self) -> Summary | None:
        """Returns a summary of the results since the last summary, or None; takes at most SUMMARY_FINISH_S."""
        return await self._session.finish() if self._session is not None else None


SCHEMA = "sightline.live.v1"
"""`schema` of a live result in a sink."""


def encode_for_sinks(result: Result) -> bytes:
    """The value of a live result's message for the sinks: the fields of the client's `Result`, without `dropped`."""
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "session_id": result.session_id,
        "frame_id": result.frame_id,
        "seq": result.seq,
        "captured_at_ms": result.captured_at_ms,
        "age_ms": result.age_ms,
    }
    return orjson.dumps(value | result.frame.values())


Send = Callable[[ServerMessage], Awaitable[bool]]
"""Sends a message; returns False if the session is over."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A frame in the pipeline."""

    frame_id: int
    """The number that the service gave it."""
    frame: Frame
    settings: StreamSettings
    pending: PendingFrame


class Results:
    """Analyses one session's frames, and sends a result or an error for each, in their order.

    Args:
        settings: the settings in force, for the next frame that enters the pipeline.
        judged: called with whether a frame was useful, and with the monotonic time: True for a frame that was analysed,
            False for one that cannot be (no image, damaged, too large). Not called for a frame that was stale or whose
            analysis failed, because such a frame may be a good one.
        feed: gets each result that was sent to the client; None: no sinks.
    """

    def __init__(
        self,
        session_id: str,
        batcher: LiveBatcher,
        memory: StreamMemory,
        stats: FrameStats,
        summaries: SummaryStream,
        send: Send,
        settings: StreamSettings,
        judged: Callable[[bool, float], None],
        feed: Feed | None = None,
    ) -> None:
        self.settings = settings
        self._session_id = session_id
        self._batcher = batcher
        self._memory = memory
        self._stats = stats
        self._summaries = summaries
        self._send = send
        self._judged = judged
        self._feed = feed
        self._in_flight: deque[_InFlight] = deque()

    def __len__(self) -> int:
        """Number of frames in the pipeline."""
        return len(self._in_flight)

    async def run(self, queue: DropQueue[tuple[int, Frame]], at_once: int) -> None:
        """Runs until the queue is closed and empty, or the session is over.

        Args:
            queue: of (frame id, frame).
            at_once: frames in the pipeline at a time.
        """
        in_flight = self._in_flight
        wake = queue.wake if at_once > 1 else None
        try:
            while True:
                while len(in_flight) < at_once and (item := queue.take()) is not None:
                    if not await self._submit(*item, wake):
                        return
                if in_flight and (len(in_flight) == at_once or queue.closed or in_flight[0].pending.answer.done()):
                    if not await self._answer(in_flight[0]):
                        return
                    in_flight.popleft()
                elif queue.closed:
                    return
                else:
                    await queue.changed()  # another frame, or the first one's answer
        finally:
            for frame in in_flight:
                frame.pending.cancel()

    async def _submit(self, frame_id: int, frame: Frame, wake: Callable[[], None] | None) -> bool:
        settings = self.settings
        waited_ms = (time.perf_counter() - frame.received) * 1000
        if settings.mode == "realtime" and waited_ms > settings.max_age_ms:
            self._stats.dropped("stale")
            late = f"waited {waited_ms:.0f} ms; max_age_ms is {settings.max_age_ms:g}"
            return await self._send(Error("stale", late, seq=frame.seq))
        pending = self._batcher.submit(FrameJob(frame, self._memory, settings))
        if wake is not None:
            pending.answer.add_done_callback(lambda _: wake())
        self._in_flight.append(_InFlight(frame_id, frame, settings, pending))
        return True

    async def _answer(self, first: _InFlight) -> bool:
        frame = first.frame
        try:
            result = await first.pending.answer
        except Exception:  # the boundary of one frame: logged, counted and answered; the session goes on
            log.exception("a frame of session %s failed", self._session_id)
            self._stats.failed("pipeline")
            return await self._send(Error("internal", "this frame could not be analysed", seq=frame.seq))
        if isinstance(result, FrameError):
            self._stats.dropped(result.code)
            self._judged(False, time.monotonic())
            return await self._send(Error(result.code, str(result), seq=frame.seq))
        self._judged(True, time.monotonic())
        age_s = time.perf_counter() - frame.received
        message = Result(
            session_id=self._session_id,
            frame_id=first.frame_id,
            seq=frame.seq,
            captured_at_ms=frame.received_at_ms if frame.captured_at_ms is None else frame.captured_at_ms,
            frame=result,
            age_ms=round(age_s * 1000, 3),
            dropped=self._stats.report_dropped(),
        )
        sent = await self._send(message)
        if sent:
            self._stats.processed(age_s, result.timings_ms)
            if self._feed is not None:
                name = f"{self._session_id}/{first.frame_id}"
                self._feed.send(SinkMessage(self._session_id, name, encode_for_sinks(message)))
            self._summaries.offer(first.frame_id, result, frame.received_at_ms, first.settings)
        return sent
