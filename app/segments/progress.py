"""How far a job is, shown: each segment live on a terminal, a line in the log for each change elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.segments.keys import SegmentKey
from app.segments.ports import Job

log = logging.getLogger(__name__)

_MARKS = {"waiting": ("·", "dim"), "working": ("▸", "yellow"), "done": ("■", "green")}
_BAR = 40


class Board:
    """What is known of each segment. Any thread may tell it something."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._job_id = self._title = self._saying = ""
        self._uploaded: set[int] = set()
        self._done: set[int] = set()
        self._done_before: int | None = None
        self._at: dict[int, tuple[int, int]] = {}
        self._total: int | None = None
        self._live = Live(get_renderable=self._shown, console=self._console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            # What is logged comes above it. Its lines say what goes well, so that only trouble is logged.
            handler = RichHandler(logging.WARNING, self._console, show_path=False)
            logging.getLogger().handlers[:] = [handler]
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, words: str) -> None:
        """What is waited for; empty: nothing."""
        self._saying = words
        if words and not self._console.is_terminal:
            log.info("%s", words)

    def job(self, job: Job) -> None:
        """Which job it is."""
        self._job_id = job.job_id
        self._title = f"{job.source}  {job.mode}  job {job.job_id}"
        log.info("job %s: %s of %s", job.job_id, job.mode, job.source)

    def uploaded(self, index: int) -> None:
        """A segment is where the workers find it."""
        with self._lock:
            self._uploaded.add(index)
        log.info("segment %d is cut and uploaded", index)

    def whole(self, total: int) -> None:
        """All are; so many."""
        with self._lock:
            self._total = total
            self._uploaded.update(range(total))

    def watch(self, segment: SegmentKey, frames: int | None, of: int) -> None:
        """So many frames of a segment are analysed; None: it is no longer worked on, whether it is done or not."""
        self._saying = ""
        if segment.job_id != self._job_id:  # an earlier film's, that was interrupted in the same folder
            return
        index = segment.index
        with self._lock:
            if frames is None:
                self._at.pop(index, None)
            else:
                self._at[index] = frames, of

    def done(self, indices: Collection[int]) -> None:
        """These segments are done."""
        with self._lock:
            if self._done_before is None:
                self._done_before = len(self._done | set(indices))
            for index in sorted(set(indices) - self._done):
                self._done.add(index)
                log.info("segment %d is done; %s", index, self._counted())

    def _counted(self) -> str:
        of = f"of {self._total}" if self._total is not None else f"of {len(self._uploaded)} or more"
        return f"{len(self._done)} {of} segments"

    def _shown(self) -> RenderableType:
        with self._lock:
            rows = Table.grid(padding=(0, 1))
            for index, (frames, of) in sorted(self._at.items()):
                bar = ProgressBar(max(of, 1), min(frames, of), width=_BAR)
                rows.add_row(Text(f"{index:05d}", "yellow"), bar, Text(f"{frames} of {of} frames", "dim"))
            head = Text(self._title, "bold")
            total = self._total or max(len(self._uploaded), 1)
            line = Table.grid(padding=(0, 1))
            line.add_row(
                Text("film "), ProgressBar(total, len(self._done), width=_BAR), f"{self._counted()}  {self._times()}"
            )
            shown: list[RenderableType] = [head, line, rows, self._marks()]
            if self._saying:
                shown.append(Text(self._saying, "italic"))
            return Group(*shown)

    def _marks(self) -> Text:
        """One for each segment."""
        marks = Text()
        for index in sorted(self._uploaded | self._done):
            state = "done" if index in self._done else "working" if index in self._at else "waiting"
            marks.append(*_MARKS[state])
        return marks

    def _times(self) -> str:
        passed = time.monotonic() - self._began
        fresh = len(self._done) - (self._done_before or 0)
        if self._total is None or fresh == 0 or len(self._done) >= self._total:
            return _clock(passed)
        return f"{_clock(passed)}, {_clock(passed / fresh * (self._total - len(self._done)))} to go"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
