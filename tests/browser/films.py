"""Films in the forms that a browser takes: for its fake camera, and for its file input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

from tests.support.clip import Pixels


def write_y4m(path: Path, pictures: list[Pixels], fps: int) -> Path:
    """What Chromium's `--use-file-for-fake-video-capture` plays, over and over: raw I420, RGB uint8 [h, w, 3] given."""
    height, width = pictures[0].shape[:2]
    with path.open("wb") as film:
        film.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for picture in pictures:
            planes = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p").to_ndarray()
            film.write(b"FRAME\n" + planes.tobytes())
    return path


def write_webm(path: Path, pictures: list[Pixels], fps: int = 10) -> Path:
    """VP8 in WebM: what every build of Chromium plays."""
    with av.open(str(path), "w", format="webm") as film:
        stream: Any = film.add_stream("libvpx", rate=fps, options={"crf": "10", "b": "2M", "deadline": "realtime"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    return path
