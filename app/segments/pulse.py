"""What /health knows of a worker's loops."""

from __future__ import annotations

import threading
import time
from typing import Any

SILENT_S = 300.0
"""Above the longest turn: a long poll, with the AWS SDK's own repetitions. A loop silent for so long hangs."""


class Pulse:
    """One loop's: when it last turned, and whether it went well. Written by its thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: float | None = None
        self._well = True
        self._failed = False

    def turned(self) -> None:
        """A turn has ended."""
        with self._lock:
            self._at = time.monotonic()
            self._well = not self._failed
            self._failed = False

    def failed(self) -> None:
        """Something in this turn did not do."""
        with self._lock:
            self._failed = True
            self._well = False

    def report(self) -> dict[str, Any]:
        """`state`: ok, degraded (the last turn failed), starting (none yet) or silent; `age_s` of the last turn."""
        with self._lock:
            if self._at is None:
                return {"state": "starting" if self._well else "degraded", "age_s": None}
            age_s = time.monotonic() - self._at
            state = "silent" if age_s > SILENT_S else "ok" if self._well else "degraded"
            return {"state": state, "age_s": round(age_s, 1)}


def worst(reports: dict[str, dict[str, Any]]) -> str:
    """The state of all."""
    states = [str(one["state"]) for one in reports.values()]
    return max(states, key=("ok", "degraded", "starting", "silent").index)
