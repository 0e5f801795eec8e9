"""Encodes the analysed video: YUV frames that can be drawn on, an encoder that keeps their times, and copied audio.

H.264 is encoded from 4:2:0: brightness at full size, the two colours at half. Drawing on these planes saves converting
the whole frame to RGB and back, which takes longer than the drawing.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from app.segments.video.reader import MediaFile, VideoFrame, cannot_copy
from app.segments.video.streams import AudioReader, AudioTracks, muxer_options
from app.sources.address import ffmpeg_name
from app.sources.orientation import UPRIGHT, Orientation

Plane = NDArray[np.uint8]
_FORMAT = "yuv420p"
_FULL_FORMAT = "yuv444p"
"""All planes at full size, for frames with odd sides."""
_ENCODER = {"preset": "veryfast", "crf": "21"}
"""Options of x264: good quality at a few milliseconds per frame."""
_KEY_FRAME_S = 2
"""Seconds between key frames, at most."""


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
