"""From a detector's head to objects: a Python loop, vectorised numpy, ours; and ours on a head picked in the graph.

Raw heads `[84, 8400]` with none, 240 or 1,500 candidates over the threshold, in clusters as a detector gives them: one
row an object that scores high, the rest lower. A graph hands on its best 300 rows, every object's best among them. All
find the same boxes, classes and scores, or the run fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import Letterbox, letterbox
from app.pipeline.stages.detect import Detected, DetectReader, detect_reader
from benchmarks import inner, naive, turns
from benchmarks.harness import BenchmarkError
from benchmarks.turns import Ratio

CLASSES, ANCHORS, SIZE, K = 80, 8400, 640, 300
COUNTS = (0, 240, 1500)
READERS = {
    "loop": "Python loop",
    "vectorised": "numpy, then cv2's suppression",
    "ours": "ours",
    "picked": "ours, picked in the graph",
}
VARIANTS = {
    f"{reader}-{count}": f"{title}, {count:,} candidates" for count in COUNTS for reader, title in READERS.items()
}
RATIOS = tuple(
    Ratio(f"a raw head, {count:,} candidates: {title}", "cpu_us", f"{over}-{count}", f"{under}-{count}", low)
    for count in COUNTS
    for title, over, under, low in (
        # What is wanted is over the loop, as all benchmarks judge the first of their variants. Numpy's suppression is
        # OpenCV's compiled one: of many boxes it makes as short work as ours.
        ("ours over the loop", "loop", "ours", 3),
        ("ours over numpy", "vectorised", "ours", None),
        ("picked in the graph, over numpy", "vectorised", "picked", None),
    )
)
CONFIDENCE, IOU = naive.CONFIDENCE, naive.IOU
Objects = Detected | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 0.4
    warm_up_s: float = 0.2
    variants: tuple[str, ...] = tuple(VARIANTS)


def head(count: int) -> NDArray[np.float32]:
    """A raw head `[84, 8400]`: about eight candidates an object, jittered, the rest noise under the threshold.

    All objects lie in the 640x480 frame on the canvas. An object's best candidate scores 0.6 to 0.9, its second 0.8
    of that, so that bests and seconds mix, and the others less: each object of either count has its best among K rows.
    """
    chance = np.random.default_rng(8)
    out = np.zeros((4 + CLASSES, ANCHORS), np.float32)
    out[4:] = chance.uniform(0, 0.05, (CLASSES, ANCHORS))
    out[:4] = chance.uniform(20, 600, (4, ANCHORS))
    objects = max(1, count // 8)
    middles, sides = chance.uniform(150, 490, (2, objects)), chance.uniform(30, 120, (2, objects))
    labels = chance.integers(0, CLASSES, objects)
    best = chance.permutation(np.linspace(0.9, 0.6, objects))
    scores = np.concatenate((best, 0.8 * best, chance.uniform(0.36, 0.55, count)))
    for column in range(count):
        at, object_index = column * 5, column % objects
        out[:4, at] = *(middles[:, object_index] + chance.uniform(-2, 2, 2)), *sides[:, object_index]
        out[4 + labels[object_index], at] = scores[column]
    return out


def picked(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a prepared graph makes of it: the best K rows `[K, 6]`."""
    scores, labels = raw[4:].max(0), raw[4:].argmax(0)
    best = np.argsort(-scores, kind="stable")[:K]
    (x, y), (half_w, half_h) = raw[:2, best], raw[2:4, best] / 2
    return np.stack((x - half_w, y - half_h, x + half_w, y + half_h, scores[best], labels[best]), 1, dtype=np.float32)


def loop(output: NDArray[np.float32], scale: float, left: int, top: int) -> list[dict[str, Any]]:
    """As many tutorials have it: every anchor in Python."""
    boxes, scores, class_ids = [], [], []
    for row in output[0].T:
        class_id = int(row[4:].argmax())
        score = float(row[4 + class_id])
        if score > CONFIDENCE:
            x, y, width, height = row[:4]
            boxes.append(
                [(x - width / 2 - left) / scale, (y - height / 2 - top) / scale, width / scale, height / scale]
            )
            scores.append(score)
            class_ids.append(class_id)
    keep = cv2.dnn.NMSBoxesBatched(boxes, scores, class_ids, CONFIDENCE, IOU) if boxes else ()
    return [{"class_id": class_ids[i], "confidence": scores[i], "box": naive.corners(np.array(boxes[i]))} for i in keep]


def reader(layout: str) -> DetectReader:
    """Ours, for a raw or a picked head."""
    names = {"class_names": "[" + ",".join(f'"class {class_id}"' for class_id in range(CLASSES)) + "]"}
    if layout == "raw":
        given, made = TensorSpec("images", "FP32", (-1, 3, SIZE, SIZE)), (-1, 4 + CLASSES, ANCHORS)
    else:
        given, made = TensorSpec("images", "UINT8", (-1, SIZE, SIZE, 3)), (-1, K, 6)
    return detect_reader(ModelSpec("yolo", "1", (given,), (TensorSpec("output0", "FP32", made),), 16, names))


def work(variant: str, clips: Sequence[Sequence[bytes]]) -> inner.Work:
    """One head to objects in frame pixels. Suppression at the service's own thresholds; 300 objects at most.

    Raises:
        BenchmarkError: it does not find what the Python loop finds.
    """
    how, _, count = variant.partition("-")
    raw, box = head(int(count)), letterbox(640, 480, SIZE, SIZE)
    given, best = raw[None], picked(raw)[None]
    raw_reader, picked_reader = reader("raw"), reader("picked")
    steps: dict[str, Callable[[], Objects]] = {
        "loop": lambda: loop(given, box.scale, box.pad_x, box.pad_y),
        "vectorised": lambda: naive.detections(given, box.scale, box.pad_x, box.pad_y),
        "ours": lambda: _read(raw_reader, given, box),
        "picked": lambda: _read(picked_reader, best, box),
    }
    found, wanted = rows(steps[how]()), rows(steps["loop"]())
    if found.shape != wanted.shape or not np.allclose(found, wanted, atol=0.01):
        raise BenchmarkError(f"{variant}: {len(found)} objects, of the Python loop {len(wanted)}; or other boxes")
    return lambda _: steps[how](), {"objects": len(found)}


def rows(found: Objects) -> NDArray[np.float64]:
    """What was found, best first: `[n, 6]` of x1, y1, x2, y2 in frame pixels, score, class."""
    if isinstance(found, Detected):
        columns = np.column_stack((found.xyxy, found.confidence, found.class_id)).astype(np.float64)
    else:
        told = [(*detection["box"].values(), detection["confidence"], detection["class_id"]) for detection in found]
        columns = np.array(told, np.float64).reshape(-1, 6)
    return columns[np.argsort(-columns[:, 4], kind="stable")]


def _read(reader: DetectReader, output: NDArray[np.float32], box: Letterbox) -> Detected:
    return reader.read(
        {"output0": output}, 0, box, confidence=CONFIDENCE, iou=IOU, classes=None, max_detections=300
    )  # fmt: skip


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements."""
    return turns.run("postprocess", plan, lambda variant: inner.ask("postprocess", variant, plan), RATIOS, say)


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {"cpu_us": "CPU µs a head", "p99_us": "p99 µs", "objects": "objects", "faults": "page faults a head"}
    turns.show(results, "postprocess: a head of 8,400 anchors to objects", VARIANTS, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
