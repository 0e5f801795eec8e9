"""Writes videos for a browser: for its fake camera, and for its file input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

from tests.support.clip import Pixels


def write_y4m(path: Path, frames: list[Pixels], fps: int) -> Path:
    """Writes RGB uint8 [h, w, 3] as raw I420, which Chromium's `--use-file-for-fake-video-capture` repeats."""
    height, width = frames[0].shape[:2]
    with path.open("wb") as video:
        video.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for frame in frames:
            planes = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p").to_ndarray()
            video.write(b"FRAME\n" + planes.tobytes())
    return path


def write_webm(path: Path, frames: list[Pixels], fps: int = 10) -> Path:
    """Writes VP8 in WebM, which every build of Chromium plays."""
    with av.open(str(path), "w", format="webm") as video:
        stream: Any = video.add_stream("libvpx", rate=fps, options={"crf": "10", "b": "2M", "deadline": "realtime"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode(None))
    return path
