"""Faces: cut out upright by a pose's eyes, nose and ears, embedded by an ArcFace model, attached to their people.

InsightFace's models take RGB `[N, 3, 112, 112]`, each value (x - 127.5) / 127.5 (`ArcFaceONNX` in its
python-package/insightface/model_zoo/arcface_onnx.py). Models that came from MXNet have that step in their graph, and
others were trained with a divisor of 128: a model's parameters `input_mean` and `input_std` say so.

Crops of all frames of a batch share requests of a bounded size. When a request fails, only the face stage of the frames
in it fails.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import FrameError, InferenceError, InferenceUnavailable, ModelRejected
from app.inference.client import ModelSpec
from app.inference.shared_memory import Buffer
from app.pipeline.boxes import Floats
from app.pipeline.preprocess import Piece
from app.pipeline.stage import UNAVAILABLE, PipelineStage
from app.pipeline.stages.detect import Detection
from app.pipeline.stages.pose import KEYPOINT_NAMES
from app.pipeline.stages.tracking import match_poses
from app.pipeline.types import Batch, FrameState
from app.protocol.result import OK, Stage, many


@many
class FaceDetection(Detection):
    """A person whose face was embedded. Other detections do not have the field."""

    _: KW_ONLY
    embedding: str
    """Base64 of 512 float32, little-endian, a vector of length 1: the dot product of two is their cosine similarity."""


SIDE = 112
"""Width and height of a crop, pixels."""
LENGTH = 512
"""Number of values in an embedding."""
MEAN, STD = 127.5, 127.5
"""Defaults of the parameters `input_mean` and `input_std`."""
KNOWN = f"FP32 or FP16 [N, 3, {SIDE}, {SIDE}] in, [N, {LENGTH}] out"

Crops = NDArray[np.uint8]
_NUMPY: dict[str, type[np.floating[Any]]] = {"FP32": np.float32, "FP16": np.float16}


@dataclass(frozen=True, slots=True)
class FaceReader:
    """The input and output of one face model."""

    spec: ModelSpec
    dtype: Literal["FP32", "FP16"]
    """Triton's name of the input's type."""
    output_name: str
    mean: float
    std: float

    def empty(self, count: int) -> NDArray[Any]:
        """An empty input tensor for so many crops: `[count, 3, 112, 112]`."""
        return np.empty((count, 3, SIDE, SIDE), _NUMPY[self.dtype])

    def fill(self, crops: Crops, out: NDArray[Any]) -> None:
        """Scales crops, RGB uint8 `[n, 112, 112, 3]`, into `out`, a tensor from `empty`. Takes 50 µs a crop."""
        scaled = np.empty((SIDE, SIDE), np.float32)
        for crop, planes in zip(crops, out, strict=True):
            for plane, target in zip(cv2.split(crop), planes, strict=True):
                np.subtract(plane, np.float32(self.mean), out=scaled)
                np.divide(scaled, np.float32(self.std), out=target, casting="same_kind")

    def read(self, output: NDArray[Any]) -> Floats:
        """The output `[n, 512]` as unit vectors `[n, 512]`. A row of length 0, or with NaN in it, becomes all NaN."""
        rows: Floats = output.astype(np.float32)
        with np.errstate(all="ignore"):
            lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
            lengths[~np.isfinite(lengths) | (lengths == 0)] = np.nan
            unit: Floats = rows / lengths
        return unit


def face_reader(spec: ModelSpec) -> FaceReader:
    """Makes the reader for a face model from its metadata.

    Raises:
        ModelRejected: the tensors are not those of ArcFace, or a parameter is no number.
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
    """One embedding `[512]` for the wire: base64 of its values as little-endian float32."""
    return base64.b64encode(unit.astype("<f4").tobytes()).decode()


def decode_embedding(text: str) -> Floats:
    """The embedding of a result (`FaceDetection.embedding`): float32 `[512]`. The inverse of `encode_embedding`."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


# --- one face ---

Matrix = NDArray[np.float64]
"""`[2, 3]`, from frame pixels to crop pixels: a rotation with one scale, and a shift."""
Unfit = Literal["unsure", "turned", "too_small"]
"""Why a face is not embedded: uncertain keypoints, a head turned away, too few pixels."""

TEMPLATE = np.array([(56.0252, 71.7366), (73.5318, 51.5014), (38.2946, 51.6963), (98.8, 62.5), (13.1, 62.5)])
"""Places of COCO's first five keypoints (nose, left eye, right eye, left ear, right ear) in a crop, pixels.

Nose and eyes are those of InsightFace (`arcface_dst` in its python-package/insightface/utils/face_align.py); COCO lacks
its mouth corners. The ears are an extension: those of MediaPipe's canonical face model (vertices 454 and 234), laid on
the template by its eyes.
"""
_WEIGHTS = (0.5, 1.0, 1.0, 0.25, 0.25)
"""Weights of the five keypoints. The nose lies in front of the plane of the eyes and the ears behind it, so both move
when the head turns.

With these weights the crop comes nearest to that of InsightFace's five points: with that face model turned by up to
30 degrees and 2 pixels of noise on the keypoints, a crop is 6.7 pixels off (root mean square over its corners and
centre), without ears 7.8, without ears and weights 9.5.
"""

MIN_CONFIDENCE = 0.5
"""Least confidence of the nose and of each eye; with a lower one of an ear, both ears are left out."""
MIN_SIDE = 40.0
"""Least side of the square that is cut out, frame pixels; the eyes are then 12 or 13 pixels apart."""
MAX_ASIDE = 0.4
"""Greatest sideways distance of the nose from the middle of the eyes, in eye distances: some 32 degrees of yaw."""
NOSE_DROP = (0.2, 1.1)
"""Least and greatest distance of the nose below the eyes, in eye distances; the template has 0.57."""


def align(keypoints: NDArray[Any]) -> Matrix | Unfit:
    """The transform that puts a pose's face upright into a crop, or the reason why the face is unfit.

    The similarity transform of least squares (Umeyama 1991, https://doi.org/10.1109/34.88573), which in the plane is a
    linear function of complex numbers; it never mirrors.

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
    """Whether the nose is where a face towards the camera has it, at any sideways tilt of the head."""
    # Real part: along the line from the right eye to the left, 0 in the middle. Imaginary part: below it, positive.
    place = (nose - (left + right) / 2) / (left - right)
    return abs(place.real) <= MAX_ASIDE and NOSE_DROP[0] <= place.imag <= NOSE_DROP[1]


def crop(image: NDArray[np.uint8], matrices: list[Matrix]) -> Crops:
    """Cuts faces out of an RGB image `[h, w, 3]`: `[n, 112, 112, 3]`, black beyond its edges, as InsightFace does."""
    out = np.empty((len(matrices), SIDE, SIDE, 3), np.uint8)
    for matrix, target in zip(matrices, out, strict=True):
        cv2.warpAffine(image, matrix, (SIDE, SIDE), dst=target, flags=cv2.INTER_LINEAR)
    return out


# --- the stage ---


@dataclass(slots=True)
class _Faces:
    """The usable faces of one frame."""

    state: FrameState
    people: list[int]
    """For each face, the index of its person in `detected`."""
    matrices: list[Matrix]
    tensor: NDArray[Any]
    """The input tensor for its crops."""
    error: FrameError | None = None


class FaceStage(PipelineStage):
    """Embeds the faces of a batch, after its objects and poses were read. Off for live clients."""

    name = "face"
    title = "Faces"
    description = "Adds an embedding to each person whose face is turned to the camera, so that faces can be compared."
    runs = "anywhere"
    live = False
    fleet = True
    needs = ("detect", "pose")
    needs_image = True
    whole_frames = False

    def model(self) -> str | None:
        return self.settings.fleet.fleet_face_model

    def reader(self, spec: ModelSpec) -> FaceReader:
        return face_reader(spec)

    def write(self, state: FrameState, batch: Batch) -> None:
        """Replaces the people whose faces were embedded by people with an embedding."""
        embeddings: dict[int, str] = state.found.get("face", {})
        objects = state.parts["objects"] if embeddings else []
        for index, embedding in embeddings.items():
            plain = objects[index]
            objects[index] = FaceDetection(
                plain.class_id, plain.class_name, plain.confidence, plain.box, plain.track_id, embedding=embedding
            )

    async def run(self, batch: Batch) -> None:
        """Fills `found` and the stage of every frame that asks for faces."""
        reader = batch.model_set.readers.get("face")
        frames = [state for state in batch.frames if state.error is None and state.job.settings.stages.get("face")]
        if reader is None or not batch.up or not frames:
            return  # `status` says why
        clock = time.perf_counter()
        found = [faces for state in frames if (faces := _find(state, batch, reader)) is not None]
        if found:
            await self._cut(found, batch, reader)
            await self._embed([faces for faces in found if faces.error is None], reader)
        for faces in found:
            if faces.error is not None:
                _fail(faces.state, str(faces.error), len(faces.people))
        for state in frames:
            state.time("face", clock)

    def _cut(self, found: list[_Faces], batch: Batch, reader: FaceReader) -> asyncio.Future[None]:
        """Cuts out all faces in threads; await the future at once. Cancelling does not stop the threads.

        Until they are done, the batch's memory is held, because they read frames from it.
        """
        batch.hold()
        cutting = self.host.threads.run(*([self._piece(faces, batch, reader)] for faces in found))
        cutting.add_done_callback(lambda _: batch.release())
        return asyncio.shield(cutting)

    def _piece(self, faces: _Faces, batch: Batch, reader: FaceReader) -> Piece:
        """Work for a thread: cuts the faces out of the frame and scales them into the input tensor."""

        def work(piece: Piece) -> None:
            try:
                crops = crop(self.host.preprocessor.image(faces.state, batch), faces.matrices)
            except FrameError as error:
                faces.error = error
                return
            if piece.keep():
                reader.fill(crops, faces.tensor)

        def given_up() -> None:
            faces.error = self.host.preprocessor.too_expensive()
            batch.hold()

        return Piece(work, given_up, batch.release)

    async def _embed(self, found: list[_Faces], reader: FaceReader) -> None:
        """Sends all crops of the batch, in concurrent requests of bounded size."""
        owners = [(faces.state, person) for faces in found for person in faces.people]
        if not owners:
            return
        every = np.concatenate([faces.tensor for faces in found])
        size = min(self.settings.fleet.max_sub_batch, reader.spec.max_batch)
        await asyncio.gather(
            *(self._ask(every[at : at + size], owners[at : at + size], reader) for at in range(0, len(every), size))
        )
        for faces in found:
            if "face" not in faces.state.stages:
                faces.state.stages["face"] = OK
                metrics.MODEL_FRAMES.labels(reader.spec.name).inc()

    async def _ask(self, tensor: NDArray[Any], owners: list[tuple[FrameState, int]], reader: FaceReader) -> None:
        # Heap memory, because the number of faces changes with each frame and a shared slot has one fixed shape.
        buffer = Buffer(tensor, None, None)
        try:
            reply = await self.host.client.infer(reader.spec, buffer, stream=owners[0][0].job.frame.stream)
            vectors = reader.read(reply.outputs[reader.output_name])
        except InferenceError as error:
            reason = UNAVAILABLE if isinstance(error, InferenceUnavailable) else str(error)
            for state, _ in owners:
                _fail(state, reason, 1)
            return
        finally:
            buffer.release()
        metrics.MODEL_BATCH.labels(reader.spec.name).observe(len(tensor))
        for (state, person), vector in zip(owners, vectors, strict=True):
            if np.isfinite(vector).all():
                state.found.setdefault("face", {})[person] = encode_embedding(vector)
                metrics.FACES.labels("embedded").inc()
            else:
                _fail(state, f"{reader.spec.name}: answered a vector without length", 1)


def _find(state: FrameState, batch: Batch, reader: FaceReader) -> _Faces | None:
    """The faces of a frame that can be embedded; None if there are none, after setting the frame's face stage."""
    posed, detected = state.found.get("pose"), state.found.get("detect")
    if posed is None or detected is None:
        state.stages["face"] = Stage("skipped", "no_poses" if posed is None else "no_detections")
        return None
    if batch.model_set.readers["pose"].keypoint_names[:5] != KEYPOINT_NAMES[:5]:
        state.stages["face"] = Stage("skipped", "no_face_keypoints")
        return None
    people = match_poses(posed, detected, np.arange(len(detected.xyxy)), batch.model_set.ids_of("detect", "person"))
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
    for reason, count in rejected.items():
        metrics.FACES.labels(reason).inc(count)
    if chosen:
        return _Faces(state, chosen, matrices, reader.empty(len(chosen)))
    state.stages["face"] = Stage("skipped", rejected.most_common(1)[0][0]) if rejected else OK
    return None


def _fail(state: FrameState, reason: str, count: int) -> None:
    state.stages["face"] = Stage("error", reason)
    metrics.FACES.labels("error").inc(count)
