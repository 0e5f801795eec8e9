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
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from app.metrics import SUMMARY_DISK_ERRORS, SUMMARY_OBSERVATIONS
from app.settings import SummarySettings
from app.summary.database import (
    ADVICE,
    Appended,
    Claimed,
    NoRoom,
    Owner,
    SpillFile,
    claim,
    last_summaries,
    orphans,
    reason,
    save_summaries,
    sweep_observations,
    sweep_summaries,
    touch_summaries,
)
from app.summary.observations import Row

log = logging.getLogger(__name__)

_RETRY_S = 30.0
_UNSAVED = 64
"""Sessions whose summaries are kept in memory while the disk does not take them; of more they are given up, counted."""


class Spill:
    """One a process."""

    def __init__(self, folder: Path, settings: SummarySettings, *, retry_s: float = _RETRY_S) -> None:
        """`retry_s`: how long the disk is left alone after trouble, seconds."""
        self.pieces = Pieces()
        """The folding of all backlogs of the process: a failing disk gives back much to many at once."""
        self.settings = settings
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
                save_summaries(file.db, session_id, summaries, self.settings.summary_keep)
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

    def shelf(self, session_id: str, above: Above, estate: tuple[Claimed, SpillFile] | None = None) -> Shelf:
        """A session's place on disk; takes nothing from it until memory is full. `estate`: what `claim` gave."""
        shelf = Shelf(self._writer, self.settings, session_id, above, estate)
        self._shelves.add(shelf)
        return shelf

    async def orphans(self) -> list[str]:
        """Ids of sessions that left observations when their process ended, in the order of their beginning."""
        found = await self._writer.ask(lambda file: orphans(file.db, file.owner.alive))
        return [] if isinstance(found, Failure) else found

    async def claim(self, session_id: str) -> tuple[Claimed, SpillFile] | None:
        """Takes over an orphan's rows; None when it has none any more, or another process was quicker."""

        def take_over(file: SpillFile) -> tuple[Claimed, SpillFile] | None:
            claimed = claim(file.db, session_id, file.owner.name, file.owner.alive)
            return None if claimed is None else (claimed, file)

        estate = await self._writer.ask(take_over)
        return None if isinstance(estate, Failure) else estate

    async def sweep(self, older_than_s: float) -> int:
        """Removes orphans, and summaries, last written before so many seconds; how many observations that were.

        Not the summaries of sessions that are open here, however quiet they are.
        """
        now = time.time()
        before = now - older_than_s
        here = {shelf.session_id for shelf in self._shelves if not shelf.over}

        def remove(file: SpillFile) -> int:
            touch_summaries(file.db, here, now - older_than_s / 2, now)
            sweep_summaries(file.db, before)
            return sweep_observations(file.db, before, file.owner.alive)

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
        mine = [*self._unsaved.pop(session_id, ()), (at_ms, data)][-self.settings.summary_keep :]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def saved(outcome: Failure | None) -> None:
            if isinstance(outcome, Failure):
                self._put_back(session_id, mine)
            if not done.done():
                done.set_result(None)

        self._writer.post(lambda file: save_summaries(file.db, session_id, mine, self.settings.summary_keep), saved)
        await done

    def _put_back(self, session_id: str, summaries: list[tuple[float, bytes]]) -> None:
        later = self._unsaved.pop(session_id, [])
        self._unsaved[session_id] = [*summaries, *later][-self.settings.summary_keep :]
        while len(self._unsaved) > _UNSAVED:
            _, given_up = self._unsaved.popitem(last=False)
            SUMMARY_DISK_ERRORS.labels("unsaved").inc(len(given_up))

    async def summaries(self, session_id: str, last: int) -> list[bytes]:
        """The session's last ones, oldest first, whichever process saved them."""
        saved = await self._writer.ask(lambda file: last_summaries(file.db, session_id, last))
        unsaved = [data for _, data in self._unsaved.get(session_id, ())]
        both = [*([] if isinstance(saved, Failure) else saved), *unsaved]
        return both[max(0, len(both) - last) :]

    # --- inside ---

    def _lost(self) -> None:
        for shelf in list(self._shelves):
            shelf.lose()


# --- one session's observations on disk, as the event loop knows them ---

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


# --- work of the event loop that is too long for one turn of it ---


class Pieces:
    """One piece a turn of the loop, over all that ask; whatever else the loop has to do comes between two."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], bool]] = deque()
        self._running = False

    def add(self, work: Callable[[], bool]) -> None:
        """`work` does one piece, soon, and again and again while it returns True: there is more."""
        self._waiting.append(work)
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        work = self._waiting.popleft()
        try:
            if work():
                self._waiting.append(work)
        finally:
            self._running = bool(self._waiting)
            if self._running:
                asyncio.get_running_loop().call_soon(self._turn)


# --- the one thread that touches the file ---

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """The work was not done. `reason` is the counter's, or `no_room`, `closed`, `internal`."""

    reason: str


Work = Callable[[SpillFile], T]
Done = Callable[[T | Failure], None]


class Writer:
    """After trouble with the disk nothing new is written for `retry_s`; then the next work tries it."""

    def __init__(self, folder: Path, settings: SummarySettings, *, retry_s: float, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called on the event loop when the file was replaced: what it held is gone."""
        self._folder = folder
        self._settings = settings
        self._retry_s = retry_s
        self._on_lost = on_lost
        self._jobs: SimpleQueue[tuple[Work[Any], Done[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._owner = Owner(folder)
        self._file: SpillFile | None = None
        self._resting_until = float("-inf")
        self._troubles = 0
        self._ended = False
        """The thread is gone: what is still queued is answered by nobody else."""
        self.trouble: str | None = None
        """Why nothing is written at the moment; None while all is well."""

    # --- on the event loop ---

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="summary-spill", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Does what was asked so far, and closes the file."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    def wake(self) -> None:
        """The next work tries the disk, however lately it was in trouble."""
        self._resting_until = float("-inf")

    @property
    def accepting(self) -> bool:
        """Whether it is worth handing it something to write."""
        return (
            self._thread is not None
            and not self._ended
            and (self.trouble is None or time.monotonic() >= self._resting_until)
        )

    def post(self, work: Work[T], done: Done[T]) -> None:
        """`work` is done in the thread, in the order of posting; then `done` is called on the event loop."""
        if self._thread is None or self._ended:
            asyncio.get_running_loop().call_soon(done, Failure("closed"))
            return
        self._jobs.put((work, done))
        if self._ended:  # just now
            self._answer_the_rest()

    async def ask(self, work: Work[T]) -> T | Failure:
        """The same, awaited. Cancelling does not undo the work."""
        future: asyncio.Future[T | Failure] = asyncio.get_running_loop().create_future()

        def done(outcome: T | Failure) -> None:
            if not future.done():
                future.set_result(outcome)

        self.post(work, done)
        return await future

    # --- in the thread ---

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                work, done = job
                outcome: Any = Failure("closed")
                try:
                    outcome = self._safely(work)
                finally:
                    self._call(done, outcome)
                del job, work, done, outcome
        except BaseException:
            self.trouble = "internal"
            raise
        finally:
            self._ended = True
            self._answer_the_rest()
            self._leave()

    def _answer_the_rest(self) -> None:
        with suppress(Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    self._call(job[1], Failure("closed"))

    def _leave(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
            self._owner.close()
        except (sqlite3.Error, OSError) as error:
            self._note(error)

    def _safely(self, work: Work[T]) -> T | Failure:
        try:
            return self._do(work)
        except Exception:  # the thread's boundary: whoever waits is answered, and the next work is done
            log.exception("summaries: the backlog's thread could not do its work")
            SUMMARY_DISK_ERRORS.labels("internal").inc()
            return Failure("internal")

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("summaries: the event loop ended before the backlog's thread")

    def _do(self, work: Work[T]) -> T | Failure:
        failed = self._open()
        if failed is not None:
            return failed
        assert self._file is not None
        before = self._troubles, self._file.db.total_changes
        try:
            outcome = work(self._file)
        except NoRoom:
            return Failure("no_room")
        except (sqlite3.Error, OSError) as error:
            return self._fail(error)
        written = self._file.db.total_changes != before[1]
        if self.trouble is not None and written and self._troubles == before[0]:
            log.warning("summaries: the backlog in %s can be written again", self._folder)
            self.trouble = None
        return outcome

    def _open(self) -> Failure | None:
        if self._file is not None:
            try:
                moved = self._file.moved
            except OSError as error:  # the folder is no folder any more, or the disk under it is away
                self._drop_file()
                return self._fail(error)
            if not moved:
                return None
            log.error("summaries: %s was moved or removed while in use; a new one is begun", self._file.path)
            SUMMARY_DISK_ERRORS.labels("moved").inc()
            self._drop_file()
        elif self.trouble is not None and time.monotonic() < self._resting_until:
            return Failure(self.trouble)
        try:
            self._file = SpillFile(self._folder, self._settings, self._owner, self._note)
        except (sqlite3.Error, OSError) as error:
            return self._fail(error)
        return None

    def _fail(self, error: sqlite3.Error | OSError) -> Failure:
        self._note(error)
        why = reason(error)
        if why == "damaged" and self._file is not None:
            try:
                self._file.set_aside()
            except OSError as second:
                self._note(second)
            self._drop_file()
        return Failure(why)

    def _drop_file(self) -> None:
        """Should the same file come back, its rows are an orphan's then: the next file is held under another name."""
        assert self._file is not None
        file, self._file = self._file, None
        owner, self._owner = self._owner, Owner(self._folder)
        with suppress(sqlite3.Error):
            file.close()
        with suppress(OSError):
            owner.close()
        self._call(self._on_lost)

    def _note(self, error: sqlite3.Error | OSError) -> None:
        """Counts it; says it once until all is well again."""
        why = reason(error)
        self._troubles += 1
        SUMMARY_DISK_ERRORS.labels(why).inc()
        if why == "damaged":
            log.error("summaries: the backlog's file: %s", error)
            return
        if why != self.trouble:
            log.error(
                "summaries: the backlog in %s cannot be written (%s): %s. Observations are merged in memory meanwhile; "
                "it is tried again in %g s. %s",
                self._folder,
                why,
                error,
                self._retry_s,
                ADVICE.get(why, ""),
            )
        self.trouble = why
        self._resting_until = time.monotonic() + self._retry_s
