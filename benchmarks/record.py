"""What is kept of a run: `results.json`, without single turns and samples, one entry a benchmark.

Every run merges its entry into `results.json` in its output folder; with `--record` also into the one in this folder,
which is committed, and which the README's figures are written from.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

COMMITTED = Path(__file__).with_name("results.json")
_LEFT_OUT = ("turns", "samples")


def entry(results: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a benchmark's results that is kept."""
    kept = {name: value for name, value in results.items() if name not in _LEFT_OUT}
    return {"at": datetime.now(UTC).strftime("%Y-%m-%d"), **kept}


def merge(results: Mapping[str, Any], path: Path) -> None:
    """Puts a run's entry in the place of the one before; the others stay."""
    known = load(path)
    known[results["benchmark"]] = entry(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    path.write_bytes(orjson.dumps(known, option=options))


def load(path: Path = COMMITTED) -> dict[str, Any]:
    """Entries by benchmark; none where nothing was kept yet."""
    known: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {}
    return known
