"""The one thread that touches the backlog's file. The event loop hands it work and never waits for it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from app.metrics import SUMMARY_DISK_ERRORS
from app.settings import SummarySettings
from app.summary.owner import Owner
from app.summary.spill_file import SpillFile
from app.summary.trouble import ADVICE, NoRoom, reason

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
