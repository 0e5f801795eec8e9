"""Writes the dashboards: `python prometheus/dashboards/build.py`; `--check` only names those that are out of date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fleet
import inference
import live
import summaries
from panels import render

HERE = Path(__file__).parent
BOARDS = (live.BOARD, inference.BOARD, fleet.BOARD, summaries.BOARD)


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = []
    for board in BOARDS:
        path = HERE / f"{board.name.lower()}.json"
        text = json.dumps(render(board), indent=2, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run `python prometheus/dashboards/build.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
