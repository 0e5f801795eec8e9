"""The server's models: their readers (`ModelSet`), and a record of those that fail (`ModelWatch`)."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import InferenceClient, ModelSpec
from app.inference.liveness import DEADLINES
from app.inference.shared_memory import DTYPES
from app.pipeline.layouts import InputFormat
from app.pipeline.stages.detect import DetectReader, detect_reader
from app.pipeline.stages.faces import FaceReader, face_reader
from app.pipeline.stages.pose import PoseReader, pose_reader
from app.protocol.messages import DetectModel, Models, PoseModel
from app.protocol.result import KEYPOINT_NAMES, SKELETON
from app.settings import TritonSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSet:
    """The readers of the models that the server has; None where it lacks one."""

    detect: DetectReader | None = None
    pose: PoseReader | None = None
    both: tuple[DetectReader, PoseReader] | None = None
    """Readers of the ensemble, which answers both in one request."""
    people: frozenset[int] = frozenset()
    """Class ids that a pose may belong to."""
    face: FaceReader | None = None
    face_rejected: str | None = None
    """Why the server's face model is not used."""
    rejected: str | None = None
    """Why one of the server's models is not used."""
    max_batch: int = field(init=False)
    """Frames that every model takes in one request."""
    batched: bool = field(init=False)
    """Whether the server itself batches requests to these models (dynamic batching)."""

    def __post_init__(self) -> None:
        readers = [reader for reader in (self.detect, self.pose, *(self.both or ())) if reader is not None]
        object.__setattr__(self, "max_batch", min((reader.spec.max_batch for reader in readers), default=sys.maxsize))
        asked = self.both or readers[:2]
        object.__setattr__(self, "batched", bool(asked) and all(reader.spec.batched for reader in asked))

    @property
    def readers(self) -> tuple[DetectReader | PoseReader, ...]:
        """One reader for each model that receives frames; of the ensemble the first."""
        readers = (self.detect, self.pose, *(self.both or ())[:1])
        return tuple(reader for reader in readers if reader is not None)

    def wire(self, ocr: str | None) -> Models:
        """The models as `ready` and `GET /v1/models` show them."""
        detect, pose = self.detect, self.pose
        return Models(
            detect=None if detect is None else DetectModel(_display(detect.spec), detect.class_names),
            pose=None if pose is None else PoseModel(_display(pose.spec), KEYPOINT_NAMES, SKELETON),
            ocr=ocr,
        )


async def describe(client: InferenceClient, settings: TritonSettings, face_model: str | None = None) -> ModelSet:
    """Asks the server for its models and picks their readers.

    Args:
        face_model: the name of the face model. None: faces are never embedded, and the server is not asked.

    Raises:
        InferenceUnavailable: the server cannot be reached.
        ModelRejected: the tensors of a model have no known layout.
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
    people = frozenset(i for i, name in enumerate(names) if name.lower() == "person")
    face, rejected = await _face(client, face_model) if face_model else (None, None)
    return ModelSet(detect, pose, both, people, face, rejected)


async def _face(client: InferenceClient, name: str) -> tuple[FaceReader | None, str | None]:
    """The face model's reader, or why it is not used; the other models are used either way."""
    spec = await client.describe(name)
    try:
        return (face_reader(spec) if spec else None), None
    except ModelRejected as error:
        log.error("%s", error)
        return None, str(error)


def _ensemble(spec: ModelSpec, detect: DetectReader, pose: PoseReader) -> tuple[DetectReader, PoseReader] | None:
    """Readers of the ensemble's two outputs; None where its input differs from that of its parts."""
    # The parameters of the model behind an output describe that output (its layout, its class names).
    detect_spec, pose_spec = (
        dataclasses.replace(spec, parameters={**spec.parameters, **part.spec.parameters}) for part in (detect, pose)
    )
    try:
        both = detect_reader(detect_spec, detect.class_names), pose_reader(pose_spec)
    except ModelRejected as error:
        log.warning("the ensemble is not used: %s", error)
        return None
    if both[0].input != detect.input or both[1].input != pose.input:
        log.warning("the ensemble %s is not used: its input is not that of its parts", spec.name)
        return None
    return both


def trial_image(form: InputFormat) -> NDArray[Any]:
    """One image of noise in the model's format, `form.shape(1)`: each model must answer it before it is trusted."""
    canvas = np.random.default_rng(0).integers(0, 256, (form.height, form.width, 3), np.uint8)
    tensor = np.empty(form.shape(1), DTYPES[form.dtype])
    form.fill(canvas, tensor[0])
    return tensor


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """Class names from a file, one a line.

    Raises:
        ModelRejected: the file cannot be read, or is not UTF-8.
    """
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        seen = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        reason = f"TRITON_LABELS='{path}': {seen}; want a text file, one class name a line"
        raise ModelRejected(reason) from None


def _display(spec: ModelSpec) -> str:
    return spec.parameters.get("display_name") or spec.name


class ModelWatch:
    """Records which models fail. The pipeline tries each model once after it was loaded, and reports later answers.

    A model fails when it does not answer its trial, or after it has answered only errors for two deadlines.

    Args:
        deadline_s: TRITON_DEADLINE_S.
        changed: called whenever a model fails, or answers again.
    """

    def __init__(self, deadline_s: float, changed: Callable[[], None] | None = None) -> None:
        self._limit_s = DEADLINES * deadline_s
        self.changed = changed or (lambda: None)
        self.suspects: dict[str, float] = {}
        """By model whose last answer was an error: the time of the first error in a row, monotonic seconds."""
        self.failing: dict[str, str] = {}
        """By model: its error, or that it gave no answer."""

    @property
    def reason(self) -> str | None:
        """The errors of all failing models, joined; None if no model fails."""
        return "; ".join(dict.fromkeys(self.failing.values())) or None

    def answered(self, model: str) -> None:
        """Records that the model answered a request."""
        self.suspects.pop(model, None)
        if self.failing.pop(model, None) is not None:
            self.changed()

    def failed(self, model: str, reason: str, now: float, *, trial: bool = False) -> None:
        """Records that the model refused a request, or exceeded the deadline.

        Args:
            reason: the error.
            now: monotonic seconds.
            trial: whether the request was a trial, after which the model fails at once.
        """
        since = self.suspects.setdefault(model, now)
        if model not in self.failing and (trial or now - since >= self._limit_s):
            self.failing[model] = reason
            self.changed()

    def forget(self) -> None:
        """Forgets all failures, because the server was connected anew and may have other models."""
        self.suspects.clear()
        self.failing.clear()
