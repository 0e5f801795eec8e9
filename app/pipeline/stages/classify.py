"""Classification: what a whole frame shows, or each object of certain classes; the best classes of a model's scores.

A model answers one row of scores an image, `[N, classes]`: probabilities, as Ultralytics exports them, or with its
parameter `logits` = `true` any numbers, of which the softmax is taken. Its images are prepared as its parameter
`resize` says: `crop` for Ultralytics' models.

With CLASSIFY_CROPS, objects that the detection model found are cut out and classified, as `predict` of each cut would.
Crops of all frames of a batch share requests of a bounded size. When one fails, only this stage of its frames fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import FrameError, InferenceError, InferenceUnavailable, ModelRejected
from app.inference.client import ModelSpec
from app.inference.shared_memory import DTYPES, Buffer
from app.pipeline.boxes import Floats, Letterbox
from app.pipeline.decode import Pixels, crop_into, lay_into
from app.pipeline.layouts import Classes, InputFormat, input_format, rounded
from app.pipeline.parameters import ClassModel, class_name, class_names, require_task, tensors
from app.pipeline.preprocess import Piece
from app.pipeline.stage import UNAVAILABLE, PipelineStage, display_name
from app.pipeline.types import Batch, FrameState
from app.protocol.result import OK, Box, Stage, many
from app.protocol.stages import Part, Shape
from app.settings import Settings

# --- on the wire ---


@many
class ClassScore:
    """One class that an image may show. `confidence` is 0 to 1."""

    class_id: int
    class_name: str
    confidence: float


@many
class Classification:
    """What the frame shows, or one object in it."""

    box: Box | None
    """The object's box; null: the whole frame."""
    track_id: int | None
    """Number of the object's track in its stream; null without one."""
    top: list[ClassScore]
    """The five best classes, best first."""


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

# --- the stage ---


def class_scores(found: Classified, names: tuple[str, ...]) -> list[ClassScore]:
    """The best classes as the wire has them: confidence to 4 decimals."""
    return [
        ClassScore(class_id, class_name(names, class_id), confidence)
        for class_id, confidence in zip(found.class_id.tolist(), rounded(found.confidence, 4), strict=True)
    ]


MIN_SIDE = 8
"""Least width and height of an object that is classified, pixels."""
MOST_LONG = 16
"""Greatest ratio of the sides of an object that is classified: the shorter one may have to fill the model's image."""


@dataclass(slots=True)
class Crops:
    """The objects of one frame that are classified one by one."""

    objects: list[int]
    """Their indices in what the detection stage found."""
    boxes: Floats
    """`[n, 4]`, frame pixels."""
    tensor: NDArray[Any]
    """The input tensor for them."""
    found: list[Classified | None] = field(default_factory=list)
    """What each shows; None where its request failed."""
    error: FrameError | None = None


class ClassifyStage(PipelineStage):
    """What a frame shows, or its objects."""

    name = "classify"
    title = "Classification"
    description = "The five classes that fit best to the frame, or to each object of the classes in CLASSIFY_CROPS."
    runs = "anywhere"
    part = Part(
        "classifications",
        list[Classification],
        shapes=(Shape("label", label="{top.0.class_name} {top.0.confidence}"),),
    )
    model_type = ClassModel
    needs = ("detect",)

    def __init__(self, settings: Settings, *, used: bool = True) -> None:
        super().__init__(settings, used=used)
        self._crops = settings.pipeline.classify_crops
        self.whole_frames = not self._crops
        self.needs_image = bool(self._crops)

    def model(self) -> str | None:
        return self.settings.triton.triton_classify_model

    def reader(self, spec: ModelSpec) -> ClassifyReader:
        return classify_reader(spec)

    def describe(self, reader: ClassifyReader) -> ClassModel:
        return ClassModel(display_name(reader.spec), reader.class_names)

    def write(self, state: FrameState, batch: Batch) -> list[Classification]:
        found = state.found.get("classify")
        if found is None:
            return []
        names = batch.model_set.readers["classify"].class_names
        if isinstance(found, Classified):
            return [Classification(None, None, class_scores(found, names))]
        tracks = state.track_ids.get("detect")
        ids = [-1] * len(found.objects) if tracks is None else tracks[found.objects].tolist()
        return [
            Classification(Box(*box), track_id if track_id >= 0 else None, class_scores(best, names))
            for best, box, track_id in zip(found.found, rounded(found.boxes, 2), ids, strict=True)
            if best is not None
        ]

    async def run(self, batch: Batch) -> None:
        """Classifies the chosen objects of every frame that runs the stage."""
        reader = batch.model_set.readers.get("classify")
        if self.whole_frames or reader is None or not batch.up:
            return  # the pipeline has asked, or `status` says why not
        clock = time.perf_counter()
        frames = [s for s in batch.frames if s.error is None and s.job.settings.stages.get("classify")]
        chosen = [(state, crops) for state in frames if (crops := self._choose(state, batch, reader)) is not None]
        if chosen:
            await self._cut(chosen, batch, reader)
            await self._ask_all([(state, crops) for state, crops in chosen if crops.error is None], reader)
        for state, crops in chosen:
            if crops.error is not None:
                _fail(state, str(crops.error), len(crops.objects))
                continue
            state.found["classify"] = crops
            if "classify" not in state.stages:
                state.stages["classify"] = OK
                metrics.MODEL_FRAMES.labels(reader.spec.name).inc()
        for state in frames:
            state.time("classify", clock)

    def _choose(self, state: FrameState, batch: Batch, reader: ClassifyReader) -> Crops | None:
        """The frame's objects that are classified, the surest first; None without any, after setting its outcome."""
        detected = state.found.get("detect")
        if detected is None:
            state.stages["classify"] = Stage("skipped", "no_detections")
            return None
        ids = [number for name in self._crops for number in batch.model_set.ids_of("detect", name)]
        if not ids:
            names = ",".join(self._crops)
            reason = f"CLASSIFY_CROPS={names!r}: the detection model has none of these classes"
            state.stages["classify"] = Stage("skipped", reason)
            return None
        wanted = np.flatnonzero(np.isin(detected.class_id, ids))
        boxes = detected.xyxy[wanted]
        sides = np.ceil(boxes[:, 2:]) - np.floor(boxes[:, :2])
        shorter, longer = sides.min(axis=1, initial=np.inf), sides.max(axis=1, initial=0)
        fit = (shorter >= MIN_SIDE) & (longer <= MOST_LONG * shorter)
        objects = wanted[fit][: self.settings.pipeline.classify_most_crops]
        metrics.CLASSIFY_CROPS.labels("unfit").inc(int(np.count_nonzero(~fit)))
        metrics.CLASSIFY_CROPS.labels("too_many").inc(int(np.count_nonzero(fit)) - len(objects))
        if not objects.size:
            state.stages["classify"] = OK
            return None
        tensor = np.empty(reader.input.shape(len(objects)), DTYPES[reader.input.dtype])
        return Crops(objects.tolist(), detected.xyxy[objects], tensor)

    def _cut(
        self, chosen: list[tuple[FrameState, Crops]], batch: Batch, reader: ClassifyReader
    ) -> asyncio.Future[None]:
        """Cuts out all objects in threads; await the future at once. Cancelling does not stop the threads.

        Until they are done, the batch's memory is held, because they read frames from it.
        """
        batch.hold()
        cutting = self.host.threads.run(*([self._piece(state, crops, batch, reader)] for state, crops in chosen))
        cutting.add_done_callback(lambda _: batch.release())
        return asyncio.shield(cutting)

    def _piece(self, state: FrameState, crops: Crops, batch: Batch, reader: ClassifyReader) -> Piece:
        """Work for a thread: cuts the objects out of a frame and writes them into the input tensor."""

        def work(piece: Piece) -> None:
            try:
                image = self.host.preprocessor.image(state, batch)
            except FrameError as error:
                if piece.keep():
                    crops.error = error
                return
            canvases = [cut(image, box, reader.input) for box in crops.boxes]
            if piece.keep():
                for canvas, target in zip(canvases, crops.tensor, strict=True):
                    reader.input.fill(canvas, target)

        def given_up() -> None:
            crops.error = self.host.preprocessor.too_expensive()
            batch.hold()

        return Piece(work, given_up, batch.release)

    async def _ask_all(self, chosen: list[tuple[FrameState, Crops]], reader: ClassifyReader) -> None:
        """Sends all crops of the batch, in concurrent requests of bounded size."""
        if not chosen:
            return
        every = np.concatenate([crops.tensor for _, crops in chosen])
        owners = [(state, crops) for state, crops in chosen for _ in crops.objects]
        size = min(self.settings.fleet.max_sub_batch, reader.spec.max_batch)
        answers = await asyncio.gather(
            *(self._ask(every[at : at + size], owners[at : at + size], reader) for at in range(0, len(every), size))
        )
        for (_, crops), best in zip(owners, [best for answer in answers for best in answer], strict=True):
            crops.found.append(best)

    async def _ask(
        self, tensor: NDArray[Any], owners: list[tuple[FrameState, Crops]], reader: ClassifyReader
    ) -> Sequence[Classified | None]:
        # Heap memory, because the number of crops changes with each frame and a shared slot has one fixed shape.
        buffer = Buffer(tensor, None, None)
        try:
            reply = await self.host.client.infer(reader.spec, buffer, stream=owners[0][0].job.frame.stream)
            best = [reader.best(scores) for scores in reply.outputs[reader.output_name]]
        except InferenceError as error:
            for state, _ in owners:
                _fail(state, UNAVAILABLE if isinstance(error, InferenceUnavailable) else str(error), 1)
            return [None] * len(owners)
        finally:
            buffer.release()
        metrics.MODEL_BATCH.labels(reader.spec.name).observe(len(tensor))
        metrics.CLASSIFY_CROPS.labels("classified").inc(len(best))
        return best


def cut(image: Pixels, box: Floats, form: InputFormat) -> Pixels:
    """Cuts a box, `[4]` frame pixels, out of an RGB image `[h, w, 3]` and fits it into a canvas of the model's format.

    The box grows to whole pixels.
    """
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    part = np.ascontiguousarray(image[top:bottom, left:right])
    place = form.place(part.shape[1], part.shape[0])
    canvas = np.empty((form.height, form.width, 3), np.uint8)
    if place.smooth:
        crop_into(part, place, canvas)
    else:
        lay_into(part, place, canvas)
    return canvas


def _fail(state: FrameState, reason: str, count: int) -> None:
    state.stages["classify"] = Stage("error", reason)
    metrics.CLASSIFY_CROPS.labels("error").inc(count)
