"""Ages in a histogram of constant relative width: small, merged by adding, percentiles within half a percent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

_GROWTH = 1.01
_LOG = math.log(_GROWTH)


class Ages:
    """Milliseconds, from 0 up."""

    def __init__(self, counts: Counter[int] | None = None) -> None:
        self._counts: Counter[int] = Counter() if counts is None else counts
        self.highest = 0.0

    def add(self, age_ms: float) -> None:
        self._counts[math.floor(math.log(max(age_ms, 0.01)) / _LOG)] += 1
        self.highest = max(self.highest, age_ms)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def at(self, quantile: float) -> float | None:
        """The age that this share of all stays under (nearest rank); None where there is none."""
        total = len(self)
        if not total:
            return None
        rank, seen = math.ceil(quantile * total), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return min(round(math.exp((bucket + 0.5) * _LOG), 3), self.highest)
        raise AssertionError("a rank beyond all counts")

    @staticmethod
    def merged(parts: Iterable[Ages]) -> Ages:
        out = Ages()
        for part in parts:
            out._counts.update(part._counts)
            out.highest = max(out.highest, part.highest)
        return out
