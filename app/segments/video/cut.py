"""Cuts a video into parts at key frames, and joins parts again. Packets are copied; nothing is re-encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from app.files import written_atomically
from app.segments.video.reader import (
    MediaFile,
    Position,
    VideoError,
    cannot_copy,
    ffmpeg_errors,
    open_video,
    times_go_back,
    upright_size,
)
from app.segments.video.writer import AudioReader, AudioTracks, choose_format, muxer_options
from app.sources.address import ffmpeg_name
from app.sources.copying import add_copy

_MAX_PACKETS = 600
"""Packets held at once. A group of more packets is handed on in pieces, because some videos have a single key frame."""


def _no_check() -> None:
    """The default of `check`: never stops the cutting."""


# --- cutting ---


def cut(
    source: Path, folder: Path, seconds: float, check: Callable[[], None] = _no_check, *, silent: bool = False
) -> Iterator[Path]:
    """Cuts a video into parts of at least `seconds`, each from one key frame to another; streams are copied.

    Parts are MP4s. If MP4 does not accept the video's frames, the parts are QuickTime, Matroska or NUT under the same
    names, and readers recognize them by their content. Audio that MP4 does not accept is left out, because the joined
    video could not hold it.

    Yields `folder/00000.mp4`, …, each once it is complete. A part's metadata contain its `Position` in the video, so
    that `concat` puts every frame and all audio back in its place. A key frame begins no part if frames that follow it
    in the file are shown before it (an open group of pictures), because they need frames of the part before.

    Args:
        seconds: minimum length of a part, except the last.
        check: called repeatedly, also within a part, which may be the whole video; its exception ends the cutting.
        silent: leaves out all audio.

    Raises:
        VideoError: the file has no video, its frames have no times or decreasing ones, or no container here accepts
            them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open_video(source) as media:
        audio = AudioReader(source, silent=silent)
        try:
            yield from _parts(media, audio, folder, seconds, check)
        finally:
            audio.close()


def _parts(
    media: MediaFile, audio: AudioReader, folder: Path, seconds: float, check: Callable[[], None]
) -> Iterator[Path]:
    min_length = Fraction(str(seconds))  # the float 0.4 is slightly more than 2/5, so a key frame there would be missed
    base, size = Fraction(media.video.time_base), upright_size(media.path)
    part: _Part | None = None
    index = frames = 0
    for group in _groups(media):
        check()
        start = group[0].pts * base
        if part is None or (_is_closed(group) and start > part.latest and start - part.start >= min_length):
            if part is not None:
                yield part.close(start)
                index += 1
            begin = media.origin if part is None else start
            position = Position(begin - media.origin, frames, media.rate, size)
            part = _Part(folder / f"{index:05d}.mp4", media, audio, begin, position)
        part.write(group)
        frames += sum(not packet.is_discard for packet in group)
    if part is None:
        raise VideoError(f"{media.path.name}: not one frame in its video")
    yield part.close(None)


def _groups(media: MediaFile) -> Iterator[list[Any]]:
    """Yields the packets from one key frame up to the next, at most `_MAX_PACKETS`, in decoding order."""
    group: list[Any] = []
    last: int | None = None
    for packet in media.container.demux(media.video):
        if packet.dts is None and packet.pts is None:
            continue  # the empty packet at the end
        if packet.pts is None:
            raise VideoError(f"{media.path.name}: its frames have no times; remux it: ffmpeg -i VIDEO -c copy new.mp4")
        if packet.dts is not None:
            if last is not None and packet.dts <= last:
                raise times_go_back(media.path.name, last * Fraction(media.video.time_base) - media.origin)
            last = packet.dts
        if group and (packet.is_keyframe or len(group) >= _MAX_PACKETS):
            yield _with_dts(group)
            group = []
        group.append(packet)
    if group:
        yield _with_dts(group)


def _with_dts(group: list[Any]) -> list[Any]:
    """Sets missing decoding times, because Matroska gives none for its first frames: each is set one frame's duration
    before the next.
    """
    after: int | None = None
    for packet in reversed(group):
        if packet.dts is None:
            packet.dts = packet.pts if after is None else min(packet.pts, after - max(1, packet.duration or 1))
        after = packet.dts
    return group


def _is_closed(group: list[Any]) -> bool:
    """Whether the group begins with a key frame and shows no frame before it, which could need earlier frames."""
    return bool(group[0].is_keyframe) and min(packet.pts for packet in group) == group[0].pts


class _Part:
    """One part while it is written."""

    def __init__(self, path: Path, media: MediaFile, audio: AudioReader, start: Fraction, position: Position) -> None:
        self._path, self._media, self._audio = path, media, audio
        self._base = Fraction(media.video.time_base)
        self.start = self.latest = start
        """Seconds on the file's own clock: the beginning of the part, and the latest time at which one of its frames so
        far is shown.
        """
        name = choose_format([media.video, *audio.streams])
        self._out: Any = av.open(ffmpeg_name(path), "w", format=name, options=muxer_options(name, "use_metadata_tags"))
        self._out.metadata.update(position.tags())
        try:
            self._video = add_copy(self._out, media.video)
            self._video.id = media.track_id(media.video)
            self._tracks = AudioTracks(self._out, audio)
            self._out.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            raise cannot_copy(media.path.name, error) from None

    def write(self, group: list[Any]) -> None:
        shift = round(self.start / self._base)
        for packet in group:
            self._write_audio(packet.dts * self._base)
            self.latest = max(self.latest, packet.pts * self._base)
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = self._video
            self._out.mux(packet)

    def close(self, end: Fraction | None) -> Path:
        """Writes the audio up to the end of the part, or with None up to the end of the video; returns the path."""
        self._write_audio(end)
        with ffmpeg_errors(self._path):
            self._out.close()
        return self._path

    def _write_audio(self, moment: Fraction | None) -> None:
        for index, packet in self._audio.until(moment):
            self._tracks.write(index, packet, -self.start)


# --- joining ---


def concat(parts: Sequence[Path], target: Path) -> None:
    """Joins parts in this order into an MP4, or into the first container that accepts their streams; streams are
    copied.

    A part whose metadata give its `Position` goes exactly there, any other part to the end of the one before it. The
    target appears once it is complete.

    Raises:
        VideoError: there are no parts, one cannot be read, or they are encoded differently.
    """
    if not parts:
        raise VideoError(f"{target.name}: there are no parts to join")
    with open_video(parts[0]) as first:
        name = choose_format([first.video, *first.audio])
    with written_atomically(target) as temporary, ffmpeg_errors(target), _Joiner(temporary, name) as joiner:
        for path in parts:
            with open_video(path) as part:
                joiner.add_streams(part)
        for path in parts:
            with open_video(path) as part:
                joiner.add(part)


class _Joiner:
    """The joined video while it is written."""

    def __init__(self, path: Path, name: str) -> None:
        self._out: Any = av.open(ffmpeg_name(path), "w", format=name, options=muxer_options(name, "faststart"))
        self._streams: dict[int, Any] = {}
        """Streams of the output by track number. The other dictionaries have the same keys."""
        self._codings: dict[int, tuple[object, ...]] = {}
        self._end = Fraction(0)
        """When the last part's frames end, seconds."""
        self._audio_ends: dict[int, Fraction] = {}
        """When the last part's audio ends, seconds."""
        self._last: dict[int, int] = {}
        """The last decoding time of each stream, in units of its time base."""

    def __enter__(self) -> _Joiner:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def add_streams(self, part: MediaFile) -> None:
        """Adds a part's streams to the output. All must be added before the first packet, because a later part may have
        audio that the first part lacks.
        """
        for stream in (part.video, *part.audio):
            number, coding = part.track_id(stream), _coding(stream)
            if number not in self._streams:
                self._streams[number] = add_copy(self._out, stream)
                self._streams[number].id = number
                self._codings[number] = coding
            elif coding != self._codings[number]:
                raise VideoError(
                    f"{part.path.name}: its {stream.type} is encoded differently from the parts before it "
                    f"({_coding_text(stream)}); all parts must come from the same backend with the same settings"
                )

    def add(self, part: MediaFile) -> None:
        """Writes a part's packets."""
        start = part.position.start if part.position.known else self._end
        shifts: dict[int, Fraction] = {}
        numbers = {stream.index: part.track_id(stream) for stream in (part.video, *part.audio)}
        for packet in part.container.demux(part.video, *part.audio):
            if packet.pts is None or packet.dts is None:
                continue  # the empty packet at the end
            number, is_video = numbers[packet.stream_index], packet.stream_index == part.video.index
            if number not in shifts:
                shifts[number] = start if is_video else self._audio_shift(number, packet, start)
            end = self._write(number, packet, shifts[number])
            if is_video:
                self._end = max(self._end, end)
            else:
                self._audio_ends[number] = end

    def _audio_shift(self, number: int, packet: Any, start: Fraction) -> Fraction:
        """Seconds by which a part's audio is moved.

        Audio that begins within half a packet of the end of the last part's audio begins exactly there, so that
        rounding leaves no gaps.
        """
        before, base = self._audio_ends.get(number), Fraction(packet.time_base)
        begins: Fraction = start + packet.pts * base
        if before is None or abs(begins - before) * 2 > packet.duration * base:
            return start
        return start + before - begins

    def _write(self, number: int, packet: Any, shift: Fraction) -> Fraction:
        """Writes a packet, moved by `shift` seconds; returns its end, seconds."""
        base = Fraction(packet.time_base)
        moved = round(shift / base)
        packet.pts += moved
        # A re-encoded part may begin with decoding times before the end of the last part: move them later.
        packet.dts = max(packet.dts + moved, self._last.get(number, packet.dts + moved - 1) + 1)
        packet.pts = max(packet.pts, packet.dts)
        self._last[number] = packet.dts
        end: Fraction = (packet.pts + packet.duration) * base
        packet.stream = self._streams[number]
        self._out.mux(packet)
        return end


def _coding(stream: Any) -> tuple[object, ...]:
    """The codec parameters of a stream that must be equal in all parts."""
    codec = stream.codec_context
    size = (codec.width, codec.height) if stream.type == "video" else (codec.sample_rate, codec.layout.name)
    return codec.name, *size, codec.extradata, stream.time_base


def _coding_text(stream: Any) -> str:
    codec = stream.codec_context
    if stream.type == "video":
        return f"{codec.name} {codec.width}x{codec.height}"
    return f"{codec.name} {codec.sample_rate} Hz, {codec.layout.name}"
