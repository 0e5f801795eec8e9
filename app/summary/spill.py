"""The disk of the summaries: it keeps observations that overflow memory, and each session's last summaries.

    spill = Spill(state_dir / "summaries", settings)
    await spill.open()
    backlog = Backlog(session_id, settings, spill)
    ...
    await backlog.close(keep=True)
    await spill.close()

A process has one `Spill`, a session one `DiskBuffer`, and the single thread of `DiskWriter` calls `database`; the event
loop never waits for the disk. All workers of a service share the folder, which must be on
a local disk. Nothing here raises when the disk is full, the file is damaged or the folder cannot be written: the error
is logged, counted in SUMMARY_DISK_ERRORS and the work is retried, and the backlogs use memory alone meanwhile.
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
from app.summary.database import ADVICE, AppendResult, ClaimedRows, NoRoom, OwnerLock, SpillFile, trouble_reason
from app.summary.observations import EncodedObservation

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_S = 30.0
"""Seconds without writing after the disk failed."""
_UNSAVED_SESSIONS = 64
"""Sessions whose summaries wait in memory while the disk fails. Those of the oldest are dropped, and counted."""
_NO_ROOM_S = 5.0
"""Seconds before a session writes again after SUMMARY_DISK_BYTES was reached."""
_READ_ATTEMPTS = 3
"""Reads that may fail in a row. Then the rows on disk are abandoned, because newer observations wait behind them."""

_spilled = SUMMARY_OBSERVATIONS.labels("spilled")
"""Not a final outcome: an observation that goes to disk is counted again as taken, merged, dropped or kept."""

Claim = tuple[ClaimedRows, SpillFile]
"""Rows of an ended process that this one took over, and the file that holds them."""


class Spill:
    """One per process. Every method belongs to the event loop."""

    def __init__(self, folder: Path, settings: SummarySettings, *, retry_s: float = _RETRY_S) -> None:
        """`retry_s`: seconds without writing after the disk failed."""
        self.cooperative = CooperativeWork()
        """Runs the merging of all backlogs: a failing disk returns records to many of them at once."""
        self.settings = settings
        self.writer = DiskWriter(folder, settings, retry_s=retry_s, on_lost=self._lost)
        """The thread of the disk."""
        self._buffers: WeakSet[DiskBuffer] = WeakSet()
        self._unsaved: OrderedDict[str, list[tuple[float, bytes]]] = OrderedDict()

    async def open(self) -> None:
        """Starts the thread and tries to open the file; a failure shows in `health`."""
        self.writer.start()
        await self.writer.ask(lambda file: None)

    async def close(self) -> None:
        """Stops the thread and closes the file. Call it after every backlog's `close`; their kept rows become orphans.

        Repeats the writes that failed so far. Summaries that fail again are lost: logged and counted.
        """
        self.writer.retry_now()
        await self.catch_up()
        await self.writer.stop()
        lost = sum(len(summaries) for summaries in self._unsaved.values())
        if lost:
            SUMMARY_DISK_ERRORS.labels("unsaved").inc(lost)
            log.error("summaries: the disk did not take %d summaries before the service ended; they are lost", lost)

    async def catch_up(self) -> None:
        """Repeats what failed because of the disk: saving summaries and ending sessions.

        Call it every minute, before `orphans`. Cancelling loses nothing.
        """
        unsaved, self._unsaved = self._unsaved, OrderedDict()
        saved: set[str] = set()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def repeat(file: SpillFile) -> None:
            for session_id, summaries in unsaved.items():
                file.save_summaries(session_id, summaries, self.settings.summary_keep)
                saved.add(session_id)
            file.end_again()

        def done(outcome: DiskFailure | None) -> None:
            for session_id, summaries in unsaved.items():
                if session_id not in saved:
                    self._keep_unsaved(session_id, summaries)
            if not future.done():
                future.set_result(None)

        self.writer.post(repeat, done)
        await future

    def health(self) -> dict[str, Any]:
        """`state`: ok or degraded; `reason`: see `database.trouble_reason`, or None."""
        trouble = self.writer.trouble
        return {"state": "ok" if trouble is None else "degraded", "reason": trouble}

    # --- observations ---

    def buffer(self, session_id: str, listener: BufferListener, claim: Claim | None = None) -> DiskBuffer:
        """A session's disk buffer. It uses the disk only once rows are put. `claim`: what `Spill.claim` returned."""
        buffer = DiskBuffer(self.writer, self.settings, session_id, listener, claim)
        self._buffers.add(buffer)
        return buffer

    async def orphans(self) -> list[str]:
        """Ids of sessions whose process ended and left observations, ordered by when they began."""
        found = await self.writer.ask(lambda file: file.orphans())
        return [] if isinstance(found, DiskFailure) else found

    async def claim(self, session_id: str) -> Claim | None:
        """Takes over an orphan's rows; None if it has none any more, or another process claimed them first."""

        def take_over(file: SpillFile) -> Claim | None:
            claimed = file.claim(session_id)
            return None if claimed is None else (claimed, file)

        claim = await self.writer.ask(take_over)
        return None if isinstance(claim, DiskFailure) else claim

    async def sweep(self, older_than_s: float) -> int:
        """Deletes orphans and summaries last written more than `older_than_s` seconds ago.

        The summaries of sessions that are open in this process stay, however long ago their last one was written.

        Returns:
            The number of observations deleted.
        """
        now = time.time()
        before = now - older_than_s
        open_sessions = {buffer.session_id for buffer in self._buffers if not buffer.closed}

        def remove(file: SpillFile) -> int:
            file.touch_summaries(open_sessions, now - older_than_s / 2, now)
            file.sweep_summaries(before)
            return file.sweep_orphans(before)

        dropped = await self.writer.ask(remove)
        if isinstance(dropped, DiskFailure):
            return 0
        for outcome in ("adopted", "dropped"):
            SUMMARY_OBSERVATIONS.labels(outcome).inc(dropped)
        return dropped

    # --- summaries ---

    async def save_summary(self, session_id: str, at_ms: float, data: bytes) -> None:
        """Saves a summary with the session's last ones, `summary_keep` in all; in memory while the disk fails.

        Cancelling changes nothing: once called, the summary is saved.

        Args:
            at_ms: when it was written, epoch milliseconds.
            data: its JSON.
        """
        summaries = [*self._unsaved.pop(session_id, ()), (at_ms, data)][-self.settings.summary_keep :]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def saved(outcome: DiskFailure | None) -> None:
            if isinstance(outcome, DiskFailure):
                self._keep_unsaved(session_id, summaries)
            if not done.done():
                done.set_result(None)

        self.writer.post(lambda file: file.save_summaries(session_id, summaries, self.settings.summary_keep), saved)
        await done

    async def summaries(self, session_id: str, last: int) -> list[bytes]:
        """The session's last `last` summaries, oldest first, whichever process saved them."""
        saved = await self.writer.ask(lambda file: file.summaries(session_id, last))
        unsaved = [data for _, data in self._unsaved.get(session_id, ())]
        both = [*([] if isinstance(saved, DiskFailure) else saved), *unsaved]
        return both[max(0, len(both) - last) :]

    def _keep_unsaved(self, session_id: str, summaries: list[tuple[float, bytes]]) -> None:
        later = self._unsaved.pop(session_id, [])
        self._unsaved[session_id] = [*summaries, *later][-self.settings.summary_keep :]
        while len(self._unsaved) > _UNSAVED_SESSIONS:
            _, dropped = self._unsaved.popitem(last=False)
            SUMMARY_DISK_ERRORS.labels("unsaved").inc(len(dropped))

    def _lost(self) -> None:
        for buffer in list(self._buffers):
            buffer.lose()


# --- one session on disk ---


class BufferListener(Protocol):
    """The memory above a disk buffer: `Backlog`. Every method is called on the event loop."""

    def arrived(self, records: Sequence[EncodedObservation]) -> None:
        """Called with records that were read from disk, in order, and deleted there."""

    def returned(self, records: Sequence[EncodedObservation]) -> None:
        """Called with records that could not be written, in order; all are newer than those on disk."""

    def changed(self, *, merged: int = 0, dropped: int = 0) -> None:
        """Called with the numbers of records merged or dropped on disk; with zeros, `items` or `size` changed."""


class DiskBuffer:
    """A session's records on disk, as the event loop knows them: first in, first out.

    Records come in by `put` and leave by `fetch`, both in the order of `seq`. Records are in flight from `put` until
    they are committed, and a killed process loses those. When one batch cannot be written, all batches after it are
    returned with it, so that nothing newer is written before it.
    """

    def __init__(
        self,
        writer: DiskWriter,
        settings: SummarySettings,
        session_id: str,
        listener: BufferListener,
        claim: Claim | None = None,
    ) -> None:
        self._writer = writer
        self._settings = settings
        self.session_id = session_id
        self._listener = listener
        claimed, file = claim or (None, None)
        self.items = claimed.items if claimed else 0
        """Records committed to disk."""
        self.size = claimed.size if claimed else 0
        """Their bytes."""
        self.last_seq = claimed.last_seq if claimed else 0
        """`seq` of the last claimed record; 0 for a new session."""
        self.closed = False
        """True after `end`."""
        self._in_flight: deque[Sequence[EncodedObservation]] = deque()
        self.in_flight_items = self.in_flight_size = 0
        self._batch = (0, 0)
        """Number of the next batch: how often batches were returned, and its place since then."""
        self._generation = 0
        """How often the records on disk were abandoned. Results of work of an earlier generation are ignored."""
        self._paused_until = float("-inf")
        self._read_failures = 0
        # Only the writer's thread uses these three.
        self._key = claimed.key if claimed else None
        self._key_of: tuple[SpillFile | None, int] = (file, 0)
        self._expected_batch = (0, 0)

    @property
    def empty(self) -> bool:
        """Whether no record is on disk or in flight."""
        return not self.items and not self._in_flight

    @property
    def accepting(self) -> bool:
        """Whether `put` may be called: the disk works, and fewer records are in flight than memory may hold."""
        settings = self._settings
        return (
            self.usable
            and self.in_flight_items < settings.summary_ram_items
            and self.in_flight_size < settings.summary_ram_bytes
        )

    @property
    def usable(self) -> bool:
        """Whether the settings allow a disk, it works as far as is known, and it has room."""
        settings = self._settings
        return (
            min(settings.summary_disk_items, settings.summary_disk_bytes) > 0
            and self._writer.accepting
            and time.monotonic() >= self._paused_until
        )

    def put(self, records: Sequence[EncodedObservation]) -> None:
        """Queues records for writing. Those that cannot be written go to the listener's `returned`."""
        batch, generation = self._batch, self._generation
        self._batch = (batch[0], batch[1] + 1)
        self._in_flight.append(records)
        self.in_flight_items += len(records)
        self.in_flight_size += sum([len(record.data) for record in records])
        self._writer.post(
            lambda file: self._append(file, generation, batch, records), lambda outcome: self._appended(batch, outcome)
        )

    async def fetch(self, items: int, size: int) -> bool:
        """Passes the oldest records to the listener's `arrived`: at most `items` and `size` bytes, but at least one.

        Cancelling loses nothing: records that were read arrive all the same.

        Returns:
            False if the disk returned nothing because it fails.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        generation = self._generation

        def done(outcome: list[EncodedObservation] | DiskFailure) -> None:
            # Records of an earlier generation have been counted as dropped.
            arrived = generation == self._generation and self._fetched(outcome)
            if not future.done():
                future.set_result(arrived)

        self._writer.post(lambda file: file.take(self._key_in(file, generation), items, size), done)
        return await future

    async def settled(self) -> None:
        """Waits until everything put was written or returned."""
        await self._writer.ask(lambda file: None)

    async def end(self, *, keep: bool) -> None:
        """Ends the session. With `keep` its records stay for the process that claims them; else they are deleted."""
        generation = self._generation
        await self._writer.ask(lambda file: self._end(file, generation, keep=keep))
        if not keep:
            self.lose()
        self.closed = True

    def lose(self) -> None:
        """Counts everything committed as dropped, because the file that held it is gone."""
        if self.closed:
            return
        lost, self.items, self.size = self.items, 0, 0
        self._listener.changed(dropped=lost)

    # --- on the event loop ---

    def _appended(self, batch: tuple[int, int], outcome: AppendResult | DiskFailure) -> None:
        if batch[0] != self._batch[0]:
            return  # this batch was returned with an earlier one
        if isinstance(outcome, DiskFailure):
            if outcome.reason == "no_room":
                self._paused_until = time.monotonic() + _NO_ROOM_S
            self._return_in_flight()
            return
        records = self._in_flight.popleft()
        self.in_flight_items -= len(records)
        self.in_flight_size -= sum([len(record.data) for record in records])
        self.items, self.size = outcome.items, outcome.size
        _spilled.inc(len(records))
        if outcome.torn:
            SUMMARY_DISK_ERRORS.labels("record").inc(outcome.torn)
        self._listener.changed(merged=outcome.merged, dropped=outcome.torn)

    def _return_in_flight(self) -> None:
        self._batch = (self._batch[0] + 1, 0)
        records = [record for batch in self._in_flight for record in batch]
        self._in_flight.clear()
        self.in_flight_items = self.in_flight_size = 0
        self._listener.returned(records)

    def _fetched(self, outcome: list[EncodedObservation] | DiskFailure) -> bool:
        if isinstance(outcome, DiskFailure):
            self._read_failures += 1
            if self._read_failures == _READ_ATTEMPTS:
                self._abandon_rows()
            return False
        self._read_failures = 0
        self.items -= len(outcome)
        self.size -= sum([len(record.data) for record in outcome])
        self._listener.arrived(outcome)
        if not outcome and self.items:
            self._abandon_rows()  # another program deleted the rows
        return True

    def _abandon_rows(self) -> None:
        """Starts a new generation. Deletes the rows if the disk allows it, because the next start would adopt them."""
        self._read_failures = 0
        generation = self._generation
        self._writer.post(lambda file: self._end(file, generation, keep=False), lambda outcome: None)
        self._generation += 1
        self.lose()
        self._return_in_flight()

    # --- in the writer's thread ---

    def _append(
        self, file: SpillFile, generation: int, batch: tuple[int, int], records: Sequence[EncodedObservation]
    ) -> AppendResult | DiskFailure:
        if batch[1] and batch != self._expected_batch:
            return DiskFailure("behind")  # an earlier batch was not written
        appended = file.append(self._key_in(file, generation), records)
        self._expected_batch = (batch[0], batch[1] + 1)
        return appended

    def _end(self, file: SpillFile, generation: int, *, keep: bool) -> None:
        if self._key is not None and self._key_of == (file, generation):
            file.end(self._key, keep=keep)

    def _key_in(self, file: SpillFile, generation: int) -> int:
        if self._key is None or self._key_of != (file, generation):
            self._key = file.begin(self.session_id)
            self._key_of = (file, generation)
        return self._key


# --- the thread ---


@dataclass(frozen=True, slots=True)
class DiskFailure:
    """The work was not done. `reason`: see `database.trouble_reason`; or `no_room`, `behind`, `closed`, `internal`."""

    reason: str


_Work = Callable[[SpillFile], T]
_Done = Callable[[T | DiskFailure], None]


class DiskWriter:
    """The one thread that uses the file. After a failure of the disk it is not `accepting` for `retry_s` seconds."""

    def __init__(self, folder: Path, settings: SummarySettings, *, retry_s: float, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called on the event loop when the file was replaced, so that its rows are gone."""
        self._folder = folder
        self._settings = settings
        self._retry_s = retry_s
        self._on_lost = on_lost
        self._jobs: SimpleQueue[tuple[_Work[Any], _Done[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._owner = OwnerLock(folder)
        self._file: SpillFile | None = None
        self._paused_until = float("-inf")
        self._errors = 0
        self._ended = False
        """The thread has ended, so that `post` itself must answer what it queues."""
        self.trouble: str | None = None
        """Reason why nothing is written at the moment; None while the disk works."""

    # --- on the event loop ---

    def start(self) -> None:
        """Starts the thread. Call it on the event loop that `done` callbacks run on."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="summary-spill", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Waits until all queued work is done and the file is closed."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    def retry_now(self) -> None:
        """Ends the pause after a failure: the next work tries the disk."""
        self._paused_until = float("-inf")

    @property
    def accepting(self) -> bool:
        """Whether writing is likely to succeed: the thread runs, and the disk is not in its pause after a failure."""
        return (
            self._thread is not None
            and not self._ended
            and (self.trouble is None or time.monotonic() >= self._paused_until)
        )

    def post(self, work: _Work[T], done: _Done[T]) -> None:
        """Runs `work` in the thread, in the order of posting; then calls `done` with its result on the event loop."""
        if self._thread is None or self._ended:
            asyncio.get_running_loop().call_soon(done, DiskFailure("closed"))
            return
        self._jobs.put((work, done))
        if self._ended:  # between the check and the put
            self._fail_queued()

    async def ask(self, work: _Work[T]) -> T | DiskFailure:
        """Posts `work` and awaits its result. Cancelling does not undo the work."""
        future: asyncio.Future[T | DiskFailure] = asyncio.get_running_loop().create_future()

        def done(outcome: T | DiskFailure) -> None:
            if not future.done():
                future.set_result(outcome)

        self.post(work, done)
        return await future

    # --- in the thread ---

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                work, done = job
                outcome: Any = DiskFailure("closed")
                try:
                    outcome = self._guarded(work)
                finally:
                    self._call(done, outcome)
                del job, work, done, outcome
        except BaseException:
            self.trouble = "internal"
            raise
        finally:
            self._ended = True
            self._fail_queued()
            self._close()

    def _fail_queued(self) -> None:
        with suppress(Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    self._call(job[1], DiskFailure("closed"))

    def _close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
            self._owner.close()
        except (sqlite3.Error, OSError) as error:
            self._note(error)

    def _guarded(self, work: _Work[T]) -> T | DiskFailure:
        try:
            return self._do(work)
        except Exception:  # the thread's boundary: the caller gets a failure, and the next work is done
            log.exception("summaries: the writer's thread failed at a piece of work")
            SUMMARY_DISK_ERRORS.labels("internal").inc()
            return DiskFailure("internal")

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed, so that no task waits for the result
            log.debug("summaries: the event loop ended before the writer's thread")

    def _do(self, work: _Work[T]) -> T | DiskFailure:
        failed = self._open()
        if failed is not None:
            return failed
        assert self._file is not None
        before = self._errors, self._file.db.total_changes
        try:
            outcome = work(self._file)
        except NoRoom:
            return DiskFailure("no_room")
        except (sqlite3.Error, OSError) as error:
            return self._fail(error)
        written = self._file.db.total_changes != before[1]
        if self.trouble is not None and written and self._errors == before[0]:
            log.warning("summaries: the backlog in %s can be written again", self._folder)
            self.trouble = None
        return outcome

    def _open(self) -> DiskFailure | None:
        if self._file is not None:
            try:
                moved = self._file.moved
            except OSError as error:  # the folder was replaced by a file, or its disk is gone
                self._drop_file()
                return self._fail(error)
            if not moved:
                return None
            log.error("summaries: %s was moved or removed while in use; a new one is created", self._file.path)
            SUMMARY_DISK_ERRORS.labels("moved").inc()
            self._drop_file()
        elif self.trouble is not None and time.monotonic() < self._paused_until:
            return DiskFailure(self.trouble)
        try:
            self._file = SpillFile(self._folder, self._settings, self._owner, self._note)
        except (sqlite3.Error, OSError) as error:
            return self._fail(error)
        return None

    def _fail(self, error: sqlite3.Error | OSError) -> DiskFailure:
        self._note(error)
        reason = trouble_reason(error)
        if reason == "damaged" and self._file is not None:
            try:
                self._file.set_aside()
            except OSError as second:
                self._note(second)
            self._drop_file()
        return DiskFailure(reason)

    def _drop_file(self) -> None:
        """Closes the file and takes a new owner name, so that the rows are an orphan's should the file come back."""
        assert self._file is not None
        file, self._file = self._file, None
        owner, self._owner = self._owner, OwnerLock(self._folder)
        with suppress(sqlite3.Error):
            file.close()
        with suppress(OSError):
            owner.close()
        self._call(self._on_lost)

    def _note(self, error: sqlite3.Error | OSError) -> None:
        """Counts the error; logs it once until the disk works again or the reason changes."""
        reason = trouble_reason(error)
        self._errors += 1
        SUMMARY_DISK_ERRORS.labels(reason).inc()
        if reason == "damaged":
            log.error("summaries: the backlog's file is damaged: %s", error)
            return
        if reason != self.trouble:
            log.error(
                "summaries: the backlog in %s cannot be written (%s): %s. Observations are merged in memory meanwhile; "
                "the service tries again in %g s. %s",
                self._folder,
                reason,
                error,
                self._retry_s,
                ADVICE.get(reason, ""),
            )
        self.trouble = reason
        self._paused_until = time.monotonic() + self._retry_s


# --- the event loop's own long work ---


class CooperativeWork:
    """Runs work that is too long for one turn of the event loop: one step per turn, round robin."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], bool]] = deque()
        self._running = False

    def add(self, step: Callable[[], bool]) -> None:
        """Calls `step` soon, and again in later turns of the loop while it returns True, which means: more to do."""
        self._waiting.append(step)
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        step = self._waiting.popleft()
        try:
            if step():
                self._waiting.append(step)
        finally:
            self._running = bool(self._waiting)
            if self._running:
                asyncio.get_running_loop().call_soon(self._turn)
