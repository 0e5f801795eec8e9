"""Copies streams from one file into another without re-encoding: chooses a container that accepts them, reads audio
packets up to a given time, and writes them to the tracks of the new file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from app.segments.video.reader import open_video, times_go_back
from app.sources.copying import accepts, add_copy

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
