"""Whether a plan says what its ONNX says, on one picture. Standard library alone.

FP16 moves scores a little, and with them the order of the rows: rows are compared as what they mean. Everything that
one side is sure of must be found on the other: same class, score within `SCORE`, corners within `PIXELS` or
`SHARE` of the box's longer side, keypoints likewise. Embeddings: a cosine of at least `COSINE`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

SURE = 0.35
"""Least score of a row that counts: the service's own default."""
SCORE = 0.05
PIXELS = 2.0
SHARE = 0.02
KEYPOINT_SURE = 0.5
COSINE = 0.998

Row = Sequence[float]


def read_output(path: Path) -> list[Row]:
    """The one output of one picture as trtexec's `--exportOutput` writes it: rows of its last dimension.

    Raises:
        ValueError: not that, or with values that are no numbers.
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
    """The same form, for the ONNX's answer."""
    tensor = {"name": name, "dimensions": "x".join(map(str, shape)), "values": list(values)}
    path.write_text(json.dumps([tensor]))


def difference(task: str, wanted: Sequence[Row], given: Sequence[Row]) -> str | None:
    """What differs too much, for `detect`, `pose` or `face`; None when nothing does."""
    if len(wanted) != len(given) or len(wanted[0]) != len(given[0]):
        return f"{len(given)} rows of {len(given[0])} instead of {len(wanted)} of {len(wanted[0])}"
    if task == "face":
        likeness = cosine(wanted[0], given[0])
        return None if likeness >= COSINE else f"a cosine of {likeness:.4f}; want {COSINE} at least"
    if not sure(wanted):
        return f"nothing to compare: the ONNX itself is sure of nothing on this picture (no score over {SURE})"
    for name, rows, other in (("the ONNX", wanted, given), ("the plan", given, wanted)):
        for row in sure(rows):
            if not any(_same(row, candidate) for candidate in other):
                box = ", ".join(f"{value:.1f}" for value in row[:4])
                return f"only {name} finds class {row[5]:.0f} at ({box}) with a score of {row[4]:.3f}"
    return None


def sure(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row[4] >= SURE]


def cosine(vector: Row, other: Row) -> float:
    lengths = math.hypot(*vector) * math.hypot(*other)
    return sum(a * b for a, b in zip(vector, other, strict=True)) / lengths if lengths else 0.0


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
