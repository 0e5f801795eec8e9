"""Rows in memory, in order, with their bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from app.summary.observations import Row, merge_records, neighbours


class Held:
    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self.size = 0
        """Bytes of their records."""

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, row: Row) -> None:
        self._rows.append(row)
        self.size += len(row.data)

    def extend(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.append(row)

    def put_back(self, rows: Sequence[Row]) -> None:
        """Before all others."""
        self._rows.extendleft(reversed(rows))
        self.size += sum([len(row.data) for row in rows])

    def oldest(self, count: int) -> list[Row]:
        """They stay where they are."""
        return list(islice(self._rows, count))

    def pop(self, count: int) -> list[Row]:
        """The oldest, as many as there are."""
        rows = [self._rows.popleft() for _ in range(min(count, len(self._rows)))]
        self.size -= sum([len(row.data) for row in rows])
        return rows

    def fold(self, pairs: int) -> int:
        """Folds at most so many pairs of neighbours; how many it were."""
        rows = list(self._rows)
        chosen = neighbours([row.frames for row in rows], pairs)
        for at in reversed(chosen):
            rows[at : at + 2] = [merge_records(rows[at], rows[at + 1])]
        self._rows = deque(rows)
        self.size = sum([len(row.data) for row in rows])
        return len(chosen)
