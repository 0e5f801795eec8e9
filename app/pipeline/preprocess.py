"""From image bytes to input tensors, the small grey frame and its optical flow, in worker threads.

A frame that came decoded is laid into the same canvases as the others. One call of `Threads.run` costs half of
`run_in_executor`, which makes two futures and chains them. A codec cannot be stopped from outside; therefore each frame
has a budget of CPU time. `Threads` gives up a thread that exceeds it: the piece counts as over, another thread takes
the thread's place, and its later results are dropped. The thread ends by itself and holds the piece's memory until
then.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from app.errors import FrameError, TooExpensive, UndecodableFrame
from app.metrics import DECODE_GIVEN_UP
from app.pipeline.boxes import Letterbox
from app.pipeline.decode import (
    SOI,
    Coded,
    JpegInfo,
    Pixels,
    crop_into,
    decode_grey,
    decode_into,
    decode_still,
    decode_whole,
    described,
    encode_jpeg,
    fits,
    grey_of,
    image_of,
    inspect,
    inspect_still,
    is_still,
    kind_of,
    lay_into,
    small_grey,
    upright,
    work_of,
)
from app.pipeline.stage import PipelineStage, defines, raised
from app.pipeline.types import Batch, FrameJob, FrameState
from app.settings import LiveSettings, PipelineSettings

HEAVY = 40_000_000
"""Samples over all scans (`JpegInfo.work`) from which a frame goes to separate threads, so that ordinary frames (up to
3840x2160, or progressive 1920x1080) never wait behind it."""
_EOI = b"\xff\xd9"


def heavy(job: FrameJob) -> bool:
    """Whether preparing the frame may take a tenth of a second or more. Takes microseconds, once a job."""
    if job.heavy is None:
        frame = job.frame
        job.heavy = frame.pixels is None and ((job.photo and is_still(frame.jpeg)) or work_of(frame.jpeg) > HEAVY)
    return job.heavy


class Preprocessor:
    """Prepares frames by the settings DECODE, EXIF_ORIENTATION and DECODE_BUDGET_MS.

    Its pieces raise no error for an unusable frame, which gets a `FrameState.error` instead.

    Args:
        stages: those whose `prepare` runs with the frame, and those that need its grey image or its pixels.
    """

    def __init__(self, settings: PipelineSettings, limits: LiveSettings, stages: Sequence[PipelineStage] = ()) -> None:
        self._exact = settings.decode == "exact"
        self._orientation = settings.exif_orientation
        self._limits = limits
        self.budget_s = settings.decode_budget_ms / 1000
        self._preparing = [(stage.name, stage) for stage in stages if defines(stage, "prepare")]
        self._grey = [stage.name for stage in stages if stage.needs_grey or defines(stage, "prepare")]
        self._image = [stage.name for stage in stages if stage.needs_image]

    def piece(self, batch: Batch, index: int) -> Piece:
        """The work on one frame, for a thread."""

        def given_up() -> None:
            batch.frames[index].error = self.too_expensive()
            batch.hold()  # the thread may still write to this frame's canvas

        return Piece(partial(self._prepare, batch, index), given_up, batch.release)

    def _prepare(self, batch: Batch, index: int, piece: Piece) -> None:
        state = batch.frames[index]
        try:
            self._fill(state, index, batch, piece)
        except FrameError as error:
            if piece.keep():
                state.error = error

    def _fill(self, state: FrameState, index: int, batch: Batch, piece: Piece) -> None:
        """Decodes the frame into each input tensor, then shrinks it and measures its motion."""
        cpu_s, clock = time.thread_time(), time.perf_counter()
        decode_s = prepare_s = 0.0
        chosen, memory = state.job.settings.stages, state.job.memory
        image = self._read(state.job, piece)
        info = image.info
        wants_grey = bool([name for name in self._grey if chosen.get(name)])
        grey = None
        if image.pixels is not state.job.frame.pixels:
            now = time.perf_counter()
            decode_s, clock = now - clock, now
        for form, tensor in batch.inputs.items():
            box = form.place(info.width, info.height)
            border = tensor.place(index, box)
            canvas = tensor.canvas(index)
            decoded = self._lay(image, box, canvas, border=border)
            tensor.laid(index, box)
            if decoded:
                now = time.perf_counter()
                decode_s, clock = decode_s + now - clock, now
            if wants_grey and grey is None:
                # A canvas that shows only the frame's middle was filled from decoded pixels.
                grey = grey_of(image.pixels) if box.smooth and image.pixels is not None else small_grey(canvas, box)
            form.fill(canvas, tensor.buffer.array[index])
            now = time.perf_counter()
            prepare_s, clock = prepare_s + now - clock, now
        if not batch.inputs:
            # Decoded even where no stage needs pixels, because an unusable frame must not count as good.
            pixels = image.pixels
            grey = decode_grey(image.coded, info) if pixels is None else grey_of(pixels)
            now = time.perf_counter()
            decode_s, clock = decode_s + now - clock, now
        if time.thread_time() - cpu_s > self.budget_s:
            raise self.too_expensive()
        if not piece.keep():
            return
        state.info, state.grey = info, grey
        for name, seconds in (("decode", decode_s), ("prepare", prepare_s)):
            if seconds:  # else the step did not run
                state.timings[name] = seconds
        if [name for name in self._image if chosen.get(name)]:
            state.pixels = image.pixels
        if image.remade:
            state.still = partial(self._again, state.job)
        for name, stage in self._preparing:
            if chosen.get(name):
                try:
                    stage.prepare(state, memory.grey, grey)  # type: ignore[arg-type]
                except FrameError:
                    raise
                except Exception as error:  # whatever a stage raises must not cost the others their results
                    raised(stage, state, error)
                clock = state.time(name, clock)
        # None where no stage used the grey frame, because the next flow must not start from an old image.
        memory.grey = state.grey if wants_grey else None

    def image(self, state: FrameState, batch: Batch) -> Pixels:
        """The upright frame at its full size, RGB uint8 `[h, w, 3]`; nothing may change it.

        Decoded pixels where there are any, else the frame is decoded again, which takes milliseconds and belongs in a
        thread. Valid only while the batch is held.
        """
        info = state.info
        assert info is not None
        for form, tensor in batch.inputs.items():
            box = tensor.boxes[state.index]
            if form.is_image and (box.width, box.height) == (info.width, info.height):
                return image_of(tensor.canvas(state.index), box)
        pixels = state.pixels if state.pixels is not None else state.job.frame.pixels
        return self.whole(state.job, info) if pixels is None else pixels

    def whole(self, job: FrameJob, info: JpegInfo) -> Pixels:
        """Decodes an upright JPEG again, at its full size: RGB uint8 `[h, w, 3]`."""
        return decode_whole(job.frame.jpeg, info, exact=self._exact)

    def _read(self, job: FrameJob, piece: Piece | None = None) -> _Image:
        """Checks a frame's bytes; decodes them where they are no JPEG, or a JPEG that must be turned."""
        jpeg, pixels, limits = job.frame.jpeg, job.frame.pixels, self._limits
        if pixels is not None:
            return _Image(jpeg, described(pixels, max_pixels=limits.max_pixels), pixels)
        if job.photo and is_still(jpeg):
            still = inspect_still(jpeg, max_bytes=limits.max_frame_bytes, max_pixels=limits.max_pixels)
            pixels = decode_still(still)
            return _Image(jpeg, described(pixels, max_pixels=limits.max_pixels), pixels, remade=True)
        if job.photo and not jpeg.startswith(SOI):
            raise UndecodableFrame(f"the image is {kind_of(jpeg)}; want a JPEG, PNG or WebP")
        info = inspect(jpeg, max_bytes=limits.max_frame_bytes, max_pixels=limits.max_pixels)
        coded: Coded = jpeg
        if piece is not None and info.work > HEAVY:
            coded = bytearray(jpeg)
            piece.spoil = partial(_spoil, coded)
        if info.orientation == 1 or not (self._orientation == "on" or (self._orientation == "auto" and job.photo)):
            return _Image(coded, info)
        pixels = upright(decode_whole(coded, info, exact=self._exact), info.orientation)
        height, width = pixels.shape[:2]
        return _Image(coded, dataclasses.replace(info, width=width, height=height), pixels, remade=True)

    def _lay(self, image: _Image, box: Letterbox, canvas: Pixels, *, border: bool) -> bool:
        """Lays the frame into a canvas; returns whether the codec was needed."""
        if box.smooth:
            coded = image.pixels is None
            if image.pixels is None:
                image.pixels = decode_whole(image.coded, image.info, exact=self._exact)
            crop_into(image.pixels, box, canvas)
            return coded
        if image.pixels is None and self._exact and not fits(image.info, box):
            # Decoded once, for all canvases and for faces, because `exact` needs the full size anyway.
            image.pixels = decode_whole(image.coded, image.info)
            lay_into(image.pixels, box, canvas, border=border)
            return True
        if image.pixels is None:
            decode_into(image.coded, image.info, box, canvas, border=border, exact=self._exact)
            return True
        lay_into(image.pixels, box, canvas, border=border, exact=self._exact)
        return False

    def _again(self, job: FrameJob) -> bytes:
        """A JPEG for text reading, where the frame's own bytes are no JPEG, or need to be turned upright."""
        pixels = self._read(job).pixels
        assert pixels is not None
        return encode_jpeg(pixels)

    def too_expensive(self) -> TooExpensive:
        """The error of a frame whose preparation exceeded the budget."""
        return TooExpensive(
            f"preparing the frame took more than {self.budget_s * 1000:g} ms of CPU time, which is DECODE_BUDGET_MS"
        )


@dataclass(slots=True)
class _Image:
    """A frame whose bytes were checked."""

    coded: Coded
    info: JpegInfo
    """With the size of the upright image."""
    pixels: Pixels | None = None
    """The upright image at its full size, where it was decoded so."""
    remade: bool = False
    """Whether `pixels` differ from what a JPEG decoder makes of `coded`."""


def _spoil(coded: bytearray) -> None:
    """Overwrites a JPEG with end markers while a codec reads it, so that the codec soon comes to an end."""
    coded[:] = (_EOI * (len(coded) // 2 + 1))[: len(coded)]


# --- worker threads ---

Work = Callable[[], None]

MOST_GIVEN_UP = 8
"""Threads of one pool that may be replaced while they still run. Further ones are not replaced."""
_CLOSING_S = 1.0
"""Seconds that `close` waits for threads that are at work."""


class Piece:
    """Work with a budget of CPU time, and whether its result still counts.

    Args:
        work: receives this piece. It must call `keep` before it changes anything that outlives the piece.
        given_up: called in the event loop when the work exceeds its budget, while its thread still runs.
        ended: called in the event loop when the thread of a piece that was given up has ended.
    """

    __slots__ = ("_lock", "ended", "given_up", "spoil", "state", "work")

    def __init__(self, work: Callable[[Piece], None], given_up: Work, ended: Work) -> None:
        self.work = work
        self.given_up = given_up
        self.ended = ended
        self.spoil: Work | None = None
        """Set by the work; called when the piece is given up, so that the codec ends soon."""
        self._lock = threading.Lock()
        self.state = "running"
        """`running`, `kept` or `given up`."""

    def keep(self) -> bool:
        """Protects the piece from being given up. False: it was given up already and must change nothing any more."""
        with self._lock:
            if self.state == "running":
                self.state = "kept"
            return self.state == "kept"

    def give_up(self) -> bool:
        """Gives the piece up. False: it is kept, or was given up before."""
        with self._lock:
            if self.state != "running":
                return False
            self.state = "given up"
            return True


@dataclass(slots=True)
class _WorkSet:
    """All parts of one call of `run`."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    left: int
    error: BaseException | None = None


_Item = tuple[_WorkSet, deque[Work | Piece]]


@dataclass(slots=True, eq=False)
class _Worker:
    """A thread and its current work."""

    clock: int = -1
    """Id of its CPU clock (clock_gettime(2)), set once it runs."""
    item: _Item | None = None
    piece: Piece | None = None
    began_s: float = 0.0
    """CPU seconds of the thread at the start of the piece."""
    lost: bool = False
    """Whether it was given up and still runs."""
    thread: threading.Thread | None = field(default=None, repr=False)


class Threads:
    """Runs plain functions for one event loop at a time.

    Args:
        count: number of threads.
        budget_s: CPU seconds that a `Piece` may take; None: no limit.
    """

    def __init__(self, count: int, name: str, budget_s: float | None = None) -> None:
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self.count = count
        self._name = name
        self._budget_s = budget_s
        self._busy = 0
        self._made = 0
        self._closed = False
        self.on_done: Callable[[], None] | None = None
        """Called in the event loop whenever a part of the work is done."""
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        """Threads that take work, and threads that were given up and still run."""
        self._watching: asyncio.AbstractEventLoop | None = None
        for _ in range(count):
            self._start()

    @property
    def busy(self) -> int:
        """Parts of work that run or wait for a thread."""
        return self._busy

    @property
    def idle(self) -> int:
        """Threads without work."""
        return max(0, self.count - self._busy)

    @property
    def given_up(self) -> int:
        """Threads that still run a piece that was given up."""
        with self._lock:
            return sum(worker.lost for worker in self._workers)

    def run(self, *work: Work | Iterable[Work | Piece]) -> asyncio.Future[None]:
        """Runs each part in the next free thread. The future is done when all parts are; cancelling it stops none.

        A part is a function, or pieces that one thread runs in order; when one of them is given up, another thread
        continues with the rest.
        """
        loop = asyncio.get_running_loop()
        work_set = _WorkSet(loop, loop.create_future(), len(work))
        self._busy += len(work)
        for part in work:
            self._queue.put((work_set, deque((part,) if callable(part) else part)))
        if self._budget_s is not None and self._watching is not loop:
            self._watching = loop
            loop.call_later(self._pause_s, self._watch, loop)
        return work_set.future

    def close(self) -> None:
        """Ends the threads once all work is done. With a budget it waits for them no longer than a second in all."""
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

    def _do(self, worker: _Worker, work_set: _WorkSet, pieces: deque[Work | Piece]) -> bool:
        """Runs one part. False: this thread was given up meanwhile, and another one has taken over the rest."""
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
            except BaseException as raised:  # the caller of `run` gets it from the future
                error = raised
            if piece is not None:
                worker.piece = None
                if piece.state != "kept" and not piece.keep():
                    _call(work_set.loop, piece.ended)
                    return False
        _call(work_set.loop, self._settle, work_set, error)
        return True

    def _back(self, worker: _Worker) -> bool:
        """Whether a thread that was given up may take work again, now that its piece has ended."""
        with self._lock:
            worker.lost = False
            wanted = sum(not other.lost for other in self._workers) <= self.count
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
            return  # the piece is done, or is being kept
        worker.lost = True
        DECODE_GIVEN_UP.inc()
        if piece.spoil is not None:
            piece.spoil()
        piece.given_up()
        work_set, rest = item
        replaced = self.given_up <= MOST_GIVEN_UP and not self._closed
        if rest:
            item = work_set, deque(rest)
            if replaced:
                self._start(item)
            else:
                self._queue.put(item)
            return
        if replaced:
            self._start()
        self._settle(work_set, None)

    def _settle(self, work_set: _WorkSet, error: BaseException | None) -> None:
        self._busy -= 1
        work_set.left -= 1
        work_set.error = work_set.error or error
        if not work_set.left and not work_set.future.done():
            if work_set.error is None:
                work_set.future.set_result(None)
            else:
                work_set.future.set_exception(work_set.error)
        if self.on_done is not None:
            self.on_done()


def _call(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits for this
        loop.call_soon_threadsafe(call, *arguments)
