"""The contract of a stage: one file that says what it needs, which models it reads, and what it adds to a result.

The pipeline walks its stages in the order of the registry (`app.pipeline.registry`) and calls the hooks that a stage
defines; it knows none of them by name. What a hook raises costs that stage's part of that frame and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import shortened
from app.inference.client import InferenceClient, ModelSpec
from app.limits import TokenBucket
from app.pipeline.boxes import Letterbox
from app.pipeline.layouts import InputFormat
from app.pipeline.types import Batch, FrameJob, FrameState, StreamMemory
from app.protocol.result import OK, Box, FrameResult, Stage
from app.protocol.stages import Figure, Part, Shape, StageInfo
from app.settings import Settings

if TYPE_CHECKING:
    from app.pipeline.preprocess import Preprocessor, Threads

__all__ = [
    "OK",
    "UNAVAILABLE",
    "Batch",
    "Box",
    "Figure",
    "FrameJob",
    "FrameResult",
    "FrameState",
    "Letterbox",
    "ModelReader",
    "ModelSpec",
    "Part",
    "PipelineStage",
    "Shape",
    "Stage",
    "StageHost",
    "StreamMemory",
    "defines",
    "display_name",
    "raised",
]

log = logging.getLogger(__name__)

Grey = NDArray[np.uint8]
StatusListener = Callable[[str, bool, str | None], None]
"""Receives a stage's name, whether it works, and the reason where it does not."""
_LOG_AGAIN_S = 60.0
UNAVAILABLE = "inference_unavailable"
"""The reason of a stage whose models could not be asked."""


@dataclass(frozen=True, slots=True)
class StageHost:
    """What a pipeline lends to its stages."""

    client: InferenceClient
    threads: Threads
    """For work of milliseconds; see `Threads.run`."""
    preprocessor: Preprocessor
    """`Preprocessor.image` gives the pixels of a frame."""


class ModelReader(Protocol):
    """Reads the output of one model that takes whole frames."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def input(self) -> InputFormat: ...

    @property
    def declared(self) -> bool:
        """Whether the model declares the layout of its head; else `check` must confirm it with a first answer."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs that it reads."""
        ...

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks that an answer has the layout that the shape suggested.

        Raises:
            ModelRejected: it has another layout.
        """
        ...

    def scan(self, outputs: Mapping[str, NDArray[Any]], confidence: float) -> tuple[Any, int]:
        """A quick look at the outputs of a batch: what `read_all` may use again, and the number of rows that score.

        The number decides where the outputs are read: on the event loop up to `postprocess.CROWD`, else in a thread.
        """
        ...

    def read_all(
        self,
        outputs: Mapping[str, NDArray[Any]],
        boxes: Sequence[Letterbox | None],
        *,
        rows: Any,
        confidence: float,
        iou: float,
        classes: frozenset[int] | None,
        max_detections: int,
    ) -> Sequence[Any]:
        """What each frame of a batch shows; None for a frame without a box. `rows`: the first result of `scan`."""
        ...

    def read(
        self,
        outputs: Mapping[str, NDArray[Any]],
        index: int,
        box: Letterbox,
        *,
        confidence: float,
        iou: float,
        classes: frozenset[int] | None,
        max_detections: int,
    ) -> Any:
        """What the frame at `index` shows. `box`: where it lies in the model's input."""
        ...


class PipelineStage:
    """The base of all stages. A subclass sets the names and overrides the hooks that it needs; the others cost nothing.

    One instance serves one pipeline. What belongs to a stream lies in `StreamMemory.parts[name]`, what belongs to a
    frame in `FrameState.found[name]`. Both are the stage's own: others may read them if they name it in `needs`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    part: ClassVar[Part | None] = None
    live: ClassVar[bool] = True
    """Whether it runs for live clients, who may switch it off."""
    single: ClassVar[bool] = True
    """Whether it runs on an image that stands alone; False where it compares the frames of a stream."""
    fleet: ClassVar[bool] = False
    """Whether it runs on cameras' frames where FLEET_STAGES is unset."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Stages whose results this one reads. Its `run` and `finish` come after theirs."""
    needs_grey: ClassVar[bool] = False
    """Whether it uses `FrameState.grey`."""
    needs_image: bool = False
    """Whether it asks for the frame's pixels at full size (`Preprocessor.image`)."""
    runs: ClassVar[Literal["anywhere", "loop", "thread"]] = "thread"
    """Where `finish` and `write` run, in this order. `anywhere`: microseconds a frame; on the event loop, or in a
    thread where there are many objects. `loop`: only on the event loop. `thread`: in a thread of its own, with a time
    limit. A stage runs no earlier than those that it needs: where they say `loop` or `thread`, so does it. A plug-in
    that says `anywhere` or `loop` and blocks is moved to a thread."""

    def __init__(self, settings: Settings, *, used: bool = True) -> None:
        """Args:
        used: whether any stream of this pipeline may run the stage. If not, nothing is loaded for it.
        """
        self.settings = settings
        self.used = used
        self.plug_in = not type(self).__module__.startswith("app.")
        self.has_model = self.model() is not None
        self.host: StageHost
        self.log_rate = TokenBucket(1 / _LOG_AGAIN_S, 1)

    @classmethod
    def info(cls) -> StageInfo:
        """The stage as the wire shows it."""
        return StageInfo(cls.name, cls.title, cls.description, cls.part, cls.live, cls.model_type)

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Checks the stage's own settings, as far as that needs no server.

        Raises:
            ConfigurationError: a setting cannot be used.
        """

    # --- its model, if it has one ---

    def model(self) -> str | None:
        """The name of its model in Triton; None: it has none, or does not need it."""
        return None

    model_type: ClassVar[Any] = None
    """Annotation of the stage's entry in `ready.models`; None: it has no entry."""
    whole_frames: bool = True
    """Whether the model takes whole frames, which the pipeline then sends. If not, the stage asks it in `run`."""

    def reader(self, spec: ModelSpec) -> Any:
        """The reader for its model: a `ModelReader` where it takes whole frames, else whatever `run` uses.

        Raises:
            ModelRejected: it cannot read this model; the message says what the model's outputs look like, which stage
                reads them if one does, and what to do.
        """
        raise NotImplementedError(f"stage {self.name!r} names a model and should define `reader`")

    def describe(self, reader: Any) -> Any:
        """What clients learn about the model: its entry in `ready.models`, a `model_type`."""
        raise NotImplementedError(f"stage {self.name!r} has a `model_type` and should define `describe`")

    def offer(self, readers: Mapping[str, Any]) -> Any:
        """The entry in `ready.models`; None while there is no model. `readers`: those of the models, by stage."""
        reader = readers.get(self.name)
        return None if reader is None else self.describe(reader)

    # --- hooks ---

    def listen(self, listener: StatusListener) -> None:
        """Calls `listener` whenever a part that the stage runs beside the inference server fails or works again."""

    def load(self) -> None:
        """Imports what takes long to import. Called in a thread when the service starts, if the stage is used.

        Raises:
            ConfigurationError: a setting asks for something that is not there.
        """

    async def close(self) -> None:
        """Ends what the stage started."""

    def forget(self, memory: StreamMemory) -> None:
        """Drops work that is queued for a stream that has ended."""

    def health(self) -> dict[str, Any] | None:
        """The state of a part that can fail by itself, for /health/ready: `state`, `reason`; None: no such part."""
        return None

    @property
    def broken(self) -> str | None:
        """Why a part that the stage runs beside the inference server fails for now; None: it does not."""
        return None

    @property
    def absent(self) -> str:
        """Why there is no model, for the log."""
        return "no model is loaded"

    async def settle(self, job: FrameJob, result: FrameResult) -> FrameResult:
        """The result of an image that stands alone, with what the stage computes beside the frames."""
        return result

    def prepare(self, state: FrameState, previous: Grey | None, grey: Grey) -> None:
        """Works on the small grey frames, in the thread that decoded the frame. `previous`: the stream's last frame."""

    async def run(self, batch: Batch) -> None:
        """Asks models about crops, once all replies about whole frames are read. A stage with a model is called only
        while the model is there."""

    def finish(self, state: FrameState, batch: Batch) -> None:
        """Derives what other stages or `write` need, from what was read. The frames of a stream come in order."""

    def write(self, state: FrameState, batch: Batch) -> Any:
        """Its part of the result, as the wire has it. Called for each frame whose stream runs the stage; if the stage
        has a model, only where something lies in `state.found[name]`. Without this hook, that itself is the part."""

    def status(self, state: FrameState, batch: Batch) -> Stage:
        """The outcome where no hook has set `state.stages[name]`: `ok` where the stage has no model, else why the model
        was not asked."""
        if not self.has_model:
            return OK
        models = batch.model_set
        if not batch.up or self.name in models.readers:
            return _UNAVAILABLE
        return Stage("disabled", models.rejected.get(self.name) or models.refusal or "not_served")


_UNAVAILABLE = Stage("error", UNAVAILABLE)


def raised(stage: PipelineStage, state: FrameState, error: Exception) -> None:
    """Records that a hook of a stage has raised: the stage's status on this frame is `error`."""
    state.stages[stage.name] = failure(stage, error)


def failure(stage: PipelineStage, error: Exception) -> Stage:
    """The status of a stage whose hook has raised. Logs the error, once a minute."""
    if stage.log_rate.take():
        log.error("stage %s failed; its further errors are only counted for a minute", stage.name, exc_info=error)
    return Stage("error", reason_of(error))


def reason_of(error: Exception) -> str:
    """What a stage has raised, for a status."""
    return f"{type(error).__name__}: {shortened(str(error))}"


def asked(stage: PipelineStage, hook: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a hook that no frame waits for; None if it raises, because that must not cost the others."""
    try:
        return hook(*arguments)
    except Exception as error:
        failure(stage, error)
        return None


def display_name(spec: ModelSpec) -> str:
    """The name of the network, from the model's parameter `display_name`; without one, its name in Triton."""
    return spec.parameters.get("display_name") or spec.name


def defines(stage: PipelineStage, hook: str) -> bool:
    """Whether a stage overrides a hook."""
    return getattr(type(stage), hook) is not getattr(PipelineStage, hook)
