"""Classification: what a whole frame shows, or each object of certain classes; the best classes of a model's scores.

A model answers one row of scores an image, `[N, classes]`: probabilities, as Ultralytics exports them, or with its
parameter `logits` = `true` any numbers, of which the softmax is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected
from app.inference.client import ModelSpec
from app.pipeline.boxes import Floats, Letterbox
from app.pipeline.layouts import Classes, InputFormat, input_format, rounded
from app.pipeline.parameters import class_name, class_names, require_task, tensors
from app.protocol.result import Box

KNOWN = "one output [N, classes], FP32 or FP16: probabilities, or logits where the parameter logits is true"
TOP = 5
"""Classes that a result names."""
_MOST_SURE = 1.01
"""Probabilities do not exceed 1, apart from rounding."""

# --- reading a model's output ---


@dataclass(frozen=True, slots=True)
class Classified:
    """The best classes of one image, at most `TOP`, best first."""

    class_id: Classes
    confidence: Floats


@dataclass(frozen=True, slots=True)
class ClassifyReader:
    """Reads the output of one classification model; made by `classify_reader`."""

    spec: ModelSpec
    input: InputFormat
    output_name: str
    class_names: tuple[str, ...]
    logits: bool
    declared: bool
    """Whether the model says if it answers logits; else `check` must confirm that it answers probabilities."""

    @property
    def output_names(self) -> tuple[str]:
        """The output that it reads."""
        return (self.output_name,)

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks that an answer holds probabilities.

        Raises:
            ModelRejected: it holds other numbers.
        """
        if self.declared:
            return
        scores = outputs[self.output_name].astype(np.float32)
        least, most = float(scores.min(initial=0)), float(scores.max(initial=0))
        if not (least >= -0.01 and most <= _MOST_SURE):
            raise ModelRejected(
                f"model {self.spec.name!r}: its scores go from {least:.2f} to {most:.2f} and are no probabilities: set "
                "its parameter logits to true if they are logits"
            )

    def scan(self, outputs: Mapping[str, NDArray[Any]], confidence: float) -> tuple[None, int]:
        """See `Reader.scan`: there is nothing to find, and reading takes microseconds."""
        return None, 0

    def read(
        self, outputs: Mapping[str, NDArray[Any]], index: int, box: Letterbox | None = None, **limits: Any
    ) -> Classified:
        """The best classes of image `index` of a batch, whatever their scores: `limits` are those of detections.

        Classes whose scores are no finite numbers are left out.
        """
        return self.best(outputs[self.output_name][index])

    def best(self, scores: NDArray[Any]) -> Classified:
        """The best classes of one row of scores."""
        scores = scores.astype(np.float32)
        known = np.flatnonzero(np.isfinite(scores))
        kept: Floats = scores[known]
        if self.logits and kept.size:
            kept = np.exp(kept - kept.max())
            kept /= kept.sum()
        order = np.argsort(-kept, kind="stable")[:TOP]
        return Classified(known[order].astype(np.int32), kept[order])

    def read_all(
        self,
        outputs: Mapping[str, NDArray[Any]],
        boxes: Sequence[Letterbox | None],
        *,
        rows: None = None,
        **limits: Any,
    ) -> list[Classified | None]:
        """`read` for all images of a batch; None for images without a box."""
        return [None if box is None else self.read(outputs, at) for at, box in enumerate(boxes)]


def classify_reader(spec: ModelSpec) -> ClassifyReader:
    """Picks the reader for a model from its metadata.

    Class names are the model's parameter `class_names`, else `class_0`, `class_1`, ...

    Raises:
        ModelRejected: the output is no row of scores, or there are more or fewer names than classes.
    """
    require_task(spec, "classify")
    form = input_format(spec)
    names = class_names(spec)
    if len(spec.outputs) != 1 or len(spec.outputs[0].shape) != 2 or spec.outputs[0].dtype not in ("FP32", "FP16"):
        hint = "" if all(len(t.shape) == 2 for t in spec.outputs) else _ELSEWHERE
        raise ModelRejected(f"model {spec.name!r}: outputs {tensors(spec)}; known: {KNOWN}{hint}")
    (tensor,) = spec.outputs
    count = tensor.shape[1]
    if names and count > 0 and len(names) != count:
        raise ModelRejected(
            f"model {spec.name!r}: output {tensor.name!r} {list(tensor.shape)} has {count} classes, but class_names "
            f"has {len(names)}"
        )
    logits = spec.parameters.get("logits")
    if logits not in (None, "true", "false"):
        raise ModelRejected(f"model {spec.name!r}: parameter logits={logits!r}; want true or false")
    names = names or tuple(f"class_{i}" for i in range(max(count, 0)))
    return ClassifyReader(spec, form, tensor.name, names, logits == "true", logits is not None)


_ELSEWHERE = (
    "; those of more dimensions are boxes or masks: name a detection model in TRITON_DETECT_MODEL, one of poses in "
    "TRITON_POSE_MODEL, of masks in TRITON_SEGMENT_MODEL, of oriented boxes in TRITON_OBB_MODEL"
)

# --- on the wire ---


@dataclass
class ClassScore:
    """One class that an image may show. `confidence` is 0 to 1."""

    class_id: int
    class_name: str
    confidence: float


@dataclass
class Classification:
    """What the frame shows, or one object in it."""

    box: Box | None
    """The object's box; null: the whole frame."""
    track_id: int | None
    """Number of the object's track in its stream; null without one."""
    top: list[ClassScore]
    """The five best classes, best first."""


def class_scores(found: Classified, names: tuple[str, ...]) -> list[ClassScore]:
    """The best classes as the wire has them: confidence to 4 decimals."""
    return [
        ClassScore(class_id, class_name(names, class_id), confidence)
        for class_id, confidence in zip(found.class_id.tolist(), rounded(found.confidence, 4), strict=True)
    ]
