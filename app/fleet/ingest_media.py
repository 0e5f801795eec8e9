"""A source opened: its pictures as they come, by PyAV. JPEG that is there already is passed through."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import simplejpeg

from app import metrics
from app.errors import SightlineError
from app.fleet.sources import Source, without_password

log = logging.getLogger(__name__)

OPEN_S, READ_S = 10.0, 5.0
"""Longest wait for a source to open, and for its next data."""
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_VIDEOS = {".mp4", ".m4v", ".mkv", ".mov", ".avi", ".webm", ".ts", ".mpg", ".mpeg", ".mjpeg", ".mjpg"}
_DAMAGED = metrics.INGEST_FRAMES.labels("undecodable")


class SourceLost(SightlineError):
    """The source cannot be opened, or gives nothing more. It is worth trying again."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture, not yet encoded: one of `jpeg` and `picture` is there."""

    at_s: float | None
    """Seconds since the recording's start; None: it is happening now."""
    jpeg: bytes | None
    picture: Any = None
    """An `av.VideoFrame`."""

    def encoded(self, quality: int) -> bytes:
        """JPEG, 4:2:0; as the source gave it, where it gave a JPEG."""
        if self.jpeg is not None:
            return self.jpeg
        pixels = self.picture.to_ndarray(format="rgb24")
        jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")
        return jpeg


def shots(source: Source, picture_s: float) -> Iterator[Shot]:
    """Pictures of a source, in their order. Recordings end, or start over where the source loops.

    Args:
        picture_s: how long each picture of a folder is shown, seconds.

    Raises:
        SourceLost: it cannot be opened or read, holds nothing, or is live and came to its end.
    """
    start_s = 0.0
    while True:
        last_s: float | None = None
        for shot in _folder(source, picture_s) if source.kind == "folder" else _container(source, source.address):
            if shot.at_s is None:
                yield shot
                continue
            last_s = shot.at_s
            yield Shot(start_s + shot.at_s, shot.jpeg, shot.picture)
        if last_s is None:
            raise SourceLost(f"{source.shown}: it ended" if _live(source) else f"{source.shown}: no picture in it")
        if not source.loop:
            return
        start_s += last_s + picture_s


def _live(source: Source) -> bool:
    return source.kind not in ("file", "folder")


def _folder(source: Source, picture_s: float) -> Iterator[Shot]:
    """All pictures and videos of a folder by name, one after the other. One that cannot be read is left out."""
    folder, start_s = Path(source.address), 0.0
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES | _VIDEOS)
    except OSError as error:
        raise SourceLost(f"{folder}: {error.strerror}") from None
    for path in paths:
        last_s = 0.0
        try:
            for shot in _container(source, str(path)):
                last_s = shot.at_s or 0.0
                yield Shot(start_s + last_s, shot.jpeg, shot.picture)
        except SourceLost as error:
            _DAMAGED.inc()
            log.warning("source %s: left out: %s", source.camera_id, error)
            continue
        start_s += last_s + picture_s


def _container(source: Source, address: str) -> Iterator[Shot]:
    """Pictures of one file, URL or device."""
    shown = without_password(address)
    try:
        with _open(source, address) as container:
            if not container.streams.video:
                raise SourceLost(f"{shown}: there is no video in it")
            stream = container.streams.video[0]
            # Hundreds of sources share the cores: one thread each.
            stream.codec_context.thread_count = 1
            yield from _pictures(container, stream, recorded=not _live(source) or container.duration is not None)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, av.error.ExitError):
            reason = f"no data for {READ_S:g} s"
        raise SourceLost(f"{shown}: {without_password(reason)}") from None


def _open(source: Source, address: str) -> Any:
    options: dict[str, str] = {}
    if source.kind.startswith("rtsp"):
        options = {"rtsp_transport": "tcp"}
    if _live(source):
        options |= {"fflags": "nobuffer", "flags": "low_delay"}
    if source.kind == "device":
        try:  # most cameras give more pictures a second as JPEG, and those need no encoding here
            return av.open(address, format="v4l2", options={"input_format": "mjpeg"}, timeout=(OPEN_S, READ_S))
        except av.error.FFmpegError:
            return av.open(address, format="v4l2", timeout=(OPEN_S, READ_S))
    return av.open(address, options=options, timeout=(OPEN_S, READ_S))


def _pictures(container: Any, stream: Any, *, recorded: bool) -> Iterator[Shot]:
    passes: bool | None = None if stream.codec_context.name == "mjpeg" else False
    rate, number, first_s = float(stream.average_rate or 25), 0, None
    for packet in container.demux(stream):
        if passes is None:
            passes = _is_jpeg(packet)
        try:
            found: list[Any] = [bytes(packet)] if passes and packet.size else [] if passes else packet.decode()
        except av.error.InvalidDataError:
            _DAMAGED.inc()
            continue
        for one in found:
            timed = packet if passes else one
            at_s = float(timed.pts * timed.time_base) if timed.pts is not None else number / rate
            first_s = at_s if first_s is None else first_s
            number += 1
            moment = max(0.0, at_s - first_s) if recorded else None
            yield Shot(moment, one, None) if passes else Shot(moment, None, one)


def _is_jpeg(packet: Any) -> bool:
    """Whether the packets can go on as they are: some cameras' "JPEG" lacks what every decoder wants."""
    try:
        simplejpeg.decode_jpeg(bytes(packet), "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True
