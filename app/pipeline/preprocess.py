"""From image bytes to input tensors, the small grey frame and the flow, in worker threads.

DOC
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from app.errors import FrameError, TooExpensive, UndecodableFrame
from app.metrics import DECODE_GIVEN_UP
from app.pipeline.boxes import Letterbox, letterbox
from app.pipeline.decode import (
    SOI,
    Coded,
    JpegInfo,
    Pixels,
    decode_grey,
    decode_into,
    decode_still,
    decode_whole,
    described,
    encode_jpeg,
    fits,
    grey_of,
    inspect,
    inspect_still,
    is_still,
    kind_of,
    lay_into,
    small_grey,
    upright,
    work_of,
)
from app.pipeline.stages.motion import Flow, motion, obstacle
from app.pipeline.types import Batch, FrameJob, FrameState
from app.protocol.result import OK, Stage
from app.settings import LiveSettings, PipelineSettings

HEAVY = 40_000_000
"""Samples over all scans (`JpegInfo.work`) from which a frame goes to threads of its own: ordinary ones, of up to
3840x2160 or progressive 1920x1080, never wait behind it."""
_WATCH_S = 0.02
"""Between two looks at how much a costly frame has taken."""
_EOI = b"\xff\xd9"


def heavy(job: FrameJob) -> bool:
    """Whether preparing it may take a tenth of a second and more. Microseconds."""
    if job.frame.pixels is not None:
        return False
    return (job.photo and is_still(job.frame.jpeg)) or work_of(job.frame.jpeg) > HEAVY


class Preprocessor:
    """How frames are prepared, by the settings.

    Raises nothing: what is wrong with a frame is its `FrameState.error`.
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
            batch.frames[index].error = self.too_expensive()
            batch.hold()  # the thread may still write where this frame was to lie

        return Piece(partial(self._prepare, batch, index), given_up, batch.release)

    def here(self, batch: Batch, index: int) -> None:
        """Prepares a frame in the thread that calls. One over its budget is refused as well, once it is done: a costly
        JPEG, which another thread watches, soon after.
        """
        state = batch.frames[index]
        piece = Piece(partial(self._prepare, batch, index), lambda: None, lambda: None)
        if not heavy(state.job):
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
            state.error = self.too_expensive()

    def _watch(self, piece: Piece, thread: int, ended: threading.Event) -> None:
        clock = time.pthread_getcpuclockid(thread)
        until_s = time.clock_gettime(clock) + self.budget_s
        while not ended.wait(_WATCH_S):
            if time.clock_gettime(clock) > until_s:
                if piece.give_up() and piece.spoil is not None:
                    piece.spoil()
                return

    def _prepare(self, batch: Batch, index: int, piece: Piece) -> None:
        state = batch.frames[index]
        try:
            self._look(state, index, batch, piece)
        except FrameError as error:
            if piece.keep():
                state.error = error

    def _look(self, state: FrameState, index: int, batch: Batch, piece: Piece) -> None:
        cpu_s, clock = time.thread_time(), time.perf_counter()
        settings, memory = state.job.settings, state.job.memory
        picture = self._read(state.job, piece)
        info = picture.info
        wants_grey = settings.stages.motion or settings.stages.ocr
        grey = None
        if picture.pixels is not state.job.frame.pixels:
            clock = state.time("decode", clock)
        for form, tensor in batch.inputs.items():
            box = letterbox(info.width, info.height, form.width, form.height)
            border = tensor.place(index, box)
            canvas = tensor.canvas(index)
            decoded = self._lay(picture, box, canvas, border=border)
            tensor.laid(index, box)
            if decoded:
                clock = state.time("decode", clock)
            if wants_grey and grey is None:
                grey = small_grey(canvas, box)
            form.fill(canvas, tensor.buffer.array[index])
            clock = state.time("prepare", clock)
        if not batch.inputs:
            # Decoded even where nothing wants its pixels: a frame that is none must not pass for one.
            pixels = picture.pixels
            grey = decode_grey(picture.coded, info) if pixels is None else grey_of(pixels)
            clock = state.time("decode", clock)
        if time.thread_time() - cpu_s > self.budget_s:
            raise self.too_expensive()
        if not piece.keep():
            return
        state.info, state.grey = info, grey
        if state.job.faces:
            state.pixels = picture.pixels
        if picture.remade:
            state.still = partial(self._again, state.job)
        if settings.stages.motion:
            self._flow(state)
            state.time("motion", clock)
        # None where nobody looked: the next flow must not start from a picture of long ago.
        memory.grey = state.grey if wants_grey else None

    def whole(self, job: FrameJob, info: JpegInfo) -> Pixels:
        """A frame's picture at its full size once more, where it is a JPEG that lies upright: RGB uint8 `[h, w, 3]`."""
        return decode_whole(job.frame.jpeg, info, exact=self._exact)

    def _read(self, job: FrameJob, piece: Piece | None = None) -> _Picture:
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

    def _again(self, job: FrameJob) -> bytes:
        """A JPEG for the reading of text of a picture whose own bytes are none, or lie on their side."""
        pixels = self._read(job).pixels
        assert pixels is not None
        return encode_jpeg(pixels)

    def too_expensive(self) -> TooExpensive:
        return TooExpensive(
            f"preparing the frame took more than {self.budget_s * 1000:g} ms of CPU time, which is DECODE_BUDGET_MS"
        )

    def _flow(self, state: FrameState) -> None:
        memory, info = state.job.memory, state.info
        assert info is not None
        assert state.grey is not None
        why_not = obstacle(memory.grey, state.grey)
        if why_not is not None:
            state.stages["motion"] = Stage("skipped", why_not)
            return
        assert memory.grey is not None
        if memory.flow is None:
            memory.flow = Flow(self._method)
        state.motion = motion(
            memory.flow,
            memory.grey,
            state.grey,
            width=info.width,
            height=info.height,
            grid=state.job.settings.motion_grid,
        )
        state.stages["motion"] = OK


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


# --- worker threads ---

Work = Callable[[], None]

MOST_GIVEN_UP = 8
"""Threads of one pool that are replaced while they still run: beyond it the others have to do."""
_CLOSING_S = 1.0
"""How long `close` waits for threads that are at work."""


class Piece:
    """One piece of work with a budget, and whether what its thread does still counts.

    Args:
        work: is told this piece. Before it changes anything that outlives it, it must ask `keep`.
        given_up: called in the event loop when it is over its budget, with the rest of it still running.
        ended: called in the event loop when a piece that was given up has come to its end.
    """

    __slots__ = ("_lock", "_state", "ended", "given_up", "spoil", "work")

    def __init__(self, work: Callable[[Piece], None], given_up: Work, ended: Work) -> None:
        self.work = work
        self.given_up = given_up
        self.ended = ended
        self.spoil: Work | None = None
        """What the work sets to be called when it is given up: it brings the codec to an end soon."""
        self._lock = threading.Lock()
        self._state = "running"

    def keep(self) -> bool:
        """From here on it is not given up any more. False: it was, and must touch nothing of anybody's."""
        with self._lock:
            if self._state == "running":
                self._state = "kept"
            return self._state == "kept"

    def give_up(self) -> bool:
        """Whether it was still to be given up, and is now."""
        with self._lock:
            if self._state != "running":
                return False
            self._state = "given up"
            return True


@dataclass(slots=True)
class _Errand:
    """What one call of `run` handed in."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    left: int
    error: BaseException | None = None


_Item = tuple[_Errand, deque[Work | Piece]]


@dataclass(slots=True, eq=False)
class _Worker:
    """A thread, and what it is at."""

    clock: int = -1
    """Its CPU clock (clock_gettime(2)), once it runs."""
    item: _Item | None = None
    piece: Piece | None = None
    began_s: float = 0.0
    """On its CPU clock."""
    lost: bool = False
    """It was given up, and has not come to its end."""
    thread: threading.Thread | None = field(default=None, repr=False)


class Threads:
    """Runs plain functions for one event loop at a time.

    Args:
        count: threads that stand ready.
        budget_s: CPU seconds that a `Piece` may take; None: as many as it likes.
    """

    def __init__(self, count: int, name: str, budget_s: float | None = None) -> None:
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._count = count
        self._name = name
        self._budget_s = budget_s
        self._busy = 0
        self._made = 0
        self._closed = False
        self.on_done: Callable[[], None] | None = None
        """Called in the loop whenever a piece of work is done."""
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        """Those that take work, and those that were given up and still run."""
        self._watching: asyncio.AbstractEventLoop | None = None
        for _ in range(count):
            self._start()

    def __len__(self) -> int:
        return self._count

    @property
    def busy(self) -> int:
        """Pieces of work that are being done or wait for a thread."""
        return self._busy

    @property
    def idle(self) -> int:
        """Threads that have nothing to do."""
        return max(0, self._count - self._busy)

    @property
    def given_up(self) -> int:
        """Threads that are still at a piece that was given up."""
        with self._lock:
            return sum(worker.lost for worker in self._workers)

    def run(self, *work: Work | Iterable[Work | Piece]) -> asyncio.Future[None]:
        """Runs each part in the next free thread; done when all are. Cancelling the future does not stop them.

        A part is a function, or pieces that one thread does in their order; where one of them is given up, another
        thread goes on with the rest.
        """
        loop = asyncio.get_running_loop()
        errand = _Errand(loop, loop.create_future(), len(work))
        self._busy += len(work)
        for part in work:
            self._queue.put((errand, deque((part,) if callable(part) else part)))
        if self._budget_s is not None and self._watching is not loop:
            self._watching = loop
            loop.call_later(self._pause_s, self._watch, loop)
        return errand.future

    def close(self) -> None:
        """Waits until all work handed in is done; for what hangs no longer than a second."""
        self._closed = True
        with self._lock:
            workers = list(self._workers)
        for _ in workers:
            self._queue.put(None)
        deadline = time.monotonic() + _CLOSING_S
        for worker in workers:
            assert worker.thread is not None
            if self._budget_s is None:
                worker.thread.join()
                continue
            worker.thread.join(max(0.0, deadline - time.monotonic()))
            piece = worker.piece
            if worker.thread.is_alive() and piece is not None and piece.spoil is not None:
                piece.spoil()

    # --- in the threads ---

    def _start(self, first: _Item | None = None) -> None:
        worker = _Worker(item=first)
        self._made += 1
        worker.thread = threading.Thread(
            target=self._run, args=(worker,), name=f"{self._name}-{self._made - 1}", daemon=True
        )
        with self._lock:
            self._workers.add(worker)
        worker.thread.start()

    def _run(self, worker: _Worker) -> None:
        worker.clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            while (item := worker.item or self._queue.get()) is not None:
                worker.item = item
                if not self._do(worker, *item) and not self._back(worker):
                    return
                worker.item = item = None
        finally:
            with self._lock:
                self._workers.discard(worker)

    def _do(self, worker: _Worker, errand: _Errand, pieces: deque[Work | Piece]) -> bool:
        """One part of an errand. False: this thread was given up on the way, and the errand is no longer its own."""
        error: BaseException | None = None
        while pieces and error is None:
            work = pieces.popleft()
            piece = work if isinstance(work, Piece) else None
            try:
                if piece is None:
                    work()  # type: ignore[operator]
                else:
                    worker.began_s = time.thread_time()
                    worker.piece = piece
                    piece.work(piece)
            except BaseException as raised:  # whoever awaits the future gets it
                error = raised
            if piece is not None:
                worker.piece = None
                if not piece.keep():
                    _call(errand.loop, piece.ended)
                    return False
        _call(errand.loop, self._settle, errand, error)
        return True

    def _back(self, worker: _Worker) -> bool:
        """Whether a thread that was given up is wanted again, now that it has come to its end."""
        with self._lock:
            worker.lost = False
            wanted = sum(not one.lost for one in self._workers) <= self._count
        DECODE_GIVEN_UP.dec()
        return wanted and not self._closed

    # --- in the loop ---

    @property
    def _pause_s(self) -> float:
        assert self._budget_s is not None
        return min(0.05, max(0.002, self._budget_s / 8))

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watching is not loop:
            return
        if not self._busy:
            self._watching = None
            return
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            piece = worker.piece
            if piece is not None and not worker.lost and self._over(worker):
                self._give_up(worker, piece)
        loop.call_later(self._pause_s, self._watch, loop)

    def _over(self, worker: _Worker) -> bool:
        assert self._budget_s is not None
        began_s = worker.began_s
        try:
            return time.clock_gettime(worker.clock) - began_s > self._budget_s
        except OSError:  # the thread has ended
            return False

    def _give_up(self, worker: _Worker, piece: Piece) -> None:
        item = worker.item
        if item is None or worker.piece is not piece or not piece.give_up():
            return  # it is done, or as good as done
        worker.lost = True
        DECODE_GIVEN_UP.inc()
        if piece.spoil is not None:
            piece.spoil()
        piece.given_up()
        errand, rest = item
        replaced = self.given_up <= MOST_GIVEN_UP and not self._closed
        if rest:
            item = errand, deque(rest)
            if replaced:
                self._start(item)
            else:
                self._queue.put(item)
            return
        if replaced:
            self._start()
        self._settle(errand, None)

    def _settle(self, errand: _Errand, error: BaseException | None) -> None:
        self._busy -= 1
        errand.left -= 1
        errand.error = errand.error or error
        if not errand.left and not errand.future.done():
            if errand.error is None:
                errand.future.set_result(None)
            else:
                errand.future.set_exception(errand.error)
        if self.on_done is not None:
            self.on_done()


def _call(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(call, *arguments)
