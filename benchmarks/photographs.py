"""The frames that benchmarks send: photographs of scikit-image, panned so that optical flow has work."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

WIDTH, HEIGHT, QUALITY = 640, 480, 80
FRAMES = 12
"""Of each stream, before it turns back; the pan goes there and back for ever."""
STEP = 5
"""Pixels from one frame to the next."""
NAMES = ("astronaut", "coffee", "chelsea", "rocket", "coins", "hubble_deep_field", "retina", "brick")


def streams(count: int) -> list[list[bytes]]:
    """`count` clips of JPEGs, 640x480, quality 80, 4:2:0: one photograph each, the next round another part of it."""
    return [_clip(picture(NAMES[index % len(NAMES)]), 20 * (index // len(NAMES))) for index in range(count)]


def write(folder: Path, count: int) -> Path:
    """The clips as files, for other processes: `STREAM/FRAME.jpg`."""
    for number, clip in enumerate(streams(count)):
        (folder / f"{number:03}").mkdir(parents=True)
        for index, jpeg in enumerate(clip):
            (folder / f"{number:03}" / f"{index:03}.jpg").write_bytes(jpeg)
    return folder


def read(folder: Path) -> list[list[bytes]]:
    """Reads the clips that `write` wrote."""
    return [[path.read_bytes() for path in sorted(stream.iterdir())] for stream in sorted(folder.iterdir())]


def picture(name: str) -> NDArray[np.uint8]:
    """RGB uint8, just large enough to pan over."""
    from skimage import data

    picture: NDArray[np.uint8] = getattr(data, name)()
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, 2)
    room = STEP * FRAMES + 20
    scale = max((WIDTH + room) / picture.shape[1], (HEIGHT + room) / picture.shape[0])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)  # type: ignore[return-value]


def _clip(picture: NDArray[np.uint8], start: int) -> list[bytes]:
    spare = picture.shape[0] - HEIGHT, picture.shape[1] - WIDTH
    panned = []
    for index in range(FRAMES):
        y, x = (min(room, start + STEP * index) for room in spare)
        crop = np.ascontiguousarray(picture[y : y + HEIGHT, x : x + WIDTH])
        panned.append(simplejpeg.encode_jpeg(crop, quality=QUALITY, colorsubsampling="420"))
    return [*panned, *panned[-2:0:-1]]
