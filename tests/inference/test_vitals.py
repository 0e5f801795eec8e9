"""What is made of an HTTP server's answers, and of connections that break."""

from __future__ import annotations

import asyncio
import os

from app.inference.liveness import LivenessProbe


def test_d7_a_connection_that_breaks_is_no_silence() -> None:
    """A server that answers all questions but one, whose connection broke, is not started anew for it."""
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        try:
            while (await reader.readuntil(b"\r\n\r\n")) and (asked := asked + 1) > 1:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            watching = asyncio.ensure_future(
                LivenessProbe(f"http://127.0.0.1:{port}", os.getpid(), (), 1.0).until_hung()
            )
            done, _ = await asyncio.wait({watching}, timeout=5)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            assert not done, watching.result()

    asyncio.run(run())
    assert asked > 2
