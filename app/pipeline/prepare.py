"""From a picture's bytes to input tensors, the small grey picture and the flow: the part of a frame that threads do.

A frame that came decoded is laid where the others are decoded to.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.errors import FrameError, TooExpensive, UndecodableFrame
from app.pipeline.batch import Batch, Look
from app.pipeline.boxes import Letterbox, letterbox
from app.pipeline.decode import (
    Coded,
    decode_grey,
    decode_into,
    decode_whole,
    described,
    fits,
    grey_of,
    lay_into,
    small_grey,
    upright,
)
from app.pipeline.frames import Job, as_jpeg
from app.pipeline.jpeg import SOI, JpegInfo, inspect, kind_of, work_of
from app.pipeline.motion import Flow, motion, obstacle
from app.pipeline.stills import decode_still, inspect_still, is_still
from app.pipeline.threads import Piece
from app.protocol.result import OK, Stage
from app.settings import LiveSettings, PipelineSettings

Pixels = NDArray[np.uint8]

HEAVY = 40_000_000
"""Samples over all scans (`JpegInfo.work`) from which a frame goes to threads of its own: ordinary ones, of up to
3840x2160 or progressive 1920x1080, never wait behind it."""
_WATCH_S = 0.02
"""Between two looks at how much a costly frame has taken."""
_EOI = b"\xff\xd9"


def heavy(job: Job) -> bool:
    """Whether preparing it may take a tenth of a second and more. Microseconds."""
    if job.frame.pixels is not None:
        return False
    return (job.photo and is_still(job.frame.jpeg)) or work_of(job.frame.jpeg) > HEAVY


class Preparation:
    """How frames are prepared, by the settings.

    Raises nothing: what is wrong with a frame is its `Look.error`.
    """

    def __init__(self, settings: PipelineSettings, limits: LiveSettings) -> None:
        self._exact = settings.decode == "exact"
        self._orientation = settings.exif_orientation
        self._method = settings.motion_method
        self._limits = limits
        self.budget_s = settings.decode_budget_ms / 1000

    def piece(self, batch: Batch, index: int) -> Piece:
        """One frame's work, for a thread."""

        def given_up() -> None:
            batch.looks[index].error = self.too_expensive()
            batch.hold()  # the thread may still write where this frame was to lie

        return Piece(partial(self._prepare, batch, index), given_up, batch.release)

    def here(self, batch: Batch, index: int) -> None:
        """Prepares a frame in the thread that calls. One over its budget is refused as well, once it is done: a costly
        JPEG, which another thread watches, soon after.
        """
        look = batch.looks[index]
        piece = Piece(partial(self._prepare, batch, index), lambda: None, lambda: None)
        if not heavy(look.job):
            piece.work(piece)
            return
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(piece, threading.get_ident(), ended), name="decode-watch")
        watch.start()
        try:
            piece.work(piece)
        finally:
            ended.set()
            watch.join()
        if not piece.keep():
            look.error = self.too_expensive()

    def _watch(self, piece: Piece, thread: int, ended: threading.Event) -> None:
        clock = time.pthread_getcpuclockid(thread)
        until_s = time.clock_gettime(clock) + self.budget_s
        while not ended.wait(_WATCH_S):
            if time.clock_gettime(clock) > until_s:
                if piece.give_up() and piece.spoil is not None:
                    piece.spoil()
                return

    def _prepare(self, batch: Batch, index: int, piece: Piece) -> None:
        look = batch.looks[index]
        try:
            self._look(look, index, batch, piece)
        except FrameError as error:
            if piece.keep():
                look.error = error

    def _look(self, look: Look, index: int, batch: Batch, piece: Piece) -> None:
        cpu_s, clock = time.thread_time(), time.perf_counter()
        settings, memory = look.job.settings, look.job.memory
        picture = self._read(look.job, piece)
        info = picture.info
        wants_grey = settings.stages.motion or settings.stages.ocr
        grey = None
        if picture.pixels is not look.job.frame.pixels:
            clock = look.time("decode", clock)
        for form, tensor in batch.inputs.items():
            box = letterbox(info.width, info.height, form.width, form.height)
            border = tensor.place(index, box)
            canvas = tensor.canvas(index)
            decoded = self._lay(picture, box, canvas, border=border)
            tensor.laid(index, box)
            if decoded:
                clock = look.time("decode", clock)
            if wants_grey and grey is None:
                grey = small_grey(canvas, box)
            form.fill(canvas, tensor.buffer.array[index])
            clock = look.time("prepare", clock)
        if not batch.inputs:
            # Decoded even where nothing wants its pixels: a frame that is none must not pass for one.
            pixels = picture.pixels
            grey = decode_grey(picture.coded, info) if pixels is None else grey_of(pixels)
            clock = look.time("decode", clock)
        if time.thread_time() - cpu_s > self.budget_s:
            raise self.too_expensive()
        if not piece.keep():
            return
        look.info, look.grey = info, grey
        if look.job.faces:
            look.pixels = picture.pixels
        if picture.remade:
            look.still = partial(self._again, look.job)
        if settings.stages.motion:
            self._flow(look)
            look.time("motion", clock)
        # None where nobody looked: the next flow must not start from a picture of long ago.
        memory.grey = look.grey if wants_grey else None

    def whole(self, job: Job, info: JpegInfo) -> Pixels:
        """A frame's picture at its full size once more, where it is a JPEG that lies upright: RGB uint8 `[h, w, 3]`."""
        return decode_whole(job.frame.jpeg, info, exact=self._exact)

    def _read(self, job: Job, piece: Piece | None = None) -> _Picture:
        """A frame's bytes looked over; decoded where they are no JPEG, or one that must be turned."""
        jpeg, pixels, limits = job.frame.jpeg, job.frame.pixels, self._limits
        if pixels is not None:
            return _Picture(jpeg, described(pixels, max_pixels=limits.max_pixels), pixels)
        if job.photo and is_still(jpeg):
            still = inspect_still(jpeg, max_bytes=limits.max_frame_bytes, max_pixels=limits.max_pixels)
            pixels = decode_still(still)
            return _Picture(jpeg, described(pixels, max_pixels=limits.max_pixels), pixels, remade=True)
        if job.photo and not jpeg.startswith(SOI):
            raise UndecodableFrame(f"the picture is {kind_of(jpeg)}; want a JPEG, PNG or WebP")
        info = inspect(jpeg, max_bytes=limits.max_frame_bytes, max_pixels=limits.max_pixels)
        coded: Coded = jpeg
        if piece is not None and info.work > HEAVY:
            coded = bytearray(jpeg)
            piece.spoil = partial(_spoil, coded)
        if info.orientation == 1 or not (self._orientation == "on" or (self._orientation == "auto" and job.photo)):
            return _Picture(coded, info)
        pixels = upright(decode_whole(coded, info, exact=self._exact), info.orientation)
        height, width = pixels.shape[:2]
        return _Picture(coded, dataclasses.replace(info, width=width, height=height), pixels, remade=True)

    def _lay(self, picture: _Picture, box: Letterbox, canvas: Pixels, *, border: bool) -> bool:
        """Into a canvas; whether the codec was needed for it."""
        if picture.pixels is None and self._exact and not fits(picture.info, box):
            # Once, for all canvases and for faces: `exact` wants the full size anyway.
            picture.pixels = decode_whole(picture.coded, picture.info)
            lay_into(picture.pixels, box, canvas, border=border)
            return True
        if picture.pixels is None:
            decode_into(picture.coded, picture.info, box, canvas, border=border, exact=self._exact)
            return True
        lay_into(picture.pixels, box, canvas, border=border, exact=self._exact)
        return False

    def _again(self, job: Job) -> bytes:
        """A JPEG for the reading of text of a picture whose own bytes are none, or lie on their side."""
        pixels = self._read(job).pixels
        assert pixels is not None
        return as_jpeg(pixels)

    def too_expensive(self) -> TooExpensive:
        return TooExpensive(
            f"preparing the frame took more than {self.budget_s * 1000:g} ms of CPU time, which is DECODE_BUDGET_MS"
        )

    def _flow(self, look: Look) -> None:
        memory, info = look.job.memory, look.info
        assert info is not None
        assert look.grey is not None
        why_not = obstacle(memory.grey, look.grey)
        if why_not is not None:
            look.stages["motion"] = Stage("skipped", why_not)
            return
        assert memory.grey is not None
        if memory.flow is None:
            memory.flow = Flow(self._method)
        look.motion = motion(
            memory.flow,
            memory.grey,
            look.grey,
            width=info.width,
            height=info.height,
            grid=look.job.settings.motion_grid,
        )
        look.stages["motion"] = OK


@dataclass(slots=True)
class _Picture:
    """A frame that was looked over."""

    coded: Coded
    info: JpegInfo
    """Its size is that of the upright picture."""
    pixels: Pixels | None = None
    """At its full size, upright, where it was decoded so."""
    remade: bool = False
    """Whether `pixels` are not what a decoder of JPEGs makes of `coded`."""


def _spoil(coded: bytearray) -> None:
    """Writes ends over a JPEG that a codec is at: the next that it reads is the end of the data, and soon its own."""
    coded[:] = (_EOI * (len(coded) // 2 + 1))[: len(coded)]
