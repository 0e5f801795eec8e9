"""The server's models: their readers (`ModelSet`), and a record of those that fail (`ModelWatch`)."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import ModelRejected, shortened
from app.inference.client import InferenceClient, ModelSpec
from app.inference.liveness import DEADLINES
from app.inference.shared_memory import DTYPES
from app.pipeline.layouts import InputFormat
from app.pipeline.stage import ModelReader, PipelineStage, reason_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSet:
    """The readers of the models that the server has."""

    readers: Mapping[str, Any] = field(default_factory=dict)
    """By stage, in the order of the stages: those of models that take whole frames, then those of crops."""
    crops: frozenset[str] = frozenset()
    """Stages whose models take crops: the stages ask them themselves."""
    ensemble: Mapping[str, ModelReader] = field(default_factory=dict)
    """Readers of the ensemble's outputs, by stage: it answers all of them, or some of them, in one request."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """By stage: why the server's model for crops, or for a plug-in, is not used. The others are used either way."""
    refusal: str | None = None
    """Why none of the server's models is used."""
    max_batch: int = field(init=False)
    """Frames that every model takes in one request."""
    batched: bool = field(init=False)
    """Whether the server itself batches requests to these models (dynamic batching)."""

    def __post_init__(self) -> None:
        readers = [*self.whole.values(), *self.ensemble.values()]
        object.__setattr__(self, "max_batch", min((reader.spec.max_batch for reader in readers), default=sys.maxsize))
        asked = [self.ensemble.get(name, reader) for name, reader in self.whole.items()]
        object.__setattr__(self, "batched", bool(asked) and all(reader.spec.batched for reader in asked))

    @cached_property
    def whole(self) -> dict[str, ModelReader]:
        """The readers of models that take whole frames, by stage."""
        return {name: reader for name, reader in self.readers.items() if name not in self.crops}

    @cached_property
    def tried(self) -> tuple[tuple[str, ModelReader], ...]:
        """Stage and reader of each model that receives frames; of the ensemble those of the first stage."""
        return (*self.whole.items(), *[*self.ensemble.items()][:1])

    def without(self, name: str, reason: str) -> ModelSet:
        """The set without a stage's model, which is not used for this reason."""
        readers = {stage: reader for stage, reader in self.readers.items() if stage != name}
        ensemble = {stage: reader for stage, reader in self.ensemble.items() if stage != name}
        rejected = {**self.rejected, name: reason}
        return ModelSet(readers, self.crops, ensemble if len(ensemble) > 1 else {}, rejected, self.refusal)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names that `classes` may have: those of the first stage whose model has classes."""
        return next((names for reader in self.whole.values() if (names := class_names(reader))), ())

    def ids_of(self, stage: str, name: str) -> frozenset[int]:
        """The ids of a stage's classes of this name, whatever its case."""
        names = class_names(self.readers.get(stage))
        return frozenset(number for number, known in enumerate(names) if known.lower() == name.lower())

    def request(self, wanted: Mapping[str, ModelReader]) -> tuple[dict[str, ModelReader], ...]:
        """The readers for each request that answers the wanted stages: of the ensemble, those that it has, if they are
        several."""
        together = {name: self.ensemble[name] for name in wanted if name in self.ensemble}
        if len(together) < 2:
            together = {}
        elif len(together) < len(self.ensemble):
            together = _subset(together)
        alone = tuple({name: reader} for name, reader in wanted.items() if name not in together)
        found = self.requests[tuple(wanted)] = (*([together] if together else []), *alone)
        return found

    @cached_property
    def requests(self) -> dict[tuple[str, ...], tuple[dict[str, ModelReader], ...]]:
        """What `request` has answered, by the names of the wanted stages."""
        return {}


def class_names(reader: Any) -> tuple[str, ...]:
    """The names of a model's classes by id; none where its reader has no classes."""
    names: tuple[str, ...] = getattr(reader, "class_names", ())
    return names


def _subset(readers: dict[str, ModelReader]) -> dict[str, ModelReader]:
    """Readers of an ensemble from which only their outputs are asked: Triton then runs only the models behind these."""
    kept = {name for reader in readers.values() for name in reader.output_names}
    (spec, *_) = [reader.spec for reader in readers.values()]
    outputs = tuple(tensor for tensor in spec.outputs if tensor.name in kept)
    part = dataclasses.replace(spec, outputs=outputs, chosen=",".join(tensor.name for tensor in outputs))
    return {
        name: dataclasses.replace(reader, spec=dataclasses.replace(part, parameters=reader.spec.parameters))  # type: ignore[type-var]
        for name, reader in readers.items()
    }


async def describe(client: InferenceClient, ensemble: str, stages: Sequence[PipelineStage]) -> ModelSet:
    """Asks the server for the models of these stages, and for the ensemble, and picks their readers.

    Raises:
        InferenceUnavailable: the server cannot be reached.
        ModelRejected: the tensors of a model have no known layout.
    """
    readers: dict[str, Any] = {}
    rejected: dict[str, str] = {}
    crops = frozenset(stage.name for stage in stages if not stage.whole_frames)
    for stage in sorted(stages, key=lambda stage: not stage.whole_frames):
        model = stage.model()
        spec = await client.describe(model) if model else None
        if spec is None:
            continue
        try:
            readers[stage.name] = stage.reader(spec)
        except ModelRejected as error:
            if stage.whole_frames and not stage.plug_in:
                raise
            log.error("%s", error)
            rejected[stage.name] = str(error)
        except Exception as error:
            if not stage.plug_in:
                raise
            log.error("stage %s cannot read its model", stage.name, exc_info=error)
            rejected[stage.name] = reason_of(error)
            log.error("stage %s cannot read the model %s", stage.name, model, exc_info=error)
    whole = {name: reader for name, reader in readers.items() if name not in crops}
    together: dict[str, ModelReader] = {}
    if len(whole) > 1 and ensemble:
        spec = await client.describe(ensemble)
        if spec is not None:
            together = _ensemble(spec, {stage.name: stage for stage in stages}, whole)
    return ModelSet(readers, crops, together, rejected)


def _ensemble(
    spec: ModelSpec, stages: Mapping[str, PipelineStage], readers: Mapping[str, ModelReader]
) -> dict[str, ModelReader]:
    """Readers of the ensemble's outputs, by stage; none where it serves fewer than two of these models.

    Its parameter `outputs` says which output comes from which model; without it the shapes must tell.
    """
    named = _outputs(spec)
    found: dict[str, ModelReader] = {}
    for name, reader in readers.items():
        own = named.get(reader.spec.name) if named is not None else None
        if named is not None and own is None:
            continue
        # The parameters of the model behind an output describe that output (its layout, its class names).
        parameters = {**spec.parameters, **reader.spec.parameters}
        outputs = spec.outputs if own is None else tuple(tensor for tensor in spec.outputs if tensor.name in own)
        part = dataclasses.replace(spec, parameters=parameters, outputs=outputs)
        try:
            made: Any = stages[name].reader(part)
        except ModelRejected as error:
            log.warning("the ensemble is not used for %s: %s", name, error)
            continue
        if not hasattr(made, "__dataclass_fields__"):  # as `is_dataclass` looks, after which mypy knows no reader
            log.warning("the ensemble is not used for %s: its reader is no dataclass with the field `spec`", name)
            continue
        if made.input != reader.input:
            log.warning("the ensemble %s is not used for %s: its input is not that of its part", spec.name, name)
            continue
        found[name] = dataclasses.replace(made, spec=dataclasses.replace(part, outputs=spec.outputs))
    return found if len(found) > 1 else {}


def _outputs(spec: ModelSpec) -> dict[str, frozenset[str]] | None:
    """By model: the names of its outputs among the ensemble's; None where the ensemble does not say."""
    text = spec.parameters.get("outputs")
    if text is None:
        return None
    try:
        return {model: frozenset(names.values()) for model, names in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError):
        log.warning(
            'the ensemble %s has the parameter outputs=%s; want {"model": {"its output": "the ensemble\'s"}}, in JSON',
            spec.name,
            shortened(text),
        )
        return None


def trial_image(form: InputFormat) -> NDArray[Any]:
    """One image of noise in the model's format, `form.shape(1)`: each model must answer it before it is trusted."""
    canvas = np.random.default_rng(0).integers(0, 256, (form.height, form.width, 3), np.uint8)
    tensor = np.empty(form.shape(1), DTYPES[form.dtype])
    form.fill(canvas, tensor[0])
    return tensor


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
