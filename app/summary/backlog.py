"""What waits to be summarised: a session's observations, in memory, then on disk, in order, bounded.

    offer -> [ memory: newest ] -> [ disk: older ] -> [ read back: oldest ] -> take

Memory is filled first. When it is full its oldest quarter goes to disk, so that everything on disk is older than
everything in memory; `take` empties the disk before it touches memory. When the disk is full too, or not to be had,
neighbours are folded into one, the older the coarser; dropped is only what cannot be folded.

What a kill loses: what was in memory and what was on its way to the disk, at most SUMMARY_RAM_ITEMS each, the newest.
What had been taken is not given again. A power cut may also undo the last commits, see `schema.connect`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from app import metrics
from app.settings import SummarySettings
from app.summary.database import Claimed, SpillFile
from app.summary.observations import DamagedRecord, Observation, Row, merge_records, neighbours
from app.summary.spill import Spill

_FOLDED_AT_ONCE = 32
"""Pairs, in one turn of the event loop; each takes some ten microseconds of it."""
_DECODED_AT_ONCE = 64
"""Before others get their turn on the event loop."""

# Over the process: offered + adopted = taken + merged + dropped + kept + what the gauges say waits.
_offered, _adopted, _taken, _merged, _dropped, _kept = (
    metrics.SUMMARY_OBSERVATIONS.labels(outcome)
    for outcome in ("offered", "adopted", "taken", "merged", "dropped", "kept")
)


@dataclass(frozen=True, slots=True)
class Counts:
    """offered = taken + merged + dropped + in_ram + on_disk, at every moment."""

    offered: int
    """Those found on disk from an earlier process are counted here, too."""
    taken: int
    merged: int
    """That ceased to be one of their own: of two that were folded, one."""
    dropped: int
    in_ram: int
    on_disk: int
    ram_bytes: int
    disk_bytes: int


class Backlog:
    """One session's. Everything is called on the event loop's thread."""

    def __init__(
        self,
        session_id: str,
        settings: SummarySettings,
        spill: Spill,
        estate: tuple[Claimed, SpillFile] | None = None,
    ) -> None:
        """`estate`: what another process left, see `adopt`."""
        self.session_id = session_id
        self._settings = settings
        self._ram = Held()
        self._head = Held()
        """Read back for a `take`: older than all else."""
        self._taking = asyncio.Lock()
        self._pieces = spill.pieces
        self._making_room = False
        """A piece of it is still to come."""
        self._closed = False
        self._levels = Levels()
        self._shelf = spill.shelf(session_id, self, estate)
        self._seq = self._shelf.last_seq
        self._offered = self._shelf.items
        self._taken = self._merged = self._dropped = 0
        _adopted.inc(self._offered)
        self._show()

    @classmethod
    async def adopt(cls, session_id: str, spill: Spill) -> Backlog | None:
        """Takes over an orphan: `take` gives its observations in order. Close it without `keep` when it is empty.

        None when it has none any more, or another process was quicker.
        """
        estate = await spill.claim(session_id)
        return None if estate is None else cls(session_id, spill.settings, spill, estate)

    # --- for the session ---

    def offer(self, observation: Observation) -> None:
        """Takes it in, in microseconds. Never refuses, never waits; after `close` it is dropped, and counted."""
        self._offered += 1
        _offered.inc()
        if self._closed:
            self.changed(dropped=1)
            return
        self._seq += 1
        self._ram.append(Row(self._seq, observation.frames, observation.encode()))
        self._make_room()
        self._show()

    async def take(self, max_items: int = 64, max_bytes: int = 65_536) -> list[Observation]:
        """The oldest, in order, at most so many items and bytes of records, but one if there is any.

        Cancelling loses nothing. Empty also while the disk cannot be read: what is there is older than all in memory.
        """
        async with self._taking:
            while True:
                await self._gather(max_items, max_bytes)
                if not self._head:
                    return []
                if found := await self._read(max_items, max_bytes):
                    return found

    @property
    def counts(self) -> Counts:
        return Counts(
            offered=self._offered,
            taken=self._taken,
            merged=self._merged,
            dropped=self._dropped,
            in_ram=len(self._head) + len(self._ram) + self._shelf.flying_items,
            on_disk=self._shelf.items,
            ram_bytes=self._head.size + self._ram.size + self._shelf.flying_size,
            disk_bytes=self._shelf.size,
        )

    @property
    def pressure(self) -> float:
        """How full it is: 0 empty, 0.5 memory full, 1 the disk full too (or memory, where there is no disk)."""
        settings, shelf = self._settings, self._shelf
        ram = max(len(self._ram) / settings.summary_ram_items, self._ram.size / settings.summary_ram_bytes)
        if shelf.empty and not shelf.usable:
            return min(1.0, ram)
        disk = max(shelf.items / max(1, settings.summary_disk_items), shelf.size / max(1, settings.summary_disk_bytes))
        return (min(1.0, ram) + min(1.0, disk)) / 2

    async def close(self, keep: bool) -> None:
        """The session is over. `keep`: what waits goes to disk, for the next start; else it is dropped."""
        self._closed = True
        async with self._taking:
            if self._shelf.over:
                return
            await self._shelf.settled()  # what was on its way, either way, has come
            if keep:
                self._shelf.put(self._empty())
                await self._shelf.settled()
            self.changed(dropped=len(self._empty()))
            await self._shelf.end(keep=keep)
            _kept.inc(self._shelf.items)
            self._levels.clear()

    # --- for the shelf ---

    def arrived(self, rows: Sequence[Row]) -> None:
        self._head.extend(rows)
        self._show()

    def returned(self, rows: Sequence[Row]) -> None:
        self._ram.put_back(rows)
        self._make_room_in_pieces()
        self._show()

    def changed(self, *, merged: int = 0, dropped: int = 0) -> None:
        self._merged += merged
        self._dropped += dropped
        _merged.inc(merged)
        _dropped.inc(dropped)
        self._show()

    # --- room ---

    def _empty(self) -> list[Row]:
        """Everything out of memory but what is on its way to the disk."""
        return [*self._head.pop(len(self._head)), *self._ram.pop(len(self._ram))]

    def _make_room(self) -> None:
        if not self._making_room and self._make_some_room():
            self._make_room_in_pieces()

    def _make_room_in_pieces(self) -> None:
        if not self._making_room:
            self._making_room = True
            self._pieces.add(self._make_more_room)

    def _make_more_room(self) -> bool:
        self._making_room = not self._closed and self._make_some_room()
        self._show()
        return self._making_room

    def _make_some_room(self) -> bool:
        """As much as one turn of the event loop has time for; whether memory is over its bounds still."""
        most, ram, pairs = self._settings.summary_ram_items, self._ram, _FOLDED_AT_ONCE
        while len(ram) > most or ram.size > self._settings.summary_ram_bytes:
            if self._shelf.accepting:
                self._shelf.put(ram.pop(max(1, most // 4)))
            elif len(ram) == 1:
                self.changed(dropped=len(ram.pop(1)))
            elif pairs == 0:
                return True
            else:
                folded = ram.fold(min(pairs, max(len(ram) - most, len(ram) // 8, 1)))
                pairs -= folded
                self.changed(merged=folded)
        return False

    # --- taking ---

    async def _gather(self, items: int, size: int) -> None:
        """Fills the head, first from disk, then from memory, as far as it is there."""
        while len(self._head) < items and self._head.size < size:
            if not self._shelf.empty:
                if not await self._shelf.fetch(items - len(self._head), size - self._head.size):
                    return
            elif self._ram:
                self._head.extend(self._ram.pop(1))
            else:
                return

    async def _read(self, items: int, size: int) -> list[Observation]:
        """Decodes from the head, and only then takes away, so that a cancelled `take` loses nothing."""
        found: list[Observation] = []
        read = 0
        for row in self._head.oldest(items):
            if read and len(row.data) > size:
                break
            size -= len(row.data)
            read += 1
            try:
                found.append(Observation.decode(row.data))
            except DamagedRecord:
                metrics.SUMMARY_DISK_ERRORS.labels("record").inc()
            if read % _DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._head.pop(read)
        self._taken += len(found)
        _taken.inc(len(found))
        self.changed(dropped=read - len(found))
        return found

    def _show(self) -> None:
        shelf = self._shelf
        if shelf.over:
            return
        self._levels.show(
            len(self._head) + len(self._ram) + shelf.flying_items,
            self._head.size + self._ram.size + shelf.flying_size,
            shelf.items,
            shelf.size,
        )


# --- rows in memory ---


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


# --- what all sessions of the process hold, on the gauges ---

_gauges = (
    metrics.SUMMARY_BACKLOG_ITEMS.labels("ram"),
    metrics.SUMMARY_BACKLOG_BYTES.labels("ram"),
    metrics.SUMMARY_BACKLOG_ITEMS.labels("disk"),
    metrics.SUMMARY_BACKLOG_BYTES.labels("disk"),
)


class Levels:
    """One session's part of them; only differences are written."""

    def __init__(self) -> None:
        self._shown = (0, 0, 0, 0)

    def show(self, ram_items: int, ram_bytes: int, disk_items: int, disk_bytes: int) -> None:
        now = (ram_items, ram_bytes, disk_items, disk_bytes)
        for gauge, old, new in zip(_gauges, self._shown, now, strict=True):
            if new != old:
                gauge.inc(new - old)
        self._shown = now

    def clear(self) -> None:
        """The session is over."""
        self.show(0, 0, 0, 0)
