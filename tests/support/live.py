"""A bare client of the live protocol: sends any bytes, valid or not, and validates every message it receives."""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import orjson
from jsonschema import Draft202012Validator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.protocol import header
from app.protocol.messages import Report
from tests.support.service import Service

Message = dict[str, Any]
PATIENCE_S = 10.0


@functools.cache
def validators(url: str) -> dict[str, Draft202012Validator]:
    """A validator for each of the service's messages, from the schema that it serves."""
    schema = httpx.get(f"{url}/schema.json").json()
    # `unevaluatedProperties`: a field that the schema does not name is found, too.
    return {
        name: Draft202012Validator({**message, "$defs": schema["$defs"], "unevaluatedProperties": False})
        for name, message in schema["server"].items()
    }


class Live:
    """An open socket. Every message received is held against the served schema."""

    def __init__(self, connection: ClientConnection, service: Service) -> None:
        self.connection = connection
        self._validators = validators(service.url)

    async def text(self, text: str | bytes) -> None:
        """A text message as it is; bytes may be no UTF-8."""
        await self.connection.send(text, text=True)

    async def say(self, kind: str, **fields: Any) -> None:
        await self.text(orjson.dumps({"type": kind, **fields}).decode())

    async def frame(self, jpeg: bytes, seq: int | None = None, captured_at_ms: float = 1.7e12) -> None:
        """A bare JPEG, or with the header where `seq` is given."""
        packed = jpeg if seq is None else header.pack(jpeg, seq=seq, captured_at_ms=captured_at_ms)
        await self.connection.send(packed)

    async def receive(self) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            message: Message = orjson.loads(await self.connection.recv())
        self._validators[message["type"]].validate(message)
        return message

    async def until(self, *kinds: str) -> Message:
        """The next message of one of these types; what comes before it is passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while (message := await self.receive())["type"] not in kinds:
                assert message["type"] != "bye", f"{message} in place of {kinds}"
            return message

    async def answer(self) -> Message:
        """The next `result` or `error`."""
        return await self.until("result", "error")

    async def rest(self) -> list[Message]:
        """All messages up to the end of the connection."""
        messages = []
        with suppress(ConnectionClosed):
            while True:
                messages.append(await self.receive())
        return messages

    async def bye(self) -> Message:
        """The last message; after it the connection must end."""
        messages = await self.rest()
        assert messages, f"no bye: {self.connection.close_code}"
        assert messages[-1]["type"] == "bye", messages
        return messages[-1]

    async def stop(self) -> Message:
        await self.say("stop")
        return await self.bye()


@asynccontextmanager
async def opened(service: Service, headers: Mapping[str, str] | None = None, **options: Any) -> AsyncIterator[Live]:
    """A socket that has sent nothing yet."""
    options = {"compression": None, "max_size": None, "ping_interval": None, "close_timeout": 5, **options}
    async with connect(service.socket_url, additional_headers=headers, **options) as connection:
        yield Live(connection, service)


@asynccontextmanager
async def ready(service: Service, headers: Mapping[str, str] | None = None, **wishes: Any) -> AsyncIterator[Live]:
    """A session that is ready; `ready` itself is in `live.welcome`."""
    async with opened(service, headers) as live:
        await live.say("init", **wishes)
        live.welcome = await live.until("ready")  # type: ignore[attr-defined]
        yield live


def adds_up(report: Message) -> bool:
    """received = processed + dropped + failed."""
    accounted: int = report["processed"] + sum(report["dropped"].values()) + report["failed"]
    return accounted == report["received"]


def adds_up_report(report: Report) -> bool:
    """The same of a typed report."""
    return report.received == report.processed + sum(report.dropped.values()) + report.failed


# --- below the protocol: TCP sockets, by hand ---


def plain_socket(service: Service, *, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE_S)
    try:
        connection.connect(("127.0.0.1", service.port))
    except OSError:
        connection.close()
        raise
    return connection


def upgrade(connection: socket.socket) -> None:
    """Performs the WebSocket handshake; messages of the service after it are left unread."""
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        "GET /ws/inference HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert b" 101 " in answer, answer


def ws_frame(payload: bytes, opcode: int, *, fin: bool = True) -> bytes:
    """A client's WebSocket frame, masked with zeros (RFC 6455, 5.2)."""
    first = bytes([opcode | (0x80 if fin else 0)])
    if len(payload) < 126:
        size = struct.pack("!B", 0x80 | len(payload))
    elif len(payload) < 1 << 16:
        size = struct.pack("!BH", 0x80 | 126, len(payload))
    else:
        size = struct.pack("!BQ", 0x80 | 127, len(payload))
    return first + size + bytes(4) + payload


TEXT, BINARY, CLOSE, PING, CONTINUATION = 1, 2, 8, 9, 0


def reset(connection: socket.socket) -> None:
    """Closes the connection with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def ended(connection: socket.socket) -> bool:
    """Whether the service ended the connection (having said whatever it wanted) within the patience of a test."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def send_until_cut_off(connection: socket.socket, data: bytes) -> None:
    """Sends the data again and again until the service closes the connection."""
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            connection.sendall(data)
    except ConnectionError:
        return
    raise AssertionError("the service takes whatever comes")


def settle(service: Service, sample: str = "sightline_sessions_active", value: float = 0) -> None:
    """Waits until a metric has this value."""
    deadline = time.monotonic() + PATIENCE_S
    while (seen := service.metrics().get(sample, 0.0)) != value:
        assert time.monotonic() < deadline, f"{sample} is {seen}, not {value}"
        time.sleep(0.05)


def settle_below(service: Service, sample: str, value: float) -> None:
    """Waits until a metric is below this value; a worker that is being killed may reset who asks."""
    deadline, seen = time.monotonic() + PATIENCE_S, value
    while seen >= value:
        with suppress(httpx.TransportError):
            seen = service.metrics().get(sample, 0.0)
        assert time.monotonic() < deadline, f"{sample} is {seen}, not below {value}"
        time.sleep(0.05)
