"""Worker threads for one hop a frame: half the cost of `run_in_executor`, which makes two futures and chains them.

A piece of work may have a budget of CPU time. A codec cannot be stopped from outside, so a thread that is over it is
given up: the piece counts as over, another thread takes its place, and what the thread still does touches nothing that
others use. It ends by itself, and meanwhile keeps what memory the piece holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue

from app.metrics import DECODE_GIVEN_UP

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
