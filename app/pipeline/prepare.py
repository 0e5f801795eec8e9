"""From JPEG bytes to input tensors, the small grey picture and the flow: the part of a frame that threads do.

A frame that came decoded is laid where the others are decoded to.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from app.errors import FrameError
from app.pipeline.batch import Batch, Look
from app.pipeline.boxes import letterbox
from app.pipeline.decode import decode_grey, decode_into, described, grey_of, inspect, lay_into, small_grey
from app.pipeline.motion import Flow, Method, measure, obstacle
from app.protocol.result import OK, Stage
from app.settings import LiveSettings


def prepare(batch: Batch, frames: Iterable[int], limits: LiveSettings, method: Method) -> None:
    """Decodes these frames into the batch's input memory and computes their flow; the work of one thread."""
    for index in frames:
        look = batch.looks[index]
        try:
            _look(look, index, batch, limits, method)
        except FrameError as error:
            look.error = error


def _look(look: Look, index: int, batch: Batch, limits: LiveSettings, method: Method) -> None:
    clock = time.perf_counter()
    settings, memory = look.job.settings, look.job.memory
    jpeg, pixels = look.job.frame.jpeg, look.job.frame.pixels
    if pixels is None:
        info = inspect(jpeg, max_bytes=limits.max_frame_bytes, max_pixels=limits.max_pixels)
    else:
        info = described(pixels, max_pixels=limits.max_pixels)
    look.info = info
    wants_grey = settings.stages.motion or settings.stages.ocr
    for form, tensor in batch.inputs.items():
        box = letterbox(info.width, info.height, form.width, form.height)
        border = tensor.place(index, box)
        canvas = tensor.canvas(index)
        if pixels is None:
            decode_into(jpeg, info, box, canvas, border=border)
            clock = look.time("decode", clock)
        else:
            lay_into(pixels, box, canvas, border=border)
        if wants_grey and look.grey is None:
            look.grey = small_grey(canvas, box)
        form.fill(canvas, tensor.buffer.array[index])
        clock = look.time("prepare", clock)
    if not batch.inputs:
        # Decoded even where nothing wants its pixels: a frame that is none must not pass for one.
        look.grey = decode_grey(jpeg, info) if pixels is None else grey_of(pixels)
        clock = look.time("decode", clock)
    if settings.stages.motion:
        _flow(look, method)
        look.time("motion", clock)
    # None where nobody looked: the next flow must not start from a picture of long ago.
    memory.grey = look.grey if wants_grey else None


def _flow(look: Look, method: Method) -> None:
    memory, info = look.job.memory, look.info
    assert info is not None
    assert look.grey is not None
    why_not = obstacle(memory.grey, look.grey)
    if why_not is not None:
        look.stages["motion"] = Stage("skipped", why_not)
        return
    assert memory.grey is not None
    if memory.flow is None:
        memory.flow = Flow(method)
    flow = memory.flow(memory.grey, look.grey)
    look.motion = measure(flow, memory.grey, width=info.width, height=info.height, grid=look.job.settings.motion_grid)
    look.stages["motion"] = OK
