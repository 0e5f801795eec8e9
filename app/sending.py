"""What `send` does: a source through a session, results as JSON lines or drawn into a film."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import orjson
import simplejpeg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.client import LiveSession, connect
from app.drawing import annotate
from app.errors import SightlineError
from app.protocol.messages import Result, encode_result
from app.sources import Picture, open_source


class Sink(Protocol):
    def write(self, jpeg: bytes, result: Result) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One result a line."""

    def __init__(self, path: Path | None) -> None:
        self._file = sys.stdout.buffer if path is None else path.open("wb")

    def write(self, jpeg: bytes, result: Result) -> None:
        self._file.write(encode_result(result) + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not sys.stdout.buffer:
            self._file.close()


class Film:
    """The pictures with what was seen drawn over them, H.264 in MP4."""

    def __init__(self, path: Path, fps: float) -> None:
        self._container = av.open(str(path), "w")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = None

    def write(self, jpeg: bytes, result: Result) -> None:
        picture = annotate(simplejpeg.decode_jpeg(jpeg, "RGB"), result.frame)
        height, width = (side - side % 2 for side in picture.shape[:2])  # 4:2:0 wants even sides
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(picture[:height, :width].copy(), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def send(
    source: str,
    *,
    url: str,
    token: str | None,
    output: Path | None,
    fps: float | None,
    realtime: bool,
    confidence: float | None,
    limit: int | None,
) -> None:
    """Streams `source` to the service at `url`; progress and a summary on stderr.

    Raises:
        SightlineError: the source cannot be read, or the session ended early.
    """
    opened = open_source(source)
    if output is not None and output.suffix not in (".mp4", ".jsonl"):
        raise SightlineError(f"--output {output}: want a name that ends in .mp4 or .jsonl")
    sink: Sink = Film(output, fps or opened.fps) if output and output.suffix == ".mp4" else JsonLines(output)
    total = min(limit or sys.maxsize, opened.frames or sys.maxsize)
    pictures = itertools.islice(opened, limit)
    try:
        with _progress(None if total == sys.maxsize else total) as advance:
            asyncio.run(
                _send(pictures, sink, advance, url, token, realtime, confidence, fps or opened.fps if realtime else fps)
            )
    finally:
        sink.close()


async def _send(
    pictures: Iterator[Picture],
    sink: Sink,
    advance: Any,
    url: str,
    token: str | None,
    realtime: bool,
    confidence: float | None,
    pace: float | None,
) -> None:
    async with connect(url, token=token, mode="realtime" if realtime else "lossless", confidence=confidence) as session:
        sent: dict[int, bytes] = {}
        results = session.stream(_paced(pictures, pace, sent))
        async for result in results:
            advance()
            jpeg = sent.pop(result.seq)
            for late in [seq for seq in sent if seq < result.seq]:
                del sent[late]
            await asyncio.to_thread(sink.write, jpeg, result)
        _summarise(session)


async def _paced(pictures: Iterator[Picture], pace: float | None, sent: dict[int, bytes]) -> AsyncIterator[bytes]:
    """The pictures at `pace` a second, or as fast as credits allow; remembered until their result is there."""
    started = time.monotonic()
    for number in itertools.count():
        picture = await asyncio.to_thread(next, pictures, None)  # decoding a film must not hold up the socket
        if picture is None:
            return
        if pace is not None:
            await asyncio.sleep(started + number / pace - time.monotonic())
        sent[number + 1] = picture.jpeg
        yield picture.jpeg


def _summarise(session: LiveSession) -> None:
    if session.bye is None:
        return
    report = session.bye.report
    total = report.stages.get("total")
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()) or "none"
    console = Console(stderr=True)
    console.print(
        f"{report.received} frames received, {report.processed} answered, dropped: {dropped}, failed: {report.failed}; "
        f"{report.processed / max(report.duration_s, 1e-9):.1f} a second"
        + (f", {total.p50_ms:.0f} ms each (p95 {total.p95_ms:.0f})" if total else ""),
        highlight=False,
    )
    for refused in session.refused:
        console.print(f"frame {refused.seq} was refused: {orjson.dumps(refused.message).decode()}", highlight=False)


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        task = progress.add_task("send", total=total)
        yield lambda: progress.advance(task)
