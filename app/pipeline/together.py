"""Rows of all pictures of a batch read at once, where few score: numpy's price is for a call, not a row. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.pipeline.boxes import Floats, Ints, Letterbox, nms

MOST = 128
"""Rows of a batch, above which each picture is read by itself: comparing all with all would cost more."""

Rows = tuple[Ints, Ints]
Found = tuple[Floats, Ints, list[int]]
"""Rows `[n, 6 + extra]` picture by picture, best first; the picture of each; where each picture's rows begin, and the
end."""


def picked(heads: NDArray[Any], confidence: float) -> Rows:
    """Which rows of `[batch, K, 6 + extra]` score: a picture and a row each, in order.

    The one look at all rows, which may lie in another processor's cache: a few hundred KB, not to be done twice.
    """
    with np.errstate(invalid="ignore"):
        picture, row = (heads[..., 4] > confidence).nonzero()
    return picture, row


def scoring(heads: NDArray[Any], rows: Rows, *, iou: float, suppress: bool) -> Found | None:
    """What `heads.candidates` finds in each picture of `[batch, K, 6 + extra]`, all classes.

    None where that is no gain (too many rows) or wants a closer look (some are not finite): to be read one by one.

    Args:
        rows: as `picked` says.
    """
    picture, row = rows
    if picture.size > MOST:
        return None
    found: Floats = heads[picture, row].astype(np.float32, copy=False)
    if picture.size:
        with np.errstate(invalid="ignore", over="ignore"):
            if not math.isfinite(found[:, :6].sum()):
                return None
    if suppress and picture.size > 1:
        labels = found[:, 5].astype(np.int64)
        if len(set((labels + (picture << 32)).tolist())) < picture.size:
            kept = nms(found[:, :4], found[:, 4], labels, iou, MOST, pictures=picture)
            kept = kept[picture[kept].argsort(kind="stable")]
        else:  # no two of a class in a picture: none can suppress another
            kept = np.lexsort((-found[:, 4], picture))
        found, picture = found[kept], picture[kept]
    return found, picture, picture.searchsorted(np.arange(len(heads) + 1)).tolist()


def to_images(points: Floats, picture: Ints, boxes: Sequence[Letterbox | None]) -> Floats:
    """`boxes.points_to_image` of points `[n, m, 2]` in pictures that lie each in its own way."""
    nowhere = (0, 0, 1, 1, 0, 0)
    lies = [
        (b.pad_x, b.pad_y, b.width / b.image_width, b.height / b.image_height, b.image_width, b.image_height)
        if b
        else nowhere
        for b in boxes
    ]
    place = np.array(lies, dtype=np.float32)[picture, None]
    out: Floats = points - place[..., :2]
    out /= place[..., 2:4]
    np.maximum(out, np.float32(0), out=out)
    return np.minimum(out, place[..., 4:], out=out)
