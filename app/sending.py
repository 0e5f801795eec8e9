"""What `send` does: a source through a session, results as JSON lines or drawn into a film."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.client import LiveSession, connect
from app.drawing import annotate
from app.errors import SightlineError
from app.protocol.messages import Result, encode_result
from app.sources import Camera, Picture, open_source


class Sink(Protocol):
    def write(self, jpeg: bytes, result: Result) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One result a line."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            _writable(path)
        self._file = sys.stdout.buffer if path is None else path.open("wb")

    def write(self, jpeg: bytes, result: Result) -> None:
        self._file.write(encode_result(result) + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not sys.stdout.buffer:
            self._file.close()


class Film:
    """The pictures with what was seen drawn over them, H.264 in MP4. Its size is the first picture's."""

    def __init__(self, path: Path, fps: float) -> None:
        _writable(path)
        self._path = path
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None

    def write(self, jpeg: bytes, result: Result) -> None:
        # As it was sent, without its EXIF orientation: the result's pixels are those.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
        picture = annotate(pixels, result.frame)
        if self._container is None:
            self._open(*picture.shape[:2])
        frame = av.VideoFrame.from_ndarray(_fit(picture, self._stream.width, self._stream.height), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        self._container = av.open(str(self._path), "w")
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2  # 4:2:0 wants even sides
        self._stream.pix_fmt = "yuv420p"

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()


def _writable(path: Path) -> None:
    try:
        path.open("ab").close()
    except OSError as error:
        raise SightlineError(f"--output {path}: {error.strerror}") from None


def _fit(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture, RGB uint8 [h, w, 3], in the middle of a black one of this size; made smaller where it must be."""
    if picture.shape[:2] == (height, width):
        return picture
    scale = min(1.0, width / picture.shape[1], height / picture.shape[0])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return canvas


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
    total = opened.frames if limit is None or opened.frames is None else min(limit, opened.frames)
    # A camera keeps its own pace, and its driver leaves out what nobody takes.
    recorded = not isinstance(opened, Camera)
    job = Job(
        pictures=itertools.islice(opened, limit),
        total=total or limit,
        pace=opened.fps if recorded and realtime and fps is None else fps,
        keeps_up=recorded and realtime,
        output=output,
        film_fps=fps or opened.fps,
    )
    connecting = connect(url, token=token, mode="realtime" if realtime else "lossless", confidence=confidence)
    asyncio.run(_send(job, connecting))


@dataclass(frozen=True, slots=True)
class Job:
    pictures: Iterator[Picture]
    total: int | None
    """How many there will be; None where nobody knows."""
    pace: float | None
    """Pictures a second; None: as fast as they are answered."""
    keeps_up: bool
    """Whether a picture whose time is over is left out."""
    output: Path | None
    film_fps: float
    sent: dict[int, bytes] = field(default_factory=dict)
    """Pictures without their result yet, by `seq`."""
    left_out: list[int] = field(default_factory=list)
    """Numbers of pictures, from 0."""

    def open_sink(self) -> Sink:
        if self.output is not None and self.output.suffix == ".mp4":
            return Film(self.output, self.film_fps)
        return JsonLines(self.output)


async def _send(job: Job, connecting: AbstractAsyncContextManager[LiveSession]) -> None:
    # The session first: where there is none, no file is touched.
    async with connecting as session:
        with closing(job.open_sink()) as sink, _progress(job.total) as advance:
            async for result in session.stream(_paced(job)):
                advance()
                jpeg = job.sent.pop(result.seq)
                for late in [seq for seq in job.sent if seq < result.seq]:
                    del job.sent[late]
                await asyncio.to_thread(sink.write, jpeg, result)
        _summarise(session, len(job.left_out))


async def _paced(job: Job) -> AsyncIterator[bytes]:
    """The job's pictures at its pace, or as fast as credits allow."""
    started: float | None = None
    for number in itertools.count():
        picture = await asyncio.to_thread(next, job.pictures, None)  # decoding a film must not hold up the socket
        if picture is None:
            return
        started = time.monotonic() if started is None else started
        if job.pace is not None:
            early_s = started + number / job.pace - time.monotonic()
            if job.keeps_up and early_s < -1 / job.pace:
                job.left_out.append(number)
                continue
            await asyncio.sleep(early_s)
        job.sent[number + 1 - len(job.left_out)] = picture.jpeg
        yield picture.jpeg


def _summarise(session: LiveSession, left_out: int) -> None:
    if session.bye is None:
        return
    report = session.bye.report
    total = report.stages.get("total")
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()) or "none"
    lines = [
        f"{report.received} frames received, {report.processed} answered, dropped: {dropped}, failed: {report.failed}; "
        f"{report.processed / max(report.duration_s, 1e-9):.1f} a second"
        + (f", {total.p50_ms:.0f} ms each (p95 {total.p95_ms:.0f})" if total else "")
    ]
    if left_out:
        lines.append(f"{left_out} more were not sent: their time was over")
    lines += [f"frame {refused.seq} was refused: {refused.message}" for refused in session.refused]
    sys.stderr.write("".join(f"{line}\n" for line in lines))


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """A bar where somebody looks; files and pipes get the summary alone."""
    console = Console(stderr=True)
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("send", total=total)
        yield lambda: progress.advance(task)
