"""`Pipeline.analyze`: the one path from JPEG bytes to results, whichever door they came in by.

Decode, letterbox and flow are one task in a worker thread (their libraries free the GIL), with a budget of CPU
time; the models are one request where the ensemble serves; reading, tracking and writing down are some hundred
microseconds on the event loop, or a thread's work where there is a crowd.
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

from app.errors import FrameError, InferenceError, InferenceTimeout, InferenceUnavailable, ModelRejected
from app.inference.client import InferenceClient, ModelSpec, Reply
from app.pipeline.answer import Record, finish, recorder, write_all
from app.pipeline.batch import Batch, Input, Look, Request
from app.pipeline.faces import FaceStage
from app.pipeline.frames import Job
from app.pipeline.ocr import Ocr
from app.pipeline.pose import PoseReader
from app.pipeline.prepare import Preparation, heavy
from app.pipeline.reading import count, crowded, read, scan
from app.pipeline.tensors import InputFormat
from app.pipeline.threads import Piece, Threads, Work
from app.pipeline.turns import Turn
from app.pipeline.vision import Vision, describe, trial_picture
from app.pipeline.watch import ModelWatch
from app.pipeline.yolo import DetectReader
from app.protocol.messages import Models
from app.protocol.result import FrameResult, Stage
from app.settings import FleetSettings, LiveSettings, PipelineSettings, TritonSettings

log = logging.getLogger(__name__)


class Pipeline:
    """Holds no state of any stream: what a stream remembers comes with its `Job`.

    Args:
        faces: for a door that has faces embedded (`Job.faces`); None: the server is never asked for such a model.
    """

    def __init__(
        self,
        client: InferenceClient,
        ocr: Ocr,
        settings: PipelineSettings,
        triton: TritonSettings,
        limits: LiveSettings,
        faces: FleetSettings | None = None,
    ) -> None:
        self.client = client
        self.ocr = ocr
        self._settings = settings
        self._triton = triton
        self._limits = limits
        self._cores = len(os.sched_getaffinity(0))
        self._preparation = Preparation(settings, limits)
        budget_s = self._preparation.budget_s
        self._threads = Threads(settings.decode_threads or max(2, self._cores), "decode", budget_s)
        self._slow = Threads(max(2, self._cores // 2), "decode-heavy", budget_s)
        """For frames that are costly by what their headers say: no other waits behind them."""
        self._faces = FaceStage(client, self._threads, self._preparation, faces) if faces is not None else None
        self._vision = Vision()
        self._generation = 0
        self._describing = asyncio.Lock()
        self.watch = ModelWatch(triton.triton_deadline_s)
        self.most_together = sys.maxsize
        """Frames that a caller who may choose should put in one call: half of a batch that the server refused whole."""

    def close(self) -> None:
        """Ends the threads; frames under way are finished, except what would take long."""
        self._threads.close()
        self._slow.close()

    async def load(self) -> None:
        """Describes the models, again after every reconnection. Does nothing while the server is away.

        Raises:
            ModelRejected: a model that we cannot read.
        """
        async with self._describing:
            generation = self.client.generation
            if not self.client.up or generation == self._generation:
                return
            try:
                face_model = self._faces.model if self._faces is not None else None
                vision = await describe(self.client, self._triton, face_model)
                self.watch.forget()
                # What only a shape speaks for has to show what it is before a frame is read by it.
                await self._try([reader for reader in vision.readers if not reader.told])
                self._vision = vision
            except InferenceUnavailable:
                return  # asked again soon, and with the next frame
            except ModelRejected as error:
                self._vision = Vision(rejected=str(error))
                self._generation = generation
                raise
            self._generation = generation
            self.most_together = sys.maxsize

    async def try_models(self) -> None:
        """Asks every model, or only those that fail, about one picture: `watch` then knows which answer.

        Raises:
            ModelRejected: an answer shows that a model is of another layout than its shape was taken for.
        """
        failing = self.watch.failing
        try:
            await self._try([one for one in self._vision.readers if not failing or one.spec.name in failing])
        except ModelRejected as error:
            self._vision = Vision(rejected=str(error))
            raise

    async def _try(self, readers: Sequence[DetectReader | PoseReader]) -> None:
        for reader, reply in zip(readers, await asyncio.gather(*map(self._trial, readers)), strict=True):
            if reply is not None:
                reader.check(reply)

    async def _trial(self, reader: DetectReader | PoseReader) -> dict[str, NDArray[Any]] | None:
        """A copy of what it answers; None where it does not, which `watch` is told."""
        form, name = reader.input, reader.spec.name
        buffer = self.client.buffer(form.shape(1), form.dtype)
        try:
            buffer.array[...] = trial_picture(form)
            if buffer.slot is not None:
                buffer.slot.borders.clear()  # painted over
            reply = await self.client.infer(reader.spec, buffer, stream="trial")
        except InferenceUnavailable:
            return None  # the server went; there will be another trial when it is back
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
        """Whether the server is there and all that it serves answers."""
        return self.described and not self.watch.failing

    @property
    def described(self) -> bool:
        """Whether the server is there and has said what it serves."""
        return self.client.up and self.client.generation == self._generation

    @property
    def models(self) -> Models:
        """What is served now."""
        vision = self._vision if self.client.up else Vision()
        return vision.wire(self.ocr.name if self.ocr.available else None)

    @property
    def vision(self) -> Vision:
        """What was served last, also while the server is away."""
        return self._vision

    @property
    def busy(self) -> bool:
        """Whether every core, or thread, has a frame to prepare: what is handed in now would only wait for one."""
        return self._threads.busy >= min(self._cores, len(self._threads))

    def when_less_busy(self, call: Callable[[], None]) -> None:
        """`call` is called in the loop whenever a thread has done its work."""
        self._threads.on_done = call

    async def analyze(
        self, jobs: Sequence[Job], *, door: str = "live", record: Record | None = None, turn: Turn | None = None
    ) -> list[FrameResult | FrameError]:
        """Analyses frames as one batch; answers in their order, an error in the place of a frame that is none.

        Each frame is of another stream, or at least the frames of one stream are never split over two
        calls at a time, unless their turns keep the calls in order. More frames than a model takes at once
        go one batch after the other. A model that fails makes its stage say `error`; the rest of the frame
        is answered.

        Args:
            door: which door's stage times these are.
            record: takes them instead, for a door that adds them up before they touch a metric.
            turn: where streams have several calls at a time. See `Turn`.
        """
        if self.client.up and self.client.generation != self._generation:
            try:
                await self.load()
            except ModelRejected as error:
                log.error("%s", error)
        record = record or recorder(door)
        most = self._vision.max_batch
        if len(jobs) <= most:
            return await self._analyze(jobs, record, turn)
        if turn is not None:
            await turn.finish()  # several batches do not overlap with another call's
        parts = [jobs[at : at + most] for at in range(0, len(jobs), most)]
        return [answer for part in parts for answer in await self._analyze(part, record, turn, whole=False)]

    async def _analyze(
        self, jobs: Sequence[Job], record: Record, turn: Turn | None, *, whole: bool = True
    ) -> list[FrameResult | FrameError]:
        """One batch; all of its turn, or a part."""
        if turn is not None:
            await turn.prepare()
        started = time.perf_counter()
        batch = self._batch([*jobs])
        try:
            await self._prepare(batch, turn)
            if turn is not None and whole:
                turn.prepared()
            await self._infer(batch)
            if self._faces is not None:
                await self._faces.run(batch)
            if turn is not None:
                await turn.finish()
            if any(map(crowded, batch.looks)):
                await self._thread(batch, partial(write_all, batch), turn=turn)
            return [finish(look, batch, self.ocr, started, record) for look in batch.looks]
        finally:
            batch.release()

    # --- what is needed, and memory for it ---

    def _batch(self, jobs: list[Job]) -> Batch:
        vision, up = self._vision, self.client.up
        wants_detect = up and vision.detect is not None and any(job.settings.stages.detect for job in jobs)
        wants_pose = up and vision.pose is not None and any(job.settings.stages.pose for job in jobs)
        batch = Batch([Look(job) for job in jobs], vision, up)
        count = len(jobs)
        if wants_detect and wants_pose and vision.both is not None:
            batch.requests.append(Request(self._memory(batch, vision.both[0].input, count), *vision.both))
            return batch
        if wants_detect and vision.detect is not None:
            batch.requests.append(Request(self._memory(batch, vision.detect.input, count), vision.detect, None))
        if wants_pose and vision.pose is not None:
            batch.requests.append(Request(self._memory(batch, vision.pose.input, count), None, vision.pose))
        return batch

    async def _prepare(self, batch: Batch, turn: Turn | None) -> None:
        """The idle threads share the frames, but one stream's stay together and in order."""
        streams: dict[int, list[int]] = {}
        for index, look in enumerate(batch.looks):
            streams.setdefault(id(look.job.memory), []).append(index)
        own = [*streams.values()]
        slow = [frames for frames in own if any(heavy(batch.looks[index].job) for index in frames)]
        quick = [frames for frames in own if frames not in slow] if slow else own
        parts = max(1, min(len(quick), self._cores, self._threads.idle))
        shares = [list(chain.from_iterable(quick[part::parts])) for part in range(parts)] if quick else []
        piece = partial(self._preparation.piece, batch)
        work: list[Work | list[Piece]] = [[piece(index) for index in share] for share in shares]
        heavies = [[piece(index) for index in frames] for frames in slow]
        if not heavies:
            await self._thread(batch, *work, turn=turn)
        elif not work:
            await self._thread(batch, *heavies, turn=turn, threads=self._slow)
        else:
            await asyncio.gather(
                self._thread(batch, *work, turn=turn),
                self._thread(batch, *heavies, turn=turn, threads=self._slow),
            )

    def _memory(self, batch: Batch, form: InputFormat, count: int) -> Input:
        """Input memory of this format; one for all models that take the same."""
        found = batch.inputs.get(form)
        if found is None:
            found = batch.inputs[form] = Input(form, self.client.buffer(form.shape(count), form.dtype))
        return found

    # --- at the server ---

    async def _infer(self, batch: Batch) -> None:
        if not batch.requests or all(look.error for look in batch.looks):
            return
        if len(batch.requests) == 1:
            await self._ask(batch, batch.requests[0])
        else:
            await asyncio.gather(*(self._ask(batch, request) for request in batch.requests))

    async def _ask(self, batch: Batch, request: Request) -> None:
        readers = [reader for reader in (request.detect, request.pose) if reader is not None]
        spec = readers[0].spec
        try:
            reply = await self._reply(spec, request, batch.looks[0].job)
        except InferenceError as error:
            reason = "inference_unavailable" if isinstance(error, InferenceUnavailable) else str(error)
            self._refused(len(batch.looks), error)
            if not isinstance(error, InferenceUnavailable):
                self.watch.failed(spec.name, str(error), time.monotonic())
            for look in batch.looks:
                for stage in request.stages:
                    look.stages[stage] = Stage("error", reason)
            return
        self.watch.answered(spec.name)
        parsing = time.perf_counter()
        seen = scan(batch, request, reply)
        reading = partial(read, batch, request, reply, seen, self._settings.max_detections)
        if seen.heavy:
            await self._thread(batch, reading)
        else:
            reading()
        count(
            batch,
            request,
            detect=self._triton.triton_detect_model,
            pose=self._triton.triton_pose_model,
            model=spec.name,
        )
        parse_s = (time.perf_counter() - parsing) / len(batch.looks)
        for look in batch.looks:
            for name, seconds in (("gate", reply.gate_s), ("infer", reply.infer_s)):
                look.timings[name] = max(look.timings.get(name, 0.0), seconds)
            look.timings["parse"] = look.timings.get("parse", 0.0) + parse_s

    async def _reply(self, spec: ModelSpec, request: Request, first: Job) -> Reply:
        buffer, stream, deadline_s = request.input.buffer, first.frame.stream, first.deadline_s
        if deadline_s is None:
            return await self.client.infer(spec, buffer, stream=stream)
        try:
            return await self.client.infer(spec, buffer, stream=stream, deadline_s=deadline_s)
        except InferenceTimeout as error:
            log.warning("%s; asked once more", error)
        try:
            return await self.client.infer(spec, buffer, stream=stream, deadline_s=deadline_s)
        except InferenceTimeout as error:
            raise InferenceUnavailable(str(error)) from None

    def _refused(self, frames: int, error: InferenceError) -> None:
        """A server that is away or late says nothing about a batch's size."""
        if 1 < frames < 2 * self.most_together and not isinstance(error, (InferenceUnavailable, InferenceTimeout)):
            self.most_together = frames // 2
            log.warning("a batch of %d was refused: %s", frames, error)

    async def _thread(
        self,
        batch: Batch,
        *work: Work | list[Piece],
        turn: Turn | None = None,
        threads: Threads | None = None,
    ) -> None:
        """Has threads do it. Where that is cancelled they go on: until they are done the batch's memory is kept, and
        whoever comes after `turn` waits.
        """
        batch.hold()
        working = (threads or self._threads).run(*work)
        working.add_done_callback(lambda _: batch.release())
        if turn is not None:
            turn.work()
            working.add_done_callback(lambda _: turn.rest())
        await asyncio.shield(working)
