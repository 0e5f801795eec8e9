"""Recorded video: read frame by frame (`reader`), cut into parts and joined again without re-encoding (`cut`), analysed
and encoded (`processor`, `writer`).

`processor` is not imported here, because it imports the pipeline, which a program that only cuts videos does not need.
"""

from __future__ import annotations

from app.segments.video.cut import concat, cut
from app.segments.video.reader import Position, TruncatedVideo, VideoError, VideoInfo, probe
from app.segments.video.writer import dropped_audio

__all__ = ["Position", "TruncatedVideo", "VideoError", "VideoInfo", "concat", "cut", "dropped_audio", "probe"]
