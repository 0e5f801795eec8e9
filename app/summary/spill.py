"""What outlives a process: the overflow of all backlogs, and the last summaries, in one SQLite file.

    spill = Spill(state_dir / "summaries", settings)
    await spill.open()
    backlog = Backlog(session_id, settings, spill)
    ...
    await backlog.close(keep=True)
    await spill.close()

All workers of a service share the folder, which must be on a local disk. Nothing here raises for a disk that is full,
a file that is damaged or a folder that cannot be written: it is logged, counted in SUMMARY_DISK_ERRORS and tried
again, and the backlogs do without.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

from app.metrics import SUMMARY_DISK_ERRORS, SUMMARY_OBSERVATIONS
from app.settings import SummarySettings
from app.summary import estates, kept
from app.summary.backlog import Backlog
from app.summary.estates import Claimed
from app.summary.pieces import Pieces
from app.summary.shelf import Above, Shelf
from app.summary.spill_file import SpillFile
from app.summary.writer import Failure, Writer

log = logging.getLogger(__name__)

_RETRY_S = 30.0
_UNSAVED = 64
"""Sessions whose summaries are kept in memory while the disk does not take them; of more they are given up, counted."""


class Spill:
    """One a process."""

    def __init__(self, folder: Path, settings: SummarySettings, *, retry_s: float = _RETRY_S) -> None:
        """`retry_s`: how long the disk is left alone after trouble, seconds."""
        self.pieces = Pieces()
        """See `backlog.Disk`."""
        self._settings = settings
        self._writer = Writer(folder, settings, retry_s=retry_s, on_lost=self._lost)
        self._shelves: WeakSet[Shelf] = WeakSet()
        self._unsaved: OrderedDict[str, list[tuple[float, bytes]]] = OrderedDict()

    async def open(self) -> None:
        """Starts the thread, and opens the file or finds out that it cannot."""
        self._writer.start()
        await self._writer.ask(lambda file: None)

    async def close(self) -> None:
        """Call it after the backlogs' own `close`. What they left is an orphan from now on.

        The disk gets a last chance to take what it did not take before; what is lost then is said, and counted.
        """
        self._writer.wake()
        await self.catch_up()
        await self._writer.stop()
        left = sum(len(summaries) for summaries in self._unsaved.values())
        if left:
            SUMMARY_DISK_ERRORS.labels("unsaved").inc(left)
            log.error("summaries: the disk did not take %d summaries to the end; they are lost", left)

    async def catch_up(self) -> None:
        """Repeats what the disk did not take while it was in trouble: summaries, and ends of sessions.

        For every minute, before `orphans`. Cancelling loses nothing.
        """
        unsaved, self._unsaved = self._unsaved, OrderedDict()
        saved: set[str] = set()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def repeat(file: SpillFile) -> None:
            for session_id, summaries in unsaved.items():
                kept.save(file.db, session_id, summaries, self._settings.summary_keep)
                saved.add(session_id)
            file.rows.end_again()

        def done(outcome: Failure | None) -> None:
            for session_id, summaries in unsaved.items():
                if session_id not in saved:
                    self._put_back(session_id, summaries)
            if not future.done():
                future.set_result(None)

        self._writer.post(repeat, done)
        await future

    def health(self) -> dict[str, Any]:
        """`state`: ok or degraded, with the `reason`."""
        trouble = self._writer.trouble
        return {"state": "ok" if trouble is None else "degraded", "reason": trouble}

    # --- observations ---

    def shelf(self, session_id: str, above: Above) -> Shelf:
        """A session's place on disk; takes nothing from it until memory is full."""
        return self._place(session_id, above)

    async def orphans(self) -> list[str]:
        """Ids of sessions that left observations when their process ended, in the order of their beginning."""
        found = await self._writer.ask(lambda file: estates.orphans(file.db, file.owner.alive))
        return [] if isinstance(found, Failure) else found

    async def adopt(self, session_id: str) -> Backlog | None:
        """Takes over an orphan: `take` gives its observations in order. Close it without `keep` when it is empty.

        None when it has none any more, or another process was quicker.
        """

        def claim(file: SpillFile) -> tuple[Claimed, SpillFile] | None:
            claimed = estates.claim(file.db, session_id, file.owner.name, file.owner.alive)
            return None if claimed is None else (claimed, file)

        estate = await self._writer.ask(claim)
        if estate is None or isinstance(estate, Failure):
            return None
        return Backlog(session_id, self._settings, _Estate(self.pieces, self._place, estate))

    async def sweep(self, older_than_s: float) -> int:
        """Removes orphans, and summaries, last written before so many seconds; how many observations that were.

        Not the summaries of sessions that are open here, however quiet they are.
        """
        now = time.time()
        before = now - older_than_s
        here = {shelf.session_id for shelf in self._shelves if not shelf.over}

        def remove(file: SpillFile) -> int:
            kept.touch(file.db, here, now - older_than_s / 2, now)
            kept.sweep(file.db, before)
            return estates.sweep(file.db, before, file.owner.alive)

        dropped = await self._writer.ask(remove)
        if isinstance(dropped, Failure):
            return 0
        for outcome in ("adopted", "dropped"):
            SUMMARY_OBSERVATIONS.labels(outcome).inc(dropped)
        return dropped

    # --- summaries ---

    async def save_summary(self, session_id: str, at_ms: float, data: bytes) -> None:
        """Keeps it beside the session's last ones, SUMMARY_KEEP in all. In memory, while the disk does not take it.

        Cancelling changes nothing: once called, it is kept.
        """
        mine = [*self._unsaved.pop(session_id, ()), (at_ms, data)][-self._settings.summary_keep :]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def saved(outcome: Failure | None) -> None:
            if isinstance(outcome, Failure):
                self._put_back(session_id, mine)
            if not done.done():
                done.set_result(None)

        self._writer.post(lambda file: kept.save(file.db, session_id, mine, self._settings.summary_keep), saved)
        await done

    def _put_back(self, session_id: str, summaries: list[tuple[float, bytes]]) -> None:
        later = self._unsaved.pop(session_id, [])
        self._unsaved[session_id] = [*summaries, *later][-self._settings.summary_keep :]
        while len(self._unsaved) > _UNSAVED:
            _, given_up = self._unsaved.popitem(last=False)
            SUMMARY_DISK_ERRORS.labels("unsaved").inc(len(given_up))

    async def summaries(self, session_id: str, last: int) -> list[bytes]:
        """The session's last ones, oldest first, whichever process saved them."""
        saved = await self._writer.ask(lambda file: kept.last(file.db, session_id, last))
        unsaved = [data for _, data in self._unsaved.get(session_id, ())]
        both = [*([] if isinstance(saved, Failure) else saved), *unsaved]
        return both[max(0, len(both) - last) :]

    # --- inside ---

    def _place(self, session_id: str, above: Above, estate: tuple[Claimed, SpillFile] | None = None) -> Shelf:
        shelf = Shelf(self._writer, self._settings, session_id, above, estate)
        self._shelves.add(shelf)
        return shelf

    def _lost(self) -> None:
        for shelf in list(self._shelves):
            shelf.lose()


class _Estate:
    """The disk of a backlog that begins with what another process left."""

    def __init__(
        self,
        pieces: Pieces,
        place: Callable[[str, Above, tuple[Claimed, SpillFile]], Shelf],
        estate: tuple[Claimed, SpillFile],
    ) -> None:
        self.pieces = pieces
        self._place = place
        self._estate = estate

    def shelf(self, session_id: str, above: Above) -> Shelf:
        return self._place(session_id, above, self._estate)
