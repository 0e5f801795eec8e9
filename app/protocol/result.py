"""The result of one frame: every entry point returns the same `FrameResult`.

All coordinates are pixels of the frame as sent: x right, y down, clipped to the frame. By
default an EXIF orientation is applied to single images, not to frames of a stream (EXIF_ORIENTATION); `image` has the
size that the coordinates refer to.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeVar, dataclass_transform

T = TypeVar("T")

KEYPOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
"""COCO's 17 keypoints, in its order (https://cocodataset.org/#keypoints-2020). Left is the person's left."""

SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
    (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""COCO's limbs as pairs of indices into KEYPOINT_NAMES, counted from 0."""

Status = Literal["ok", "stale", "skipped", "error", "disabled"]
STAGES = ("detect", "pose", "ocr", "motion", "track")
FACE = "face"
"""A further stage, which embeds faces. An entry point has to request it; the live one does not."""


@dataclass_transform(frozen_default=True)
def _many(kind: type[T]) -> type[T]:
    """A dataclass that is frozen for mypy only. At run time that would triple the time to make one, of dozens a frame.

    It has no slots, because orjson serializes an object with a `__dict__` in a quarter of the time.
    """
    return dataclass(kind)


@_many
class Box:
    """A box from its top left to its bottom right corner, pixels."""

    x1: float
    y1: float
    x2: float
    y2: float


@_many
class Detection:
    """One object that was found. `confidence` is 0 to 1."""

    class_id: int
    class_name: str
    confidence: float
    box: Box
    track_id: int | None = None
    """Number of the object's track in its stream, kept for as long as the tracker follows it; null until confirmed."""


@_many
class FaceDetection(Detection):
    """A person whose face was embedded. Other detections do not have the field."""

    _: KW_ONLY
    embedding: str
    """Base64 of 512 float32, little-endian, a vector of length 1: the dot product of two is their cosine similarity."""


@_many
class Keypoint:
    """One of KEYPOINT_NAMES; position in pixels, `confidence` 0 to 1."""

    name: str
    x: float
    y: float
    confidence: float


@_many
class Pose:
    """The keypoints of one person, with the person's box and confidence, 0 to 1."""

    confidence: float
    box: Box
    keypoints: tuple[Keypoint, ...]
    """17, in COCO's order."""
    track_id: int | None = None
    """Track of the person that the pose belongs to; null without one."""


@dataclass(frozen=True)
class Text:
    """One line of text that was read. `confidence` is 0 to 1."""

    text: str
    confidence: float
    polygon: tuple[tuple[float, float], ...]
    """Four corners, clockwise from the text's own top left, which is the lower right one if the text is upside down."""


@dataclass(frozen=True)
class CameraMotion:
    """Motion of the whole image since the last frame: a shift, a rotation and a zoom about the middle of the frame.

    A point that was at `q` from the middle is now at `zoom * rotated(q) + (dx, dy)` from it.
    """

    dx: float
    dy: float
    """Shift of the point that was in the middle, pixels. A camera that pans right moves the image left."""
    rotation_deg: float = 0.0
    """Rotation of the image, degrees, clockwise as seen. A camera that rolls clockwise rotates it anticlockwise."""
    zoom: float = 1.0
    """Factor by which the image grew: above 1 the camera zooms in or comes nearer."""


@dataclass(frozen=True)
class MotionGrid:
    """The dense flow since the last frame, as one vector for each cell of a grid over the frame."""

    columns: int
    rows: int
    scale: float
    """Pixels per unit of `data`."""
    data: str
    """Base64 of int8 pairs dx, dy, row by row; the camera's own motion is still in them. 0, 0 where there is no texture
    to follow."""


@dataclass(frozen=True)
class Motion:
    """Motion since the last frame, split into the camera's and that of the rest."""

    score: float
    """Mean motion besides the camera's, in frame diagonals per frame, over all cells; a cell that stands still is 0."""
    direction_deg: float | None
    """Mean direction of the moving cells: 0 right, 90 down, 180 left, 270 up. Null when none moves."""
    moving_fraction: float
    """Share of cells that move besides the camera, 0 to 1."""
    camera: CameraMotion
    grid: MotionGrid | None = None


@dataclass(frozen=True)
class Stage:
    """Outcome of one stage on this frame, so that "no text was found" differs from "OCR did not run"."""

    status: Status
    reason: str | None = None
    age_ms: float | None = None
    """For `stale`: age of the attached result, milliseconds."""


OK = Stage("ok")
OFF = Stage("disabled", "off")
"""The stage was not requested."""


@dataclass(frozen=True)
class Image:
    """Size of the frame that coordinates refer to, pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class FrameResult:
    """All results of one frame. Lists are empty, and `motion` is null, for stages without a result."""

    image: Image
    objects: list[Detection] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    motion: Motion | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    """By name: always all of STAGES, and FACE if it was requested."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Monotonic durations: queue, decode, prepare, gate, infer, parse, motion, face, total; only of those that ran."""

    def values(self) -> dict[str, Any]:
        """The fields by name, in order, as every message of a result carries them. The dict is the result's own."""
        return self.__dict__
