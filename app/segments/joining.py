"""Parts of a film put together again, without coding anything anew."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from app.files import written_atomically
from app.segments.containers import form_of, options
from app.segments.footage import FilmError, Footage, explained, opened
from app.sources.address import ffmpeg_name
from app.sources.copying import copied


def concat(parts: Sequence[Path], target: Path) -> None:
    """Puts parts one after the other into an MP4, or whatever takes their streams; those are copied.

    A part that says where it stands (`Position`) goes exactly there, any other to the end of the one before it. The
    target appears when it is whole.

    Raises:
        FilmError: there are no parts, one cannot be read, or they are not coded alike.
    """
    if not parts:
        raise FilmError(f"{target.name}: there are no parts to put together")
    with opened(parts[0]) as first:
        form = form_of([first.video, *first.audio])
    with written_atomically(target) as temporary, explained(target), _Joint(temporary, form) as joint:
        for path in parts:
            with opened(path) as part:
                joint.expect(part)
        for path in parts:
            with opened(path) as part:
                joint.add(part)


class _Joint:
    def __init__(self, path: Path, form: str) -> None:
        self._out: Any = av.open(ffmpeg_name(path), "w", format=form, options=options(form, "faststart"))
        self._streams: dict[int, Any] = {}
        self._forms: dict[int, tuple[object, ...]] = {}
        self._end = Fraction(0)
        """Where the last part's pictures end, seconds."""
        self._sound_ends: dict[int, Fraction] = {}
        self._last: dict[int, int] = {}
        """Each stream's last decoding time, in its own unit."""

    def __enter__(self) -> _Joint:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def expect(self, part: Footage) -> None:
        """Makes room for a part's streams, all before the first packet: sound may begin late, or end early."""
        for stream in (part.video, *part.audio):
            number, form = part.number(stream), _form(stream)
            if number not in self._streams:
                self._streams[number] = copied(self._out, stream)
                self._streams[number].id = number
                self._forms[number] = form
            elif form != self._forms[number]:
                raise FilmError(
                    f"{part.path.name}: its {stream.type} is coded otherwise than in the parts before it "
                    f"({_words(stream)}); all parts must come from the same backend with the same settings"
                )

    def add(self, part: Footage) -> None:
        """Writes a part's packets."""
        start = part.position.start if part.position.known else self._end
        shifts: dict[int, Fraction] = {}
        numbers = {one.index: part.number(one) for one in (part.video, *part.audio)}
        for packet in part.container.demux(part.video, *part.audio):
            if packet.pts is None or packet.dts is None:
                continue  # the last, empty one
            number, pictures = numbers[packet.stream_index], packet.stream_index == part.video.index
            if number not in shifts:
                shifts[number] = start if pictures else self._sound_shift(number, packet, start)
            end = self._write(number, packet, shifts[number])
            if pictures:
                self._end = max(self._end, end)
            else:
                self._sound_ends[number] = end

    def _sound_shift(self, number: int, packet: Any, start: Fraction) -> Fraction:
        """Sound that follows on the last part's within half a packet goes right behind it: rounding leaves no gaps."""
        follows, base = self._sound_ends.get(number), Fraction(packet.time_base)
        begins: Fraction = start + packet.pts * base
        if follows is None or abs(begins - follows) * 2 > packet.duration * base:
            return start
        return start + follows - begins

    def _write(self, number: int, packet: Any, shift: Fraction) -> Fraction:
        """Writes a packet, moved; answers where it ends, seconds."""
        base = Fraction(packet.time_base)
        moved = round(shift / base)
        packet.pts += moved
        # Coded anew, a part's first frames may want to be decoded before the last part's last: they can wait.
        packet.dts = max(packet.dts + moved, self._last.get(number, packet.dts + moved - 1) + 1)
        packet.pts = max(packet.pts, packet.dts)
        self._last[number] = packet.dts
        end: Fraction = (packet.pts + packet.duration) * base
        packet.stream = self._streams[number]
        self._out.mux(packet)
        return end


def _form(stream: Any) -> tuple[object, ...]:
    """What must be the same in all parts."""
    codec = stream.codec_context
    size = (codec.width, codec.height) if stream.type == "video" else (codec.sample_rate, codec.layout.name)
    return codec.name, *size, codec.extradata, stream.time_base


def _words(stream: Any) -> str:
    codec = stream.codec_context
    if stream.type == "video":
        return f"{codec.name} {codec.width}x{codec.height}"
    return f"{codec.name} {codec.sample_rate} Hz, {codec.layout.name}"
