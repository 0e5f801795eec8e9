"""A film into parts, at key frames, without coding anything anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from app.segments.containers import form_of, options
from app.segments.footage import FilmError, Footage, Position, backwards, explained, opened, refused, upright
from app.segments.sound import Sound, SoundTrack
from app.sources.address import ffmpeg_name
from app.sources.copying import copied

_LONGEST = 600
"""Packets held at once: films with a single key frame exist."""


def _go_on() -> None:
    """Nobody stops it."""


def cut(
    source: Path, folder: Path, seconds: float, check: Callable[[], None] = _go_on, *, silent: bool = False
) -> Iterator[Path]:
    """Cuts a film into parts of at least so many seconds, each from a key frame up to another; streams are copied.

    Parts are MP4s; where MP4 does not take the film's pictures, they lie in QuickTime, Matroska or NUT under the same
    names, and are told by their content. Sound that MP4 does not take is left out: the new film could not hold it.

    Yields `folder/00000.mp4`, …, each once it is whole. Its metadata say where it stands in the film (`Position`), so
    that `concat` puts every frame and every sound back where it was. A key frame that later frames reach back over (an
    open group of pictures) is no place to cut.

    Args:
        check: called again and again, also within a part, which may be the whole film; what it raises ends the cutting.
        silent: all sound is left out.

    Raises:
        FilmError: there is no film in it, or one whose pictures no container here takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with opened(source) as film:
        sound = Sound(source, silent=silent)
        try:
            yield from _parts(film, sound, folder, seconds, check)
        finally:
            sound.close()


def _parts(film: Footage, sound: Sound, folder: Path, seconds: float, check: Callable[[], None]) -> Iterator[Path]:
    wanted = Fraction(str(seconds))  # 0.4 is a little more than 2/5, and a key frame there would be passed over
    base, size = Fraction(film.video.time_base), upright(film.path)
    part: _Part | None = None
    index = frames = 0
    for group in _groups(film):
        check()
        start = group[0].pts * base
        if part is None or (_closed(group) and start > part.latest and start - part.start >= wanted):
            if part is not None:
                yield part.close(start)
                index += 1
            begin = film.origin if part is None else start
            position = Position(begin - film.origin, frames, film.rate, size)
            part = _Part(folder / f"{index:05d}.mp4", film, sound, begin, position)
        part.write(group)
        frames += sum(not packet.is_discard for packet in group)
    if part is None:
        raise FilmError(f"{film.path.name}: not one frame in its video")
    yield part.close(None)


def _groups(film: Footage) -> Iterator[list[Any]]:
    """Packets from a key frame up to the next, in the order of decoding."""
    group: list[Any] = []
    last: int | None = None
    for packet in film.container.demux(film.video):
        if packet.dts is None and packet.pts is None:
            continue  # the last, empty one
        if packet.pts is None:
            raise FilmError(f"{film.path.name}: its frames have no times; remux it: ffmpeg -i FILM -c copy new.mp4")
        if packet.dts is not None:
            if last is not None and packet.dts <= last:
                raise backwards(film.path.name, last * Fraction(film.video.time_base) - film.origin)
            last = packet.dts
        if group and (packet.is_keyframe or len(group) >= _LONGEST):
            yield _timed(group)
            group = []
        group.append(packet)
    if group:
        yield _timed(group)


def _timed(group: list[Any]) -> list[Any]:
    """Matroska does not say when its very first frames are decoded: a frame's length before each other, then."""
    after: int | None = None
    for packet in reversed(group):
        if packet.dts is None:
            packet.dts = packet.pts if after is None else min(packet.pts, after - max(1, packet.duration or 1))
        after = packet.dts
    return group


def _closed(group: list[Any]) -> bool:
    """Whether nothing in it is shown before its first packet, a key frame, and so may need what came before."""
    return bool(group[0].is_keyframe) and min(packet.pts for packet in group) == group[0].pts


class _Part:
    def __init__(self, path: Path, film: Footage, sound: Sound, start: Fraction, position: Position) -> None:
        self._path, self._film, self._sound = path, film, sound
        self._base = Fraction(film.video.time_base)
        self.start = self.latest = start
        """On the film's own clock; `latest` is when the last of the frames so far is shown."""
        form = form_of([film.video, *sound.streams])
        self._out: Any = av.open(ffmpeg_name(path), "w", format=form, options=options(form, "use_metadata_tags"))
        self._out.metadata.update(position.tags())
        try:
            self._video = copied(self._out, film.video)
            self._video.id = film.number(film.video)
            self._track = SoundTrack(self._out, sound)
            self._out.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            raise refused(film.path.name, error) from None

    def write(self, group: list[Any]) -> None:
        shift = round(self.start / self._base)
        for packet in group:
            self._write_sound(packet.dts * self._base)
            self.latest = max(self.latest, packet.pts * self._base)
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = self._video
            self._out.mux(packet)

    def close(self, end: Fraction | None) -> Path:
        """Takes what sound there is up to the end of the part; None: of the film."""
        self._write_sound(end)
        with explained(self._path):
            self._out.close()
        return self._path

    def _write_sound(self, moment: Fraction | None) -> None:
        for index, packet in self._sound.until(moment):
            self._track.write(index, packet, -self.start)
