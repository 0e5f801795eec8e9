"""What a part of a film lies in: MP4, and where that does not take its streams, QuickTime, Matroska or NUT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.sources.copying import takes

_FORMS = ("mp4", "mov", "matroska", "nut")
"""Matroska late: its times are whole milliseconds. NUT takes most of what FFmpeg decodes."""
_BOXED = ("mp4", "mov")
_TIMESCALE = {"movie_timescale": "90000", "use_stream_ids_as_track_ids": "1"}
"""Delays of a stream's beginning are written in that unit; FFmpeg's own is a millisecond."""


def form_of(streams: Sequence[Any]) -> str:
    """The first container that takes these streams; MP4 where none does, which then says so."""
    return next((form for form in _FORMS if takes(form, streams)), _FORMS[0])


def options(form: str, flags: str) -> dict[str, str]:
    """A muxer's; `flags` are those of MP4 and QuickTime."""
    return {**_TIMESCALE, "movflags": flags} if form in _BOXED else {}
