"""Process-wide settings of what lies under the hot path: libraries, the allocator, the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys

import cv2

log = logging.getLogger(__name__)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_THRESHOLD = 256 * 1024 * 1024


def tune() -> None:
    """Called once, before the first frame.

    Keeps glibc from giving picture-sized memory back to the kernel, and OpenCV from making threads of its own.

    With glibc's defaults a buffer of a frame's size is mapped, faulted in page by page and unmapped again
    for every frame, which can double the cost of a decode (mallopt(3)).
    """
    cv2.setNumThreads(1)  # one frame, one thread: the frames are what runs in parallel
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)  # glibc's own maximum
            libc.mallopt(_M_TRIM_THRESHOLD, _THRESHOLD)
        except (OSError, AttributeError):  # musl has no mallopt
            log.debug("no mallopt here")


def settle(*, young: int = 0) -> None:
    """Called once all is loaded: the garbage collector need not look through modules and models again and again.

    It looked through some hundred thousand objects that never go, for 2% of the CPU time of a live frame; in a fleet's
    worker that was one stop of 65 ms every few thousand frames.

    Args:
        young: new objects from which it looks at the new ones; 0: as Python has it (700). For a process whose work
            makes no circles: what is in hand, a batch of a thousand objects, is then gone when it looks.
    """
    gc.collect()
    gc.freeze()
    if young:
        gc.set_threshold(young, *gc.get_threshold()[1:])
