"""Which models are served, how they are read, and by which requests a batch is answered."""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import InferenceClient, ModelSpec
from app.inference.memory import DTYPES
from app.pipeline.arcface import FaceReader, face_reader
from app.pipeline.pose import PoseReader, pose_reader
from app.pipeline.tensors import InputFormat
from app.pipeline.yolo import DetectReader, detect_reader
from app.protocol.messages import DetectModel, Models, PoseModel
from app.protocol.result import KEYPOINT_NAMES, SKELETON
from app.settings import TritonSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vision:
    """The readers for what the server serves now; None where it does not serve it."""

    detect: DetectReader | None = None
    pose: PoseReader | None = None
    both: tuple[DetectReader, PoseReader] | None = None
    """Readers of the ensemble that answers both in one call."""
    persons: frozenset[int] = frozenset()
    """Class ids that a pose may belong to."""
    face: FaceReader | None = None
    face_rejected: str | None = None
    """Why a face model that is served is not used."""
    rejected: str | None = None
    """Why a model that is served is not used."""

    @property
    def readers(self) -> tuple[DetectReader | PoseReader, ...]:
        """One for each model that frames are sent to; of the ensemble the first."""
        return tuple(one for one in (self.detect, self.pose, *(self.both or ())[:1]) if one is not None)

    @property
    def max_batch(self) -> int:
        """Frames that every model takes in one request."""
        readers = (self.detect, self.pose, *(self.both or ()))
        return min((reader.spec.max_batch for reader in readers if reader is not None), default=sys.maxsize)

    @property
    def batched(self) -> bool:
        """Whether the server puts requests to these models together itself."""
        readers = self.both or tuple(reader for reader in (self.detect, self.pose) if reader is not None)
        return bool(readers) and all(reader.spec.batched for reader in readers)

    def wire(self, ocr: str | None) -> Models:
        """What `ready` and `GET /v1/models` say."""
        detect, pose = self.detect, self.pose
        return Models(
            detect=None if detect is None else DetectModel(_display(detect.spec), detect.class_names),
            pose=None if pose is None else PoseModel(_display(pose.spec), KEYPOINT_NAMES, SKELETON),
            ocr=ocr,
        )


async def describe(client: InferenceClient, settings: TritonSettings, face_model: str | None = None) -> Vision:
    """Asks the server for its models and picks their readers.

    Args:
        face_model: None: no face is ever embedded, and nothing asked about it.

    Raises:
        InferenceUnavailable: the server cannot be reached.
        ModelRejected: a model's tensors have no layout that we read.
    """
    labels = read_labels(settings.triton_labels)
    detect_spec = await client.describe(settings.triton_detect_model)
    pose_spec = await client.describe(settings.triton_pose_model)
    detect = detect_reader(detect_spec, labels) if detect_spec else None
    pose = pose_reader(pose_spec) if pose_spec else None
    both = None
    if detect and pose and settings.triton_ensemble:
        ensemble = await client.describe(settings.triton_ensemble)
        both = _ensemble(ensemble, detect, pose) if ensemble else None
    names = detect.class_names if detect else ()
    persons = frozenset(i for i, name in enumerate(names) if name.lower() == "person")
    face, rejected = await _face(client, face_model) if face_model else (None, None)
    return Vision(detect, pose, both, persons, face, rejected)


async def _face(client: InferenceClient, name: str) -> tuple[FaceReader | None, str | None]:
    """The face model's reader, or why it is not used; everything else goes on without it."""
    spec = await client.describe(name)
    try:
        return (face_reader(spec) if spec else None), None
    except ModelRejected as error:
        log.error("%s", error)
        return None, str(error)


def trial_picture(form: InputFormat) -> NDArray[Any]:
    """One picture of noise as a model takes it, `form.shape(1)`: what it is asked about before it is trusted."""
    canvas = np.random.default_rng(0).integers(0, 256, (form.height, form.width, 3), np.uint8)
    picture = np.empty(form.shape(1), DTYPES[form.dtype])
    form.fill(canvas, picture[0])
    return picture


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """Class names, one a line."""
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        seen = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        reason = f"TRITON_LABELS='{path}': {seen}; want a text file, one class name a line"
        raise ModelRejected(reason) from None


def _ensemble(spec: ModelSpec, detect: DetectReader, pose: PoseReader) -> tuple[DetectReader, PoseReader] | None:
    """Readers of the ensemble's two outputs; None where it takes other pictures than its parts."""
    # What an output is, the model behind it says.
    spec_of = [
        dataclasses.replace(spec, parameters={**spec.parameters, **one.spec.parameters}) for one in (detect, pose)
    ]
    try:
        both = detect_reader(spec_of[0], detect.class_names), pose_reader(spec_of[1])
    except ModelRejected as error:
        log.warning("the ensemble is not used: %s", error)
        return None
    if both[0].input != detect.input or both[1].input != pose.input:
        log.warning("the ensemble %s is not used: its input is not that of its parts", spec.name)
        return None
    return both


def _display(spec: ModelSpec) -> str:
    return spec.parameters.get("display_name") or spec.name
