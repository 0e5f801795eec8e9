"""A service's frame counts from its `/metrics`: received, their outcomes, and the batches at the models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_FRAMES = ("received", "processed", "dropped", "failed")


@dataclass(frozen=True, slots=True)
class Ledger:
    received: int
    processed: int
    dropped: int
    failed: int
    sessions: int
    """Open now, or waiting."""

    @property
    def adds_up(self) -> bool:
        """True when nothing is in flight and every frame is accounted for."""
        return self.received == self.processed + self.dropped + self.failed


def read(url: str, entry: str | None = None) -> Ledger:
    """Reads the counts of one entry point, or of all together."""
    frames, sessions = dict.fromkeys(_FRAMES, 0), 0
    for family in _families(url):
        word = family.name.removeprefix("sightline_frames_")
        if word in frames:
            kept = [sample.value for sample in family.samples if entry in (None, sample.labels.get("entry"))]
            frames[word] += round(sum(kept))
        elif family.name in ("sightline_sessions_active", "sightline_sessions_waiting"):
            sessions += round(sum(sample.value for sample in family.samples))
    return Ledger(**frames, sessions=sessions)


def batches(url: str) -> tuple[int, int]:
    """Frames that went to models so far, and the requests that they went in, all models together."""
    found = {"_sum": 0.0, "_count": 0.0}
    for family in _families(url):
        if family.name == "sightline_model_batch_size":
            for ending in found:
                found[ending] += sum(sample.value for sample in family.samples if sample.name.endswith(ending))
    return round(found["_sum"]), round(found["_count"])


def _families(url: str) -> Iterable[Metric]:
    return text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text)
