"""Triton's Python backend: MediaPipe's persons, faces and poses in the prepared models' tensors.

In:  images      UINT8 [N, H, W, 3], RGB, letterboxed with 114; each frame by itself, nothing is remembered
Out: detections  FP32 [N, 16, 6]: x1, y1, x2, y2 in input pixels, score, class (0 person, 1 face); unused rows 0
     poses       FP32 [N, 4, 57]: the same six, then x, y, visibility of COCO's 17 keypoints
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils
from graphs import Found, People, packet

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
        faces = self._people.faces(frame)
        bodies: list[np.ndarray] = []
        for person in sorted(self._people.persons(frame), key=lambda detection: -detection.score):
            self._add_body(bodies, frame, person, width, height)
        for face in faces:
            if len(bodies) < MAX_POSES and not any(holds(face, body[6:8], width, height) for body in bodies):
                self._look_closer(bodies, frame, image, face)
        rows = [body[:6] for body in bodies]
        for face in faces:
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

    def _add_body(self, bodies: list[np.ndarray], frame: object, person: Found, width: int, height: int) -> None:
        """Appends x1, y1, x2, y2, score, class, keypoints; nothing when there is no body or it is there already."""
        points = self._people.landmarks(frame, person, width, height) if len(bodies) < MAX_POSES else None
        if points is None:
            return
        box = body_box(points, width, height)
        if (box[2:] > box[:2]).all() and all(iou(box, other[:4]) < SAME_PERSON for other in bodies):
            bodies.append(np.concatenate([box, [person.score, PERSON], points[COCO].ravel()]))

    def _look_closer(self, bodies: list[np.ndarray], frame: object, image: np.ndarray, face: Found) -> None:
        """Searches a face's body again in a smaller part of the image, because the network scales any input to 224 pixels."""
        height, width = image.shape[:2]
        left, top, wide, high = face.box
        x, y, size = (left + wide / 2) * width, (top + high / 2) * height, max(wide * width, high * height)
        x1, x2 = (int(edge) for edge in np.clip((x - 2.5 * size, x + 2.5 * size), 0, width))
        y1, y2 = (int(edge) for edge in np.clip((y - 1.5 * size, y + 4 * size), 0, height))
        if x2 - x1 < 16 or y2 - y1 < 16:
            return
        for person in self._people.persons(packet(np.ascontiguousarray(image[y1:y2, x1:x2]))):
            self._add_body(bodies, frame, person.moved((x1, y1, x2, y2), width, height), width, height)


def holds(face: Found, point: np.ndarray, width: int, height: int) -> bool:
    """Whether a point (x, y in pixels) lies in the face's box."""
    left, top, wide, high = face.box
    return left * width <= point[0] <= (left + wide) * width and top * height <= point[1] <= (top + high) * height


def unpad(canvas: np.ndarray) -> tuple[int, int, np.ndarray]:
    """The image inside its letterbox, and the position of its upper left corner.

    MediaPipe letterboxes for itself; pixels spent on our border are pixels lost to its small networks.
    """
    if (canvas[0, 0] != BORDER).any() and (canvas[-1, -1] != BORDER).any():
        return 0, 0, canvas
    border = canvas == BORDER
    top, bottom = _inside(border.reshape(len(border), -1).all(axis=1))
    left, right = _inside(border.all(axis=0).all(axis=1))
    return left, top, np.ascontiguousarray(canvas[top:bottom, left:right])


def _inside(border: np.ndarray) -> tuple[int, int]:
    """First line that is not all border, and the one after the last."""
    kept = np.flatnonzero(~border)
    return (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, 0)


def body_box(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """x1, y1, x2, y2 around the visible landmarks, the trunk and the head's top, clipped to the image."""
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
    # Landmarks are joints: arms are some 10 % of the width thick beyond them, feet less.
    margin = np.array([0.1, 0.04]) * (high - low)
    return clip(np.concatenate([low - margin, high + margin]), width, height)


def clip(box: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.clip(box, 0, (width, height, width, height))


def iou(box: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]))
    return shared / (areas - shared) if areas > shared else 0.0
