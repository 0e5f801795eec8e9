"""Faces cut out upright for ArcFace, by the eyes, nose and ears of a pose. Pure numpy and OpenCV."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from app.pipeline.arcface import SIDE, Crops

Matrix = NDArray[np.float64]
"""`[2, 3]`: frame pixels -> crop pixels, a rotation with one scale and a shift."""
Why = Literal["unsure", "turned", "too_small"]
"""Why a face is no use: keypoints too uncertain, the head turned away, too few pixels."""

TEMPLATE = np.array([(56.0252, 71.7366), (73.5318, 51.5014), (38.2946, 51.6963), (98.8, 62.5), (13.1, 62.5)])
"""Where COCO's first five keypoints (nose, left eye, right eye, left ear, right ear) belong in a crop, pixels.

Nose and eyes are InsightFace's (`arcface_dst` in its python-package/insightface/utils/face_align.py), whose mouth
corners COCO does not have. The ears extend it: they are those of MediaPipe's canonical face model (vertices 454 and
234), laid on the template by its eyes.
"""
_WEIGHTS = (0.5, 1.0, 1.0, 0.25, 0.25)
"""The nose stands out of the plane of the eyes and the ears lie behind it: both wander when the head turns.

With these weights the crop comes nearest to that of InsightFace's five points: with that face model turned by up to
30 degrees and 2 pixels of noise on the keypoints, a crop is 6.7 pixels off (root mean square over its corners and
centre), without ears 7.8, without ears and weights 9.5.
"""

MIN_CONFIDENCE = 0.5
"""Of nose and eyes each; of both ears, or the ears are left out."""
MIN_SIDE = 40.0
"""Least side of the square that is cut out, frame pixels; its eyes are then 12 or 13 pixels apart."""
MAX_ASIDE = 0.4
"""How far the nose may stand beside the middle of the eyes, in distances between the eyes: some 32 degrees of yaw."""
NOSE_DROP = (0.2, 1.1)
"""How far below the eyes the nose may be, in the same unit; the template has it at 0.57."""


def align(keypoints: NDArray[Any]) -> Matrix | Why:
    """The transform that puts one pose's face upright into a crop, or why it is not worth it.

    The similarity transform of least squares (Umeyama 1991, https://doi.org/10.1109/34.88573), which in the plane
    is a line through complex numbers; it never mirrors.

    Args:
        keypoints: `[17, 3]` in COCO's order: x, y in frame pixels, confidence.
    """
    head = keypoints[:5].astype(np.float64)
    if not np.isfinite(head[:3]).all() or head[:3, 2].min() < MIN_CONFIDENCE:
        return "unsure"
    nose, left, right = (complex(x, y) for x, y in head[:3, :2])
    if abs(left - right) < 1.0 or not _frontal(nose, left, right):
        return "turned"
    ears = bool(np.isfinite(head[3:]).all()) and head[3:, 2].min() >= MIN_CONFIDENCE
    count = 5 if ears else 3
    weights = np.array(_WEIGHTS[:count]) / sum(_WEIGHTS[:count])
    seen, wanted = head[:count, :2] @ (1, 1j), TEMPLATE[:count] @ (1, 1j)
    centre, target = weights @ seen, weights @ wanted
    seen, wanted = seen - centre, wanted - target
    turn = complex(weights @ (seen.conj() * wanted) / (weights @ np.abs(seen) ** 2))
    if MIN_SIDE * abs(turn) > SIDE:
        return "too_small"
    shift = complex(target - turn * centre)
    return np.array([(turn.real, -turn.imag, shift.real), (turn.imag, turn.real, shift.imag)])


def _frontal(nose: complex, left: complex, right: complex) -> bool:
    """Whether the nose is where a face that looks at the camera has it, however the head is tilted sideways."""
    # Along the line from the right eye to the left: 0 in the middle of the eyes; downwards from it: positive.
    place = (nose - (left + right) / 2) / (left - right)
    return abs(place.real) <= MAX_ASIDE and NOSE_DROP[0] <= place.imag <= NOSE_DROP[1]


def crop(picture: NDArray[np.uint8], matrices: list[Matrix]) -> Crops:
    """Cuts faces out of one RGB picture `[h, w, 3]`: `[n, 112, 112, 3]`, black beyond its edges (InsightFace's way)."""
    out = np.empty((len(matrices), SIDE, SIDE, 3), np.uint8)
    for matrix, one in zip(matrices, out, strict=True):
        cv2.warpAffine(picture, matrix, (SIDE, SIDE), dst=one, flags=cv2.INTER_LINEAR)
    return out
