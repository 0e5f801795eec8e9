"""`Pipeline.analyze`: the one path from JPEG bytes to results, whichever door they came in by.

Decode, letterbox and flow are one task in a worker thread (their libraries free the GIL); the models
are one request where the ensemble serves; reading, tracking and writing down are a few hundred
microseconds on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import metrics
from app.errors import FrameError, InferenceError, InferenceUnavailable, ModelRejected
from app.inference.client import InferenceClient, Reply
from app.inference.memory import Buffer
from app.pipeline import pose as poses
from app.pipeline import yolo
from app.pipeline.boxes import Letterbox, letterbox
from app.pipeline.decode import JpegInfo, decode_grey, decode_into, inspect, small_grey
from app.pipeline.frames import Job
from app.pipeline.motion import Flow, measure, obstacle
from app.pipeline.ocr import Ocr
from app.pipeline.tensors import InputFormat
from app.pipeline.tracks import StreamTracker, match_poses
from app.pipeline.vision import Vision, describe
from app.protocol.messages import Models
from app.protocol.result import Detection, FrameResult, Image, Motion, Pose, Stage, Text
from app.settings import LiveSettings, PipelineSettings, TritonSettings

log = logging.getLogger(__name__)

OK = Stage("ok")
OFF = Stage("disabled", "off")


@dataclass(slots=True)
class _Look:
    """One frame on its way through a batch."""

    job: Job
    wants_pixels: bool
    info: JpegInfo | None = None
    box: Letterbox | None = None
    grey: NDArray[Any] | None = None
    motion: Motion | None = None
    error: FrameError | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    detected: yolo.Detected | None = None
    posed: poses.Posed | None = None


class Pipeline:
    """Holds no state of any stream: what a stream remembers comes with its `Job`."""

    def __init__(
        self,
        client: InferenceClient,
        ocr: Ocr,
        settings: PipelineSettings,
        triton: TritonSettings,
        limits: LiveSettings,
    ) -> None:
        self.client = client
        self.ocr = ocr
        self._settings = settings
        self._triton = triton
        self._limits = limits
        threads = settings.decode_threads or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._vision = Vision()
        self._generation = 0
        self._describing = asyncio.Lock()
        self._rejected: str | None = None

    def close(self) -> None:
        """Ends the threads; frames under way are finished."""
        self._threads.shutdown(wait=True)

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
                self._vision = await describe(self.client, self._triton)
                self._rejected = None
            except InferenceUnavailable:
                return
            except ModelRejected as error:
                self._vision = Vision()
                self._rejected = str(error)
                raise
            finally:
                self._generation = generation

    @property
    def models(self) -> Models:
        """What is served now."""
        return self._vision.wire(self.ocr.name if self.ocr.available else None)

    @property
    def vision(self) -> Vision:
        return self._vision

    async def analyze(self, jobs: Sequence[Job], *, door: str = "live") -> list[FrameResult | FrameError]:
        """Analyses frames as one batch; answers in their order, an error in the place of a frame that is none.

        Each frame is of another stream, or at least the frames of one stream are never split over two
        calls at a time. A model that fails makes its stage say `error`; the rest of the frame is answered.
        """
        if self.client.up and self.client.generation != self._generation:
            try:
                await self.load()
            except ModelRejected as error:
                log.error("%s", error)
        started = time.perf_counter()
        batch = self._batch([*jobs])
        preparing = asyncio.get_running_loop().run_in_executor(self._threads, self._prepare, batch)
        try:
            await asyncio.shield(preparing)
            await self._infer(batch)
            return [self._finish(look, started, door) for look in batch.looks]
        finally:
            # Cancelled while the thread still writes pixels: the memory is given back when it has done so.
            preparing.add_done_callback(lambda _: batch.release())

    # --- what is needed, and memory for it ---

    def _batch(self, jobs: list[Job]) -> _Batch:
        vision, up = self._vision, self.client.up
        wants_detect = up and vision.detect is not None and any(job.settings.stages.detect for job in jobs)
        wants_pose = up and vision.pose is not None and any(job.settings.stages.pose for job in jobs)
        looks = [_Look(job, wants_detect or wants_pose) for job in jobs]
        batch = _Batch(looks)
        count = len(jobs)
        if wants_detect and wants_pose and vision.both is not None:
            batch.requests.append(_Request(self._memory(batch, vision.both[0].input, count), *vision.both))
            return batch
        if wants_detect and vision.detect is not None:
            batch.requests.append(_Request(self._memory(batch, vision.detect.input, count), vision.detect, None))
        if wants_pose and vision.pose is not None:
            batch.requests.append(_Request(self._memory(batch, vision.pose.input, count), None, vision.pose))
        return batch

    def _memory(self, batch: _Batch, form: InputFormat, count: int) -> _Input:
        """Input memory of this format; one for all models that take the same."""
        found = batch.inputs.get(form)
        if found is None:
            found = batch.inputs[form] = _Input(form, self.client.buffer(form.shape(count), form.dtype))
        return found

    # --- in a worker thread ---

    def _prepare(self, batch: _Batch) -> None:
        for index, look in enumerate(batch.looks):
            try:
                self._look(look, index, batch)
            except FrameError as error:
                look.error = error

    def _look(self, look: _Look, index: int, batch: _Batch) -> None:
        clock = time.perf_counter()
        settings, memory = look.job.settings, look.job.memory
        jpeg = look.job.frame.jpeg
        info = look.info = inspect(jpeg, max_bytes=self._limits.max_frame_bytes, max_pixels=self._limits.max_pixels)
        wants_grey = settings.stages.motion or settings.stages.ocr
        for form, memory_ in batch.inputs.items():
            box = memory_.boxes[index] = letterbox(info.width, info.height, form.width, form.height)
            canvas = memory_.canvas(index)
            decode_into(jpeg, info, box, canvas)
            clock = look_time(look, "decode", clock)
            if wants_grey and look.grey is None:
                look.grey = small_grey(canvas, box)
            form.fill(canvas, memory_.buffer.array[index])
            clock = look_time(look, "prepare", clock)
        if not batch.inputs:
            # Decoded even where nothing wants its pixels: a frame that is none must not pass for one.
            look.grey = decode_grey(jpeg, info)
            clock = look_time(look, "decode", clock)
        if settings.stages.motion:
            self._flow(look)
            look_time(look, "motion", clock)
        if wants_grey:
            memory.grey = look.grey

    def _flow(self, look: _Look) -> None:
        memory, info = look.job.memory, look.info
        assert info is not None
        assert look.grey is not None
        why_not = obstacle(memory.grey, look.grey)
        if why_not is not None:
            look.stages["motion"] = Stage("skipped", why_not)
            return
        assert memory.grey is not None
        if memory.flow is None:
            memory.flow = Flow(self._settings.motion_method)
        flow = memory.flow(memory.grey, look.grey)
        look.motion = measure(
            flow, memory.grey, width=info.width, height=info.height, grid=look.job.settings.motion_grid
        )
        look.stages["motion"] = OK

    # --- at the server ---

    async def _infer(self, batch: _Batch) -> None:
        if not batch.requests or all(look.error for look in batch.looks):
            return
        if len(batch.requests) == 1:
            await self._ask(batch, batch.requests[0])
        else:
            await asyncio.gather(*(self._ask(batch, request) for request in batch.requests))

    async def _ask(self, batch: _Batch, request: _Request) -> None:
        readers = [reader for reader in (request.detect, request.pose) if reader is not None]
        spec = readers[0].spec
        try:
            reply = await self.client.infer(spec, request.input.buffer, stream=batch.looks[0].job.frame.stream)
        except InferenceError as error:
            reason = "inference_unavailable" if isinstance(error, InferenceUnavailable) else str(error)
            for look in batch.looks:
                for stage in request.stages:
                    look.stages[stage] = Stage("error", reason)
            return
        metrics.MODEL_BATCH.labels(spec.name).observe(len(batch.looks))
        parsing = time.perf_counter()
        for index, look in enumerate(batch.looks):
            if look.error is None:
                self._read(look, request, reply, index)
        parse_s = (time.perf_counter() - parsing) / len(batch.looks)
        for look in batch.looks:
            for name, seconds in (("gate", reply.gate_s), ("infer", reply.infer_s)):
                look.timings[name] = max(look.timings.get(name, 0.0), seconds)
            look.timings["parse"] = look.timings.get("parse", 0.0) + parse_s

    def _read(self, look: _Look, request: _Request, reply: Reply, index: int) -> None:
        settings, box = look.job.settings, request.input.boxes[index]
        assert box is not None
        limit = self._settings.max_detections
        if request.detect is not None and settings.stages.detect:
            look.detected = request.detect.read(
                reply.outputs,
                index,
                box,
                confidence=settings.confidence,
                iou=settings.iou,
                classes=None if settings.classes is None else frozenset(settings.classes),
                max_detections=limit,
            )
            metrics.MODEL_FRAMES.labels(self._triton.triton_detect_model).inc()
            look.stages["detect"] = OK
        if request.pose is not None and settings.stages.pose:
            look.posed = request.pose.read(
                reply.outputs,
                index,
                box,
                confidence=settings.confidence,
                iou=settings.iou,
                classes=None,
                max_detections=limit,
            )
            metrics.MODEL_FRAMES.labels(self._triton.triton_pose_model).inc()
            look.stages["pose"] = OK

    # --- the answer ---

    def _finish(self, look: _Look, started: float, door: str) -> FrameResult | FrameError:
        if look.error is not None:
            return look.error
        info, settings = look.info, look.job.settings
        assert info is not None
        clock = time.perf_counter()
        objects, people = self._track(look, (info.width, info.height))
        now = look_time(look, "parse", clock)
        stages = look.stages
        texts: list[Text] = []
        if settings.stages.ocr:
            texts, stages["ocr"] = self.ocr.attach(look.job.memory.ocr, look.job.frame.jpeg, look.grey, now=now)
        self._say(look)
        look.timings["queue"] = started - look.job.frame.received
        look.timings["total"] = time.perf_counter() - look.job.frame.received
        for name, seconds in look.timings.items():
            metrics.STAGE_SECONDS.labels(door, name).observe(seconds)
        return FrameResult(
            image=Image(info.width, info.height),
            objects=objects,
            poses=people,
            texts=texts,
            motion=look.motion,
            stages={name: stages[name] for name in ("detect", "pose", "ocr", "motion", "track")},
            timings_ms={name: round(seconds * 1000, 3) for name, seconds in look.timings.items()},
        )

    def _track(self, look: _Look, size: tuple[int, int]) -> tuple[list[Detection], list[Pose]]:
        """Track ids for what was found; poses take theirs from the persons that they lie on."""
        detected, posed, memory = look.detected, look.posed, look.job.memory
        object_ids = pose_ids = None
        if look.job.settings.stages.track and (detected is not None or posed is not None):
            if memory.tracker is None or memory.size != size:
                memory.tracker, memory.size = StreamTracker(), size
            if detected is not None:
                object_ids = memory.tracker.update(detected.xyxy, detected.confidence, detected.class_id)
                if posed is not None:
                    pose_ids = match_poses(posed, detected, object_ids, self._vision.persons)
            elif posed is not None:
                pose_ids = memory.tracker.update(posed.xyxy, posed.confidence, np.zeros(len(posed.xyxy), np.int32))
            look.stages["track"] = OK
        names = self._vision.detect.class_names if self._vision.detect else ()
        objects = [] if detected is None else yolo.detections(detected, object_ids, names)
        people = [] if posed is None else poses.poses(posed, pose_ids)
        return objects, people

    def _say(self, look: _Look) -> None:
        """Every stage says how it went, also those that did not run."""
        chosen, stages, vision = look.job.settings.stages, look.stages, self._vision
        for name, wanted, served in (
            ("detect", chosen.detect, vision.detect),
            ("pose", chosen.pose, vision.pose),
        ):
            if not wanted:
                stages[name] = OFF
            elif name not in stages:
                stages[name] = self._missing(served is not None)
        for name, wanted in (("ocr", chosen.ocr), ("motion", chosen.motion), ("track", chosen.track)):
            if not wanted:
                stages[name] = OFF
        stages.setdefault("track", Stage("skipped", "nothing_detected_on"))
        for name, stage in stages.items():
            if stage.status == "error":
                metrics.STAGE_ERRORS.labels(name).inc()

    def _missing(self, served: bool) -> Stage:
        if not self.client.up or served:
            return Stage("error", "inference_unavailable")
        return Stage("disabled", self._rejected or "not_served")


def look_time(look: _Look, name: str, since: float) -> float:
    """Adds what has passed since to the timing; returns now."""
    now = time.perf_counter()
    look.timings[name] = look.timings.get(name, 0.0) + now - since
    return now


@dataclass(slots=True)
class _Input:
    """One input tensor of a batch, and how each frame was laid into it."""

    form: InputFormat
    buffer: Buffer
    boxes: dict[int, Letterbox] = field(default_factory=dict)

    def canvas(self, index: int) -> NDArray[np.uint8]:
        """Where to decode to: the tensor itself where it takes UINT8 NHWC, else a picture to be filled in from."""
        if self.form.is_image:
            canvas: NDArray[np.uint8] = self.buffer.array[index]
            return canvas
        return np.empty((self.form.height, self.form.width, 3), np.uint8)


@dataclass(slots=True)
class _Request:
    input: _Input
    detect: yolo.DetectReader | None
    pose: poses.PoseReader | None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(name for name, reader in (("detect", self.detect), ("pose", self.pose)) if reader is not None)


@dataclass(slots=True)
class _Batch:
    looks: list[_Look]
    inputs: dict[InputFormat, _Input] = field(default_factory=dict)
    requests: list[_Request] = field(default_factory=list)

    def release(self) -> None:
        for one in self.inputs.values():
            one.buffer.release()
