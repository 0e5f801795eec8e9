"""The annotated video that `send -o` writes: each frame at its own time, the source's sound copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from app.drawing import annotate
from app.errors import SightlineError
from app.files import partial_path
from app.protocol.messages import Result
from app.sources.address import ffmpeg_name, printable
from app.sources.copying import accepts, add_copy
from app.sources.reader import Container, Reader, SourceFrame

FORMAT = "mp4"
_BASE = Fraction(1, 90_000)
_EARLY = Fraction(-1, 4)
"""Seconds: sound that begins this long before the first frame is written, because decoders need a packet of lead."""
_MAX_LEAD = Fraction(10)
"""Seconds by which a source's video may begin after its sound."""


class VideoWriter:
    """Writes H.264 in MP4, in the size of the first frame.

    The file is written under another name in the same folder and renamed once it is complete, so that its name never
    leads to an incomplete video. Without a frame there is no file.

    Args:
        reader: the source; its sound is copied.
        on_note: called with a line for each stream of the source that is left out.

    Raises:
        SightlineError: the file cannot be written.
    """

    def __init__(self, path: Path, reader: Reader, on_note: Callable[[str], None]) -> None:
        self._path = path
        self._temporary = partial_path(path)
        with _named(path):
            self._temporary.open("wb").close()  # fails before the first frame if the folder is read-only
        self._temporary.unlink()
        self._reader = reader
        self._source = reader if isinstance(reader, Container) else None
        self._on_note = on_note
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
        image = annotate(pixels, result.frame)
        with _named(self._path):
            if self._container is None:
                self._open(image.shape[0], image.shape[1], source_frame)
            frame = av.VideoFrame.from_ndarray(_fit(image, self._stream.width, self._stream.height), format="rgb24")
            frame.pts, frame.time_base = round((source_frame.at + self._lead) / _BASE), _BASE
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
            with _named(self._path):
                self._end += self._reader.period
                self._encode(round((self._end + self._lead) / _BASE))
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
        self._container = av.open(ffmpeg_name(self._temporary), "w", format=FORMAT)
        rate = Fraction(self._reader.fps).limit_denominator(1001)
        # No B-frames: with them and a variable rate, MP4 stores how long frames are decoded, not shown.
        self._stream = self._container.add_stream("libx264", rate=rate, options={"bf": "0"})
        self._stream.width, self._stream.height = width + width % 2, height + height % 2  # 4:2:0 needs even sides
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _BASE
        if self._source is not None:
            self._begin_sound(self._source, source_frame)
        self._container.start_encoding()

    def _begin_sound(self, source: Container, source_frame: SourceFrame) -> None:
        shape = source.stream.sample_aspect_ratio
        if shape:
            self._stream.codec_context.sample_aspect_ratio = 1 / shape if source_frame.turn.transposed else shape
        self._lead = source.lead if source.lead <= _MAX_LEAD else Fraction(0)
        for number, stream in enumerate(source.audio.streams):
            if accepts(FORMAT, [stream]):
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
            packet.duration = self._lengths.pop(round(packet.pts * Fraction(packet.time_base) / _BASE), packet.duration)
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
def _named(path: Path) -> Iterator[None]:
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
