"""Films whose every pixel is known: a photograph panned under a window, a patch that moves over a still picture.

The photograph is scikit-image's astronaut; it ships inside the package. Where things are in it was read off the
photograph by eye, on its own 512x512 pixels under a grid, with nothing of the service involved.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import data

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float64]

WIDTH, HEIGHT = 640, 480
SCALE = 1.5
"""Scene over photograph: the window has room to move."""
PERSON = np.array([22.0, 15, 373, 512]) * SCALE
"""x1, y1, x2, y2 in the scene, as all that follow."""
FACE = np.array([181.0, 72, 268, 179]) * SCALE
"""From the hairline to the chin, without the hair."""
POINTS = {
    "nose": np.array([226.0, 126]) * SCALE,
    "left_eye": np.array([246.0, 103]) * SCALE,
    "right_eye": np.array([203.0, 101]) * SCALE,
}
"""The nose's tip and the pupils. Left is hers: on the right in the picture."""
WORDS = "GATE 7 EXIT"
SIGN = np.array([470.0, 30, 690, 84])


@cache
def scene() -> Pixels:
    """The photograph, enlarged, with a printed sign on its wall: RGB uint8 [768, 768, 3]."""
    photograph = Image.fromarray(data.astronaut())
    side = round(512 * SCALE)
    picture = photograph.resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    pen.rectangle([*SIGN[:2], *SIGN[2:]], fill=(250, 250, 245))
    pen.text(tuple((SIGN[:2] + SIGN[2:]) / 2), WORDS, (20, 20, 20), ImageFont.load_default(32), anchor="mm")
    return np.asarray(picture)


def words_box() -> Numbers:
    """Where the letters' ink is in the scene: x1, y1, x2, y2."""
    x1, y1, x2, y2 = (int(v) for v in SIGN)
    rows, columns = np.nonzero(scene()[y1:y2, x1:x2, 0] < 128)
    return np.array([x1 + columns.min(), y1 + rows.min(), x1 + columns.max() + 1, y1 + rows.max() + 1], float)


@dataclass(frozen=True)
class Pan:
    """A window over the scene that moves `step` pixels a frame; what it shows moves the other way."""

    step: tuple[int, int] = (8, 3)
    count: int = 10
    start: tuple[int, int] = (50, 0)

    def corner(self, index: int) -> Numbers:
        """The window's upper left corner in the scene."""
        return np.array(self.start, float) + index * np.array(self.step, float)

    def pictures(self) -> list[Pixels]:
        """RGB uint8 [480, 640, 3] each."""
        corners = [self.corner(index).astype(int) for index in range(self.count)]
        return [np.ascontiguousarray(scene()[y : y + HEIGHT, x : x + WIDTH]) for x, y in corners]

    def jpegs(self) -> list[bytes]:
        return [encode(picture) for picture in self.pictures()]

    def seen(self, index: int, place: Numbers) -> Numbers:
        """A place of the scene (x, y, x, y, ...) in frame `index`, clipped to it."""
        moved = place.reshape(-1, 2) - self.corner(index)
        return np.clip(moved, 0, (WIDTH, HEIGHT)).ravel()


def moving_patch(step: tuple[int, int], count: int = 6) -> list[bytes]:
    """Another copy of her face, 240x240, moves `step` pixels a frame over a still picture; the camera stands."""
    ground, face = scene()[:HEIGHT, 60 : 60 + WIDTH], scene()[75:315, 225:465]
    jpegs = []
    for index in range(count):
        x, y = np.array([300, 200]) + (index - count // 2) * np.array(step)
        picture = ground.copy()
        picture[y : y + 240, x : x + 240] = face
        jpegs.append(encode(picture))
    return jpegs


def encode(picture: Pixels, quality: int = 85) -> bytes:
    """JPEG 4:2:0, as a camera or a browser sends it."""
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=quality, colorsubsampling="420")
    return jpeg


def decode(jpeg: bytes) -> Pixels:
    picture: Pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
    return picture


def write_mp4(path: Path, pictures: list[Pixels], fps: int = 10) -> Path:
    """H.264 in MP4."""
    with av.open(str(path), "w") as film:
        stream: Any = film.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode(None))
    return path
