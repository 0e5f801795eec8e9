"""Compares the outputs of a plan and of its ONNX for one image. Uses only the standard library.

FP16 changes scores a little, and with them the order of the rows, so rows are compared by their content. For each row
with a score of at least `SURE` on one side, the other side must have one of the same class, with a score within
`SCORE`, and with corners and keypoints within `PIXELS` or within `SHARE` of the box's longer side. Two embeddings must
have a cosine of at least `COSINE`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

SURE = 0.35
"""Least score of a row that is compared: the service's default threshold."""
SCORE = 0.05
PIXELS = 2.0
SHARE = 0.02
KEYPOINT_SURE = 0.5
COSINE = 0.998

Row = Sequence[float]


def read_output(path: Path) -> list[Row]:
    """Reads the single output for one image that trtexec's `--exportOutput` wrote; returns rows of the last dimension.

    Raises:
        ValueError: there is not exactly one output, or some values are no numbers.
    """
    outputs = json.loads(path.read_text())
    if len(outputs) != 1:
        raise ValueError(f"{len(outputs)} outputs; want one")
    columns = int(outputs[0]["dimensions"].split("x")[-1])
    values = [float(value) for value in outputs[0]["values"]]
    if not all(map(math.isfinite, values)):
        raise ValueError("values that are no numbers")
    return [values[at : at + columns] for at in range(0, len(values), columns)]


def write_output(path: Path, name: str, shape: Sequence[int], values: Sequence[float]) -> None:
    """Writes the ONNX's output in the format that `read_output` reads."""
    output = {"name": name, "dimensions": "x".join(map(str, shape)), "values": list(values)}
    path.write_text(json.dumps([output]))


def difference(task: str, wanted: Sequence[Row], given: Sequence[Row]) -> str | None:
    """Describes the first difference that is too large; None if there is none.

    Args:
        task: `detect`, `pose` or `face`.
        wanted: the ONNX's rows.
        given: the plan's rows.
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
            if not any(_same(row, candidate) for candidate in others):
                box = ", ".join(f"{value:.1f}" for value in row[:4])
                return f"only {name} finds class {row[5]:.0f} at ({box}) with a score of {row[4]:.3f}"
    return None


def sure(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row[4] >= SURE]


def cosine(left: Row, right: Row) -> float:
    lengths = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / lengths if lengths else 0.0


def _same(row: Row, other: Row) -> bool:
    reach = max(PIXELS, SHARE * max(row[2] - row[0], row[3] - row[1]))
    if row[5] != other[5] or abs(row[4] - other[4]) > SCORE:
        return False
    if any(abs(a - b) > reach for a, b in zip(row[:4], other[:4], strict=True)):
        return False
    points = range(6, len(row), 3)
    return all(
        abs(row[at] - other[at]) <= reach and abs(row[at + 1] - other[at + 1]) <= reach
        for at in points
        if row[at + 2] >= KEYPOINT_SURE
    )
