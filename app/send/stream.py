"""Streams a source through a live session at its own pace, and writes the results: JSON lines, or an annotated MP4."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
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

from app.client import LiveSession, Refused, SessionEnded, connect
from app.drawing import annotate
from app.errors import SightlineError
from app.files import partial_path
from app.process import handling_signals
from app.protocol.messages import Ready, Result, encode
from app.sources.address import Address, ffmpeg_name, parse, printable
from app.sources.copying import accepts, add_copy
from app.sources.options import Options
from app.sources.reader import Container, Reader, ReadLimits, SourceError, SourceFrame, open_source

QUALITY = 85
_LATE_S = 2.0
"""Seconds; a recording that is further behind its own pace does not catch up, and its clock is reset."""
_MAX_THREADS = 4
_INTERRUPTED = 128
"""Exit status after a signal, to which the signal's number is added: the convention of shells."""
_MAX_NOTES = 20
"""Lines about the source in the summary; undecodable frames beyond them are only counted."""
_FORMAT = "mp4"
_TIME_BASE = Fraction(1, 90_000)
_EARLY = Fraction(-1, 4)
"""Seconds: sound that begins this long before the first frame is written, because decoders need a packet of lead."""
_MAX_LEAD = Fraction(10)
"""Seconds by which a source's video may begin after its sound."""


class ResultWriter(Protocol):
    """Writes results, in order. Both methods block, and raise SightlineError if the output cannot be written."""

    def write(self, jpeg: bytes, result: Result, frame: SourceFrame) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One result per line. The file is opened for the first result."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: Any = sys.stdout.buffer if path is None else None
        if path is not None:
            _writable(path)

    def write(self, jpeg: bytes, result: Result, frame: SourceFrame) -> None:
        try:
            if self._file is None:
                assert self._path is not None
                self._file = self._path.open("wb")
            self._file.write(encode(result) + b"\n")
            self._file.flush()
        except OSError as error:
            if self._path is None:
                raise
            raise _unwritable(self._path, error) from None

    def close(self) -> None:
        if self._file is not None and self._path is not None:
            self._file.close()


def _writable(path: Path) -> None:
    """Fails before the first result if the file cannot be written; leaves no file behind."""
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise _unwritable(path, error) from None
    if not there:
        path.unlink()


def _unwritable(path: Path, error: OSError) -> SightlineError:
    return SightlineError(f"--output {printable(str(path))}: {error.strerror}")


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of `sightline send`; None is the default of each."""

    source: str
    url: str
    token: str | None = None
    output: Path | None = None
    fps: float | None = None
    realtime: bool = False
    confidence: float | None = None
    limit: int | None = None
    transport: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    rotation: int | None = None
    max_pixels: int | None = None


def stream(request: SendOptions) -> None:
    """Streams a source to a service; prints progress and a summary on stderr.

    Raises:
        SightlineError: the source cannot be read, or the session ended early.
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM. Results received by then are kept.
    """
    output = request.output
    if output is not None and output.suffix.lower() not in (".mp4", ".jsonl"):
        raise SightlineError(f"--output {printable(str(output))}: want a name that ends in .mp4 or .jsonl")
    address = parse(request.source)
    if address.kind == "file" and not os.path.exists(address.text):
        raise SourceError(
            f"{address.shown}: no such file; want a video, an image, a folder of them, a URL or a camera number"
        )
    asked = {"transport": request.transport, "options": request.options or None, "rotation": request.rotation}
    options = Options.parse(asked, address)
    mode = "realtime" if request.realtime else "lossless"
    connecting = connect(request.url, token=request.token, mode=mode, confidence=request.confidence)  # type: ignore[arg-type]
    try:
        asyncio.run(_Sender(request, address, options).run(connecting))
    except (Refused, SessionEnded) as error:
        if "token" in str(error) and "--token" not in str(error):
            raise SightlineError(f"{error}; `send` takes it by --token or SIGHTLINE_TOKEN") from None
        raise
    except KeyboardInterrupt:
        sys.stderr.write("sightline: interrupted\n")
        sys.exit(_INTERRUPTED + signal.SIGINT)
    except _Terminated:
        sys.exit(_INTERRUPTED + signal.SIGTERM)


class _Terminated(BaseException):
    """SIGTERM was received."""


class _Sender:
    """Sends one source through one session."""

    def __init__(self, request: SendOptions, address: Address, options: Options) -> None:
        self._request = request
        self._address = address
        self._options = options
        self._sent: dict[int, tuple[bytes, SourceFrame]] = {}
        """Frames without a result yet, by `seq`."""
        self._left_out = 0
        self._notes: list[str] = []
        """Lines for the summary, each once."""
        self._terminated = False

    async def run(self, connecting: AbstractAsyncContextManager[LiveSession]) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def terminate(*_: object) -> None:
            self._terminated = True
            loop.call_soon_threadsafe(task.cancel)

        with handling_signals(terminate, signal.SIGTERM):
            try:
                # The source first, so that an unreadable one opens no session.
                with await asyncio.to_thread(self._open) as reader:
                    await self._send(reader, connecting)
            except asyncio.CancelledError:
                if self._terminated:
                    raise _Terminated from None
                raise

    def _open(self) -> Reader:
        request = self._request
        video = request.output is not None and request.output.suffix.lower() == ".mp4"
        limits = ReadLimits(
            threads=min(_MAX_THREADS, os.cpu_count() or 1),
            image_s=1 / (request.fps or 25),
            with_audio=video,
            keeps_pauses=not request.realtime,
        )
        return open_source(self._address, self._options, limits, self._damaged)

    def _damaged(self, problem: str, code: str) -> None:
        self._note(problem)

    def _note(self, line: str) -> None:
        if line not in self._notes and len(self._notes) < _MAX_NOTES:
            self._notes.append(line)

    async def _send(self, reader: Reader, connecting: AbstractAsyncContextManager[LiveSession]) -> None:
        limit = self._request.limit
        total = reader.frames if limit is None else min(limit, reader.frames or limit)
        # The session before the file, so that without a session no file is touched.
        async with connecting as session:
            sink = self._sink(reader, session.ready)
            try:
                with _progress(total) as advance:
                    async for result in session.stream(self._paced(reader)):
                        advance()
                        jpeg, frame = self._sent.pop(result.seq)
                        for late in [seq for seq in self._sent if seq < result.seq]:
                            del self._sent[late]
                        await _whole(sink.write, jpeg, result, frame)
            except BaseException:
                with suppress(SightlineError):  # results received so far are kept if possible
                    sink.close()
                raise
            await _whole(sink.close)
            notes = [*await _whole(reader.truncated), *self._all_notes(reader)]
            _print_summary(session, self._left_out, notes)

    def _sink(self, reader: Reader, ready: Ready) -> ResultWriter:
        output = self._request.output
        if output is not None and output.suffix.lower() == ".mp4":
            return VideoWriter(output, reader, self._note, ready)
        return JsonLines(output)

    async def _paced(self, reader: Reader) -> AsyncIterator[bytes]:
        """The source's frames at their pace, or as fast as credits allow."""
        frames, realtime, fps = iter(reader), self._request.realtime, self._request.fps
        began = math.inf
        for number in itertools.count():
            frame = None if number == self._request.limit else await _whole(next, frames, None)
            if frame is None:
                return
            now = time.monotonic()
            at_s = float(frame.at) if fps is None else number / fps
            period_s = float(frame.lasts) if fps is None else 1 / fps
            if reader.pace == "live":
                # A live source keeps its own pace: a frame is late if more time passed here than in the source.
                began = min(began, now - at_s)
                late_s = now - began - at_s
            else:
                if began == math.inf or (not realtime and now - began - at_s > _LATE_S):
                    began = now - at_s
                late_s = now - began - at_s
                if realtime or fps is not None:
                    await asyncio.sleep(-late_s)
            if realtime and late_s > period_s:
                self._left_out += 1
                continue
            jpeg = await _whole(frame.encoded, QUALITY)
            frame.decoded = frame.jpeg = None  # large, and not needed again
            self._sent[number + 1 - self._left_out] = jpeg, frame
            yield jpeg

    def _all_notes(self, reader: Reader) -> list[str]:
        if reader.damaged:
            return [*self._notes, f"{reader.damaged} pieces of the source could not be decoded"]
        return self._notes


async def _whole(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function` in a thread and waits for its end even if cancelled, because it uses a file or a decoder."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


def _print_summary(session: LiveSession, left_out: int, notes: list[str]) -> None:
    lines: list[str] = []
    if session.bye is not None:
        report = session.bye.report
        total = report.stages.get("total")
        dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items()) or "none"
        rate = report.processed / max(report.duration_s, 1e-9)
        lines.append(
            f"{report.received} frames received, {report.processed} answered, dropped: {dropped}, "
            f"failed: {report.failed}; {rate:.1f} per second"
            + (f", {total.p50_ms:.0f} ms each (p95 {total.p95_ms:.0f})" if total else "")
        )
    if left_out:
        lines.append(f"{left_out} more were not sent: they were late")
    lines += [f"frame {refused.seq} was refused: {refused.message}" for refused in session.refused]
    sys.stderr.write("".join(f"{line}\n" for line in [*lines, *notes]))


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """A progress bar on a terminal; files and pipes get only the summary."""
    console = Console(stderr=True)
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("send", total=total)
        yield lambda: progress.advance(task)


# --- the annotated video: each frame at its own time, the source's sound copied ---


class VideoWriter:
    """Writes H.264 in MP4, in the size of the first frame.

    The file is written under another name in the same folder and renamed once it is complete, so that its name never
    leads to an incomplete video. Without a frame there is no file.

    Args:
        reader: the source; its sound is copied.
        on_note: called with a line for each stream of the source that is left out.
        ready: says how the results of the service's stages are drawn.

    Raises:
        SightlineError: the file cannot be written.
    """

    def __init__(self, path: Path, reader: Reader, on_note: Callable[[str], None], ready: Ready) -> None:
        self._path = path
        self._temporary = partial_path(path)
        with _naming(path):
            self._temporary.open("wb").close()  # fails before the first frame if the folder is read-only
        self._temporary.unlink()
        self._reader = reader
        self._source = reader if isinstance(reader, Container) else None
        self._on_note = on_note
        self._ready = ready
        self._container: Any = None
        self._stream: Any = None
        self._tracks: dict[int, Any] = {}
        self._end = Fraction(0)
        self._lengths: dict[int, int] = {}
        """Display durations of frames that are not encoded yet, by time."""
        self._heard_until: dict[int, Fraction] = {}
        self._lead = Fraction(0)
        self._last: tuple[Any, int] | None = None
        """The last frame and its time. It is encoded once the time of the next frame gives its duration."""

    def write(self, jpeg: bytes, result: Result, source_frame: SourceFrame) -> None:
        """Adds a frame, annotated with its result, at the time that it has in the source.

        Raises:
            SightlineError: the file cannot be written.
        """
        # EXIF orientation is ignored, because the result's pixel coordinates ignore it.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
        image = annotate(pixels, result.frame, stages=self._ready.stages or None, models=self._ready.models)
        with _naming(self._path):
            if self._container is None:
                self._open(image.shape[0], image.shape[1], source_frame)
            frame = av.VideoFrame.from_ndarray(_fit(image, self._stream.width, self._stream.height), format="rgb24")
            frame.pts, frame.time_base = round((source_frame.at + self._lead) / _TIME_BASE), _TIME_BASE
            if self._last is not None:
                frame.pts = max(frame.pts, self._last[1] + 1)
                self._encode(frame.pts)
            self._last = frame, frame.pts
            self._end = source_frame.at

    def close(self) -> None:
        """Completes the video and renames it. Without a frame no file remains."""
        if self._container is None:
            return
        try:
            with _naming(self._path):
                self._end += self._reader.period
                self._encode(round((self._end + self._lead) / _TIME_BASE))
                self._mux(self._stream.encode(None))
                self._write_sound(self._end)
                self._container.close()
                self._temporary.replace(self._path)
        finally:
            with suppress(av.error.FFmpegError, OSError):
                self._container.close()
            self._container = None
            self._temporary.unlink(missing_ok=True)

    def _open(self, height: int, width: int, source_frame: SourceFrame) -> None:
        self._container = av.open(ffmpeg_name(self._temporary), "w", format=_FORMAT)
        rate = Fraction(self._reader.fps).limit_denominator(1001)
        # No B-frames: with them and a variable rate, MP4 stores how long frames are decoded, not shown.
        self._stream = self._container.add_stream("libx264", rate=rate, options={"bf": "0"})
        self._stream.width, self._stream.height = width + width % 2, height + height % 2  # 4:2:0 needs even sides
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _TIME_BASE
        if self._source is not None:
            self._begin_sound(self._source, source_frame)
        self._container.start_encoding()

    def _begin_sound(self, source: Container, source_frame: SourceFrame) -> None:
        shape = source.stream.sample_aspect_ratio
        if shape:
            self._stream.codec_context.sample_aspect_ratio = 1 / shape if source_frame.turn.transposed else shape
        self._lead = source.lead if source.lead <= _MAX_LEAD else Fraction(0)
        for number, stream in enumerate(source.audio.streams):
            if accepts(_FORMAT, [stream]):
                self._tracks[number] = add_copy(self._container, stream)
            else:
                self._on_note(f"left out: the sound, {stream.codec_context.name}; MP4 does not take it")
        for problem in source.left_out:
            self._on_note(f"left out: {problem}")

    def _encode(self, until: int) -> None:
        """Encodes the last frame, which is shown until this time."""
        assert self._last is not None
        frame, at = self._last
        self._lengths[at] = max(1, until - at)
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = self._lengths.pop(
                round(packet.pts * Fraction(packet.time_base) / _TIME_BASE), packet.duration
            )
            if packet.dts is not None:
                self._write_sound(packet.dts * Fraction(packet.time_base) - self._lead)
            self._container.mux(packet)

    def _write_sound(self, moment: Fraction) -> None:
        if self._source is None:
            return
        for number, packet, at in self._source.audio.until(moment):
            track = self._tracks.get(number)
            base = Fraction(packet.time_base)
            lasts, shown = (packet.duration or 0) * base, at + self._lead
            # In joined recordings, the sound of one may be longer than its video.
            if track is None or shown < max(_EARLY, self._heard_until.get(number, _EARLY) - lasts / 2):
                continue
            self._heard_until[number] = shown + lasts
            late = 0 if packet.dts is None or packet.pts is None else packet.dts - packet.pts
            packet.pts = round(shown / base)
            packet.dts = packet.pts + late
            packet.stream = track
            self._container.mux(packet)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in errors of writing it."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        raise SightlineError(f"--output {printable(str(path))}: {error.strerror or error}") from None


def _fit(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The image, RGB uint8 [h, w, 3], centred on a black one of this size, scaled down if it is larger."""
    if image.shape[:2] == (height, width):
        return image
    scale = min(1.0, width / image.shape[1], height / image.shape[0])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return canvas
