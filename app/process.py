"""The start and the end of every process: tuning, signals, log lines while a start waits and during a shutdown.

A command that serves or works on queues ends with 0 on SIGTERM, because that is how it is meant to end, and logs one
line each for stopping, drained and ended.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_THRESHOLD = 256 * 1024 * 1024
"""Bytes of free memory that glibc keeps for later allocations instead of returning them to the kernel."""
_WAIT_LOG_S = 3.0
"""Seconds between two log lines while a start waits."""


def tune() -> None:
    """Sets up OpenCV and the allocator. Call once, before the first frame.

    OpenCV starts no threads of its own, because frames run in parallel and each has one thread. glibc keeps memory of a
    frame's size: by default it maps, faults in page by page and unmaps such a buffer for every frame, which can double
    the cost of a decode (mallopt(3)).
    """
    import cv2

    cv2.setNumThreads(1)
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)  # glibc's own maximum
            libc.mallopt(_M_TRIM_THRESHOLD, _THRESHOLD)
        except (OSError, AttributeError):  # musl has no mallopt
            log.debug("this C library has no mallopt")


def freeze_gc(*, threshold: int = 0) -> None:
    """Excludes everything loaded so far from garbage collection. Call once all modules and models are loaded.

    Otherwise the collector walks some hundred thousand objects that are never freed: 2% of the CPU time of a live
    frame, and in a fleet's worker one stop of 65 ms every few thousand frames.

    Args:
        threshold: new objects that start a collection; 0 keeps Python's own (700). Larger suits a process whose work
            makes no reference cycles: a batch of a thousand objects is freed before the collector runs.
    """
    gc.collect()
    gc.freeze()
    if threshold:
        gc.set_threshold(threshold, *gc.get_threshold()[1:])


@contextmanager
def log_while_waiting(what: str, every_s: float = _WAIT_LOG_S) -> Iterator[None]:
    """Logs that the start waits for `what`, every `every_s` seconds while the block lasts; nothing if it is shorter.

    A thread logs, because a start often waits for an import, which blocks the event loop.
    """
    over, begun = threading.Event(), time.monotonic()

    def report() -> None:
        while not over.wait(every_s):
            log.info("starting: waiting for %s, %.0f s so far", what, time.monotonic() - begun)

    threading.Thread(target=report, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        over.set()


# --- signals ---


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the process with 0 until the command sets its own handler, because its imports take seconds.

    Call in the main thread.
    """

    def leave(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)


@contextmanager
def handling_signals(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """These signals (SIGTERM and SIGINT if none is given) call `handler` while the block lasts. Main thread only."""
    before = {number: signal.signal(number, handler) for number in numbers or (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT log that the process stops, and call `stop`, while the block lasts. Main thread only."""

    def handle(number: int, _: object) -> None:
        SHUTDOWN_LOG.stopping(f"{signal.Signals(number).name} came")
        stop()

    with handling_signals(handle):
        yield


def end_with_parent() -> None:
    """Sends this worker process SIGTERM once its parent has ended.

    A parent that was killed cannot end its workers, so that they would run on and keep the port.
    """

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


class ShutdownLog:
    """The log lines of a process's shutdown. Of several processes, only the parent logs them."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._muted = False

    def mute(self) -> None:
        """Logs nothing from now on: the parent does."""
        self._muted = True

    def stopping(self, why: str) -> None:
        """Logs the reason, once. Signal handlers may call it."""
        if self._began is None:
            self._began = time.monotonic()
            # In a thread, because the handler may have interrupted the code that writes the log.
            threading.Thread(target=self._log, args=("stopping: %s", why), name="stopping").start()

    def drained(self) -> None:
        """Logs that all work in flight is finished, or returned to its queue."""
        if self._began is None:
            self.stopping("the work is over")
        self._log("drained after %.1f s", time.monotonic() - (self._began or 0.0))

    def ended(self) -> None:
        """Logs that the process ends now."""
        self._log("ended")

    def _log(self, message: str, *values: object) -> None:
        if not self._muted:
            log.info(message, *values)


SHUTDOWN_LOG = ShutdownLog()
