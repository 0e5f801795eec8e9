"""A TCP proxy that a test opens and closes; while it is closed, its address refuses connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Gateway:
    """Forwards bytes between its address and the server's, within one event loop."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = host, int(port)
        self._bound = socket.socket()  # holds the port; while nobody listens, it refuses
        self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._bound.bind(("127.0.0.1", 0))
        self._port: int = self._bound.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._ways: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._through, "127.0.0.1", self._port, reuse_port=True)

    async def close(self) -> None:
        """Closes the listening socket and every open connection."""
        if self._server is not None:
            self._server.close()
        for way in self._ways:
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)

    def give_up(self) -> None:
        self._bound.close()

    async def _through(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._ways.add(task)
        far_in, far_out = await asyncio.open_connection(*self._to)
        try:
            await asyncio.gather(_copy(near_in, far_out), _copy(far_in, near_out))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for writer in (near_out, far_out):
                writer.transport.abort()
            self._ways.discard(task)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while piece := await source.read(1 << 16):
        target.write(piece)
        await target.drain()
    with suppress(OSError):
        target.write_eof()


@asynccontextmanager
async def gateway(to: str) -> AsyncIterator[Gateway]:
    """Yields a gateway that is not open yet."""
    opened = Gateway(to)
    try:
        yield opened
    finally:
        await opened.close()
        opened.give_up()
