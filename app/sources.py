"""Where frames come from: a video file, pictures, a camera. JPEG out, with the moment each was taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.errors import SightlineError

QUALITY = 85
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class SourceError(SightlineError):
    """The source cannot be read."""


@dataclass(frozen=True, slots=True)
class Picture:
    jpeg: bytes
    at_s: float
    """Seconds since the first."""


class Source(Protocol):
    @property
    def frames(self) -> int | None:
        """How many there will be; None where nobody knows."""
        ...

    @property
    def fps(self) -> float: ...

    def __iter__(self) -> Iterator[Picture]: ...


def open_source(source: str) -> Source:
    """The source by its name: a camera's number, a folder, a picture or a video file.

    Raises:
        SourceError: it is none of them, or cannot be read.
    """
    if source.isdigit():
        return Camera(int(source))
    path = Path(source)
    if path.is_dir():
        return Pictures(sorted(one for one in path.iterdir() if one.suffix.lower() in _PICTURES), path)
    if not path.exists():
        raise SourceError(f"{source}: no such file; want a video, a picture, a folder of pictures or a camera's number")
    if path.suffix.lower() in _PICTURES:
        return Pictures([path], path)
    return Video(path)


def encode(rgb: NDArray[Any]) -> bytes:
    """JPEG, 4:2:0, of a picture RGB uint8 [height, width, 3]."""
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=QUALITY, colorsubsampling="420")
    return jpeg


def _rgb(bgr: Any) -> NDArray[Any]:
    rgb: NDArray[Any] = bgr[:, :, ::-1]
    return rgb


class Video:
    """A film, frame by frame, at its own times."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.frames: int | None = stream.frames or None
                self.fps = float(stream.average_rate or 25)
        except av.error.FFmpegError as error:
            raise SourceError(f"{path}: no video that can be read ({error.strerror})") from None
        except IndexError:
            raise SourceError(f"{path}: there is no video in it") from None

    def __iter__(self) -> Iterator[Picture]:
        with av.open(str(self._path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                at = frame.time if frame.time is not None else number / self.fps
                rgb: NDArray[Any] = frame.to_ndarray(format="rgb24")
                yield Picture(encode(rgb), at)


class Pictures:
    """Pictures of a folder, by name. JPEGs go as they are."""

    fps = 25.0

    def __init__(self, paths: list[Path], origin: Path) -> None:
        if not paths:
            raise SourceError(f"{origin}: no pictures in it ({', '.join(sorted(_PICTURES))})")
        self._paths = paths
        self.frames: int | None = len(paths)

    def __iter__(self) -> Iterator[Picture]:
        for number, path in enumerate(self._paths):
            yield Picture(self._read(path), number / self.fps)

    @staticmethod
    def _read(path: Path) -> bytes:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            return path.read_bytes()
        picture: Any = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if picture is None:
            raise SourceError(f"{path}: no picture that can be read")
        return encode(_rgb(picture))


class Camera:
    """A camera of this machine."""

    frames: int | None = None

    def __init__(self, number: int) -> None:
        # What OpenCV tried on the way is nothing that the caller did wrong.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._camera = cv2.VideoCapture(number)
        if not self._camera.isOpened():
            raise SourceError(f"camera {number}: cannot be opened; is it there, and free?")
        self.fps = float(self._camera.get(cv2.CAP_PROP_FPS) or 30)

    def __iter__(self) -> Iterator[Picture]:
        started = time.monotonic()
        try:
            while True:
                taken, picture = self._camera.read()
                if not taken:
                    return
                yield Picture(encode(_rgb(picture)), time.monotonic() - started)
        finally:
            self._camera.release()
