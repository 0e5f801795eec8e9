"""Writes video files: the container that accepts their streams, copied audio, YUV frames that can be drawn on, and an
encoder that keeps their times.

H.264 is encoded from 4:2:0: brightness at full size, the two colours at half. Drawing on these planes saves converting
the whole frame to RGB and back, which takes longer than the drawing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from app.segments.video.reader import MediaFile, VideoFrame, cannot_copy, open_video, times_go_back
from app.sources.address import ffmpeg_name
from app.sources.copying import accepts, add_copy
from app.sources.orientation import UPRIGHT, Orientation

Plane = NDArray[np.uint8]
_FORMAT = "yuv420p"
_FULL_FORMAT = "yuv444p"
"""All planes at full size, for frames with odd sides."""
_ENCODER = {"preset": "veryfast", "crf": "21"}
"""Options of x264: good quality at a few milliseconds per frame."""
_KEY_FRAME_S = 2
"""Seconds between key frames, at most."""


# --- containers, and streams that are copied into them ---

_FORMATS = ("mp4", "mov", "matroska", "nut")
"""Container formats in the order in which they are tried. Matroska comes late because its times are whole
milliseconds. NUT accepts most of what FFmpeg decodes."""
_MOV_FORMATS = ("mp4", "mov")
_MOV_OPTIONS = {"movie_timescale": "90000", "use_stream_ids_as_track_ids": "1"}
"""MP4 stores a stream's beginning in units of the timescale. FFmpeg's default, a millisecond, is too coarse."""


def choose_format(streams: Sequence[Any]) -> str:
    """The first container format that accepts these streams. If none does, it is MP4: its muxer then fails."""
    return next((name for name in _FORMATS if accepts(name, streams)), _FORMATS[0])


def muxer_options(name: str, flags: str) -> dict[str, str]:
    """FFmpeg's options for writing a container format.

    Args:
        flags: `movflags` of MP4 and QuickTime; other formats ignore it.
    """
    return {**_MOV_OPTIONS, "movflags": flags} if name in _MOV_FORMATS else {}


class AudioReader:
    """Reads the packets of those audio streams of a video that MP4 accepts.

    Each stream is read through a file handle of its own, so that nothing is held in memory, however far apart audio and
    video are stored in the file.

    Args:
        silent: skips all audio streams.

    Raises:
        VideoError: the video cannot be read, or its times go back.
    """

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        self._stack = ExitStack()
        self._name = path.name
        self._packets: list[Iterator[Any]] = []
        self.streams: list[Any] = []
        """Templates for the streams that the packets are written to."""
        self.track_ids: list[int] = []
        """The track number of each stream."""
        with open_video(path) as media:
            chosen = [] if silent else [index for index, audio in enumerate(media.audio) if accepts("mp4", [audio])]
            self._origin = media.origin
        for index in chosen:
            media = self._stack.enter_context(open_video(path))
            self.streams.append(media.audio[index])
            self.track_ids.append(media.track_id(media.audio[index]))
            self._packets.append(media.container.demux(media.audio[index]))
        self._next: list[Any | None] = [None] * len(chosen)
        self._last: list[int | None] = [None] * len(chosen)
        """The last decoding time of each stream, in units of its time base."""

    def until(self, moment: Fraction | None) -> Iterator[tuple[int, Any]]:
        """Yields (index in `streams`, packet) of all packets that begin before this moment and were not yielded yet.

        Args:
            moment: seconds on the file's clock; None yields all remaining packets.

        Raises:
            VideoError: the times of a stream go back.
        """
        for index in range(len(self.streams)):
            while (packet := self._peek(index)) is not None:
                if moment is not None and packet.pts * packet.time_base >= moment:
                    break
                self._next[index] = None
                yield index, packet

    def close(self) -> None:
        """Closes the file handles."""
        self._stack.close()

    def _peek(self, index: int) -> Any | None:
        while self._next[index] is None:
            packet = next(self._packets[index], None)
            if packet is None:
                return None
            if packet.pts is None:  # the empty packet at the end
                continue
            last, now = self._last[index], packet.pts if packet.dts is None else packet.dts
            if last is not None and now <= last:
                raise times_go_back(self._name, last * Fraction(packet.time_base) - self._origin)
            self._last[index], self._next[index] = now, packet
        return self._next[index]


class AudioTracks:
    """The audio tracks of a new file: one for each stream of an `AudioReader`."""

    def __init__(self, container: Any, audio: AudioReader) -> None:
        self._container = container
        self._streams = [add_copy(container, stream) for stream in audio.streams]
        for stream, number in zip(self._streams, audio.track_ids, strict=True):
            stream.id = number

    def write(self, index: int, packet: Any, shift: Fraction) -> None:
        """Writes a packet of the stream with this index in `AudioReader.streams`, moved by `shift` seconds."""
        moved = round(shift / packet.time_base)
        packet.pts += moved
        packet.dts = packet.pts if packet.dts is None else packet.dts + moved
        packet.stream = self._streams[index]
        self._container.mux(packet)


def dropped_audio(path: Path) -> list[str]:
    """Codecs of a video's audio streams that MP4 does not accept.

    Raises:
        VideoError: the video cannot be read.
    """
    with open_video(path) as media:
        return [
            "unknown" if audio.codec_context is None else str(audio.codec_context.name)
            for audio in media.audio
            if not accepts("mp4", [audio])
        ]


# --- a frame as planes ---


class YuvFrame:
    """An upright frame with even sides, whose planes can be drawn on. Other pixels keep their decoded values.

    An odd side grows by a pixel: the last row or column is repeated. `size` is width and height before that, pixels.
    `planes` are Y `[h, w]`, U and V `[h / 2, w / 2]`, uint8, writeable views of `frame`, the `av.VideoFrame`.

    Args:
        decoded: an `av.VideoFrame`.
        turn: how `decoded` must be turned to be upright.
    """

    def __init__(self, decoded: Any, turn: Orientation = UPRIGHT) -> None:
        if decoded.format.name != _FORMAT:
            decoded = decoded.reformat(format=_FORMAT)
        if turn.upright and decoded.width % 2 == 0 and decoded.height % 2 == 0:
            decoded.make_writable()  # copies the planes, because the decoder needs its own for the next frames
            self.frame, self.planes = decoded, _planes(decoded)
            self.size = int(decoded.width), int(decoded.height)
            return
        planes = [turn.apply(plane) for plane in _planes(decoded)]
        height, width = planes[0].shape
        self.size = width, height
        self.frame = av.VideoFrame(width + width % 2, height + height % 2, _FORMAT)
        self.frame.color_range, self.frame.colorspace = decoded.color_range, decoded.colorspace
        self.planes = _planes(self.frame)
        for target, plane in zip(self.planes, planes, strict=True):
            _copy_padded(plane, target)

    @property
    def width(self) -> int:
        return int(self.frame.width)

    @property
    def height(self) -> int:
        return int(self.frame.height)


def _cropped(frame: Any, width: int, height: int) -> Any:
    """The upper left of an `av.VideoFrame` in 4:4:4, without the row or column that was added to make its sides
    even.
    """
    full = frame.reformat(format=_FULL_FORMAT)
    cropped = av.VideoFrame(width, height, _FULL_FORMAT)
    cropped.color_range, cropped.colorspace = frame.color_range, frame.colorspace
    for target, plane in zip(_planes(cropped), _planes(full), strict=True):
        target[:] = plane[:height, :width]
    return cropped


def _planes(frame: Any) -> list[Plane]:
    """Views of an `av.VideoFrame`'s planes, uint8 `[h, w]`."""
    return [
        np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    ]


def _copy_padded(plane: NDArray[Any], target: Plane) -> None:
    """Copies a plane into one that may be larger, and fills the rest with the last row and column."""
    height, width = plane.shape
    target[:height, :width] = plane
    target[:height, width:] = plane[:, -1:]
    target[height:] = target[height - 1 : height]


# --- the video file ---


class VideoEncoder:
    """Writes an MP4 with H.264 and the audio that MP4 accepts. Blocks; one thread at a time may use it.

    The pixel format is 4:2:0, or 4:4:4 if a side is odd, because 4:2:0 needs even sides.

    Frames keep their own times, also with a variable frame rate. If the video is a part, the metadata contain its
    `Position`.

    Args:
        media: the video that is analysed; its audio is copied.
    """

    def __init__(self, path: Path, media: MediaFile) -> None:
        self._media = media
        self._base = Fraction(media.video.time_base)
        self._audio = AudioReader(media.path)
        flags = "use_metadata_tags" if media.position.known else "faststart"
        self._out: Any = av.open(ffmpeg_name(path), "w", format="mp4", options=muxer_options("mp4", flags))
        self._video: Any = None
        self._tracks: AudioTracks | None = None

    def write(self, yuv: YuvFrame, frame: VideoFrame) -> None:
        """Encodes the next frame.

        Args:
            yuv: the frame's planes, drawn on.
            frame: the frame whose time is used; for the first frame also its colour properties.

        Raises:
            VideoError: MP4 does not accept the streams.
        """
        if self._video is None:
            self._begin(yuv, frame)
        encoded = yuv.frame
        width, height = self._video.width, self._video.height
        even = width + width % 2, height + height % 2
        if (encoded.width, encoded.height) != even:
            # The video changed its size, in this part or before it.
            encoded = encoded.reformat(*even)
        if even != (width, height):
            encoded = _cropped(encoded, width, height)
        encoded.pts, encoded.time_base = frame.pts, self._base
        encoded.pict_type = av.video.frame.PictureType.NONE  # lets the encoder choose
        self._mux(self._video.encode(encoded))

    def close(self, *, complete: bool) -> None:
        """Closes the file.

        Args:
            complete: whether all frames were written. If so, the rest of the audio is written, too.
        """
        try:
            if complete and self._video is not None:
                self._mux(self._video.encode(None))
                self._write_audio(None)
        finally:
            self._out.close()
            self._audio.close()

    def _begin(self, yuv: YuvFrame, frame: VideoFrame) -> None:
        rate = self._media.rate
        options = {**_ENCODER, "g": str(max(1, round(rate * _KEY_FRAME_S)))}
        self._video = self._out.add_stream("libx264", rate=rate, options=options)
        self._video.id = self._media.track_id(self._media.video)
        codec = self._video.codec_context
        width, height = self._media.position.size or yuv.size
        codec.width, codec.height = width, height
        codec.pix_fmt = _FULL_FORMAT if width % 2 or height % 2 else _FORMAT
        codec.time_base = self._base
        codec.color_range, codec.colorspace = yuv.frame.color_range, yuv.frame.colorspace
        if frame.decoded is not None:
            codec.color_primaries, codec.color_trc = frame.decoded.color_primaries, frame.decoded.color_trc
        shape = self._media.video.sample_aspect_ratio
        if shape:
            codec.sample_aspect_ratio = 1 / shape if frame.turn.transposed else shape
        if self._media.position.known:
            self._out.metadata.update(self._media.position.tags())
        try:
            self._tracks = AudioTracks(self._out, self._audio)
            self._out.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            raise cannot_copy(self._media.path.name, error) from None

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            self._write_audio(packet.dts * Fraction(packet.time_base) + self._media.origin)
            self._out.mux(packet)

    def _write_audio(self, moment: Fraction | None) -> None:
        assert self._tracks is not None
        for index, packet in self._audio.until(moment):
            self._tracks.write(index, packet, -self._media.origin)
