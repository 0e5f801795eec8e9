"""One session's observations on disk, as the event loop knows them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from app.metrics import SUMMARY_DISK_ERRORS, SUMMARY_OBSERVATIONS
from app.settings import SummarySettings
from app.summary.estates import Claimed
from app.summary.observations import Row
from app.summary.rows import Appended
from app.summary.spill_file import SpillFile
from app.summary.writer import Failure, Writer

_NO_ROOM_S = 5.0
"""Before it is tried again, once the bounds are reached."""
_TRIES = 3
"""Reads that may fail in a row; then what is on disk is given up, or newer observations would wait for ever."""

_spilled = SUMMARY_OBSERVATIONS.labels("spilled")
"""On their way, not an end: those count again as whatever becomes of them."""


class Above(Protocol):
    """The memory over a shelf. Everything is called on the event loop."""

    def arrived(self, rows: Sequence[Row]) -> None:
        """Read from disk, and there no more; in order."""

    def returned(self, rows: Sequence[Row]) -> None:
        """Could not be written; in order, all newer than what is on disk."""

    def changed(self, *, merged: int = 0, dropped: int = 0) -> None:
        """So many fewer are on disk, or only the figures are new."""


class Shelf:
    """Rows come in by `put` in the order of their numbers and leave by `fetch` in that order.

    Rows handed in are flying until they are committed: a kill loses them. When one batch cannot be written, all that
    followed it come back with it, so that nothing newer gets in before it.
    """

    def __init__(
        self,
        writer: Writer,
        settings: SummarySettings,
        session_id: str,
        above: Above,
        estate: tuple[Claimed, SpillFile] | None = None,
    ) -> None:
        """`estate`: rows of a session whose process ended, and the file that they were claimed in."""
        self._writer = writer
        self._settings = settings
        self.session_id = session_id
        self._above = above
        claimed, file = estate or (None, None)
        self.items = claimed.items if claimed else 0
        """Committed to disk."""
        self.size = claimed.size if claimed else 0
        """The same in bytes."""
        self.last_seq = claimed.last_seq if claimed else 0
        self.over = False
        """After `end`."""
        self._flying: deque[Sequence[Row]] = deque()
        self.flying_items = self.flying_size = 0
        self._batch = (0, 0)
        """Number of the next batch: how often batches came back, and its place since."""
        self._life = 0
        """How often what was on disk was given up."""
        self._resting_until = float("-inf")
        self._failures = 0
        # The thread's own: nothing on the event loop looks at these.
        self._key = claimed.key if claimed else None
        self._key_of: tuple[SpillFile | None, int] = (file, 0)
        self._expected = (0, 0)

    @property
    def empty(self) -> bool:
        return not self.items and not self._flying

    @property
    def accepting(self) -> bool:
        """Whether rows may be put: the disk is well, and not behind by as much as memory may hold."""
        settings = self._settings
        return (
            self.usable
            and self.flying_items < settings.summary_ram_items
            and self.flying_size < settings.summary_ram_bytes
        )

    @property
    def usable(self) -> bool:
        """Whether there is a disk, as far as is known, and it has room."""
        settings = self._settings
        return (
            min(settings.summary_disk_items, settings.summary_disk_bytes) > 0
            and self._writer.accepting
            and time.monotonic() >= self._resting_until
        )

    def put(self, rows: Sequence[Row]) -> None:
        """Writes them, soon. What cannot be written comes back by `Above.returned`."""
        batch, life = self._batch, self._life
        self._batch = (batch[0], batch[1] + 1)
        self._flying.append(rows)
        self.flying_items += len(rows)
        self.flying_size += sum([len(row.data) for row in rows])
        self._writer.post(lambda file: self._append(file, life, batch, rows), lambda done: self._settle(batch, done))

    async def fetch(self, items: int, size: int) -> bool:
        """Hands the oldest rows to `Above.arrived`; False when the disk does not give any at the moment.

        Cancelling loses nothing: what was read arrives all the same.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        life = self._life

        def done(outcome: list[Row] | Failure) -> None:
            # What was given up meanwhile is counted as dropped.
            came = life == self._life and self._came(outcome)
            if not future.done():
                future.set_result(came)

        self._writer.post(lambda file: file.rows.take(self._key_in(file, life), items, size), done)
        return await future

    async def settled(self) -> None:
        """Until everything put was written or came back."""
        await self._writer.ask(lambda file: None)

    async def end(self, *, keep: bool) -> None:
        """The session is over. `keep`: what is on disk is left for whoever starts next; else it is removed."""
        life = self._life
        await self._writer.ask(lambda file: self._end(file, life, keep=keep))
        if not keep:
            self.lose()
        self.over = True

    def lose(self) -> None:
        """What was committed is gone."""
        if self.over:
            return
        lost, self.items, self.size = self.items, 0, 0
        self._above.changed(dropped=lost)

    # --- on the event loop ---

    def _settle(self, batch: tuple[int, int], outcome: Appended | Failure) -> None:
        if batch[0] != self._batch[0]:
            return  # came back with an earlier one
        if isinstance(outcome, Failure):
            if outcome.reason == "no_room":
                self._resting_until = time.monotonic() + _NO_ROOM_S
            self._take_back()
            return
        rows = self._flying.popleft()
        self.flying_items -= len(rows)
        self.flying_size -= sum([len(row.data) for row in rows])
        self.items, self.size = outcome.items, outcome.size
        _spilled.inc(len(rows))
        if outcome.torn:
            SUMMARY_DISK_ERRORS.labels("record").inc(outcome.torn)
        self._above.changed(merged=outcome.merged, dropped=outcome.torn)

    def _take_back(self) -> None:
        self._batch = (self._batch[0] + 1, 0)
        rows = [row for batch in self._flying for row in batch]
        self._flying.clear()
        self.flying_items = self.flying_size = 0
        self._above.returned(rows)

    def _came(self, outcome: list[Row] | Failure) -> bool:
        if isinstance(outcome, Failure):
            self._failures += 1
            if self._failures == _TRIES:
                self._give_up()
            return False
        self._failures = 0
        self.items -= len(outcome)
        self.size -= sum([len(row.data) for row in outcome])
        self._above.arrived(outcome)
        if not outcome and self.items:
            self._give_up()  # somebody removed them
        return True

    def _give_up(self) -> None:
        """Begins anew on disk. What is there is removed if that can be done, or the next start would find it."""
        self._failures = 0
        life = self._life
        self._writer.post(lambda file: self._end(file, life, keep=False), lambda done: None)
        self._life += 1
        self.lose()
        self._take_back()

    # --- in the writer's thread ---

    def _append(self, file: SpillFile, life: int, batch: tuple[int, int], rows: Sequence[Row]) -> Appended | Failure:
        if batch[1] and batch != self._expected:
            return Failure("behind")  # one before it was not written
        appended = file.rows.append(self._key_in(file, life), rows)
        self._expected = (batch[0], batch[1] + 1)
        return appended

    def _end(self, file: SpillFile, life: int, *, keep: bool) -> None:
        if self._key is not None and self._key_of == (file, life):
            file.rows.end(self._key, keep=keep)

    def _key_in(self, file: SpillFile, life: int) -> int:
        if self._key is None or self._key_of != (file, life):
            self._key = file.rows.begin(self.session_id, file.owner.name)
            self._key_of = (file, life)
        return self._key
