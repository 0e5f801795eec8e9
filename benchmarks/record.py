"""What is kept of a run: `results.json`, without single turns and samples, one entry a benchmark.

Every run merges its entry into `results.json` in its output folder; with `--record` also into the one in this folder,
which is committed, and which the tables of figures are written from. That one takes only runs that `objections` has
nothing against.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from benchmarks.noise import others

COMMITTED = Path(__file__).with_name("results.json")
TURNS = 3
"""Turns at least, because with fewer a median is a mean and a spread means nothing."""
_LEFT_OUT = ("turns", "samples")


def objections(plan: Mapping[str, Any], whole: Mapping[str, Any]) -> list[str]:
    """Why a run with this plan is not to be recorded; empty when it may be.

    Args:
        whole: the benchmark's plan as it is by default. Fewer turns than that will do, shorter ones will not.
    """
    found = []
    for name, wanted in whole.items():
        has = plan.get(name)
        if name == "turns":
            wanted = min(TURNS, wanted)  # a soak is one long run
        if name == "variants":
            if missing := [variant for variant in wanted if variant not in (has or ())]:
                found.append(f"variants left out: {', '.join(missing)}")
        elif isinstance(wanted, int | float) and (has is None or has < wanted):
            found.append(f"{name}={has}, want {wanted:g} or more")
    return found


def noise_objections(noise: Mapping[str, Any]) -> list[str]:
    """Why a run is not to be recorded because of other programs on the machine; empty if it may be."""
    text = others(noise)
    return [text] if text else []


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
