"""One camera of the load: a clock that says when frames are due, and the session they go into."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from app.addresses import leads_to_loopback
from app.loadtest.plan import Plan, Seat
from app.loadtest.score import Score, Second, SessionScore
from app.protocol import header

_FULL = 256 * 1024
"""Bytes that wait in our own socket: beyond, the service does not take frames as fast as they are due."""
_GOODBYE_S = 15.0
_AGAIN_S = 0.5
_SILENCE_S = 60.0
"""The service says `ping` every 15 s: one that is silent for so long is gone."""
_FULL_NOW = (429, 503)
"""HTTP statuses of a service that may have a place later."""
_SLOW_READ_S = 1.0
_NARROW = 4096
"""Bytes that the kernel keeps for a slow reader: with its usual megabytes the service would notice after minutes."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes and what it sends."""

    url: str
    """Of the WebSocket."""
    frames: Sequence[bytes]
    """JPEGs, over and over; every seat begins at another one."""
    token: str | None = None


class Camera:
    """Plays one seat to the end."""

    def __init__(self, seat: Seat, plan: Plan, target: Target, score: Score, started: float) -> None:
        self._seat, self._plan, self._target, self._score = seat, plan, target, score
        self._started = started
        """`time.perf_counter()` at second 0."""
        self._epoch_ms = time.time() * 1000 - time.perf_counter() * 1000
        self._socket: ClientConnection | None = None
        """While frames may be sent."""
        self._seconds = score.slow if seat.slow else score.seconds
        self._session = SessionScore(seat.number)
        self._in_flight: dict[int, float] = {}
        """By seq, oldest first: the second at which a frame was due that no answer was seen to."""

    async def play(self) -> None:
        clock = asyncio.create_task(self._clock())
        sessions = asyncio.create_task(self._sessions())
        try:
            await asyncio.gather(clock, sessions)
        finally:
            clock.cancel()
            sessions.cancel()

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._started

    # --- frames, when they are due ---

    async def _clock(self) -> None:
        count = 0
        while (due := self._seat.begin + count / self._plan.fps) < self._plan.end:
            count += 1
            if (wait := due - self._now) > 0:
                await asyncio.sleep(wait)
            await self._frame(due, self._target.frames[(count + self._seat.number) % len(self._target.frames)])

    async def _frame(self, due: float, jpeg: bytes) -> None:
        second = self._second(due)
        second.due += 1
        if self._counts(due):
            self._score.seats[self._seat.number].due += 1
        opened = self._socket
        if opened is None:
            second.unsent["no_session"] += 1
            return
        if opened.transport.get_write_buffer_size() > _FULL:
            second.unsent["blocked"] += 1
            return
        session = self._session  # another one may be begun before the socket has taken a large frame
        seq = session.sent + 1
        at_ms = self._epoch_ms + (self._started + due) * 1000
        message = jpeg if self._seat.bare else header.pack(jpeg, seq=seq, captured_at_ms=at_ms)
        self._in_flight[seq] = due
        try:
            await opened.send(message)
        except ConnectionClosed:
            second.unsent["no_session"] += 1
            return
        session.sent = seq
        second.sent += 1
        self._score.late.add(max(0.0, self._now - due) * 1000)

    def _second(self, due: float) -> Second:
        return self._seconds[math.floor(due - self._plan.measured_from)]

    def _counts(self, due: float) -> bool:
        """Whether this frame is one of those that all seats are compared by."""
        return due >= self._plan.measured_from and not self._seat.slow

    # --- sessions, one after the other ---

    async def _sessions(self) -> None:
        await asyncio.sleep(max(0.0, self._seat.begin - self._now))
        lengths = iter(self._seat.lengths)
        while self._now < self._plan.end:
            until = min(self._plan.end, self._now + next(lengths, self._plan.end))
            self._session = SessionScore(self._seat.number, slow=self._seat.slow)
            self._in_flight.clear()
            try:
                await self._session_until(until)
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError) as error:
                self._turned_away(error)  # its outcome stays `lost` or `refused`
                await asyncio.sleep(_AGAIN_S)
            finally:
                self._socket = None
                self._score.sessions.append(self._session)

    def _turned_away(self, error: Exception) -> None:
        session, full = self._session, False
        if isinstance(error, InvalidStatus):
            status, body = error.response.status_code, error.response.body or b""
            session.why, full = f"HTTP {status} {body.decode(errors='replace')}".strip(), status in _FULL_NOW
        elif session.outcome == "refused":
            session.why = str(error) or "no answer in time"
        if session.outcome == "unauthorized" or (session.outcome == "refused" and not full):
            self._score.refusals += 1

    async def _session_until(self, until: float) -> None:
        session = self._session
        session.outcome = "refused"
        async with connect(
            self._target.url,
            compression=None,
            max_size=None,
            # The answer to a ping waits behind what a slow reader has not read yet: after 40 s our own library would
            # close a session that the service keeps.
            ping_interval=None,
            proxy=None if leads_to_loopback(self._target.url) else True,
            max_queue=1 if self._seat.slow else 64,
            write_limit=4 * _FULL,
            sock=await _narrow(self._target.url) if self._seat.slow else None,
        ) as opened:
            await opened.send(orjson.dumps({"type": "init", "token": self._target.token}).decode())
            async with asyncio.timeout(max(0.0, until - self._now)):  # it may stand in line for good
                while (message := _message(await opened.recv()))["type"] != "ready":
                    if message["type"] == "queued":
                        session.outcome, self._score.let_in = "queued", True
                    elif message["type"] == "bye":
                        session.outcome, session.why = message["reason"], message.get("message") or ""
                        raise TimeoutError  # turned away: not tried again at once
            session.outcome, ready_at, self._score.let_in = "lost", self._now, True
            self._socket = opened
            self._score.open += 1
            reading = asyncio.create_task(self._read(opened))
            try:
                await asyncio.wait({reading}, timeout=max(0.0, until - self._now))
                self._socket = None
                session.seconds = self._now - ready_at
                if not reading.done():
                    await opened.send('{"type":"stop"}')
                    await asyncio.wait({reading}, timeout=_GOODBYE_S)
                    if not reading.done():
                        opened.transport.abort()  # a closing handshake would wait behind all that was not read
            finally:
                self._score.open -= 1
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, opened: ClientConnection) -> None:
        try:
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    text = await opened.recv()
                self._hear(message := orjson.loads(text))
                if message["type"] == "ping":
                    await opened.send(orjson.dumps({"type": "pong", "t": message["t"]}).decode())
                if self._seat.slow:
                    await asyncio.sleep(_SLOW_READ_S)
        except TimeoutError:
            opened.transport.abort()
        except ConnectionClosed:
            pass  # the session's outcome says how it ended

    def _hear(self, message: dict[str, Any]) -> None:
        kind, session = message["type"], self._session
        if kind == "bye":
            session.outcome, session.report = message["reason"], message["report"]
        elif kind == "result":
            due = self._in_flight.pop(message["seq"], None)
            self._give_up_before(message["seq"])
            session.results += 1
            if due is not None:
                second = self._second(due)
                second.ages.add((self._now - due) * 1000)
                if self._counts(due):
                    self._score.seats[self._seat.number].results += 1
                second.degraded += any(stage["status"] == "error" for stage in message["stages"].values())
        elif kind == "error" and message["seq"] is not None:
            # Of this frame alone: one that is refused on arrival is answered before an older one that is at the models.
            due = self._in_flight.pop(message["seq"], None)
            session.errors[message["code"]] += 1
            if due is not None:
                self._second(due).errors[message["code"]] += 1

    def _give_up_before(self, seq: int) -> None:
        """Results come in order: older frames without an answer get none any more."""
        while self._in_flight and (oldest := next(iter(self._in_flight))) < seq:
            del self._in_flight[oldest]


def _message(text: str | bytes) -> dict[str, Any]:
    """One message of the service.

    Raises:
        InvalidMessage: it is none, whatever is there speaks another protocol.
    """
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        message = None
    if not isinstance(message, dict) or "type" not in message:
        raise InvalidMessage(f"it said {text[:60]!r}, which is not the live protocol")
    return message


async def _narrow(url: str) -> socket.socket:
    """A connection that little fits into."""
    at, loop = urlsplit(url), asyncio.get_running_loop()
    port = at.port or (443 if at.scheme == "wss" else 80)
    found = await loop.getaddrinfo(at.hostname, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found[:-1]:  # `localhost` has two, and the service is at one of them
        with contextlib.suppress(OSError):
            return await _narrow_to(family, kind, protocol, address)
    family, kind, protocol, _, address = found[-1]
    return await _narrow_to(family, kind, protocol, address)


async def _narrow_to(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made
