"""`Pipeline.analyze`: the one way from a frame's bytes to its result, for every entry point.

A batch of frames is decoded, letterboxed and searched for motion in worker threads, whose libraries free the GIL; a
budget of CPU time bounds each frame. The models answer in one request where the server has the ensemble. Reading the
reply, tracking and building the results take some hundred microseconds on the event loop, or run in a thread where
there are many objects.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from numpy.typing import NDArray

from app import metrics
from app.errors import FrameError, InferenceError, InferenceTimeout, InferenceUnavailable, ModelRejected
from app.inference.client import InferenceClient, ModelSpec, Reply
from app.pipeline.layouts import InputFormat
from app.pipeline.models import ModelSet, ModelWatch, describe, trial_image
from app.pipeline.ordering import Ticket
from app.pipeline.postprocess import Finisher, Record, count, crowded, read, recorder, scan
from app.pipeline.preprocess import Piece, Preprocessor, Threads, Work, heavy
from app.pipeline.registry import create
from app.pipeline.stage import (
    UNAVAILABLE,
    ModelReader,
    PipelineStage,
    StageHost,
    asked,
    defines,
    failure,
    raised,
    reason_of,
)
from app.pipeline.types import Batch, FrameJob, FrameState, Input, Request, StreamMemory
from app.protocol.messages import Models
from app.protocol.result import FrameResult, Stage
from app.settings import Settings

log = logging.getLogger(__name__)


class Pipeline:
    """Analyses frames. Holds no state of any stream: the stream's memory comes with each `FrameJob`.

    Args:
        stages: those that the entry point may run (`registry.create`); None: those of live streams.
    """

    def __init__(
        self, client: InferenceClient, settings: Settings, stages: Sequence[PipelineStage] | None = None
    ) -> None:
        self.client = client
        self.stages = create(settings) if stages is None else list(stages)
        self._by_name = {stage.name: stage for stage in self.stages}
        self._settings = settings.pipeline
        self._triton = settings.triton
        self._cores = len(os.sched_getaffinity(0))
        self._preprocessor = Preprocessor(settings.pipeline, settings.live, self.stages)
        budget_s = self._preprocessor.budget_s
        self._threads = Threads(settings.pipeline.decode_threads or max(2, self._cores), "decode", budget_s)
        self._slow = Threads(max(2, self._cores // 2), "decode-heavy", budget_s)
        """For frames whose headers show that they are costly, so that no other frame waits behind them."""
        host = StageHost(client, self._threads, self._preprocessor)
        for stage in self.stages:
            stage.host = host
        self._finisher = Finisher(self.stages)
        self._running = [stage for stage in self.stages if defines(stage, "run")]
        self._keeping_images = [stage.name for stage in self.stages if defines(stage, "prepare")]
        self._model_stages = [stage.name for stage in self.stages if stage.whole_frames and stage.model() is not None]
        self._plug_ins = frozenset(stage.name for stage in self.stages if stage.plug_in)
        self._model_set = ModelSet()
        self._generation = 0
        self._describing = asyncio.Lock()
        self.watch = ModelWatch(settings.triton.triton_deadline_s)
        self.most_together = sys.maxsize
        """Most frames that a caller should put in one call, where it can choose: unlimited until the server refuses a
        batch, then half of that batch."""

    def close(self) -> None:
        """Ends the threads. Finishes frames under way, but waits no longer than a second for any pool of threads."""
        self._threads.close()
        self._slow.close()
        self._finisher.close()

    async def analyze(
        self,
        jobs: Sequence[FrameJob],
        *,
        entry: str = "live",
        record: Record | None = None,
        ticket: Ticket | None = None,
    ) -> list[FrameResult | FrameError]:
        """Analyses frames as one batch. Returns one answer a frame, in order: a result, or the error of that frame.

        Frames of one stream must not be in two calls at a time, unless tickets keep the calls in order. If there are
        more frames than a model takes at once, they go as several batches, one after the other. When a model fails, its
        stage has the status `error`, and the other stages still have their results.

        Args:
            jobs: the frames; those of one stream in their order.
            entry: the entry point, which is the label of the stage times.
            record: receives the stage times instead, for an entry point that sums them up before they reach a metric.
            ticket: the call's place in the order, where streams have several calls at a time. See `Ticket`.
        """
        if self.client.up and self.client.generation != self._generation:
            try:
                await self.load()
            except ModelRejected as error:
                log.error("%s", error)
        record = record or recorder(entry)
        most = self._model_set.max_batch
        if len(jobs) <= most:
            return await self._analyze(jobs, record, ticket)
        if ticket is not None:
            await ticket.finish()  # several batches must not overlap with those of another call
        parts = [jobs[at : at + most] for at in range(0, len(jobs), most)]
        return [answer for part in parts for answer in await self._analyze(part, record, ticket, whole=False)]

    async def _analyze(
        self, jobs: Sequence[FrameJob], record: Record, ticket: Ticket | None, *, whole: bool = True
    ) -> list[FrameResult | FrameError]:
        """Analyses one batch, which holds all frames of the call (`whole`) or a part of them."""
        if ticket is not None:
            await ticket.prepare()
        started = time.perf_counter()
        batch = self._plan(jobs)
        try:
            await self._prepare(batch, ticket)
            if ticket is not None and whole:
                ticket.prepared()
            await self._infer(batch)
            for stage in self._running:
                if batch.up and (stage.name in batch.model_set.readers or not stage.has_model):
                    await self._run(stage, batch)
            if ticket is not None:
                await ticket.finish()
            if any(map(crowded, batch.frames)):
                await self._in_threads(batch, partial(self._finisher.run_all, batch), ticket=ticket)
            if self._finisher.threads:
                await self._finisher.run_threads(batch)
            return [
                self._finisher.result(state, batch, started, record) if state.error is None else state.error
                for state in batch.frames
            ]
        finally:
            batch.release()

    # --- plan: the requests that the batch needs, and their input memory ---

    def _plan(self, jobs: Sequence[FrameJob]) -> Batch:
        models, up = self._model_set, self.client.up
        batch = Batch([FrameState(job, index) for index, job in enumerate(jobs)], models, up, self._by_name)
        if up:
            chosen = [job.settings.stages for job in jobs]
            wanted = {
                name: reader for name, reader in models.whole.items() if True in [stages.get(name) for stages in chosen]
            }
            for readers in models.requests.get(tuple(wanted)) or models.request(wanted):
                first = next(iter(readers.values()))
                batch.requests.append(Request(first.spec, self._memory(batch, first.input), readers))
        return batch

    def _memory(self, batch: Batch, form: InputFormat) -> Input:
        """Input memory of this format; models with the same format share it."""
        found = batch.inputs.get(form)
        if found is None:
            buffer = self.client.buffer(form.shape(len(batch.frames)), form.dtype)
            found = batch.inputs[form] = Input(form, buffer)
        return found

    # --- prepare: in worker threads ---

    async def _prepare(self, batch: Batch, ticket: Ticket | None) -> None:
        """Divides the frames among the idle threads. Frames of one stream stay together and in order."""
        piece = partial(self._preprocessor.piece, batch)
        if len(batch.frames) == 1:
            threads = self._slow if heavy(batch.frames[0].job) else self._threads
            await self._in_threads(batch, [piece(0)], ticket=ticket, threads=threads)
            return
        streams: dict[int, list[int]] = {}
        for index, state in enumerate(batch.frames):
            streams.setdefault(id(state.job.memory), []).append(index)
        own = [*streams.values()]
        slow = [frames for frames in own if any(heavy(batch.frames[index].job) for index in frames)]
        quick = [frames for frames in own if frames not in slow] if slow else own
        parts = max(1, min(len(quick), self._cores, self._threads.idle))
        shares = [list(chain.from_iterable(quick[part::parts])) for part in range(parts)] if quick else []
        work: list[Work | list[Piece]] = [[piece(index) for index in share] for share in shares]
        heavies = [[piece(index) for index in frames] for frames in slow]
        if not heavies:
            await self._in_threads(batch, *work, ticket=ticket)
        elif not work:
            await self._in_threads(batch, *heavies, ticket=ticket, threads=self._slow)
        else:
            await asyncio.gather(
                self._in_threads(batch, *work, ticket=ticket),
                self._in_threads(batch, *heavies, ticket=ticket, threads=self._slow),
            )

    def _in_threads(
        self,
        batch: Batch,
        *work: Work | list[Piece],
        ticket: Ticket | None = None,
        threads: Threads | None = None,
    ) -> asyncio.Future[None]:
        """Runs the work in threads; await the future at once. Cancelling does not stop the threads.

        Until they are done, the batch's memory is held and calls after `ticket` wait.
        """
        batch.hold()
        working = (threads or self._threads).run(*work)
        if ticket is not None:
            ticket.work()

        def done(_: asyncio.Future[None]) -> None:
            batch.release()
            if ticket is not None:
                ticket.rest()

        working.add_done_callback(done)
        return asyncio.shield(working)

    # --- infer: one request a model, or one for all, and reading the reply ---

    async def _infer(self, batch: Batch) -> None:
        if not batch.requests or None not in [state.error for state in batch.frames]:
            return
        if len(batch.requests) == 1:
            await self._ask(batch, batch.requests[0])
        else:
            await asyncio.gather(*(self._ask(batch, request) for request in batch.requests))

    async def _ask(self, batch: Batch, request: Request) -> None:
        spec, frames = request.spec, batch.frames
        try:
            reply = await self._reply(spec, request, frames[0].job)
        except InferenceError as error:
            away = isinstance(error, InferenceUnavailable)
            self._refused(len(frames), error)
            if not away:
                self.watch.failed(spec.name, str(error), time.monotonic())
            failed = Stage("error", UNAVAILABLE if away else str(error))
            for state in frames:
                state.stages.update(dict.fromkeys(request.readers, failed))
            return
        if self.watch.suspects:
            self.watch.answered(spec.name)
        parsing = time.perf_counter()
        seen = scan(batch, request, reply)
        if seen.heavy:
            most = self._settings.max_detections
            await self._in_threads(batch, partial(read, batch, request, reply, seen, most))
        else:
            read(batch, request, reply, seen, self._settings.max_detections)
        count(batch, request)
        parse_s = (time.perf_counter() - parsing) / len(frames)
        for state in frames:
            timings = state.timings
            timings["gate"] = max(timings.get("gate", 0.0), reply.gate_s)
            timings["infer"] = max(timings.get("infer", 0.0), reply.infer_s)
            timings["parse"] = timings.get("parse", 0.0) + parse_s

    async def _reply(self, spec: ModelSpec, request: Request, first: FrameJob) -> Reply:
        buffer, stream, deadline_s = request.input.buffer, first.frame.stream, first.deadline_s
        if deadline_s is None:
            return await self.client.infer(spec, buffer, stream=stream)
        try:
            return await self.client.infer(spec, buffer, stream=stream, deadline_s=deadline_s)
        except InferenceTimeout as error:
            log.warning("%s; the request is repeated once", error)
        try:
            return await self.client.infer(spec, buffer, stream=stream, deadline_s=deadline_s)
        except InferenceTimeout as error:
            raise InferenceUnavailable(str(error)) from None

    async def _run(self, stage: PipelineStage, batch: Batch) -> None:
        """Runs a stage's `run`; that of a plug-in with a time limit: twice that of a request to a model."""
        limit_s = 2 * (batch.frames[0].job.deadline_s or self._triton.triton_deadline_s) if stage.plug_in else None
        try:
            async with asyncio.timeout(limit_s) as clock:
                await stage.run(batch)
        except Exception as error:  # whatever a stage raises must not cost the others their results
            states = [state for state in batch.frames if state.error is None]
            wanting = [state for state in states if state.job.settings.stages.get(stage.name)]
            late = clock.expired()
            if late:
                metrics.STAGE_FRAMES_WITHOUT.labels(stage.name, "late").inc(len(wanting))
            for state in wanting:
                raised(stage, state, TimeoutError(f"it took more than {limit_s:g} s") if late else error)

    def _refused(self, frames: int, error: InferenceError) -> None:
        """Halves `most_together` after a refused batch. A server that is away or late has not refused the size."""
        if 1 < frames < 2 * self.most_together and not isinstance(error, (InferenceUnavailable, InferenceTimeout)):
            self.most_together = frames // 2
            log.warning("a batch of %d was refused: %s", frames, error)

    # --- the stages' own parts ---

    def forget(self, memory: StreamMemory) -> None:
        """Drops the work that stages have queued for a stream that has ended."""
        for stage in self.stages:
            asked(stage, stage.forget, memory)

    def without_image(self, memory: StreamMemory) -> StreamMemory:
        """A memory for analysing a frame of the stream once more, alone, while its next frame may be under way.

        It lacks what threads use: the last image. What it gains goes back by `keep`.
        """
        return StreamMemory(
            # Of a copy, because a thread may add a part meanwhile.
            parts={name: part for name, part in memory.parts.copy().items() if name not in self._keeping_images}
        )

    def keep(self, memory: StreamMemory, alone: StreamMemory) -> None:
        """Adds to a memory what its copy, from `without_image`, has gained."""
        for name, part in alone.parts.items():
            if name not in self._keeping_images:
                memory.parts.setdefault(name, part)

    async def settle(self, job: FrameJob, result: FrameResult) -> FrameResult:
        """The result of an image that stands alone, with what the stages compute beside the frames."""
        for stage in self.stages:
            if job.settings.stages.get(stage.name):
                try:
                    result = await stage.settle(job, result)
                except Exception as error:  # whatever a stage raises must not cost the others their results
                    metrics.STAGE_ERRORS.labels(stage.name).inc()
                    result = result.replace(stages={**result.stages, stage.name: failure(stage, error)})
        return result

    @property
    def model_stages(self) -> list[str]:
        """Stages that read whole frames by a model."""
        return self._model_stages

    @property
    def plug_ins(self) -> frozenset[str]:
        """Stages from outside: an error of their own costs a frame their part alone."""
        return self._plug_ins

    def health(self) -> dict[str, dict[str, Any]]:
        """By stage: the state of the parts that it runs beside the inference server."""
        return {stage.name: health for stage in self.stages if (health := asked(stage, stage.health)) is not None}

    @property
    def broken(self) -> dict[str, str]:
        """By stage: why the part that it runs beside the inference server fails now."""
        return {stage.name: reason for stage in self.stages if (reason := asked(stage, getattr, stage, "broken"))}

    # --- how busy the threads are ---

    @property
    def busy(self) -> bool:
        """Whether every core, or every thread, has a frame to prepare: a further frame would only wait for one."""
        return self._threads.busy >= min(self._cores, self._threads.count)

    def when_less_busy(self, call: Callable[[], None]) -> None:
        """Registers `call`, which is called in the event loop whenever a thread has finished its work."""
        self._threads.on_done = call

    # --- which models are served, and whether they answer ---

    async def load(self) -> None:
        """Describes the models, again after each reconnection. Does nothing while the server is away.

        Raises:
            ModelRejected: no reader knows a model.
        """
        async with self._describing:
            generation = self.client.generation
            if not self.client.up or generation == self._generation:
                return
            try:
                models = await describe(self.client, self._triton.triton_ensemble, self.stages)
                self.watch.forget()
                # Where only the shape suggests a layout, an answer of the model must confirm it before it is used.
                self._model_set = await self._try(models, lambda reader: not reader.declared)
            except InferenceUnavailable:
                return  # loading is tried again soon, and with the next frame
            except ModelRejected as error:
                self._model_set = ModelSet(refusal=str(error))
                self._generation = generation
                raise
            self._generation = generation
            self.most_together = sys.maxsize

    async def try_models(self) -> None:
        """Sends one image to every model, or only to those that fail, so that `watch` knows which models answer.

        Raises:
            ModelRejected: an answer shows that a model has another layout than its shape suggested.
        """
        failing = self.watch.failing
        try:
            self._model_set = await self._try(
                self._model_set, lambda reader: not failing or reader.spec.name in failing
            )
        except ModelRejected as error:
            self._model_set = ModelSet(refusal=str(error))
            raise

    async def _try(self, models: ModelSet, chosen: Callable[[ModelReader], bool]) -> ModelSet:
        """Tries the chosen models; returns those models of the set whose answers can be read.

        Raises:
            ModelRejected: the answer of a model cannot be read. The model of a plug-in is left out instead.
        """
        tried = [(name, reader) for name, reader in models.tried if chosen(reader)]
        replies = await asyncio.gather(*[self._trial(reader) for _, reader in tried])
        for (name, reader), reply in zip(tried, replies, strict=True):
            if reply is None:
                continue
            try:
                reader.check(reply)
            except Exception as error:
                if not self._by_name[name].plug_in:
                    raise
                log.error("stage %s cannot use its model", name, exc_info=error)
                models = models.without(name, str(error) if isinstance(error, ModelRejected) else reason_of(error))
        return models

    async def _trial(self, reader: ModelReader) -> dict[str, NDArray[Any]] | None:
        """A copy of the model's answer to one image. None without an answer; `watch` then counts it as failing."""
        form, name = reader.input, reader.spec.name
        buffer = self.client.buffer(form.shape(1), form.dtype)
        try:
            buffer.array[...] = trial_image(form)
            if buffer.slot is not None:
                buffer.slot.borders.clear()  # the image covers them
            reply = await self.client.infer(reader.spec, buffer, stream="trial")
        except InferenceUnavailable:
            return None  # the server is away; there will be another trial after it is back
        except InferenceError as error:
            self.watch.failed(name, str(error), time.monotonic(), trial=True)
            return None
        else:
            self.watch.answered(name)
            return {key: value.copy() for key, value in reply.outputs.items()}
        finally:
            buffer.release()

    @property
    def well(self) -> bool:
        """Whether the server is connected and all its models answer."""
        return self.described and not self.watch.failing

    @property
    def described(self) -> bool:
        """Whether the server is connected and has described its models."""
        return self.client.up and self.client.generation == self._generation

    @property
    def models(self) -> Models:
        """The models that are served now, for clients."""
        readers = self._model_set.readers if self.client.up else {}
        return Models(
            {stage.name: asked(stage, stage.offer, readers) for stage in self.stages if stage.model_type is not None}
        )

    @property
    def model_set(self) -> ModelSet:
        """The models that were served last, also while the server is away."""
        return self._model_set
