"""From a JPEG to a model's input: the naive chain, OpenCV's own short cut, and ours; each with either allocator.

One thread, one 640x480 photograph after the other, a canvas of 640x640. What a naive chain pays for is the FP32 tensor
(a quarter of the bytes would do) and, with glibc's defaults, memory that is given back and faulted in for each frame.
Ours is held against itself at three sizes: DECODE=exact, which is OpenCV's pixels to the level, and DECODE=fast.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from rich.console import Console

from app.pipeline.boxes import letterbox
from app.pipeline.decode import decode_into, inspect
from app.process import tune
from benchmarks import inner, naive, photographs, turns
from benchmarks.turns import Ratio

SIZE = 640
VARIANTS = {
    "naive": "imdecode, numpy to FP32",
    "naive-tuned": "… with our allocator settings",
    "blob": "imdecode, blobFromImage",
    "blob-tuned": "… with our allocator settings",
    "ours-untuned": "ours, glibc's defaults",
    "ours": "ours",
    "ours-fast": "ours, DECODE=fast",
    "ours-exact-720": "1280x720: ours",
    "ours-fast-720": "1280x720: ours, DECODE=fast",
    "ours-exact-1080": "1920x1080: ours",
    "ours-fast-1080": "1920x1080: ours, DECODE=fast",
}
_WIDTHS = {480: 640, 720: 1280, 1080: 1920}
RATIOS = (
    Ratio("JPEG to input: ours over the naive chain", "cpu_us", "naive", "ours", at_least=4),
    Ratio("JPEG to input: ours over blobFromImage", "cpu_us", "blob", "ours"),
    Ratio("naive chain: glibc's defaults over ours", "cpu_us", "naive", "naive-tuned"),
    Ratio("640x480: exact over fast", "cpu_us", "ours", "ours-fast"),
    Ratio("1280x720: exact over fast", "cpu_us", "ours-exact-720", "ours-fast-720"),
    Ratio("1920x1080: exact over fast", "cpu_us", "ours-exact-1080", "ours-fast-1080"),
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    variants: tuple[str, ...] = tuple(VARIANTS)


def work(variant: str, clips: Sequence[Sequence[bytes]]) -> inner.Work:
    """One frame from bytes to a tensor."""
    chain_of, _, how = variant.partition("-")
    if how == "tuned" or (chain_of == "ours" and how != "untuned"):
        tune()
    cv2.setNumThreads(1)
    jpegs = list(chain.from_iterable(clips))
    mode, _, height = how.partition("-")
    if height:
        jpegs = [_enlarged(clip[0], int(height)) for clip in clips]
    step = {"naive": _naive, "blob": _blob, "ours": _ours(exact=mode != "fast")}[chain_of]
    return (lambda count: step(jpegs[count % len(jpegs)])), {}


def _enlarged(jpeg: bytes, height: int) -> bytes:
    """The middle of a photograph, at another size: as JPEG of the same quality."""
    width = _WIDTHS[height]
    picture: Any = simplejpeg.decode_jpeg(jpeg, "RGB")
    rows = picture.shape[1] * height // width
    top = (picture.shape[0] - rows) // 2
    large = cv2.resize(picture[top : top + rows], (width, height), interpolation=cv2.INTER_CUBIC)
    coded: bytes = simplejpeg.encode_jpeg(large, quality=photographs.QUALITY, colorsubsampling="420")
    return coded


def _naive(jpeg: bytes) -> Any:
    return naive.preprocess(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), SIZE)  # type: ignore[arg-type]


def _blob(jpeg: bytes) -> Any:
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    rest = SIZE - frame.shape[0]  # type: ignore[union-attr]
    grey = (114, 114, 114)
    padded = cv2.copyMakeBorder(frame, rest // 2, rest - rest // 2, 0, 0, cv2.BORDER_CONSTANT, value=grey)  # type: ignore[arg-type]
    return cv2.dnn.blobFromImage(padded, 1 / 255, swapRB=True)


def _ours(*, exact: bool = True) -> Callable[[bytes], Any]:
    canvas = np.full((SIZE, SIZE, 3), 114, np.uint8)

    def step(jpeg: bytes) -> None:
        info = inspect(jpeg, max_bytes=2**21, max_pixels=2**24)
        decode_into(jpeg, info, letterbox(info.width, info.height, SIZE, SIZE), canvas, border=False, exact=exact)

    return step


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        frames = photographs.write(Path(name), len(photographs.NAMES))
        return turns.run(
            "frame_path", plan, lambda variant: inner.ask("frame_path", variant, plan, frames), RATIOS, say
        )


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {"cpu_us": "CPU µs a frame", "p50_us": "p50 µs", "p99_us": "p99 µs", "faults": "page faults a frame"}
    turns.show(
        results, "frame_path: JPEG to a model's input, 640x480 where no size is named", VARIANTS, columns, console
    )


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
