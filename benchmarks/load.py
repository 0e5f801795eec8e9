"""The load: one process, many sockets, hand-made WebSocket frames, so that it costs next to nothing itself.

    python -m benchmarks.load --url ws://127.0.0.1:8000/ws/inference --frames FOLDER --watch PID …

Every session keeps its frames in flight and sends the next one with each answer. Answers are searched, not parsed.
Prints one JSON object: a `measure.Measured`, and `sample`, one of the last results.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks import photographs
from benchmarks.measure import Window

_RESULT = b'"objects":'
"""In every result, and in no other message."""
_PING = 0x89
"""First byte of a WebSocket's own ping. It stays unanswered, because frames keep the session alive as well."""
_PASSED_OVER = (b'"ping"', b'"source"', b'"notice"')
"""In messages that may come at any time; `source` is a summary's."""


def masked(payload: bytes, opcode: int) -> bytes:
    """A whole client frame (RFC 6455, 5.2). Its mask is 0, which costs the server the same and us nothing."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


class Load(asyncio.Protocol):
    """One session."""

    def __init__(self, path: str, host: str, init: str | None, clip: list[bytes], credits: int, window: Window) -> None:
        self._path, self._host, self._init = path, host, init
        self._frames = cycle([masked(jpeg, 2) for jpeg in clip])
        self._credits = credits
        self._window = window
        self._sent: list[float] = []
        self._buffer = b""
        self._upgraded = False
        self.ended = asyncio.get_running_loop().create_future()
        self.last = b""
        """The last result."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {self._path} HTTP/1.1", f"Host: {self._host}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self._transport.write("\r\n".join(lines).encode())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionError(f"the service hung up; its last word: {self.last!r}"))

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        at = 0
        if not self._upgraded:
            head, found, _ = buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head:
                self.ended.set_exception(ConnectionError(head.decode(errors="replace")))
                return
            self._upgraded, at = True, len(head) + 4
            self._begin()
        while (end := self._frame_end(buffer, at)) is not None:
            self._answer(buffer[at:end])
            at = end
        self._buffer = buffer[at:]

    @staticmethod
    def _frame_end(buffer: bytes, at: int) -> int | None:
        if len(buffer) < at + 4:
            return None
        size, head = buffer[at + 1] & 0x7F, 2
        if size == 126:
            size, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
        elif size == 127:
            if len(buffer) < at + 10:
                return None
            size, head = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
        end = at + head + size
        return end if end <= len(buffer) else None

    def _begin(self) -> None:
        if self._init is None:
            self._send(self._credits)
        else:
            self._transport.write(masked(self._init.encode(), 1))

    def _send(self, count: int) -> None:
        for _ in range(count):
            self._sent.append(perf_counter())
            self._transport.write(next(self._frames))

    def _answer(self, frame: bytes) -> None:
        if _RESULT in frame:
            self.last = frame
            self._window.answered(perf_counter() - self._sent.pop(0))
            self._send(1)
        elif b'"ready"' in frame:
            self._send(self._credits)
        elif frame[0] != _PING and not any(kind in frame[:200] for kind in _PASSED_OVER):
            self.last = frame
            self._transport.close()


async def run(options: argparse.Namespace) -> dict[str, object]:
    window = Window(options.watch, options.triton)
    url = urlsplit(options.url)
    loop = asyncio.get_running_loop()
    sessions = []
    clips = photographs.read(options.frames)
    for clip in islice(cycle(clips), options.sessions or len(clips)):
        made = Load(url.path, url.netloc, options.init, clip, options.credits, window)
        await loop.create_connection(lambda made=made: made, url.hostname, url.port)  # type: ignore[misc]
        sessions.append(made)
    broken = asyncio.ensure_future(asyncio.wait([s.ended for s in sessions], return_when=asyncio.FIRST_EXCEPTION))
    for wait, do in ((options.warm_up, window.open), (options.seconds, window.close)):
        await asyncio.wait({broken}, timeout=wait)
        if broken.done():
            raise next(error for s in sessions if s.ended.done() and (error := s.ended.exception()))
        do()
    broken.cancel()
    text = sessions[0].last
    if _RESULT not in text:
        raise ConnectionError(f"no result within {options.warm_up + options.seconds:g} s")
    return {**asdict(window.measured()), "sample": json.loads(text[text.index(b"{") :])}


def parser(text: str | None) -> argparse.ArgumentParser:
    """The command line's arguments that every load has."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--url", required=True)
    made.add_argument("--frames", type=Path, required=True, help="folder of clips, one a session, in turns")
    made.add_argument("--init", help="first message of every session; none: frames at once")
    made.add_argument("--warm-up", type=float, default=1.0)
    made.add_argument("--seconds", type=float, default=3.0)
    made.add_argument("--watch", type=int, nargs="+", required=True, help="the service's processes")
    made.add_argument("--triton", type=int, nargs="*", default=[], help="Triton's processes")
    return made


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sessions", type=int, help="default: one for each clip")
    arguments.add_argument("--credits", type=int, default=2, help="frames in flight, each session")
    json.dump(uvloop.run(run(arguments.parse_args())), sys.stdout)


if __name__ == "__main__":
    main()
