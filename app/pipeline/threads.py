"""Worker threads for one hop a frame: half the cost of `run_in_executor`, which makes two futures and chains them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

Work = Callable[[], None]


@dataclass(slots=True)
class _Errand:
    """What one call of `run` handed in."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    left: int
    error: BaseException | None = None


class Threads:
    """Runs plain functions for one event loop at a time."""

    def __init__(self, count: int, name: str) -> None:
        self._queue: SimpleQueue[tuple[_Errand, Work] | None] = SimpleQueue()
        self._busy = 0
        self.on_done: Callable[[], None] | None = None
        """Called in the loop whenever a piece of work is done."""
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._threads)

    @property
    def busy(self) -> int:
        """Pieces of work that are being done or wait for a thread."""
        return self._busy

    @property
    def idle(self) -> int:
        """Threads that have nothing to do."""
        return max(0, len(self._threads) - self._busy)

    def run(self, *work: Work) -> asyncio.Future[None]:
        """Runs each piece in the next free thread; done when all are. Cancelling the future does not stop them."""
        loop = asyncio.get_running_loop()
        errand = _Errand(loop, loop.create_future(), len(work))
        self._busy += len(work)
        for one in work:
            self._queue.put((errand, one))
        return errand.future

    def close(self) -> None:
        """Waits until all work handed in is done."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            errand, work = item
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:  # whoever awaits the future gets it
                error = raised
            errand.loop.call_soon_threadsafe(self._settle, errand, error)
            del item, errand, work, error

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
