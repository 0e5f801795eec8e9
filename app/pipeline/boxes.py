"""Boxes: letterbox and back, overlap, non-maximum suppression. Pure numpy.

Boxes are float32 `[n, 4]`: x1, y1, x2, y2. The *canvas* is the model's input image, the *frame* the image that was
sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_TINY = np.finfo(np.float32).tiny
_BLOCK = 128
"""Candidates that `nms` compares with each other at a time."""
_APART = np.float32(7680)
"""Pixels by which Ultralytics shifts the boxes of each class away from those of the class before (`max_wh`)."""


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where a frame lies in its canvas. All integers are pixels; scales are canvas over frame."""

    image_width: int
    image_height: int
    canvas_width: int
    canvas_height: int
    scale: float
    width: int
    """Width of the frame on the canvas, as far as it is visible."""
    height: int
    """Height of the frame on the canvas, as far as it is visible."""
    pad_x: int
    """Left edge of the visible frame on the canvas."""
    pad_y: int
    """Top edge of the visible frame on the canvas."""
    scale_x: float
    """By what an x on the canvas, counted from `pad_x - cut_x`, is divided to be an x of the frame."""
    scale_y: float
    cut_x: int = 0
    """Pixels of the scaled frame that lie beyond the canvas's left edge."""
    cut_y: int = 0
    """Pixels of the scaled frame that lie beyond the canvas's top edge."""
    smooth: bool = False
    """Whether the frame is scaled with antialiasing, and the canvas may show only its middle."""


@lru_cache(maxsize=1024)
def letterbox(image_width: int, image_height: int, canvas_width: int, canvas_height: int) -> Letterbox:
    """Fits a frame into a canvas: the largest size that keeps its proportions, centred. All arguments are pixels.

    Rounds as Ultralytics' `LetterBox(auto=False, center=True, scaleup=True)` does (ultralytics/data/augment.py),
    because the models were trained and are judged with it: sizes to the nearest pixel; the odd pixel of an uneven
    border lies on the right and below. A side is at least one pixel.
    """
    scale = min(canvas_width / image_width, canvas_height / image_height)
    width = max(1, round(image_width * scale))
    height = max(1, round(image_height * scale))
    return Letterbox(
        image_width,
        image_height,
        canvas_width,
        canvas_height,
        scale,
        width,
        height,
        pad_x=round((canvas_width - width) / 2 - 0.1),
        pad_y=round((canvas_height - height) / 2 - 0.1),
        scale_x=width / image_width,
        scale_y=height / image_height,
    )


@lru_cache(maxsize=1024)
def top_left(image_width: int, image_height: int, canvas_width: int, canvas_height: int) -> Letterbox:
    """Fits a frame into the top left corner of a canvas, as YOLOX's `preproc` does (yolox/data/data_augment.py).

    Sizes are rounded down, and boxes are divided by the exact scale, not by that of the rounded size.
    """
    scale = min(canvas_width / image_width, canvas_height / image_height)
    return Letterbox(
        image_width,
        image_height,
        canvas_width,
        canvas_height,
        scale,
        width=max(1, int(image_width * scale)),
        height=max(1, int(image_height * scale)),
        pad_x=0,
        pad_y=0,
        scale_x=scale,
        scale_y=scale,
    )


@lru_cache(maxsize=1024)
def stretch(image_width: int, image_height: int, canvas_width: int, canvas_height: int) -> Letterbox:
    """Fills a canvas with a frame, whose proportions change."""
    scale_x, scale_y = canvas_width / image_width, canvas_height / image_height
    return Letterbox(
        image_width,
        image_height,
        canvas_width,
        canvas_height,
        min(scale_x, scale_y),
        canvas_width,
        canvas_height,
        pad_x=0,
        pad_y=0,
        scale_x=scale_x,
        scale_y=scale_y,
    )


@lru_cache(maxsize=1024)
def crop(image_width: int, image_height: int, canvas_width: int, canvas_height: int) -> Letterbox:
    """Fills a square canvas with the middle of a frame, whose shorter side becomes the canvas's.

    As torchvision's `Resize(size)` and `CenterCrop(size)`, with which Ultralytics prepares images for classification
    (`classify_transforms` in ultralytics/data/augment.py): the longer side is rounded down, the cut to the nearest even
    number of a half. A canvas that is not square is filled with the whole frame, as by `Resize((height, width))`.
    """
    if canvas_width != canvas_height:
        return replace(stretch(image_width, image_height, canvas_width, canvas_height), smooth=True)
    shorter = min(image_width, image_height)
    width, height = (int(canvas_width * side / shorter) for side in (image_width, image_height))
    return Letterbox(
        image_width,
        image_height,
        canvas_width,
        canvas_height,
        canvas_width / shorter,
        canvas_width,
        canvas_height,
        pad_x=0,
        pad_y=0,
        scale_x=width / image_width,
        scale_y=height / image_height,
        cut_x=round((width - canvas_width) / 2),
        cut_y=round((height - canvas_height) / 2),
        smooth=True,
    )


def to_image(xyxy: NDArray[Any], box: Letterbox) -> Floats:
    """Boxes `[n, 4]` in canvas pixels -> frame pixels, clipped to the frame (Ultralytics' `scale_boxes`)."""
    return points_to_image(xyxy.reshape(-1, 2), box).reshape(-1, 4)


def points_to_image(xy: NDArray[Any], box: Letterbox) -> Floats:
    """Points `[..., 2]` in canvas pixels -> frame pixels, clipped to the frame.

    As Ultralytics' `scale_boxes` and `scale_coords` (ultralytics/utils/ops.py, 8.4), each side of a letterboxed frame
    is scaled by the rounded size that it has on the canvas. A frame of 1920x400, for example, covers 320x67 pixels of
    320x320, not 320x66.7: with the exact scale, a point at its lower edge would be two frame pixels off.
    """
    pad, limit, scale = _ends(box)
    points: Floats = np.subtract(xy, pad, dtype=np.float32)
    points /= scale
    np.maximum(points, np.float32(0), out=points)  # the two calls take half the time of np.clip
    return np.minimum(points, limit, out=points)


@lru_cache(maxsize=1024)
def _ends(box: Letterbox) -> tuple[Floats, Floats, Floats]:
    """Three arrays `[2]`, x and y: the frame's start on the canvas, its size in frame pixels, canvas by frame size."""
    return (
        np.array((box.pad_x - box.cut_x, box.pad_y - box.cut_y), np.float32),
        np.array((box.image_width, box.image_height), np.float32),
        np.array((box.scale_x, box.scale_y), np.float32),
    )


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of `a` `[n, 4]` with every box of `b` `[m, 4]`: `[n, m]`.

    Two boxes without area overlap by 0.
    """
    # Each side separately: with x and y as a last axis of 2, many boxes take five times as long.
    ax1, ay1, ax2, ay2 = a.T[:, :, None]
    bx1, by1, bx2, by2 = b.T.copy()
    shared = _common(ax1, ax2, bx1, bx2)
    shared *= _common(ay1, ay2, by1, by2)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    union -= shared
    np.maximum(union, _TINY, out=union)  # 0 / tiny is 0, so boxes without area overlap by 0
    np.divide(shared, union, out=shared)
    return shared


def _common(a_from: Floats, a_to: Floats, b_from: Floats, b_to: Floats) -> Floats:
    """The length that intervals of `a` `[n, 1]` and of `b` `[m]` share: `[n, m]`."""
    length: Floats = np.minimum(a_to, b_to)
    length -= np.maximum(a_from, b_from)
    return np.maximum(length, np.float32(0), out=length)


def nms(
    xyxy: Floats,
    scores: Floats,
    class_ids: NDArray[Any],
    iou_threshold: float,
    max_detections: int,
    *,
    images: NDArray[Any] | None = None,
) -> Ints:
    """Greedy non-maximum suppression within each class: indices of the boxes kept, best first.

    A box is removed when it overlaps a better one of its class by more than `iou_threshold`; equal scores keep their
    order. The result is that of the plain loop over all pairs, and to the bit that of Ultralytics'
    `non_max_suppression` (ultralytics/utils/nms.py): overlaps are computed in float32 of boxes moved apart by class,
    which rounds the corners of later classes to as much as a sixteenth of a pixel. Candidates are taken in blocks: a
    block is compared with itself, and its survivors then with all remaining candidates, so that neither many candidates
    nor many survivors need a full matrix.

    Args:
        xyxy: `[n, 4]`, pixels.
        scores: `[n]`.
        class_ids: `[n]`, integers.
        iou_threshold: greatest overlap of two boxes that are both kept, 0 to 1.
        max_detections: greatest number of boxes kept.
        images: `[n]`, the image index of each box; None: all boxes belong to one image. A box suppresses only boxes of
            its own image.
    """
    least = _just_below(iou_threshold)
    apart = xyxy + (class_ids.astype(np.float32) * _APART)[:, None]
    kinds = class_ids if images is None else class_ids.astype(np.int64) + (images << 32)
    order = (-scores).argsort(kind="stable")
    kept: list[Ints] = []
    count = 0
    while order.size and count < max_detections:
        block, order = order[:_BLOCK], order[_BLOCK:]
        over = _overlap(apart, kinds, block, block, least)
        alone = np.count_nonzero(over) == np.count_nonzero(over.diagonal())  # each box overlaps only itself
        best = block if alone else block[_survivors(over)]
        kept.append(best)
        count += best.size
        if order.size and count < max_detections:
            order = order[~_overlap(apart, kinds, best, order, least).any(axis=0)]
    return np.concatenate(kept)[:max_detections] if kept else np.empty(0, np.int64)


def _just_below(threshold: float) -> np.float32:
    """The float32 bound that any float32 exceeds exactly when it exceeds the threshold, a double."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1))


def _overlap(xyxy: Floats, kinds: NDArray[Any], a: Ints, b: Ints, threshold: np.float32) -> NDArray[np.bool_]:
    over: NDArray[np.bool_] = iou(xyxy[a], xyxy[b]) > threshold
    over &= kinds[a, None] == kinds[b]
    return over


def _survivors(over: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bool `[n]`: the boxes that survive. A survivor removes the later boxes that it overlaps.

    Args:
        over: bool `[n, n]`, whether box i and box j overlap; better boxes first.
    """
    alive = np.ones(len(over), dtype=np.bool_)
    for i in np.flatnonzero(over.any(axis=1)):
        if alive[i]:
            alive[i + 1 :] &= ~over[i, i + 1 :]
    return alive
