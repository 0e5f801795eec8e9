"""Faces: cut out upright by a pose's eyes, nose and ears, embedded by an ArcFace model, put beside their people.

DOC
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import FrameError, InferenceError, InferenceUnavailable, ModelRejected
from app.inference.client import InferenceClient, ModelSpec
from app.inference.shared_memory import Buffer
from app.pipeline.boxes import Floats
from app.pipeline.decode import image_of
from app.pipeline.preprocess import Piece, Preprocessor, Threads
from app.pipeline.stages.tracking import match_poses
from app.pipeline.types import Batch, FrameState
from app.protocol.result import FACE, OK, Stage
from app.settings import FleetSettings

SIDE = 112
"""Width and height of a crop, pixels."""
LENGTH = 512
"""Numbers in an embedding."""
MEAN, STD = 127.5, 127.5
KNOWN = f"FP32 or FP16 [N, 3, {SIDE}, {SIDE}] in, [N, {LENGTH}] out"

Crops = NDArray[np.uint8]
_NUMPY: dict[str, type[np.floating[Any]]] = {"FP32": np.float32, "FP16": np.float16}


@dataclass(frozen=True, slots=True)
class FaceReader:
    """How one served model wants its crops."""

    spec: ModelSpec
    dtype: Literal["FP32", "FP16"]
    """Triton's name, of the input."""
    output_name: str
    mean: float
    std: float

    def empty(self, count: int) -> NDArray[Any]:
        """Room for so many crops as the model takes them: `[count, 3, 112, 112]`."""
        return np.empty((count, 3, SIDE, SIDE), _NUMPY[self.dtype])

    def fill(self, crops: Crops, out: NDArray[Any]) -> None:
        """RGB uint8 `[n, 112, 112, 3]` -> `out`, so many of `empty`; some 50 microseconds a crop."""
        scaled = np.empty((SIDE, SIDE), np.float32)
        for crop, planes in zip(crops, out, strict=True):
            for plane, target in zip(cv2.split(crop), planes, strict=True):
                np.subtract(plane, np.float32(self.mean), out=scaled)
                np.divide(scaled, np.float32(self.std), out=target, casting="same_kind")

    def read(self, output: NDArray[Any]) -> Floats:
        """The answer `[n, 512]` -> unit vectors `[n, 512]`; a row without length or with no number in it is all NaN."""
        rows: Floats = output.astype(np.float32)
        with np.errstate(all="ignore"):
            lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
            lengths[~np.isfinite(lengths) | (lengths == 0)] = np.nan
            unit: Floats = rows / lengths
        return unit


def face_reader(spec: ModelSpec) -> FaceReader:
    """Reads the model's metadata.

    Raises:
        ModelRejected: other tensors than ArcFace's, or parameters that are no numbers.
    """
    fits = (
        len(spec.inputs) == len(spec.outputs) == 1
        and spec.inputs[0].dtype in _NUMPY
        and spec.inputs[0].shape[1:] == (3, SIDE, SIDE)
        and spec.outputs[0].dtype in _NUMPY
        and spec.outputs[0].shape[1:] == (LENGTH,)
    )
    if not fits:
        found = "; ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in (*spec.inputs, *spec.outputs))
        raise ModelRejected(f"model {spec.name!r}: found {found}; known: {KNOWN}")
    return FaceReader(
        spec,
        spec.inputs[0].dtype,  # type: ignore[arg-type]
        spec.outputs[0].name,
        _parameter(spec, "input_mean", MEAN),
        _parameter(spec, "input_std", STD),
    )


def _parameter(spec: ModelSpec, name: str, default: float) -> float:
    text = spec.parameters.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (name == "input_std" and value <= 0):
        raise ModelRejected(f"model {spec.name!r}: parameter {name}={text!r}; want a number such as {default}")
    return value


def encode_embedding(unit: Floats) -> str:
    """One embedding for the wire: base64 of its float32, little-endian."""
    return base64.b64encode(unit.astype("<f4").tobytes()).decode()


def decode_embedding(text: str) -> Floats:
    """The way back: `[512]`."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


# --- one face ---

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


def crop(image: NDArray[np.uint8], matrices: list[Matrix]) -> Crops:
    """Cuts faces out of one RGB image `[h, w, 3]`: `[n, 112, 112, 3]`, black beyond its edges (InsightFace's way)."""
    out = np.empty((len(matrices), SIDE, SIDE, 3), np.uint8)
    for matrix, one in zip(matrices, out, strict=True):
        cv2.warpAffine(image, matrix, (SIDE, SIDE), dst=one, flags=cv2.INTER_LINEAR)
    return out


# --- the stage ---


@dataclass(slots=True)
class _Faces:
    """The usable faces of one frame."""

    state: FrameState
    index: int
    """Of the frame in its batch."""
    people: list[int]
    """Of each face, the index of its person in `detected`."""
    matrices: list[Matrix]
    tensor: NDArray[Any]
    """Where its crops go."""
    error: FrameError | None = None


class FaceStage:
    """Runs after detection and pose, on what they found."""

    def __init__(
        self, client: InferenceClient, threads: Threads, preparation: Preprocessor, settings: FleetSettings
    ) -> None:
        self._client = client
        self._threads = threads
        self._preparation = preparation
        self._most = settings.max_sub_batch
        self.model = settings.fleet_face_model

    async def run(self, batch: Batch) -> None:
        """Fills `embeddings` and the stage of every frame that asks for faces."""
        reader = batch.model_set.face
        frames = [(i, state) for i, state in enumerate(batch.frames) if state.job.faces and state.error is None]
        if reader is None or not batch.up or not frames:
            return  # `answer` says why
        clock = time.perf_counter()
        found = [faces for index, state in frames if (faces := _find(state, index, batch, reader)) is not None]
        if found:
            await self._threads.run(*([self._piece(faces, batch, reader)] for faces in found))
            await self._embed([faces for faces in found if faces.error is None], reader)
        for faces in found:
            if faces.error is not None:
                _fail(faces.state, str(faces.error), len(faces.people))
        for _, state in frames:
            state.time(FACE, clock)

    def _piece(self, faces: _Faces, batch: Batch, reader: FaceReader) -> Piece:
        """The work of a thread: crops out of the frame's own pixels, scaled as the model wants them."""

        def work(piece: Piece) -> None:
            try:
                crops = crop(self._image(faces.state, faces.index, batch), faces.matrices)
            except FrameError as error:
                faces.error = error
                return
            if piece.keep():
                reader.fill(crops, faces.tensor)

        def given_up() -> None:
            faces.error = self._preparation.too_expensive()
            batch.hold()

        return Piece(work, given_up, batch.release)

    async def _embed(self, found: list[_Faces], reader: FaceReader) -> None:
        """All crops of the batch, in requests of at most so many; each is on its own."""
        owners = [(one.state, person) for one in found for person in one.people]
        if not owners:
            return
        every = np.concatenate([one.tensor for one in found])
        size = min(self._most, reader.spec.max_batch)
        await asyncio.gather(
            *(self._ask(every[at : at + size], owners[at : at + size], reader) for at in range(0, len(every), size))
        )
        for one in found:
            if FACE not in one.state.stages:
                one.state.stages[FACE] = OK
                metrics.MODEL_FRAMES.labels(reader.spec.name).inc()

    def _image(self, state: FrameState, index: int, batch: Batch) -> NDArray[np.uint8]:
        """The frame at its full size, RGB: where it lies decoded, else decoded once more."""
        info = state.info
        assert info is not None
        for form, tensor in batch.inputs.items():
            box = tensor.boxes[index]
            if form.is_image and (box.width, box.height) == (info.width, info.height):
                return image_of(tensor.canvas(index), box)
        pixels = state.pixels if state.pixels is not None else state.job.frame.pixels
        return self._preparation.whole(state.job, info) if pixels is None else pixels

    async def _ask(self, tensor: NDArray[Any], owners: list[tuple[FrameState, int]], reader: FaceReader) -> None:
        # Plain memory: how many faces there are changes from frame to frame, and mapped slots are of one shape each.
        buffer = Buffer(tensor, None, None)
        try:
            reply = await self._client.infer(reader.spec, buffer, stream=owners[0][0].job.frame.stream)
            vectors = reader.read(reply.outputs[reader.output_name])
        except InferenceError as error:
            reason = "inference_unavailable" if isinstance(error, InferenceUnavailable) else str(error)
            for state, _ in owners:
                _fail(state, reason, 1)
            return
        finally:
            buffer.release()
        metrics.MODEL_BATCH.labels(reader.spec.name).observe(len(tensor))
        for (state, person), vector in zip(owners, vectors, strict=True):
            if np.isfinite(vector).all():
                state.embeddings[person] = encode_embedding(vector)
                metrics.FACES.labels("embedded").inc()
            else:
                _fail(state, f"{reader.spec.name}: answered a vector without length", 1)


def _find(state: FrameState, index: int, batch: Batch, reader: FaceReader) -> _Faces | None:
    """The faces worth embedding; None, and the stage said, where there is none."""
    posed, detected = state.posed, state.detected
    if posed is None or detected is None:
        state.stages[FACE] = Stage("skipped", "no_poses" if posed is None else "no_detections")
        return None
    people = match_poses(posed, detected, np.arange(len(detected.xyxy)), batch.model_set.people)
    chosen: list[int] = []
    matrices: list[Matrix] = []
    rejected: Counter[str] = Counter()
    for keypoints, person in zip(posed.keypoints, people.tolist(), strict=True):
        aligned = align(keypoints) if person >= 0 else "no_person"
        if isinstance(aligned, str):
            rejected[aligned] += 1
        else:
            chosen.append(person)
            matrices.append(aligned)
    for why, count in rejected.items():
        metrics.FACES.labels(why).inc(count)
    if chosen:
        return _Faces(state, index, chosen, matrices, reader.empty(len(chosen)))
    state.stages[FACE] = Stage("skipped", rejected.most_common(1)[0][0]) if rejected else OK
    return None


def _fail(state: FrameState, reason: str, count: int) -> None:
    state.stages[FACE] = Stage("error", reason)
    metrics.FACES.labels("error").inc(count)
