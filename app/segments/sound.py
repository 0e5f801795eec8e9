"""A film's sound, copied as it is: read through a handle of its own, as far as the pictures have come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from app.segments.footage import backwards, opened
from app.sources.copying import copied, takes


class Sound:
    """A film's audio streams, as far as MP4 takes them. Nothing is held in memory, however far apart sound and
    pictures lie in the file.

    Args:
        silent: none of them.

    Raises:
        FilmError: the film cannot be read, or its times go back.
    """

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        self._stack = ExitStack()
        self._name = path.name
        self._packets: list[Iterator[Any]] = []
        self.streams: list[Any] = []
        """Templates for the streams that the packets go to."""
        self.numbers: list[int] = []
        """Of their tracks."""
        with opened(path) as film:
            taken = [] if silent else [index for index, one in enumerate(film.audio) if takes("mp4", [one])]
            self._origin = film.origin
        for index in taken:
            film = self._stack.enter_context(opened(path))
            self.streams.append(film.audio[index])
            self.numbers.append(film.number(film.audio[index]))
            self._packets.append(film.container.demux(film.audio[index]))
        self._next: list[Any | None] = [None] * len(taken)
        self._last: list[int | None] = [None] * len(taken)

    def until(self, moment: Fraction | None) -> Iterator[tuple[int, Any]]:
        """The number of a stream and a packet of it, of all that begin before this moment of the file's clock, seconds.

        None: all that are left.
        """
        for index in range(len(self.streams)):
            while (packet := self._peek(index)) is not None:
                if moment is not None and packet.pts * packet.time_base >= moment:
                    break
                self._next[index] = None
                yield index, packet

    def close(self) -> None:
        self._stack.close()

    def _peek(self, index: int) -> Any | None:
        while self._next[index] is None:
            packet = next(self._packets[index], None)
            if packet is None:
                return None
            if packet.pts is None:  # the last, empty one
                continue
            last, now = self._last[index], packet.pts if packet.dts is None else packet.dts
            if last is not None and now <= last:
                raise backwards(self._name, last * Fraction(packet.time_base) - self._origin)
            self._last[index], self._next[index] = now, packet
        return self._next[index]


def sound_left_out(path: Path) -> list[str]:
    """Codecs of a film's sound that MP4 does not take.

    Raises:
        FilmError: the film cannot be read.
    """
    with opened(path) as film:
        return [
            "unknown" if one.codec_context is None else str(one.codec_context.name)
            for one in film.audio
            if not takes("mp4", [one])
        ]


class SoundTrack:
    """Where a film's sound goes: one stream of the output for each of its own."""

    def __init__(self, container: Any, sound: Sound) -> None:
        self._container = container
        self._streams = [copied(container, one) for one in sound.streams]
        for stream, number in zip(self._streams, sound.numbers, strict=True):
            stream.id = number

    def write(self, index: int, packet: Any, shift: Fraction) -> None:
        """Writes a packet, moved by so many seconds."""
        moved = round(shift / packet.time_base)
        packet.pts += moved
        packet.dts = packet.pts if packet.dts is None else packet.dts + moved
        packet.stream = self._streams[index]
        self._container.mux(packet)
