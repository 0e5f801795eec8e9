"""The analysed film: pictures coded anew at their own times, the sound copied beside them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from app.segments.containers import options
from app.segments.footage import Footage, refused
from app.segments.reel import Shot
from app.segments.sheet import FORMAT, FULL_FORMAT, Sheet, cropped
from app.segments.sound import Sound, SoundTrack
from app.sources.address import ffmpeg_name

_CODER = {"preset": "veryfast", "crf": "21"}
"""x264: good pictures at a few milliseconds a frame."""
_KEY_S = 2


class Recording:
    """Writes an MP4: H.264, and of the film's sound what MP4 takes. Blocks; one thread at a time.

    4:2:0; but pictures of odd sides 4:4:4, since 4:2:0 has even sides alone.

    Times are the film's own, also where its rate varies. What the film says about its place (`Position`) goes along.
    """

    def __init__(self, path: Path, film: Footage) -> None:
        self._film = film
        self._base = Fraction(film.video.time_base)
        self._sound = Sound(film.path)
        flags = "use_metadata_tags" if film.position.known else "faststart"
        self._out: Any = av.open(ffmpeg_name(path), "w", format="mp4", options=options("mp4", flags))
        self._video: Any = None
        self._track: SoundTrack | None = None

    def write(self, sheet: Sheet, shot: Shot) -> None:
        """Writes the next picture: a shot's, drawn on.

        Raises:
            FilmError: MP4 does not take the film's sound.
        """
        if self._video is None:
            self._begin(sheet, shot)
        frame = sheet.frame
        width, height = self._video.width, self._video.height
        even = width + width % 2, height + height % 2
        if (frame.width, frame.height) != even:
            # The film changes its size on its way, here or before this part of it.
            frame = frame.reformat(*even)
        if even != (width, height):
            frame = cropped(frame, width, height)
        frame.pts, frame.time_base = shot.pts, self._base
        frame.pict_type = av.video.frame.PictureType.NONE  # the coder chooses
        self._mux(self._video.encode(frame))

    def close(self, *, complete: bool) -> None:
        """Ends the file; with all of the sound where the film is `complete`."""
        try:
            if complete and self._video is not None:
                self._mux(self._video.encode(None))
                self._write_sound(None)
        finally:
            self._out.close()
            self._sound.close()

    def _begin(self, sheet: Sheet, shot: Shot) -> None:
        rate = self._film.rate
        coder = {**_CODER, "g": str(max(1, round(rate * _KEY_S)))}
        self._video = self._out.add_stream("libx264", rate=rate, options=coder)
        self._video.id = self._film.number(self._film.video)
        codec = self._video.codec_context
        width, height = self._film.position.size or sheet.size
        codec.width, codec.height = width, height
        codec.pix_fmt = FULL_FORMAT if width % 2 or height % 2 else FORMAT
        codec.time_base = self._base
        codec.color_range, codec.colorspace = sheet.frame.color_range, sheet.frame.colorspace
        if shot.frame is not None:
            codec.color_primaries, codec.color_trc = shot.frame.color_primaries, shot.frame.color_trc
        shape = self._film.video.sample_aspect_ratio
        if shape:
            codec.sample_aspect_ratio = 1 / shape if shot.turn.transposed else shape
        if self._film.position.known:
            self._out.metadata.update(self._film.position.tags())
        try:
            self._track = SoundTrack(self._out, self._sound)
            self._out.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            raise refused(self._film.path.name, error) from None

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            self._write_sound(packet.dts * Fraction(packet.time_base) + self._film.origin)
            self._out.mux(packet)

    def _write_sound(self, moment: Fraction | None) -> None:
        assert self._track is not None
        for index, packet in self._sound.until(moment):
            self._track.write(index, packet, -self._film.origin)
