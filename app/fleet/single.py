"""One frame through the pipeline's stages in the thread that calls: for mode `sync`, whose client blocks."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import cast

from app import metrics
from app.errors import InferenceError, InferenceUnavailable
from app.fleet.analysis import Memories, Outcome, Troubles, is_stale, job, ocr_settings, outcome, stream_settings
from app.fleet.frames import CameraFrame
from app.inference.blocking import BlockingClient, empty
from app.inference.client import InferenceClient, Reply
from app.inference.memory import Buffer
from app.pipeline.answer import Record, finish
from app.pipeline.batch import Batch, Input, Look, Request
from app.pipeline.frames import Job
from app.pipeline.ocr import Ocr
from app.pipeline.pose import PoseReader
from app.pipeline.prepare import Preparation
from app.pipeline.tensors import InputFormat
from app.pipeline.vision import Vision, describe, trial_picture
from app.pipeline.yolo import DetectReader
from app.protocol.result import FACE, OK, Stage
from app.settings import Settings

log = logging.getLogger(__name__)

_PAUSE_S = 0.2


class SingleAnalysis:
    """Any thread may call it, one at a time for a stream. No text and no faces: theirs are batches and a process."""

    def __init__(self, client: BlockingClient, settings: Settings, record: Record) -> None:
        self._client = client
        self._record = record
        self._settings = settings
        self._preparation = Preparation(settings.pipeline, settings.live)
        self._stream = stream_settings(settings.fleet, settings.pipeline)
        self._faces = "face" in settings.fleet.fleet_stages
        # Off: it is asked for its `off` alone, and never runs.
        off = ocr_settings(settings).model_copy(update={"ocr": "off"})
        self._ocr = Ocr(off, state_dir=settings.server.state_dir)
        self._vision: Vision | None = None
        self._describing = threading.Lock()
        self._away = False
        """The server did not answer at the last try, which was said."""
        self._memories = Memories()
        self._troubles = Troubles()
        self.stopping = False

    def load(self) -> None:
        """Asks for the models, once it can; again after the server was away.

        Raises:
            ModelRejected: a model that we cannot read.
        """
        with self._describing:
            if self._vision is not None:
                return
            try:
                # Never awaits anything: the client blocks. The loop is gone when this returns.
                vision = asyncio.run(describe(cast("InferenceClient", self._client), self._settings.triton))
                for reader in vision.readers:
                    if not reader.told:  # an answer shows what only a shape speaks for
                        picture = Buffer(trial_picture(reader.input), None, None)
                        reader.check(self._client.infer(reader.spec, picture).outputs)
                self._vision = vision
                self._away = False
            except InferenceUnavailable as error:
                if not self._away:  # every thread asks again and again
                    log.warning("waiting for Triton: %s", error)
                self._away = True

    def forget(self, kept: frozenset[str]) -> None:
        """Drops what is remembered of all other streams."""
        self._memories.keep(kept)

    def of(self, frame: CameraFrame) -> Outcome:
        """What became of the frame. Never raises. Waits for an inference server that is away while it is fresh."""
        while True:
            if is_stale(frame, self._settings.fleet.frame_staleness_ms):
                return Outcome(frame, dropped="stale")
            try:
                ended = self._look(frame)
            except Exception as error:
                return Outcome(frame, failure=self._troubles.tell(error, frame.origin.camera_id))
            if ended.failure is None or ended.failure.code != "inference_unavailable" or self.stopping:
                return ended
            self._vision = None
            time.sleep(_PAUSE_S)

    def _look(self, frame: CameraFrame) -> Outcome:
        self.load()
        vision = self._vision
        started = time.perf_counter()
        memory = self._memories.get(frame)
        before = memory.grey
        one = job(frame, memory, self._stream, faces=self._faces)
        batch = _planned(one, vision)
        self._preparation.here(batch, 0)
        (look,) = batch.looks
        if look.error is None:
            for request in batch.requests:
                self._ask(look, request)
        if self._faces:
            look.stages[FACE] = Stage("disabled", "fleet_mode_sync")
        ended = outcome(frame, finish(look, batch, self._ocr, started, self._record))
        if ended.failure is not None:
            memory.grey = before
        return ended

    def _ask(self, look: Look, request: Request) -> None:
        readers = [reader for reader in (request.detect, request.pose) if reader is not None]
        try:
            reply = self._client.infer(readers[0].spec, request.input.buffer)
        except InferenceError as error:
            reason = "inference_unavailable" if isinstance(error, InferenceUnavailable) else str(error)
            look.stages.update(dict.fromkeys(request.stages, Stage("error", reason)))
            return
        metrics.MODEL_BATCH.labels(readers[0].spec.name).observe(1)
        look.timings["infer"] = max(look.timings.get("infer", 0.0), reply.infer_s)
        clock = time.perf_counter()
        self._read(look, request, reply)
        look.time("parse", clock)

    def _read(self, look: Look, request: Request, reply: Reply) -> None:
        box, most, chosen = request.input.boxes[0], self._settings.pipeline.max_detections, self._stream
        limits = {"confidence": chosen.confidence, "iou": chosen.iou}
        if request.detect is not None and chosen.stages.detect:
            look.detected = request.detect.read(reply.outputs, 0, box, **limits, classes=None, max_detections=most)
            metrics.MODEL_FRAMES.labels(self._settings.triton.triton_detect_model).inc()
            look.stages["detect"] = OK
        if request.pose is not None and chosen.stages.pose:
            look.posed = request.pose.read(reply.outputs, 0, box, **limits, classes=None, max_detections=most)
            metrics.MODEL_FRAMES.labels(self._settings.triton.triton_pose_model).inc()
            look.stages["pose"] = OK


def _planned(one: Job, vision: Vision | None) -> Batch:
    """A batch of one frame and the requests it takes: the ensemble where both are wanted and it is served."""
    if vision is None:
        return Batch([Look(one)], Vision(), up=False)
    batch = Batch([Look(one)], vision, up=True)
    detect = vision.detect if one.settings.stages.detect else None
    pose = vision.pose if one.settings.stages.pose else None
    pairs: list[tuple[DetectReader | None, PoseReader | None]]
    if detect and pose:
        pairs = [vision.both] if vision.both is not None else [(detect, None), (None, pose)]
    else:
        pairs = [pair for pair in ((detect, None), (None, pose)) if any(pair)]
    for pair in pairs:
        form = next(reader.input for reader in pair if reader is not None)
        batch.requests.append(Request(_input(batch, form), *pair))
    return batch


def _input(batch: Batch, form: InputFormat) -> Input:
    found = batch.inputs.get(form)
    if found is None:
        found = batch.inputs[form] = Input(form, empty(form.shape(1), form.dtype))
    return found
