"""Compares the outputs of a plan and of its ONNX for one image. Uses only the standard library.

FP16 changes scores a little, and with them the order of the rows, so rows are compared by their content. For each row
with a score of at least `SURE` on one side, the other side must have one of the same class, with a score within
`SCORE`, and with corners and keypoints within `PIXELS` or within `SHARE` of the box's longer side. Two embeddings must
have a cosine of at least `COSINE`. Coefficients and prototypes of masks must not be apart by more than `APART`. Heads
of other families are compared as such rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SURE = 0.35
"""Least score of a row that is compared: the service's default threshold."""
SCORE = 0.05
PIXELS = 2.0
SHARE = 0.02
KEYPOINT_SURE = 0.5
COSINE = 0.998
ANGLE = 0.05
"""Radians."""
APART = 0.1
"""Greatest distance of two lists of coefficients or prototypes of masks, in lengths of the longer one."""

Row = Sequence[float]


Outputs = Mapping[str, Sequence[Row]]
"""By name: the rows of the last dimension, of one image."""


def read_outputs(path: Path) -> dict[str, list[Row]]:
    """Reads the outputs for one image that trtexec's `--exportOutput` wrote.

    Raises:
        ValueError: there is none, or some values are no numbers.
    """
    outputs = json.loads(path.read_text())
    if not outputs:
        raise ValueError("no outputs")
    found = {}
    for output in outputs:
        columns = int(output["dimensions"].split("x")[-1])
        values = [float(value) for value in output["values"]]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{output['name']} has values that are no numbers")
        found[output["name"]] = [values[at : at + columns] for at in range(0, len(values), columns)]
    return found


def write_outputs(path: Path, outputs: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """Writes the ONNX's outputs, shapes and values, in the format that `read_outputs` reads."""
    written = [
        {"name": name, "dimensions": "x".join(map(str, shape)), "values": list(values)}
        for name, (shape, values) in outputs.items()
    ]
    path.write_text(json.dumps(written))


@dataclass(frozen=True)
class Head:
    """What the outputs mean."""

    task: str
    """detect, pose, segment, obb, classify or face."""
    layout: str = ""
    """The configuration's parameter `layout`."""
    size: tuple[int, int] = (1, 1)
    """Height and width of the image."""
    numbers: int = 3
    """Of each keypoint."""


def compare(head: Head, wanted: Outputs, given: Outputs) -> str | None:
    """Describes the first difference that is too large between the outputs for one image; None if there is none.

    Args:
        wanted: the ONNX's.
        given: the plan's.
    """
    if set(wanted) != set(given):
        return f"outputs {', '.join(sorted(given))} instead of {', '.join(sorted(wanted))}"
    for name, rows in wanted.items():
        if len(rows) != len(given[name]) or len(rows[0]) != len(given[name][0]):
            return f"{name} has {_shape(given[name])} instead of {_shape(rows)}"
    if head.task == "classify":
        return _scores_apart(wanted, given)
    for name in set(wanted) & {"protos"}:
        apart = _apart(*([value for row in rows for value in row] for rows in (wanted[name], given[name])))
        if apart > APART:
            return f"{name} are apart by {apart:.3f} of their length; want {APART} at most"
    return difference(head.task, boxes_of(head, wanted), boxes_of(head, given), head.numbers)


def _shape(rows: Sequence[Row]) -> str:
    return f"{len(rows)} rows of {len(rows[0])}"


def _scores_apart(wanted: Outputs, given: Outputs) -> str | None:
    for name, rows in wanted.items():
        for number, (score, other) in enumerate(zip(rows[0], given[name][0], strict=True)):
            if abs(score - other) > SCORE:
                return f"class {number} has a score of {other:.3f} instead of {score:.3f}"
    return None


def boxes_of(head: Head, outputs: Outputs) -> list[Row]:
    """The outputs as rows of a box in pixels, score, class, and what is behind them, whatever the family.

    Overlaps stay, and so do rows without any score that counts.
    """
    rows = [value for name, value in outputs.items() if name != "protos"]
    height, width = head.size
    if len(rows) == 1 and head.layout in ("", "prepared", "end_to_end"):
        return list(rows[0])
    pixels = (width, height, width, height) if head.layout in SHARES else (1, 1, 1, 1)
    found: list[Row] = []
    if head.layout in ("rtdetr", "rtdetr_rows", "objectness", "yolox"):
        for row in rows[0]:
            box = [value * side for value, side in zip(row[:4], pixels, strict=True)]
            if head.layout == "rtdetr_rows":
                found.append([*box, *row[4:6]])
                continue
            scores = row[4:] if head.layout == "rtdetr" else [row[4] * score for score in row[5:]]
            found.append([*box, *_best(scores)])
        return found
    named = {name.lower(): value for name, value in outputs.items()}
    boxes = next(value for name, value in named.items() if len(value[0]) == 4 and ("box" in name or "det" in name))
    others = {name: value for name, value in named.items() if value is not boxes}
    if head.layout in ("boxes_logits", "boxes_scores"):
        (scores_of,) = others.values()
        for box, values in zip(boxes, scores_of, strict=True):
            scores = [1 / (1 + math.exp(-value)) for value in values] if head.layout == "boxes_logits" else values
            found.append([*(value * side for value, side in zip(box, pixels, strict=True)), *_best(scores)])
        return found
    lists = {name: [value for row in rows for value in row] for name, rows in others.items()}
    labels = next(name for name in lists if "label" in name or "class" in name or "cls" in name)
    scores = next(name for name in lists if name != labels and not name.startswith("num"))
    return [[*box, score, label] for box, score, label in zip(boxes, lists[scores], lists[labels], strict=True)]


SHARES = ("rtdetr", "rtdetr_rows", "boxes_logits")
"""Layouts whose boxes are parts of the image's sides."""


def _best(scores: Sequence[float]) -> tuple[float, float]:
    best = max(range(len(scores)), key=scores.__getitem__)
    return scores[best], float(best)


def difference(task: str, wanted: Sequence[Row], given: Sequence[Row], numbers: int = 3) -> str | None:
    """Describes the first difference that is too large; None if there is none.

    Args:
        task: `detect`, `pose`, `segment`, `obb` or `face`.
        wanted: the ONNX's rows.
        given: the plan's rows.
        numbers: of each keypoint.
    """
    if len(wanted) != len(given) or len(wanted[0]) != len(given[0]):
        return f"{len(given)} rows of {len(given[0])} instead of {len(wanted)} of {len(wanted[0])}"
    if task == "face":
        likeness = cosine(wanted[0], given[0])
        return None if likeness >= COSINE else f"a cosine of {likeness:.4f}; want {COSINE} at least"
    if not sure(wanted):
        return f"nothing to compare: the ONNX detects nothing on this image (no score of at least {SURE})"
    for name, rows, others in (("the ONNX", wanted, given), ("the plan", given, wanted)):
        for row in sure(rows):
            if not any(_same(task, row, candidate, numbers) for candidate in others):
                box = ", ".join(f"{value:.1f}" for value in row[:4])
                return f"only {name} finds class {row[5]:.0f} at ({box}) with a score of {row[4]:.3f}"
    return None


def sure(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row[4] >= SURE]


def cosine(left: Row, right: Row) -> float:
    lengths = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / lengths if lengths else 0.0


def _apart(left: Row, right: Row) -> float:
    length = max(math.hypot(*left), math.hypot(*right))
    return math.dist(left, right) / length if length else 0.0


def _same(task: str, row: Row, other: Row, numbers: int) -> bool:
    long, short = (row[2], row[3]) if task == "obb" else (row[2] - row[0], row[3] - row[1])
    reach = max(PIXELS, SHARE * max(long, short))
    if row[5] != other[5] or abs(row[4] - other[4]) > SCORE:
        return False
    if any(abs(a - b) > reach for a, b in zip(row[:4], other[:4], strict=True)):
        return False
    if task == "obb":
        # A box that is turned by half a circle is the same, and a square one by a quarter.
        turn = math.pi / 2 if abs(long - short) <= reach else math.pi
        apart = abs(row[6] - other[6]) % turn
        return min(apart, turn - apart) <= ANGLE
    if task == "segment":
        return _apart(row[6:], other[6:]) <= APART
    return all(
        abs(row[at] - other[at]) <= reach and abs(row[at + 1] - other[at + 1]) <= reach
        for at in (range(6, len(row), numbers) if task == "pose" else ())
        if numbers < 3 or row[at + 2] >= KEYPOINT_SURE
    )
