"""Recorded video: read frame by frame (`reader`), cut into parts and joined again without re-encoding (`cut`), analysed
and encoded (`processor`, `writer`).

`processor` is not imported here, because it imports the pipeline, which a program that only cuts videos does not need.
"""

from __future__ import annotations

from app.segments.video.cut import concat, cut
from app.segments.video.reader import (
    ENTRY,
    Position,
    TruncatedVideo,
    VideoError,
    VideoInfo,
    VideoReader,
    count_undecodable,
    open_video,
    probe,
)
from app.segments.video.writer import VideoEncoder, YuvFrame, dropped_audio

__all__ = [
    "ENTRY",
    "Position",
    "TruncatedVideo",
    "VideoEncoder",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "YuvFrame",
    "concat",
    "count_undecodable",
    "cut",
    "dropped_audio",
    "open_video",
    "probe",
]
