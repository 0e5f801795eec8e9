"""The process that reads text. Runs inside OCR's own environment: imports nothing of `app`.

Started as `python -E -P ocr_worker.py CACHE [MODELS]`. On stdin: a frame is its length (uint32,
big-endian) and that many bytes of JPEG. On stdout: one JSON object a line, first `ready` (or `fatal`), then one
`texts` or `error` for every frame, in order. When stdin ends, so does the process, at once, also in the
middle of a run: nothing is left behind by a service that was killed.
"""

from __future__ import annotations

import json
import os
import queue
import runpy
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

THREADS = 1
"""Of ONNX Runtime. One: text may wait, the live path may not; and a pool of one never spins between operators."""

LONGEST_SIDE = 960
"""Pixels. Larger frames are searched for text at this size; found lines are read at the frame's own."""


def main(cache: Path, models: Path | None) -> None:
    frames, answer = open_wire()
    # Since 1.29 ONNX Runtime reports its use over the network unless told not to.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.nice(10)
    try:
        reader = open_reader(cache, models)
    except Exception as error:
        # The one place that still can say why before the process ends.
        answer({"fatal": f"{type(error).__name__}: {error}"})
        raise
    answer({"ready": True, "rss": resident_bytes()})
    while True:
        jpeg = frames.get()
        try:
            found = reader(jpeg)
        except Exception as error:
            # One bad frame is not the end; the service logs and counts it.
            found = {"error": f"{type(error).__name__}: {error}"}
        answer({**found, "rss": resident_bytes()})


def open_wire() -> tuple[queue.SimpleQueue[bytes], Callable[[dict[str, Any]], None]]:
    """Takes stdin and stdout for the wire alone: whatever a library prints goes to stderr from now on."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)

    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=receive, args=(incoming, frames), name="stdin", daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        while line:
            line = line[outgoing.write(line) :]

    return frames, answer


def receive(incoming: BinaryIO, frames: queue.SimpleQueue[bytes]) -> None:
    while len(head := incoming.read(4)) == 4:
        (size,) = struct.unpack(">I", head)
        body = incoming.read(size)
        if len(body) < size:
            break
        frames.put(body)
    os._exit(0)


def open_reader(cache: Path, models: Path | None) -> Callable[[bytes], dict[str, Any]]:
    """A function from JPEG to `size`, its width and height, and `texts`, its lines in reading order: `text`,
    `confidence` 0 to 1, `polygon` of four corners in pixels of the frame as sent (EXIF orientation ignored),
    clockwise from the text's own top left, whichever way round it stands, clipped to the frame.

    Raises:
        ValueError: (the function) not an image that OpenCV decodes.
    """
    # By path, not by import: the folder of this file holds the service's modules, whose names must shadow nothing.
    layout = runpy.run_path(str(Path(__file__).with_name("ocr_models.py")))
    turns = runpy.run_path(str(Path(__file__).with_name("ocr_turns.py")))
    detector, recogniser = layout["prepare"](cache, models)

    import cv2
    import numpy as np
    from paddleocr import PaddleOCR  # type: ignore[import-not-found,unused-ignore]

    cv2.setNumThreads(THREADS)
    pipeline = PaddleOCR(
        engine="onnxruntime",
        # Without the arena memory goes back after a large frame instead of staying at its peak.
        engine_config={"intra_op_num_threads": THREADS, "inter_op_num_threads": 1, "enable_cpu_mem_arena": False},
        device="cpu",
        text_detection_model_name=layout["DETECT"],
        text_detection_model_dir=str(detector),
        text_recognition_model_name=layout["RECOGNISE"],
        text_recognition_model_dir=str(recogniser),
        text_det_limit_side_len=LONGEST_SIDE,
        text_det_limit_type="max",
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
    )

    def read(jpeg: bytes) -> dict[str, Any]:
        if not jpeg:
            raise ValueError("not a picture: no bytes at all")
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError("not a picture that can be decoded")
        height, width = image.shape[:2]
        (page,) = pipeline.predict(image)
        read_once = [
            (text, float(score), polygon)
            for text, score, polygon in zip(page["rec_texts"], page["rec_scores"], page["rec_polys"], strict=True)
        ]
        lines = turns["upright"](read_once, lambda polygon: inside._crop_by_polys(image, [polygon])[0], recognise)
        texts = [
            {
                "text": line.text,
                "confidence": line.score,
                "polygon": np.clip(turns["corners"](line), 0, (width, height)).astype(float).tolist(),
            }
            for line in turns["in_order"](lines, width, height)
            if line.text.strip()
        ]
        return {"size": [width, height], "texts": texts}

    # PaddleOCR's own pipeline, for single lines: what it cuts out, and its reader (PaddleX is pinned).
    inside = pipeline.paddlex_pipeline._pipeline

    def recognise(picture: Any) -> tuple[str, float]:
        (line,) = inside.text_rec_model([picture])
        return line["rec_text"], float(line["rec_score"])

    return read


def resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:  # not Linux: the peak instead
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    # uvloop hands down what is inheritable, the service's listening socket too: its port must be free once it is gone.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
