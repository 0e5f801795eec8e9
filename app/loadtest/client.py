"""One simulated client: it sends each frame when it is due, over sessions that follow each other."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import orjson
import simplejpeg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from app.addresses import leads_to_loopback
from app.loadtest.metrics import LoadStats, SecondStats, SessionStats
from app.loadtest.plan import ClientPlan, LoadPlan
from app.protocol import header
from app.settings import ROOT
from app.sources.address import parse
from app.sources.reader import OnDamage, SourceError, encode, open_source

_BLOCKED_BYTES = 256 * 1024
"""Unsent bytes in the client's socket beyond which a due frame counts as `blocked`, because the service reads too
slowly."""
BYE_TIMEOUT_S = 15.0
"""Seconds between `stop` and the end of the connection."""
_RETRY_S = 0.5
SILENCE_S = 60.0
"""Seconds of silence after which a connection counts as lost; the service sends `ping` every 15 s."""
_RETRYABLE = (429, 503)
"""HTTP statuses of a service that is full now and may accept a session later."""
_SLOW_READ_S = 1.0
_SLOW_BUFFER = 4096
"""Receive buffer of a slow reader, bytes: with the kernel's usual megabytes the service would notice after minutes."""

MAX_FRAMES = 120
QUALITY = 85
"""JPEG quality of the frames that are encoded here."""
_SCENE = ROOT / "app" / "web" / "scene.jpg"
_WIDTH, _HEIGHT = 640, 480


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes and what it sends."""

    url: str
    """The WebSocket's."""
    frames: Sequence[bytes]
    """JPEGs, sent over and over; each client begins at another one."""
    token: str | None = None


class LoadClient:
    """Runs one client to the end of the load."""

    def __init__(self, client: ClientPlan, plan: LoadPlan, target: Target, stats: LoadStats, started: float) -> None:
        self._client, self._plan, self._target, self._stats = client, plan, target, stats
        self._started = started
        """`time.perf_counter()` at the start of the load."""
        self._epoch_ms = time.time() * 1000 - time.perf_counter() * 1000
        self._socket: ClientConnection | None = None
        """Set while frames may be sent."""
        self._seconds = stats.slow if client.slow else stats.seconds
        self._session = SessionStats(client.number)
        self._in_flight: dict[int, float] = {}
        """Due times of frames without an answer, by seq, oldest first."""

    async def run(self) -> None:
        """Sends frames and holds sessions until the load ends. Failed sessions are counted, not raised."""
        clock = asyncio.create_task(self._send_frames())
        sessions = asyncio.create_task(self._run_sessions())
        try:
            await asyncio.gather(clock, sessions)
        finally:
            clock.cancel()
            sessions.cancel()

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._started

    # --- frames, when they are due ---

    async def _send_frames(self) -> None:
        count = 0
        while (due := self._client.begin + count / self._plan.fps) < self._plan.end:
            count += 1
            if (wait := due - self._now) > 0:
                await asyncio.sleep(wait)
            await self._send_frame(due, self._target.frames[(count + self._client.number) % len(self._target.frames)])

    async def _send_frame(self, due: float, jpeg: bytes) -> None:
        second = self._second(due)
        second.due += 1
        if self._measured(due):
            self._stats.clients[self._client.number].due += 1
        connection = self._socket
        if connection is None:
            second.unsent["no_session"] += 1
            return
        if connection.transport.get_write_buffer_size() > _BLOCKED_BYTES:
            second.unsent["blocked"] += 1
            return
        session = self._session  # the next session may begin before the socket has taken a large frame
        seq = session.sent + 1
        at_ms = self._epoch_ms + (self._started + due) * 1000
        message = jpeg if self._client.bare else header.pack(jpeg, seq=seq, captured_at_ms=at_ms)
        self._in_flight[seq] = due
        try:
            await connection.send(message)
        except ConnectionClosed:
            second.unsent["no_session"] += 1
            return
        session.sent = seq
        second.sent += 1
        self._stats.late.add(max(0.0, self._now - due) * 1000)

    def _second(self, due: float) -> SecondStats:
        return self._seconds[math.floor(due - self._plan.measured_from)]

    def _measured(self, due: float) -> bool:
        """Whether fairness counts this frame."""
        return due >= self._plan.measured_from and not self._client.slow

    # --- sessions, one after the other ---

    async def _run_sessions(self) -> None:
        await asyncio.sleep(max(0.0, self._client.begin - self._now))
        lengths = iter(self._client.lengths)
        while self._now < self._plan.end:
            until = min(self._plan.end, self._now + next(lengths, self._plan.end))
            self._session = SessionStats(self._client.number, slow=self._client.slow)
            self._in_flight.clear()
            try:
                await self._run_session(until)
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError) as error:
                self._count_refusal(error)  # its outcome stays `lost` or `refused`
                await asyncio.sleep(_RETRY_S)
            finally:
                self._socket = None
                self._stats.sessions.append(self._session)

    def _count_refusal(self, error: Exception) -> None:
        session, retryable = self._session, False
        if isinstance(error, InvalidStatus):
            status, body = error.response.status_code, error.response.body or b""
            session.why, retryable = f"HTTP {status} {body.decode(errors='replace')}".strip(), status in _RETRYABLE
        elif session.outcome == "refused":
            session.why = str(error) or "no answer in time"
        if session.outcome == "unauthorized" or (session.outcome == "refused" and not retryable):
            self._stats.refusals += 1

    async def _run_session(self, until: float) -> None:
        session = self._session
        session.outcome = "refused"
        async with connect(
            self._target.url,
            compression=None,
            max_size=None,
            # A slow reader gets the pong only after everything it has not read yet, so that the websockets library
            # would close a session after 40 s that the service keeps.
            ping_interval=None,
            proxy=None if leads_to_loopback(self._target.url) else True,
            max_queue=1 if self._client.slow else 64,
            write_limit=4 * _BLOCKED_BYTES,
            sock=await _connect_slow(self._target.url) if self._client.slow else None,
        ) as connection:
            await connection.send(orjson.dumps({"type": "init", "token": self._target.token}).decode())
            async with asyncio.timeout(max(0.0, until - self._now)):  # it may stay queued to the end
                while (message := _parse_message(await connection.recv()))["type"] != "ready":
                    if message["type"] == "queued":
                        session.outcome, self._stats.let_in = "queued", True
                    elif message["type"] == "bye":
                        session.outcome, session.why = message["reason"], message.get("message") or ""
                        raise TimeoutError  # `_run_sessions` waits before it tries again
            session.outcome, ready_at, self._stats.let_in = "lost", self._now, True
            self._socket = connection
            self._stats.open += 1
            reading = asyncio.create_task(self._read(connection))
            try:
                await asyncio.wait({reading}, timeout=max(0.0, until - self._now))
                self._socket = None
                session.seconds = self._now - ready_at
                if not reading.done():
                    await connection.send('{"type":"stop"}')
                    await asyncio.wait({reading}, timeout=BYE_TIMEOUT_S)
                    if not reading.done():
                        connection.transport.abort()  # a closing handshake would wait behind everything unread
            finally:
                self._stats.open -= 1
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, connection: ClientConnection) -> None:
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    text = await connection.recv()
                self._handle(message := orjson.loads(text))
                if message["type"] == "ping":
                    await connection.send(orjson.dumps({"type": "pong", "t": message["t"]}).decode())
                if self._client.slow:
                    await asyncio.sleep(_SLOW_READ_S)
        except TimeoutError:
            connection.transport.abort()
        except ConnectionClosed:
            pass  # the session's outcome records how it ended

    def _handle(self, message: dict[str, Any]) -> None:
        kind, session = message["type"], self._session
        if kind == "bye":
            session.outcome, session.report = message["reason"], message["report"]
        elif kind == "result":
            due = self._in_flight.pop(message["seq"], None)
            self._forget_before(message["seq"])
            session.results += 1
            if due is not None:
                second = self._second(due)
                second.ages.add((self._now - due) * 1000)
                if self._measured(due):
                    self._stats.clients[self._client.number].results += 1
                second.degraded += any(stage["status"] == "error" for stage in message["stages"].values())
        elif kind == "error" and message["seq"] is not None:
            # Older frames stay in flight: a frame refused on arrival is answered before one that is at the models.
            due = self._in_flight.pop(message["seq"], None)
            session.errors[message["code"]] += 1
            if due is not None:
                self._second(due).errors[message["code"]] += 1

    def _forget_before(self, seq: int) -> None:
        """Results come in order, so older frames without an answer will get none."""
        while self._in_flight and (oldest := next(iter(self._in_flight))) < seq:
            del self._in_flight[oldest]


def _parse_message(text: str | bytes) -> dict[str, Any]:
    """Parses a message of the service.

    Raises:
        InvalidMessage: the server speaks another protocol.
    """
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        message = None
    if not isinstance(message, dict) or "type" not in message:
        raise InvalidMessage(f"it sent {text[:60]!r}, which is not the live protocol")
    return message


async def _connect_slow(url: str) -> socket.socket:
    """Connects with a small receive buffer."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    addresses = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in addresses[:-1]:
        with contextlib.suppress(OSError):
            return await _connect_slow_to(family, kind, protocol, address)
    family, kind, protocol, _, address = addresses[-1]
    return await _connect_slow_to(family, kind, protocol, address)


async def _connect_slow_to(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


# --- what the clients send ---


def load_frames(source: str, on_damage: OnDamage = lambda problem, code: None) -> list[bytes]:
    """Reads at most MAX_FRAMES JPEGs, to be sent over and over.

    Args:
        source: `clip` for the built-in one; else a video, an image, or a folder of images.
        on_damage: called for each image that cannot be decoded, and so is not sent.

    Raises:
        SourceError: the source cannot be read.
    """
    if source == "clip":
        return _clip()
    address = parse(source)
    with open_source(address, on_damage=on_damage) as reader:
        jpegs = [frame.encoded(QUALITY) for frame in islice(reader, MAX_FRAMES)]
    if not jpegs:
        raise SourceError(f"{address.shown}: it contains no image")
    return jpegs


def _clip() -> list[bytes]:
    """40 frames of 640x480: a window that moves to and fro over the page's 800x600 image in steps of 8 pixels."""
    scene = simplejpeg.decode_jpeg(_SCENE.read_bytes(), "RGB")
    scene = cv2.resize(scene, (800, 600)) if scene.shape[:2] != (600, 800) else scene
    rightwards = [np.ascontiguousarray(scene[60 : 60 + _HEIGHT, x : x + _WIDTH]) for x in range(0, 161, 8)]
    return [encode(crop) for crop in rightwards + rightwards[-2:0:-1]]
