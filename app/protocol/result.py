"""What one frame gave. The same `FrameResult` leaves by every door.

All coordinates are pixels of the frame as sent: x right, y down, clipped to the frame. An EXIF orientation is
applied to a picture that comes by itself, not to a stream's (EXIF_ORIENTATION): `image` has the size they refer to.
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
"""One stage more, where faces are embedded: a door has to ask for it, and the live door does not."""


@dataclass_transform(frozen_default=True)
def _many(kind: type[T]) -> type[T]:
    """Frozen for mypy alone: at run time that would triple the time to make one, and a frame makes dozens.

    Without slots, as all that a result holds: orjson takes a quarter of the time for what has a `__dict__`.
    """
    return dataclass(kind)


@_many
class Box:
    x1: float
    y1: float
    x2: float
    y2: float


@_many
class Detection:
    class_id: int
    class_name: str
    confidence: float
    box: Box
    track_id: int | None = None
    """Same number, same thing, as long as its stream lasts; null until the tracker trusts it."""


@_many
class FaceDetection(Detection):
    """A person whose face was embedded; every other detection goes without the field."""

    _: KW_ONLY
    embedding: str
    """Base64 of 512 float32, little-endian, a vector of length 1: the dot product of two is their likeness."""


@_many
class Keypoint:
    name: str
    x: float
    y: float
    confidence: float


@_many
class Pose:
    confidence: float
    box: Box
    keypoints: tuple[Keypoint, ...]
    """17, in COCO's order."""
    track_id: int | None = None
    """Of the tracked person that it belongs to."""


@dataclass(frozen=True)
class Text:
    text: str
    confidence: float
    polygon: tuple[tuple[float, float], ...]
    """Four corners, clockwise from the text's own top left: the lower right one of text that stands on its head."""


@dataclass(frozen=True)
class CameraMotion:
    """How the whole picture moved since the last frame: a shift, a turn and a zoom about the middle of the frame.

    A point that lay at `q` from the middle lies at `zoom * turned(q) + (dx, dy)` from it now.
    """

    dx: float
    dy: float
    """How far what lay in the middle moved, pixels. A camera that pans right moves the picture left."""
    rotation_deg: float = 0.0
    """How far the picture turned, degrees, clockwise as seen. A camera that rolls clockwise turns it the other way."""
    zoom: float = 1.0
    """How many times as large the picture is: above 1 the camera zooms in or comes nearer."""


@dataclass(frozen=True)
class MotionGrid:
    columns: int
    rows: int
    scale: float
    """Pixels a unit."""
    data: str
    """Base64 of int8 pairs dx, dy, row by row; the camera's own motion is still in them. 0, 0 where there is no texture
    to follow."""


@dataclass(frozen=True)
class Motion:
    score: float
    """Mean motion besides the camera's, of what moves, pixels a frame over the frame's diagonal."""
    direction_deg: float | None
    """Mean direction of the moving cells: 0 right, 90 down, 180 left, 270 up. Null when none moves."""
    moving_fraction: float
    """Share of cells that move besides the camera, 0 to 1."""
    camera: CameraMotion
    grid: MotionGrid | None = None


@dataclass(frozen=True)
class Stage:
    """How one modality went on this frame; "no text found" and "OCR did not run" never look the same."""

    status: Status
    reason: str | None = None
    age_ms: float | None = None
    """For `stale`: how old the attached answer is."""


OK = Stage("ok")
OFF = Stage("disabled", "off")
"""Not asked for."""


@dataclass(frozen=True)
class Image:
    width: int
    height: int


@dataclass(frozen=True)
class FrameResult:
    image: Image
    objects: list[Detection] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    motion: Motion | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    """One of STAGES each, always all of them; and FACE where it was asked for."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Monotonic durations: queue, decode, prepare, gate, infer, parse, motion, face, total; those that ran."""

    def values(self) -> dict[str, Any]:
        """The fields by name, in order, as every message of a result carries them. The dict is the result's own."""
        return self.__dict__
