"""The face stage: a batch's faces cut out, embedded by the model, put beside their persons.

Crops of all frames of a batch share requests of a bounded size. A request that fails costs the frames in it this
stage, and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import FrameError, InferenceError, InferenceUnavailable
from app.inference.client import InferenceClient
from app.inference.memory import Buffer
from app.pipeline.arcface import FaceReader, encode
from app.pipeline.batch import Batch, Look
from app.pipeline.decode import picture_of
from app.pipeline.face import Matrix, align, crop
from app.pipeline.prepare import Preparation
from app.pipeline.threads import Piece, Threads
from app.pipeline.tracks import match_poses
from app.protocol.result import FACE, OK, Stage
from app.settings import FleetSettings


@dataclass(slots=True)
class _Faces:
    """The usable faces of one frame."""

    look: Look
    index: int
    """Of the frame in its batch."""
    persons: list[int]
    """Of each face, the index of its person in `detected`."""
    matrices: list[Matrix]
    tensor: NDArray[Any]
    """Where its crops go."""
    error: FrameError | None = None


class FaceStage:
    """Runs after detection and pose, on what they found."""

    def __init__(
        self, client: InferenceClient, threads: Threads, preparation: Preparation, settings: FleetSettings
    ) -> None:
        self._client = client
        self._threads = threads
        self._preparation = preparation
        self._most = settings.max_sub_batch
        self.model = settings.fleet_face_model

    async def run(self, batch: Batch) -> None:
        """Fills `embeddings` and the stage of every frame that asks for faces."""
        reader = batch.vision.face
        looks = [(i, look) for i, look in enumerate(batch.looks) if look.job.faces and look.error is None]
        if reader is None or not batch.up or not looks:
            return  # `answer` says why
        clock = time.perf_counter()
        found = [faces for index, look in looks if (faces := _find(look, index, batch, reader)) is not None]
        if found:
            await self._threads.run(*([self._piece(faces, batch, reader)] for faces in found))
            await self._embed([faces for faces in found if faces.error is None], reader)
        for faces in found:
            if faces.error is not None:
                _fail(faces.look, str(faces.error), len(faces.persons))
        for _, look in looks:
            look.time(FACE, clock)

    def _piece(self, faces: _Faces, batch: Batch, reader: FaceReader) -> Piece:
        """The work of a thread: crops out of the frame's own pixels, scaled as the model wants them."""

        def work(piece: Piece) -> None:
            try:
                crops = crop(self._picture(faces.look, faces.index, batch), faces.matrices)
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
        owners = [(one.look, person) for one in found for person in one.persons]
        if not owners:
            return
        every = np.concatenate([one.tensor for one in found])
        size = min(self._most, reader.spec.max_batch)
        await asyncio.gather(
            *(self._ask(every[at : at + size], owners[at : at + size], reader) for at in range(0, len(every), size))
        )
        for one in found:
            if FACE not in one.look.stages:
                one.look.stages[FACE] = OK
                metrics.MODEL_FRAMES.labels(reader.spec.name).inc()

    def _picture(self, look: Look, index: int, batch: Batch) -> NDArray[np.uint8]:
        """The frame at its full size, RGB: where it lies decoded, else decoded once more."""
        info = look.info
        assert info is not None
        for form, tensor in batch.inputs.items():
            box = tensor.boxes[index]
            if form.is_image and (box.width, box.height) == (info.width, info.height):
                return picture_of(tensor.canvas(index), box)
        pixels = look.pixels if look.pixels is not None else look.job.frame.pixels
        return self._preparation.whole(look.job, info) if pixels is None else pixels

    async def _ask(self, tensor: NDArray[Any], owners: list[tuple[Look, int]], reader: FaceReader) -> None:
        # Plain memory: how many faces there are changes from frame to frame, and mapped slots are of one shape each.
        buffer = Buffer(tensor, None, None)
        try:
            reply = await self._client.infer(reader.spec, buffer, stream=owners[0][0].job.frame.stream)
            vectors = reader.read(reply.outputs[reader.output_name])
        except InferenceError as error:
            reason = "inference_unavailable" if isinstance(error, InferenceUnavailable) else str(error)
            for look, _ in owners:
                _fail(look, reason, 1)
            return
        finally:
            buffer.release()
        metrics.MODEL_BATCH.labels(reader.spec.name).observe(len(tensor))
        for (look, person), vector in zip(owners, vectors, strict=True):
            if np.isfinite(vector).all():
                look.embeddings[person] = encode(vector)
                metrics.FACES.labels("embedded").inc()
            else:
                _fail(look, f"{reader.spec.name}: answered a vector without length", 1)


def _find(look: Look, index: int, batch: Batch, reader: FaceReader) -> _Faces | None:
    """The faces worth embedding; None, and the stage said, where there is none."""
    posed, detected = look.posed, look.detected
    if posed is None or detected is None:
        look.stages[FACE] = Stage("skipped", "no_poses" if posed is None else "no_detections")
        return None
    persons = match_poses(posed, detected, np.arange(len(detected.xyxy)), batch.vision.persons)
    chosen: list[int] = []
    matrices: list[Matrix] = []
    rejected: Counter[str] = Counter()
    for keypoints, person in zip(posed.keypoints, persons.tolist(), strict=True):
        aligned = align(keypoints) if person >= 0 else "no_person"
        if isinstance(aligned, str):
            rejected[aligned] += 1
        else:
            chosen.append(person)
            matrices.append(aligned)
    for why, count in rejected.items():
        metrics.FACES.labels(why).inc(count)
    if chosen:
        return _Faces(look, index, chosen, matrices, reader.empty(len(chosen)))
    look.stages[FACE] = Stage("skipped", rejected.most_common(1)[0][0]) if rejected else OK
    return None


def _fail(look: Look, reason: str, count: int) -> None:
    look.stages[FACE] = Stage("error", reason)
    metrics.FACES.labels("error").inc(count)
