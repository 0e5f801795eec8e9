"""From the server's replies to results: reads each stage's outputs; then the stages finish and write each frame."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from app import metrics
from app.inference.client import Reply
from app.pipeline.models import ModelSet, class_names
from app.pipeline.stage import PipelineStage, defines, raised
from app.pipeline.threaded import StageThread
from app.pipeline.types import Batch, FrameState, Request
from app.protocol.messages import StreamSettings
from app.protocol.result import OFF, OK, FrameResult, Image, Stage

log = logging.getLogger(__name__)

CROWD = 64
"""Rows from which reading and tracking take milliseconds, and run in a thread."""

BLOCKING_S = 0.02
"""Seconds from which a hook of a plug-in counts as blocking."""
MOST_BLOCKED = 3
"""Times that a plug-in may block before it is moved to a thread."""

Record = Callable[[Mapping[str, float]], None]
"""Receives how long each step of a frame took, seconds."""

# `labels` takes a lock and checks its arguments on each call; its answer stays the same.
_model_batch = cache(metrics.MODEL_BATCH.labels)
_model_frames = cache(metrics.MODEL_FRAMES.labels)


@cache
def recorder(entry: str) -> Record:
    """A function that adds a frame's times to STAGE_SECONDS of one entry point, at once or within a second."""
    return metrics.stage_times(entry).add


# --- reading a reply ---


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of a first, quick look at a reply."""

    rows: Mapping[str, Any]
    """By stage: what its reader may use again. A stage whose reader has raised is not in it."""
    heavy: bool
    """Whether `read` would block the event loop: it has thousands of columns to search, or many rows that score."""


def scan(batch: Batch, request: Request, reply: Reply) -> Scan:
    """Finds the rows of a reply that score in any frame. Takes microseconds a frame."""
    confidence = min([state.job.settings.confidence for state in batch.frames])
    rows: dict[str, Any] = {}
    count = 0
    for name, reader in request.readers.items():
        try:
            rows[name], scoring = reader.scan(reply.outputs, confidence)
        except Exception as error:  # whatever a reader raises must not cost the other stages their results
            _unread(batch, name, error)
            continue
        count += scoring
    return Scan(rows, count > CROWD)


def _unread(batch: Batch, name: str, error: Exception) -> None:
    """Records that a stage's reader has raised, for all frames that want the stage."""
    for state in batch.frames:
        if state.error is None and state.job.settings.stages.get(name):
            raised(batch.stages[name], state, error)


def read(batch: Batch, request: Request, reply: Reply, seen: Scan, max_detections: int) -> None:
    """Fills `found` and the outcomes of stages. Takes milliseconds where `Scan.heavy`, else microseconds a frame."""
    frames = batch.frames
    first = frames[0].job.settings
    names = seen.rows.keys()
    alike = len(frames) == 1 or all(_alike(state.job.settings, first, names) for state in frames)
    for name in names:
        if alike and not first.stages.get(name):
            continue
        reader = request.readers[name]
        try:
            if alike:
                placed = request.input.boxes
                boxes = [placed[state.index] if state.error is None else None for state in frames]
                every = reader.read_all(
                    reply.outputs,
                    boxes,
                    rows=seen.rows[name],
                    confidence=first.confidence,
                    iou=first.iou,
                    classes=None if first.classes is None else _classes(first.classes, reader, batch.model_set),
                    max_detections=max_detections,
                )
                for state, found in zip(frames, every, strict=True):
                    if found is not None:
                        state.found[name], state.stages[name] = found, OK
                continue
            for state in frames:
                settings = state.job.settings
                if state.error is None and settings.stages.get(name):
                    state.found[name] = reader.read(
                        reply.outputs,
                        state.index,
                        request.input.boxes[state.index],
                        confidence=settings.confidence,
                        iou=settings.iou,
                        classes=None
                        if settings.classes is None
                        else _classes(settings.classes, reader, batch.model_set),
                        max_detections=max_detections,
                    )
                    state.stages[name] = OK
        except Exception as error:
            _unread(batch, name, error)


def _alike(settings: StreamSettings, other: StreamSettings, stages: Collection[str]) -> bool:
    """Whether all that reading the outputs of these stages depends on is equal."""
    return settings is other or (
        all(settings.stages.get(name) == other.stages.get(name) for name in stages)
        and settings.confidence == other.confidence
        and settings.iou == other.iou
        and settings.classes == other.classes
    )


def _classes(wanted: tuple[int, ...], reader: Any, models: ModelSet) -> frozenset[int] | None:
    """The ids of the wanted classes in this reader's model; None, which keeps all, where it has none of their names.

    `classes` counts by `ModelSet.class_names`; another model may have the same class under another id.
    """
    known, names = models.class_names, class_names(reader)
    return frozenset(wanted) if names is known else _ids_by_name(wanted, known, names)


@lru_cache(256)
def _ids_by_name(wanted: tuple[int, ...], known: tuple[str, ...], names: tuple[str, ...]) -> frozenset[int] | None:
    if names == known:
        return frozenset(wanted)
    if not {name.lower() for name in known} & {name.lower() for name in names}:
        return None
    chosen = {known[number].lower() for number in wanted if 0 <= number < len(known)}
    return frozenset(number for number, name in enumerate(names) if name.lower() in chosen)


def count(batch: Batch, request: Request) -> None:
    """Adds the batch to the models' metrics, once for all frames, because each metric takes a lock."""
    _model_batch(request.spec.name).observe(len(batch.frames))
    for stage in request.readers:
        frames = 0
        for state in batch.frames:
            frames += state.error is None and state.stages.get(stage) is OK
        if frames:
            _model_frames(batch.model_set.readers[stage].spec.name).inc(frames)


# --- finishing a frame ---


class Finisher:
    """Lets the stages finish and write frames, and makes the results. Holds nothing of any frame.

    Args:
        stages: all stages of a pipeline, in the order of the wire.
    """

    def __init__(self, stages: Sequence[PipelineStage]) -> None:
        self._stages = [(stage.name, stage) for stage in stages]
        order = ("anywhere", "loop", "thread")
        places: dict[str, int] = {}
        for stage in stages:
            places[stage.name] = max([order.index(stage.runs), *[places.get(name, 0) for name in stage.needs]])
        hooks = [
            (stage, order[places[stage.name]], stage.part.field if stage.part and defines(stage, "write") else None)
            for stage in stages
            if defines(stage, "finish") or defines(stage, "write")
        ]
        self._handing_on = [
            (stage.name, stage.part.field) for stage in stages if stage.part is not None and not defines(stage, "write")
        ]
        free = [hook for hook in hooks if hook[1] == "anywhere"]
        self._finishing = [(stage.name, stage) for stage, _, _ in free if defines(stage, "finish")]
        self._writing = [(stage.name, stage, field) for stage, _, field in free if defines(stage, "write")]
        self._in_loop = [
            (stage.name, stage, field, defines(stage, "finish")) for stage, runs, field in hooks if runs == "loop"
        ]
        self.threads = [StageThread(stage) for stage, runs, _ in hooks if runs == "thread"]
        """The stages that run in threads of their own."""
        self._blocked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._usual: dict[str, Stage] = {}
        """The outcomes that depend on nothing but the models that are there: of stages without a `status` of theirs."""
        self._usual_of: ModelSet | None = None
        self._usual_up = False

    def close(self) -> None:
        """Ends the stages' threads. Does not wait for them."""
        for thread in self.threads:
            thread.close()

    async def run_threads(self, batch: Batch) -> None:
        """Runs the stages that have threads of their own, one after the other, on all usable frames."""
        for state in batch.frames:
            if state.error is None:
                self._run_in_loop(state, batch)
        for thread in self.threads:
            await thread.run(batch)

    def _timed(self, stage: PipelineStage, hook: Callable[..., Any], state: FrameState, batch: Batch) -> Any:
        """Calls a hook of a plug-in, which is moved to a thread when it has blocked the caller several times."""
        began = time.perf_counter()
        try:
            return hook(state, batch)
        finally:
            if time.perf_counter() - began > BLOCKING_S:
                with self._lock:  # frames may be finished in several threads
                    self._blocked[stage.name] += 1
                    if self._blocked[stage.name] == MOST_BLOCKED:
                        self._move(stage)

    def _move(self, stage: PipelineStage) -> None:
        """Moves a stage to a thread, and with it those that need it, because they run after it."""
        metrics.STAGE_MOVED.labels(stage.name).inc()
        log.warning(
            "stage %s took more than %g ms for a frame %d times and runs in a thread from now on; a stage that says "
            'runs="%s" should take microseconds',
            stage.name,
            BLOCKING_S * 1000,
            MOST_BLOCKED,
            stage.runs,
        )
        moved = {stage.name}
        moved.update(name for name, other in self._stages if not moved.isdisjoint(other.needs))
        threaded = {thread.stage.name: thread for thread in self.threads}
        here = {name for name, *_ in (*self._finishing, *self._writing, *self._in_loop)}
        # New lists, because threads may be walking the old ones.
        self._finishing = [hook for hook in self._finishing if hook[0] not in moved]
        self._writing = [hook for hook in self._writing if hook[0] not in moved]
        self._in_loop = [hook for hook in self._in_loop if hook[0] not in moved]
        threaded |= {name: StageThread(other) for name, other in self._stages if name in moved & here}
        self.threads = [threaded[name] for name, _ in self._stages if name in threaded]

    def run(self, state: FrameState, batch: Batch) -> None:
        """Calls `finish` and `write` of the stages that may run anywhere; once a frame, in the order of its stream."""
        clock = time.perf_counter()
        chosen = state.job.settings.stages
        for name, stage in self._finishing:
            if chosen.get(name):
                try:
                    if stage.plug_in:
                        self._timed(stage, stage.finish, state, batch)
                    else:
                        stage.finish(state, batch)
                except Exception as error:
                    raised(stage, state, error)
        for name, own_field in self._handing_on:
            if name in state.found:
                state.parts[own_field] = state.found[name]
        for name, stage, field in self._writing:
            if chosen.get(name) and (name in state.found or not stage.has_model):
                try:
                    if stage.plug_in:
                        part = self._timed(stage, stage.write, state, batch)
                    else:
                        part = stage.write(state, batch)
                    if field is not None:
                        state.parts[field] = part
                except Exception as error:
                    raised(stage, state, error)
        state.finished = True
        state.time("parse", clock)

    def _set_usual(self, batch: Batch) -> None:
        state = batch.frames[0]
        self._usual = {
            name: _status(stage, state, batch) for name, stage in self._stages if not defines(stage, "status")
        }
        self._usual_of, self._usual_up = batch.model_set, batch.up

    def run_all(self, batch: Batch) -> None:
        """`run` for all usable frames, in order. Takes milliseconds for a crowd."""
        for state in batch.frames:
            if state.error is None:
                self.run(state, batch)

    def _run_in_loop(self, state: FrameState, batch: Batch) -> None:
        """Calls `finish` and `write` of all stages without a thread, once a frame, in the event loop's thread."""
        if not state.finished:
            self.run(state, batch)
        if state.looped or not self._in_loop:
            return
        state.looped = True
        chosen = state.job.settings.stages
        for name, stage, field, finishes in self._in_loop:
            if chosen.get(name):
                try:
                    if stage.plug_in:
                        self._timed(stage, stage.finish, state, batch)
                        part = self._timed(stage, stage.write, state, batch)
                    else:
                        if finishes:
                            stage.finish(state, batch)
                        part = stage.write(state, batch)
                    if field is not None:
                        state.parts[field] = part
                except Exception as error:
                    raised(stage, state, error)

    def result(self, state: FrameState, batch: Batch, started: float, record: Record) -> FrameResult:
        """The result of a usable frame. Must be called in the event loop's thread.

        Args:
            started: when the batch began, seconds of `time.perf_counter`.
        """
        self._run_in_loop(state, batch)
        info, job, stages, timings = state.info, state.job, state.stages, state.timings
        assert info is not None
        chosen = job.settings.stages
        outcomes: dict[str, Stage] = {}
        if self._usual_of is not batch.model_set or self._usual_up is not batch.up:
            self._set_usual(batch)
        usual = self._usual
        for name, stage in self._stages:
            if chosen.get(name):
                # Not `setdefault`: `status` is called only where no hook has set an outcome.
                outcome = stages.get(name) or usual.get(name) or _status(stage, state, batch)
            elif stage.live:
                outcome = OFF  # also where it has failed for other frames of the batch
            else:
                continue
            outcomes[name] = outcome
            if outcome.status == "error":
                metrics.STAGE_ERRORS.labels(name).inc()
        timings["queue"] = started - job.frame.received
        timings["total"] = time.perf_counter() - job.frame.received
        record(timings)
        return FrameResult(
            Image(info.width, info.height),
            outcomes,
            # To the microsecond; `round` to a number of digits takes four times as long.
            {name: round(seconds * 1e6) / 1000 for name, seconds in timings.items()},
            **state.parts,
        )


def _status(stage: PipelineStage, state: FrameState, batch: Batch) -> Stage:
    try:
        return stage.status(state, batch)
    except Exception as error:  # as of every hook
        raised(stage, state, error)
        return state.stages[stage.name]


def crowded(state: FrameState) -> bool:
    """Whether `Finisher.run` of this frame belongs in a thread."""
    found = 0
    for what in state.found.values():
        found += len(getattr(what, "confidence", ()))
    return found > CROWD
