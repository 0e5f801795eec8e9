"""The observations of a session that wait to be summarized: in memory, then on disk, in order and bounded.

    offer -> [ memory buffer: newest ] -> [ disk buffer: older ] -> [ read back: oldest ] -> take

Memory fills first. When it is full its oldest quarter goes to disk, so that everything on disk is older than
everything in memory; `take` empties the disk before memory. When the disk is full too, or fails, neighbours are merged
into one observation, the older the coarser; only what cannot be merged is dropped.

A killed process loses what was in memory and in flight to the disk: at most SUMMARY_RAM_ITEMS each, the newest. What
`take` returned is not returned again. A power cut may also undo the last commits, see `database.connect`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from app import metrics
from app.settings import SummarySettings
from app.summary.observations import DamagedRecord, EncodedObservation, Observation, merge_records, neighbours
from app.summary.spill import Claim, Spill

_MERGES_AT_ONCE = 32
"""Pairs merged in one turn of the event loop; each takes some ten microseconds."""
_DECODES_AT_ONCE = 64
"""Records decoded before other tasks get a turn of the event loop."""

# Over the process: offered + adopted = taken + merged + dropped + kept + what the gauges show as waiting.
_offered, _adopted, _taken, _merged, _dropped, _kept = (
    metrics.SUMMARY_OBSERVATIONS.labels(outcome)
    for outcome in ("offered", "adopted", "taken", "merged", "dropped", "kept")
)
_gauges = (
    metrics.SUMMARY_BACKLOG_ITEMS.labels("ram"),
    metrics.SUMMARY_BACKLOG_BYTES.labels("ram"),
    metrics.SUMMARY_BACKLOG_ITEMS.labels("disk"),
    metrics.SUMMARY_BACKLOG_BYTES.labels("disk"),
)
"""Sums over all backlogs of the process."""


@dataclass(frozen=True, slots=True)
class BacklogCounts:
    """Invariant: offered = taken + merged + dropped + in_ram + on_disk."""

    offered: int
    """Includes those adopted from an ended process."""
    taken: int
    merged: int
    """Observations that became part of a neighbour: one for each pair merged."""
    dropped: int
    in_ram: int
    on_disk: int
    ram_bytes: int
    disk_bytes: int


class Backlog:
    """One session's observations. Every method belongs to the event loop's thread."""

    def __init__(self, session_id: str, settings: SummarySettings, spill: Spill, claim: Claim | None = None) -> None:
        """`claim`: rows of an ended process, see `adopt`."""
        self.session_id = session_id
        self._settings = settings
        self._ram = MemoryBuffer()
        self._head = MemoryBuffer()
        """Read back for a `take`: older than everything else."""
        self._taking = asyncio.Lock()
        self._cooperative = spill.cooperative
        self._making_room = False
        """Whether a step of making room is scheduled."""
        self._closed = False
        self._reported = (0, 0, 0, 0)
        """This session's part of the gauges."""
        self._disk = spill.buffer(session_id, self, claim)
        self._seq = self._disk.last_seq
        self._offered = self._disk.items
        self._taken = self._merged = self._dropped = 0
        _adopted.inc(self._offered)
        self._update_gauges()

    @classmethod
    async def adopt(cls, session_id: str, spill: Spill) -> Backlog | None:
        """Takes over an orphan; `take` then returns its observations in order. Close it without `keep` once empty.

        Returns:
            None if the session has none any more, or another process adopted it first.
        """
        claim = await spill.claim(session_id)
        return None if claim is None else cls(session_id, spill.settings, spill, claim)

    # --- for the session ---

    def offer(self, observation: Observation) -> None:
        """Adds an observation, in microseconds; never refuses or waits. After `close` it is dropped, and counted."""
        self._offered += 1
        _offered.inc()
        if self._closed:
            self.changed(dropped=1)
            return
        self._seq += 1
        self._ram.append(EncodedObservation(self._seq, observation.frames, observation.encode()))
        self._make_room()
        self._update_gauges()

    async def take(self, max_items: int = 64, max_bytes: int = 65_536) -> list[Observation]:
        """Removes and returns the oldest observations, in order. Cancelling loses nothing.

        Args:
            max_items: most observations.
            max_bytes: most bytes of their records; the first is returned even if it is larger.

        Returns:
            Empty if nothing waits. Also empty while the disk cannot be read, because what is there is older than
            everything in memory.
        """
        async with self._taking:
            while True:
                await self._fill_head(max_items, max_bytes)
                if not self._head:
                    return []
                if found := await self._decode(max_items, max_bytes):
                    return found

    @property
    def counts(self) -> BacklogCounts:
        """The counts so far; records in flight to the disk count as `in_ram`."""
        return BacklogCounts(
            offered=self._offered,
            taken=self._taken,
            merged=self._merged,
            dropped=self._dropped,
            in_ram=len(self._head) + len(self._ram) + self._disk.in_flight_items,
            on_disk=self._disk.items,
            ram_bytes=self._head.size + self._ram.size + self._disk.in_flight_size,
            disk_bytes=self._disk.size,
        )

    @property
    def pressure(self) -> float:
        """How full it is: 0 empty, 0.5 memory full, 1 the disk full too (or memory full, where there is no disk)."""
        settings, disk = self._settings, self._disk
        ram = max(len(self._ram) / settings.summary_ram_items, self._ram.size / settings.summary_ram_bytes)
        if disk.empty and not disk.usable:
            return min(1.0, ram)
        used = max(disk.items / max(1, settings.summary_disk_items), disk.size / max(1, settings.summary_disk_bytes))
        return (min(1.0, ram) + min(1.0, used)) / 2

    async def close(self, keep: bool) -> None:
        """Ends the backlog. With `keep` what waits goes to disk for the next start; else it is dropped."""
        self._closed = True
        async with self._taking:
            if self._disk.closed:
                return
            await self._disk.settled()  # so that nothing is in flight, in either direction
            if keep:
                self._disk.put(self._drain())
                await self._disk.settled()
            self.changed(dropped=len(self._drain()))
            await self._disk.end(keep=keep)
            _kept.inc(self._disk.items)
            self._set_gauges(0, 0, 0, 0)

    # --- as the disk buffer's listener ---

    def arrived(self, records: Sequence[EncodedObservation]) -> None:
        self._head.extend(records)
        self._update_gauges()

    def returned(self, records: Sequence[EncodedObservation]) -> None:
        self._ram.put_back(records)
        self._schedule_making_room()
        self._update_gauges()

    def changed(self, *, merged: int = 0, dropped: int = 0) -> None:
        self._merged += merged
        self._dropped += dropped
        _merged.inc(merged)
        _dropped.inc(dropped)
        self._update_gauges()

    # --- keeping the bounds of memory ---

    def _drain(self) -> list[EncodedObservation]:
        """Removes everything from memory, except what is in flight to the disk."""
        return [*self._head.pop(len(self._head)), *self._ram.pop(len(self._ram))]

    def _make_room(self) -> None:
        if not self._making_room and self._make_some_room():
            self._schedule_making_room()

    def _schedule_making_room(self) -> None:
        if not self._making_room:
            self._making_room = True
            self._cooperative.add(self._make_more_room)

    def _make_more_room(self) -> bool:
        self._making_room = not self._closed and self._make_some_room()
        self._update_gauges()
        return self._making_room

    def _make_some_room(self) -> bool:
        """Spills or merges what one turn of the event loop has time for; returns whether memory is still too full."""
        most, ram, pairs = self._settings.summary_ram_items, self._ram, _MERGES_AT_ONCE
        while len(ram) > most or ram.size > self._settings.summary_ram_bytes:
            if self._disk.accepting:
                self._disk.put(ram.pop(max(1, most // 4)))
            elif len(ram) == 1:
                self.changed(dropped=len(ram.pop(1)))
            elif pairs == 0:
                return True
            else:
                merged = ram.merge(min(pairs, max(len(ram) - most, len(ram) // 8, 1)))
                pairs -= merged
                self.changed(merged=merged)
        return False

    # --- taking ---

    async def _fill_head(self, items: int, size: int) -> None:
        """Moves the oldest records to the head: first from disk, then from memory."""
        while len(self._head) < items and self._head.size < size:
            if not self._disk.empty:
                if not await self._disk.fetch(items - len(self._head), size - self._head.size):
                    return
            elif self._ram:
                self._head.extend(self._ram.pop(1))
            else:
                return

    async def _decode(self, items: int, size: int) -> list[Observation]:
        """Decodes records of the head, and removes them only then, so that a cancelled `take` loses nothing."""
        found: list[Observation] = []
        read = 0
        for record in self._head.oldest(items):
            if read and len(record.data) > size:
                break
            size -= len(record.data)
            read += 1
            try:
                found.append(Observation.decode(record.data))
            except DamagedRecord:
                metrics.SUMMARY_DISK_ERRORS.labels("record").inc()
            if read % _DECODES_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._head.pop(read)
        self._taken += len(found)
        _taken.inc(len(found))
        self.changed(dropped=read - len(found))
        return found

    # --- gauges ---

    def _update_gauges(self) -> None:
        disk = self._disk
        if not disk.closed:
            self._set_gauges(
                len(self._head) + len(self._ram) + disk.in_flight_items,
                self._head.size + self._ram.size + disk.in_flight_size,
                disk.items,
                disk.size,
            )

    def _set_gauges(self, ram_items: int, ram_bytes: int, disk_items: int, disk_bytes: int) -> None:
        """Adds this session's changes to the gauges, which are sums over all sessions."""
        levels = (ram_items, ram_bytes, disk_items, disk_bytes)
        for gauge, old, new in zip(_gauges, self._reported, levels, strict=True):
            if new != old:
                gauge.inc(new - old)
        self._reported = levels


class MemoryBuffer:
    """Records in memory, oldest first, with the sum of their bytes."""

    def __init__(self) -> None:
        self._records: deque[EncodedObservation] = deque()
        self.size = 0
        """Bytes of the records."""

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: EncodedObservation) -> None:
        """Adds a record as the newest."""
        self._records.append(record)
        self.size += len(record.data)

    def extend(self, records: Iterable[EncodedObservation]) -> None:
        """Adds records as the newest, in order."""
        for record in records:
            self.append(record)

    def put_back(self, records: Sequence[EncodedObservation]) -> None:
        """Inserts records before all others."""
        self._records.extendleft(reversed(records))
        self.size += sum([len(record.data) for record in records])

    def oldest(self, count: int) -> list[EncodedObservation]:
        """The oldest records, which stay in the buffer."""
        return list(islice(self._records, count))

    def pop(self, count: int) -> list[EncodedObservation]:
        """Removes and returns the oldest records, at most `count`."""
        records = [self._records.popleft() for _ in range(min(count, len(self._records)))]
        self.size -= sum([len(record.data) for record in records])
        return records

    def merge(self, pairs: int) -> int:
        """Merges at most `pairs` pairs of neighbours; returns how many."""
        records = list(self._records)
        chosen = neighbours([record.frames for record in records], pairs)
        for at in reversed(chosen):
            records[at : at + 2] = [merge_records(records[at], records[at + 1])]
        self._records = deque(records)
        self.size = sum([len(record.data) for record in records])
        return len(chosen)
