"""Triton's Python backend: MediaPipe's persons, faces and poses in the prepared models' tensors.

In:  images      UINT8 [N, H, W, 3], RGB, letterboxed with 114; each frame by itself, nothing is remembered
Out: detections  FP32 [N, 16, 6]: x1, y1, x2, y2 in input pixels, score, class (0 person, 1 face); unused rows 0
     poses       FP32 [N, 4, 57]: the same six, then x, y, visibility of COCO's 17 keypoints
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils
from graphs import People, packet

PERSON, FACE = 0.0, 1.0
MAX_DETECTIONS, MAX_POSES = 16, 4
BORDER = 114
# Nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles: left before right, out of MediaPipe's 33.
COCO = np.array([0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28])
EYES, MOUTH = [2, 5], [9, 10]
HIPS = [23, 24]
VISIBLE = 0.1
SAME_PERSON = 0.7
"""Two bodies whose boxes overlap more than this (IoU) are one, found twice."""


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self._people = People()
        self._people.warm_up()

    def execute(self, requests: list) -> list:
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            detections = np.zeros((len(images), MAX_DETECTIONS, 6), np.float32)
            poses = np.zeros((len(images), MAX_POSES, 57), np.float32)
            for image, found, bodies in zip(images, detections, poses, strict=True):
                self._analyze(image, found, bodies)
            outputs = [pb_utils.Tensor("detections", detections), pb_utils.Tensor("poses", poses)]
            wanted = set(request.requested_output_names())
            responses.append(pb_utils.InferenceResponse([tensor for tensor in outputs if tensor.name() in wanted]))
        return responses

    def _analyze(self, canvas: np.ndarray, detections: np.ndarray, poses: np.ndarray) -> None:
        """Fills the rows of one frame, best first."""
        x, y, image = unpad(canvas)
        if image.size == 0:
            return
        height, width = image.shape[:2]
        frame = packet(image)
        bodies = []
        for person in sorted(self._people.persons(frame), key=lambda one: -one.score)[:MAX_POSES]:
            points = self._people.landmarks(frame, person, width, height)
            if points is None:
                continue
            box = body_box(points, width, height)
            if box[2] > box[0] and box[3] > box[1] and all(iou(box, other[:4]) < SAME_PERSON for other in bodies):
                bodies.append(np.concatenate([box, [person.score, PERSON], points[COCO].ravel()]))
        rows = [body[:6] for body in bodies]
        for face in self._people.faces(frame):
            left, top, wide, high = face.box
            box = np.array([left * width, top * height, (left + wide) * width, (top + high) * height])
            rows.append(np.concatenate([clip(box, width, height), [face.score, FACE]]))
        rows = sorted(rows, key=lambda row: -row[4])[:MAX_DETECTIONS]
        for target, source in ((detections, rows), (poses, bodies)):
            if source:
                target[: len(source)] = source
                target[: len(source), :4] += (x, y, x, y)
        poses[: len(bodies), 6::3] += x
        poses[: len(bodies), 7::3] += y


def unpad(canvas: np.ndarray) -> tuple[int, int, np.ndarray]:
    """The picture inside its letterbox, with the place of its upper left corner.

    MediaPipe letterboxes for itself; pixels spent on our border are pixels lost to its small networks.
    """
    top, bottom = _inside(canvas)
    left, right = _inside(canvas[top:bottom].transpose(1, 0, 2))
    return left, top, np.ascontiguousarray(canvas[top:bottom, left:right])


def _inside(lines: np.ndarray) -> tuple[int, int]:
    """First line that is not all border, and the one after the last."""
    if not len(lines) or not ((lines[0] == BORDER).all() or (lines[-1] == BORDER).all()):
        return 0, len(lines)
    kept = np.flatnonzero((lines != BORDER).any(axis=(1, 2)))
    return (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, 0)


def body_box(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """x1, y1, x2, y2 around the visible landmarks, the trunk and the head's top, clipped to the picture."""
    visible = points[:, 2] >= VISIBLE
    # Hips beyond the edge are marked unseen, but the trunk reaches down to them all the same.
    visible[HIPS] = True
    seen = points[visible, :2]
    # Eyes lie half-way up a head and the mouth's distance below them is about 0.3 of its height: the crown is
    # some 1.7 of those distances above the eyes, whichever way the head is turned.
    eyes = points[EYES, :2].mean(axis=0)
    crown = eyes + 1.7 * (eyes - points[MOUTH, :2].mean(axis=0))
    around = np.vstack([seen, crown]) if visible[EYES].any() else seen
    low, high = around.min(axis=0), around.max(axis=0)
    # Landmarks are joints; flesh and cloth go a little further.
    margin = 0.06 * (high - low)
    return clip(np.concatenate([low - margin, high + margin]), width, height)


def clip(box: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.clip(box, 0, (width, height, width, height))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]))
    return shared / (areas - shared) if areas > shared else 0.0
