"""Clients that connect and misbehave in the ways that `sightline load` leaves out.

    python -m benchmarks.unruly --url ws://127.0.0.1:8000/ws/inference --seconds 60 --seats 4

Each of `--seats` slots runs one client after the other, of random kinds. Prints one JSON object: how often each kind
ran, and how often the service or the socket ended it early.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from app.loadtest.client import load_frames

_PATIENCE_S = 5.0
"""Seconds that a client waits for an answer."""


class Visitor:
    """The clients that one slot runs, one after the other."""

    def __init__(self, url: str, jpegs: Sequence[bytes], seed: int) -> None:
        self._url, self._jpegs, self._chance = url, jpegs, random.Random(seed)

    async def lossless(self) -> None:
        """Waits for the result of every frame, and stops the session properly."""
        async with self._opened() as session:
            await session.send('{"type":"init","mode":"lossless"}')
            for _ in range(self._chance.randrange(3, 40)):
                await session.send(self._jpeg())
                await _until(session, '"objects"')
            await session.send('{"type":"stop"}')
            await _until(session, '"bye"')

    async def vanishing(self) -> None:
        """Sends more frames than can be answered, then drops the connection."""
        async with self._opened() as session:
            mode = self._chance.choice(("realtime", "lossless"))
            await session.send(json.dumps({"type": "init", "mode": mode}))
            for _ in range(self._chance.randrange(0, 12)):
                await session.send(self._jpeg())
            await asyncio.sleep(self._chance.uniform(0, 0.3))
            session.transport.abort()

    async def garbage(self) -> None:
        """Sends invalid JPEGs and invalid messages, and reads the service's errors."""
        async with self._opened() as session:
            for _ in range(self._chance.randrange(1, 12)):
                await session.send(self._junk())
                await asyncio.sleep(0.02)
            await session.send('{"type":"stop"}')
            await _until(session, '"bye"')

    async def torn(self) -> None:
        """No WebSocket at all: half a request, or noise."""
        at = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        head = f"GET {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nUpgrade: websocket\r\n".encode()
        writer.write(self._chance.choice((head, self._chance.randbytes(400))))
        await asyncio.sleep(self._chance.uniform(0, 0.3))
        writer.transport.abort()
        await reader.read()

    @property
    def kinds(self) -> list[Callable[[], Awaitable[None]]]:
        return [self.lossless, self.vanishing, self.garbage, self.torn]

    async def visit(self, until: float, came: Counter[str], cut: Counter[str]) -> None:
        """Client after client until a time, `time.monotonic()` seconds."""
        while time.monotonic() < until:
            kind = self._chance.choice(self.kinds)
            came[kind.__name__] += 1
            try:
                await asyncio.wait_for(kind(), 2 * _PATIENCE_S)
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                cut[kind.__name__] += 1
            await asyncio.sleep(self._chance.uniform(0, 0.4))

    def _opened(self) -> connect:
        return connect(self._url, compression=None, max_size=None, close_timeout=1)

    def _jpeg(self) -> bytes:
        return self._chance.choice(self._jpegs)

    def _junk(self) -> bytes | str:
        jpeg, chance = self._jpeg(), self._chance
        damaged = bytearray(jpeg)
        damaged[chance.randrange(len(jpeg))] ^= 0xFF
        return chance.choice(
            (
                b"",
                chance.randbytes(chance.randrange(1, 60_000)),
                jpeg[: chance.randrange(2, len(jpeg))],
                b"SLF1" + jpeg[:9],
                bytes(damaged),
                "no JSON",
                "[" * 500,
                '{"type":"nothing"}',
                '{"type":"update","confidence":"much"}',
            )
        )


async def _until(session: ClientConnection, word: str) -> None:
    """Reads until a message with this in it comes."""
    async with asyncio.timeout(_PATIENCE_S):
        while word not in str(await session.recv()):
            pass


async def run(url: str, seconds: float, seats: int) -> dict[str, dict[str, int]]:
    """Runs all slots at once."""
    came: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    jpegs, until = load_frames("clip"), time.monotonic() + seconds
    await asyncio.gather(*(Visitor(url, jpegs, seat).visit(until, came, cut) for seat in range(seats)))
    return {"came": dict(came), "cut": dict(cut)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seats", type=int, default=4, help="clients at once")
    options = parser.parse_args()
    json.dump(uvloop.run(run(options.url, options.seconds, options.seats)), sys.stdout)


if __name__ == "__main__":
    main()
