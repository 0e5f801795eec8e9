"""The sink `jsonl`: one message a line, in JSONL_PATH; files that are full are kept as `NAME.1` (the newest) and so on.

All processes of a service write the same file: a lock beside it, `.NAME.lock`, makes them take turns. A line that a
killed process left incomplete is removed before the next one is written, because nobody was told that it is there.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app import metrics
from app.errors import ConfigurationError
from app.files import writable_folder
from app.sinks.sink import BatchSink, MessageRejected, SinkHost, SinkMessage

log = logging.getLogger(__name__)

_BLOCK = 64 * 1024


class JsonLinesSink(BatchSink):
    """Appends lines to a file, and has the disk confirm each batch before it counts as delivered.

    Raises:
        ConfigurationError: JSONL_PATH is unset, or its folder cannot be written to.
    """

    name = "jsonl"
    batch = 256

    def __init__(self, host: SinkHost) -> None:
        super().__init__(host)
        settings = host.settings.sinks
        if settings.jsonl_path is None:
            raise ConfigurationError("JSONL_PATH is unset: the sink `jsonl` needs the path of a file")
        self._path = settings.jsonl_path
        if self._path.is_dir():
            raise ConfigurationError(f"JSONL_PATH='{self._path}': a folder; should be the path of a file")
        writable_folder(self._path.parent, "JSONL_PATH")
        self._most_bytes = settings.jsonl_max_bytes
        self._files = settings.jsonl_files
        self._lock_path = self._path.with_name(f".{self._path.name}.lock")

    def write(self, messages: Sequence[SinkMessage]) -> None:
        lines = b"".join(message.value + b"\n" for message in messages)
        if any(b"\n" in message.value for message in messages):
            raise MessageRejected("its value has a line end")
        with self._locked():
            self._make_room(len(lines))
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                size = _without_torn_line(file, os.fstat(file).st_size)
                try:
                    _write_all(file, lines)
                    os.fdatasync(file)
                except OSError:
                    os.ftruncate(file, size)  # so that a full disk leaves no half line
                    raise
            finally:
                os.close(file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _make_room(self, size: int) -> None:
        """Renames the file if `size` bytes more are too many for it, and removes the oldest one."""
        try:
            present = self._path.stat().st_size
        except FileNotFoundError:
            return
        if not present or present + size <= self._most_bytes:
            return
        oldest = self._numbered(self._files - 1)
        if oldest.exists():
            metrics.SINK_DELETED.inc(_lines(oldest))
            oldest.unlink()
        for number in range(self._files - 2, -1, -1):
            if (older := self._numbered(number)).exists():
                older.rename(self._numbered(number + 1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _without_torn_line(file: int, size: int) -> int:
    """Removes an incomplete last line; returns the size of what is left."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        block = os.pread(file, end - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
        log.warning("the last %d bytes of JSONL_PATH were an incomplete line; they are removed", size - end)
    return end


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
