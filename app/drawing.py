"""Results drawn on their images, by the shapes that the stages declare, and converted to supervision's types.

`marks` says what is to be drawn, for every painter; `annotate` draws it on an RGB image. Neither knows a stage: which
field of a result is drawn, and how, stands in `app.protocol.stages`, or in `ready.stages` for the stages of a service.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from app.pipeline import registry  # noqa: F401 - declares the stages
from app.protocol.result import FrameResult
from app.protocol.stages import STAGES, Shape

if TYPE_CHECKING:
    import supervision

Points = NDArray[np.float32]
"""`[n, 2]`: x, y, pixels of the frame."""
Rgb = tuple[int, int, int]
LIMB: Rgb = (0, 230, 118)
"""Colour of what has no class, and of lines between points. RGB, as all colours here."""
JOINT: Rgb = (255, 255, 255)
MASK_OPACITY = 0.5
_FIELD = re.compile(r"\{([\w.]+)\}")
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_MAX_MASK_BYTES = 1 << 29
"""Most bytes of all masks of a frame for supervision, one for each pixel; more are given as polygons alone."""


# --- what is drawn ---


@dataclass(slots=True)
class Mark:
    """One entry of a part, to be drawn by one shape."""

    entry: Any
    """A dataclass, or a dict where this process does not have the service's stage."""
    rings: list[Points]
    """Of `box`: one, its top left and bottom right corner; of `polygon`, `polyline` and `mask`: each line, or ring; of
    `points`: one, all points; of `arrow` and `field`: start and end of each arrow."""
    shown: NDArray[np.bool_] | None = None
    """Of `points`, `[n]`: which of them are drawn."""
    limbs: list[tuple[int, int]] = field(default_factory=list)
    """Of `points`: the pairs of drawn points that are connected."""
    class_id: int | None = None
    track_id: int | None = None
    rgb: Rgb | None = None
    """Its own colour; None: that of its class."""
    label: str = ""
    anchor: tuple[float, float, float, float] | None = None
    """Where the label belongs: x1, y1, x2, y2; None: to the top left of the frame."""
    below: bool = False
    """Whether the label is written below the anchor; otherwise above it."""


def marks(
    frame: FrameResult, stages: Sequence[Any] | None = None, models: Mapping[str, Any] | None = None
) -> list[tuple[Shape, list[Mark]]]:
    """What is to be drawn of a result: for each shape its marks, in the order of the wire, but masks before all others.

    What has no position in this result is left out.

    Args:
        stages: `ready.stages`; None: the stages of this process.
        models: `ready.models`, which say what points are connected; None: as the stages' own models do.
    """
    found = []
    for stage, name, shapes in _parts(stages):
        entries = frame.values().get(name)
        if entries is None:
            continue
        described = (models or {}).get(stage)
        entries = entries if isinstance(entries, list | tuple) else [entries]
        for shape in shapes:
            drawn = [mark for entry in entries if (mark := _mark(shape, entry, frame, stage, described)) is not None]
            if drawn:
                found.append((shape, drawn))
    return sorted(found, key=lambda group: group[0].kind != "mask")


def _parts(stages: Sequence[Any] | None) -> Iterator[tuple[str, str, Sequence[Shape]]]:
    """Name of the stage, its field of a result, and its shapes."""
    if stages is not None:
        yield from ((stage.name, stage.field, stage.shapes) for stage in stages if stage.field is not None)
        return
    yield from ((info.name, info.part.field, info.part.shapes) for info in STAGES.values() if info.part is not None)


def _mark(shape: Shape, entry: Any, frame: FrameResult, stage: str, described: Any) -> Mark | None:
    geometry = value(entry, shape.at)
    if geometry is None and shape.kind != "label":
        return None
    class_id = value(entry, "class_id")
    if class_id is None and (named := re.search(r"\{([\w.]+)\.class_name\}", shape.label)):
        class_id = value(entry, f"{named[1]}.class_id")
    mark = Mark(entry, [], class_id=class_id, track_id=value(entry, "track_id"), rgb=_rgb(shape, entry))
    mark.label = label_of(shape.label, entry)
    if shape.kind == "box":
        mark.rings = [
            np.array(
                [[value(geometry, "x1"), value(geometry, "y1")], [value(geometry, "x2"), value(geometry, "y2")]],
                np.float32,
            )
        ]
    elif shape.kind in ("polygon", "polyline", "mask"):
        mark.rings = _rings(geometry)
    elif shape.kind == "points":
        _set_points(mark, shape, geometry, stage, described)
    elif shape.kind == "arrow":
        middle = frame.image.width / 2, frame.image.height / 2
        end = middle[0] + value(geometry, "dx"), middle[1] + value(geometry, "dy")
        mark.rings = [np.array([middle, end], np.float32)]
    elif shape.kind == "field":
        mark.rings = _arrows(geometry, frame.image.width, frame.image.height)
    if not mark.rings and shape.kind != "label":
        return None
    box = value(entry, "box")
    if box is not None:
        mark.anchor = value(box, "x1"), value(box, "y1"), value(box, "x2"), value(box, "y2")
        mark.below = shape.kind == "label"  # an object's own label stands above its box
    elif mark.rings and shape.kind != "arrow":
        every = np.concatenate(mark.rings)
        mark.anchor = (*every.min(axis=0).tolist(), *every.max(axis=0).tolist())
        mark.below = shape.kind != "box"
    return mark


def value(entry: Any, path: str) -> Any:
    """What an entry has at a path with dots, such as `top.0.class_name`; None where it has nothing there.

    Args:
        entry: a dataclass or what JSON has.
        path: names of fields and indices; empty: the entry itself.
    """
    for name in path.split(".") if path else ():
        if isinstance(entry, Mapping):
            entry = entry.get(name)
        elif isinstance(entry, list | tuple) and name.isdigit():
            entry = entry[int(name)] if int(name) < len(entry) else None
        else:
            entry = getattr(entry, name, None)
        if entry is None:
            return None
    return entry


def label_of(template: str, entry: Any) -> str:
    """A label's text. A field that is null leaves nothing, and takes the space before it along."""
    text, end = "", 0
    for found in _FIELD.finditer(template):
        text += template[end : found.start()]
        end = found.end()
        word = _word(found[1], entry)
        text = text.rstrip(" ") if word is None else text + word
    return (text + template[end:]).strip(" ")


def _word(path: str, entry: Any) -> str | None:
    content, name = value(entry, path), path.rpartition(".")[2]
    if name == "class_name" and not content:
        number = value(entry, f"{path.removesuffix('class_name')}class_id")
        return None if number is None else f"class {number}"
    if content is None:
        return None
    if name == "confidence":
        return f"{content:.2f}"
    if name == "track_id":
        return f"#{content}"
    return f"{round(content, 2):g}" if isinstance(content, float) else str(content)


def _rgb(shape: Shape, entry: Any) -> Rgb | None:
    if _HEX.fullmatch(shape.colour):
        return int(shape.colour[1:3], 16), int(shape.colour[3:5], 16), int(shape.colour[5:7], 16)
    if found := _FIELD.fullmatch(shape.colour):
        rgb = value(entry, found[1])
        if rgb is not None and len(rgb) == 3:
            red, green, blue = (min(255, max(0, round(part))) for part in rgb)
            return red, green, blue
    return None


def _rings(geometry: Any) -> list[Points]:
    """The lines in `[[x, y], ...]`, or in a list of such."""
    if not geometry:
        return []
    nested = isinstance(geometry[0], list | tuple) and geometry[0] and isinstance(geometry[0][0], list | tuple)
    return [np.array(ring, np.float32).reshape(-1, 2) for ring in (geometry if nested else [geometry]) if ring]


def _set_points(mark: Mark, shape: Shape, points: Any, stage: str, described: Any) -> None:
    if not points:
        return
    mark.rings = [np.array([(value(point, "x"), value(point, "y")) for point in points], np.float32)]
    confidences = [value(point, "confidence") for point in points]
    shown = [confidence is None or confidence > shape.least for confidence in confidences]
    mark.shown = np.array(shown)
    if not mark.shown.any():
        mark.rings = []
    if shape.lines:
        pairs = value(described, shape.lines) if described is not None else _default_lines(shape, stage, points)
        mark.limbs = [(a, b) for a, b in pairs or () if max(a, b) < len(points) and shown[a] and shown[b]]


def _default_lines(shape: Shape, stage: str, points: Any) -> Any:
    """The lines that the stage's description of a model has by default, if its points are these by their names."""
    model = STAGES[stage].model if stage in STAGES else None
    if not dataclasses.is_dataclass(model):
        return None
    defaults = {each.name: each.default for each in dataclasses.fields(model)}
    names = tuple(value(point, "name") for point in points)
    return defaults.get(shape.lines) if names in [given for given in defaults.values() if given == names] else None


def _arrows(grid: Any, width: int, height: int) -> list[Points]:
    """The arrows of a grid of vectors over the frame, from the middle of each cell, without those below a pixel."""
    columns, rows = value(grid, "columns"), value(grid, "rows")
    vectors = np.frombuffer(base64.b64decode(value(grid, "data")), np.int8).reshape(rows, columns, 2)
    moved = vectors.astype(np.float32) * value(grid, "scale")
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    start = np.stack([(x + 0.5) * width / columns, (y + 0.5) * height / rows], axis=2)
    arrows = np.stack([start, start + moved], axis=2).reshape(-1, 2, 2)
    return list(arrows[np.abs(moved).max(axis=2).reshape(-1) >= 1])


# --- on an RGB image ---


def annotate(
    image: NDArray[np.uint8],
    frame: FrameResult,
    *,
    stages: Sequence[Any] | None = None,
    models: Mapping[str, Any] | None = None,
) -> NDArray[np.uint8]:
    """Draws a result over a copy of its image, RGB uint8 [height, width, 3]: all parts, by their shapes.

    Args:
        stages: `ready.stages`; None: the stages of this process.
        models: `ready.models`; None: points are connected as those of the stages' own models.
    """
    drawn = image.copy()
    scale = max(image.shape[:2]) / 1000
    thickness = max(1, round(3 * scale))
    groups = marks(frame, stages, models)
    for shape, entries in groups:
        for mark in entries:
            _draw(drawn, shape, mark, thickness)
    # Labels last, so that they stay readable, and those of the whole frame on top, because they cannot stand elsewhere.
    size, padding, top = max(0.4, 0.6 * scale), max(3, round(6 * scale)), 0
    for _, entries in groups:
        _draw_labels(drawn, [mark for mark in entries if mark.label and mark.anchor is not None], size, padding)
    for mark in [mark for _, entries in groups for mark in entries if mark.label and mark.anchor is None]:
        top = _draw_corner_label(drawn, mark, size, padding, top)
    return drawn


def _draw(image: NDArray[np.uint8], shape: Shape, mark: Mark, thickness: int) -> None:
    rgb = _colour_of(mark)
    if shape.kind == "box":
        (x1, y1), (x2, y2) = mark.rings[0].astype(int).tolist()
        cv2.rectangle(image, (x1, y1), (x2, y2), rgb, thickness)
    elif shape.kind == "points":
        points = mark.rings[0].astype(int).tolist()
        for a, b in mark.limbs:
            cv2.line(image, points[a], points[b], rgb, thickness, cv2.LINE_AA)
        for point, shown in zip(points, mark.shown if mark.shown is not None else (), strict=True):
            if shown:
                cv2.circle(image, point, thickness + 1, JOINT, -1, cv2.LINE_AA)
    elif shape.kind in ("arrow", "field"):
        for start, end in mark.rings:
            ends = np.rint([start, end]).astype(int).tolist()
            cv2.arrowedLine(image, ends[0], ends[1], rgb, thickness, cv2.LINE_AA)
    elif shape.kind != "label":
        rings = [ring.round().astype(np.int32) for ring in mark.rings]
        if shape.kind == "mask":
            fill(image, rings, np.array(rgb))
        cv2.polylines(image, rings, shape.kind != "polyline", rgb, thickness, cv2.LINE_AA)


def fill(image: NDArray[np.uint8], rings: list[NDArray[np.int32]], colour: NDArray[Any] | int) -> None:
    """Fills rings half transparent, in place.

    Args:
        image: uint8 `[height, width, channels]` or `[height, width]`.
        rings: pixels of the image; parts outside it are cut off.
        colour: a value for each channel.
    """
    every = np.concatenate(rings)
    left, top = np.maximum(every.min(axis=0), 0).tolist()
    right, bottom = np.minimum(every.max(axis=0) + 1, (image.shape[1], image.shape[0])).tolist()
    if right <= left or bottom <= top:
        return
    inside = np.zeros((bottom - top, right - left), np.uint8)
    for ring in rings:  # one by one, so that rings that overlap leave no hole
        cv2.fillPoly(inside, [ring - (left, top)], 1)
    part = image[top:bottom, left:right]
    coloured = np.full_like(part, colour)
    part[:] = cv2.copyTo(cv2.addWeighted(part, 1 - MASK_OPACITY, coloured, MASK_OPACITY, 0), inside, part.copy())


def _colour_of(mark: Mark) -> Rgb:
    if mark.rgb is not None:
        return mark.rgb
    if mark.class_id is None:
        return LIMB
    import supervision

    # supervision assumes BGR.
    return supervision.ColorPalette.DEFAULT.by_idx(mark.class_id).as_bgr()


def _draw_labels(image: NDArray[np.uint8], labelled: list[Mark], size: float, padding: int) -> None:
    """Draws the labels of one shape's entries at their anchors; inside the image, and apart from each other."""
    import supervision

    for below in (False, True):
        placed = [mark for mark in labelled if mark.below == below]
        if not placed:
            continue
        colours = [_colour_of(mark) for mark in placed]
        annotator = supervision.LabelAnnotator(
            color=supervision.ColorPalette([supervision.Color(*rgb[::-1]) for rgb in colours]),
            text_color=supervision.ColorPalette(
                [
                    supervision.Color.BLACK if mark.rgb is not None and is_light(mark.rgb) else supervision.Color.WHITE
                    for mark in placed
                ]
            ),
            text_position=supervision.Position.BOTTOM_LEFT if below else supervision.Position.TOP_LEFT,
            text_scale=size,
            text_padding=padding,
            smart_position=True,
        )
        places = supervision.Detections(
            xyxy=np.array([mark.anchor for mark in placed], np.float32), class_id=np.arange(len(placed))
        )
        annotator.annotate(image, places, labels=[mark.label for mark in placed])


def _draw_corner_label(image: NDArray[np.uint8], mark: Mark, size: float, pad: int, top: int) -> int:
    """Draws a label at the left edge, `top` pixels from the upper one; returns where the next one belongs."""
    rgb = _colour_of(mark)
    (width, height), descent = cv2.getTextSize(mark.label, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    bottom = top + height + descent + 2 * pad
    cv2.rectangle(image, (0, top), (width + 2 * pad, bottom), rgb, cv2.FILLED)
    shade = (0, 0, 0) if is_light(rgb) else (255, 255, 255)
    cv2.putText(image, mark.label, (pad, top + pad + height), cv2.FONT_HERSHEY_SIMPLEX, size, shade, 1, cv2.LINE_AA)
    return bottom + 1


def is_light(rgb: Rgb) -> bool:
    """Whether dark letters are readable on this colour, by its luma (ITU-R BT.601)."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 128


# --- supervision ---


def to_supervision(
    frame: FrameResult, field: str | None = None, *, stages: Sequence[Any] | None = None
) -> tuple[supervision.Detections, supervision.KeyPoints]:
    """The result as supervision's types: boxes xyxy float32 [n, 4] and keypoints xy float32 [n, k, 2], frame pixels.

    Keypoints are the entries that are drawn as points, of all parts; detections the others with a class and a box.
    `Detections.data` has for each: `class_name`; `field`, the part of the result that it comes from; `polygons`, a list
    of rings [points, 2], if any entry has a mask; `xyxyxyxy` (`ORIENTED_BOX_COORDINATES`), float32 [n, 4, 2], if any
    entry is an oriented box. `mask` is bool [n, height, width] if every entry has one. `tracker_id` is -1 where there
    is no track yet. `KeyPoints.data["class_name"]` is there if any entry has one. Of entries with fewer than k
    keypoints, the further ones are 0, 0 with confidence 0.

    Args:
        field: the only part to convert, such as `segments`; None: all.
        stages: `ready.stages`; None: the stages of this process.
    """
    found: list[tuple[str, Any, list[Points], Points | None]] = []
    points: list[tuple[Any, Any]] = []
    for _, name, shapes in _parts(stages):
        if field is not None and name != field:
            continue
        entries = frame.values().get(name) or []
        for entry in entries if isinstance(entries, list | tuple) else [entries]:
            drawn_as_points = [(entry, value(entry, shape.at)) for shape in shapes if shape.kind == "points"]
            points += drawn_as_points
            if not drawn_as_points and value(entry, "class_id") is not None and value(entry, "box") is not None:
                found.append((name, entry, *_outlines(shapes, entry)))
    return _detections(found, frame), _keypoints([(entry, each) for entry, each in points if each])


def _outlines(shapes: Sequence[Shape], entry: Any) -> tuple[list[Points], Points | None]:
    """The rings of an entry's mask, and the four corners of an oriented box."""
    rings: list[Points] = []
    corners: Points | None = None
    for shape in shapes:
        if shape.kind == "mask":
            rings += _rings(value(entry, shape.at))
        elif shape.kind == "polygon" and len(ring := _rings(value(entry, shape.at))) == 1 and len(ring[0]) == 4:
            corners = ring[0]
    return rings, corners


def _detections(
    found: list[tuple[str, Any, list[Points], Points | None]], frame: FrameResult
) -> supervision.Detections:
    import supervision
    from supervision.config import ORIENTED_BOX_COORDINATES

    if not found:
        return supervision.Detections.empty()
    entries = [entry for _, entry, _, _ in found]
    boxes = np.array(
        [[value(entry, f"box.{side}") for side in ("x1", "y1", "x2", "y2")] for entry in entries], np.float32
    )
    data: dict[str, Any] = {
        "class_name": np.array([value(entry, "class_name") for entry in entries]),
        "field": np.array([name for name, _, _, _ in found]),
    }
    if any(rings for _, _, rings, _ in found):
        data["polygons"] = [rings for _, _, rings, _ in found]
    if any(corners is not None for _, _, _, corners in found):
        upright = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        data[ORIENTED_BOX_COORDINATES] = np.array(
            [box if corners is None else corners for box, (_, _, _, corners) in zip(upright, found, strict=True)],
            np.float32,
        )
    height, width = frame.image.height, frame.image.width
    mask = None
    if all(rings for _, _, rings, _ in found) and len(found) * height * width <= _MAX_MASK_BYTES:
        mask = np.zeros((len(found), height, width), np.uint8)
        for pixels, (_, _, rings, _) in zip(mask, found, strict=True):
            for ring in rings:
                cv2.fillPoly(pixels, [ring.round().astype(np.int32)], 1)
    return supervision.Detections(
        xyxy=boxes,
        mask=None if mask is None else mask.astype(bool),
        confidence=np.array([value(entry, "confidence") for entry in entries], np.float32),
        class_id=np.array([value(entry, "class_id") for entry in entries], int),
        tracker_id=np.array([-1 if (known := value(entry, "track_id")) is None else known for entry in entries], int),
        data=data,
    )


def _keypoints(found: list[tuple[Any, Any]]) -> supervision.KeyPoints:
    import supervision

    if not found:
        return supervision.KeyPoints.empty()
    points = np.zeros((len(found), max(len(each) for _, each in found), 3), np.float32)
    for row, (_, each) in zip(points, found, strict=True):
        row[: len(each)] = [[value(point, name) for name in ("x", "y", "confidence")] for point in each]
    names = [value(entry, "class_name") for entry, _ in found]
    return supervision.KeyPoints(
        xy=points[:, :, :2],
        data={"class_name": np.array([name or "" for name in names])} if any(names) else {},
        keypoint_confidence=points[:, :, 2],
        class_id=np.array([value(entry, "class_id") or 0 for entry, _ in found], int),
    )
