"""What DECODE=fast changes in the boxes of the embedded Triton's own models: photographs in eight shapes, both ways.

    python -m benchmarks.decoding

Not one of `make bench`: it measures no time. Prints one JSON object: of the boxes of `exact`, how many `fast` found
too (same class, IoU of at least 0.5), and how far these differ; keypoints in pixels of the frame.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from app.pipeline.boxes import iou
from app.pipeline.startup import open_pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from app.settings import Settings

SHAPES = ((640, 480), (1280, 720), (1920, 1080), (1000, 1000), (720, 1280), (1920, 400), (333, 517), (2600, 1900))
SETTINGS = StreamSettings(confidence=0.25, stages=Stages(ocr=False, motion=False, track=False))


def pictures() -> list[bytes]:
    """Photographs of scikit-image, cut to each shape; JPEG 4:2:0 of quality 80."""
    from skimage import data

    found = []
    for name in ("astronaut", "camera"):
        photograph: Any = getattr(data, name)()
        if photograph.ndim == 2:
            photograph = np.repeat(photograph[..., None], 3, 2)
        for width, height in SHAPES:
            scale = max(width / photograph.shape[1], height / photograph.shape[0])
            size = (round(photograph.shape[1] * scale), round(photograph.shape[0] * scale))
            large = cv2.resize(photograph, size, interpolation=cv2.INTER_CUBIC)
            cut = np.ascontiguousarray(large[:height, (size[0] - width) // 2 :][:, :width])
            found.append(simplejpeg.encode_jpeg(cut, quality=80, colorsubsampling="420"))
    return found


async def results(jpegs: list[bytes], decode: str, folder: Path) -> list[FrameResult]:
    """The result of each image, analysed in a call of its own."""
    settings = Settings(decode=decode, state_dir=folder, triton_url=None, ocr="off")
    found = []
    async with open_pipeline(settings) as opened:
        while not opened.pipeline.models.detect:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        for jpeg in jpegs:
            frame = Frame("a", jpeg, time.perf_counter(), 0.0, 1)
            (result,) = await opened.pipeline.analyze([FrameJob(frame, StreamMemory(), SETTINGS, deadline_s=60.0)])
            if not isinstance(result, FrameResult):
                raise result
            found.append(result)
    return found


def compared(exact: list[FrameResult], fast: list[FrameResult]) -> dict[str, Any]:
    ious, scores, points, boxes = [], [], [], 0
    for exact_result, fast_result in zip(exact, fast, strict=True):
        for first, second in ((exact_result.objects, fast_result.objects), (exact_result.poses, fast_result.poses)):
            boxes += len(first)
            for thing in first:
                same = [it for it in second if getattr(it, "class_id", 0) == getattr(thing, "class_id", 0)]
                if not same:
                    continue
                overlaps = iou(corners([thing]), corners(same))[0]
                best = int(overlaps.argmax())
                if overlaps[best] < 0.5:
                    continue
                ious.append(float(overlaps[best]))
                scores.append(abs(thing.confidence - same[best].confidence))
                for a, b in zip(getattr(thing, "keypoints", ()), getattr(same[best], "keypoints", ()), strict=True):
                    points.append(float(np.hypot(a.x - b.x, a.y - b.y)))
    return {
        "pictures": len(exact),
        "boxes": boxes,
        "found_too": len(ious),
        "boxes_of_fast": sum(len(result.objects) + len(result.poses) for result in fast),
        "iou_median": round(float(np.median(ious)), 4),
        "iou_worst": round(min(ious), 4),
        "iou_under_0.99": sum(value < 0.99 for value in ious),
        "score_worst": round(max(scores), 4),
        "keypoint_median_px": round(float(np.median(points)), 2) if points else None,
        "keypoint_worst_px": round(max(points), 2) if points else None,
    }


def corners(things: list[Any]) -> Any:
    return np.array([(it.box.x1, it.box.y1, it.box.x2, it.box.y2) for it in things], np.float32)


async def main() -> None:
    jpegs = pictures()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        exact, fast = [await results(jpegs, decode, Path(folder)) for decode in ("exact", "fast")]
    json.dump(compared(exact, fast), sys.stdout, indent=2)


if __name__ == "__main__":
    asyncio.run(main())
