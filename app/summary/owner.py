"""Whose sessions are whose, where several processes share a folder and any of them may be killed.

A process holds a lock (flock) on a file of its own as long as it lives; the kernel lets go of it however it ends.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "owner-"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time is inside: for opening, setting aside and sweeping. The folder is made if need be.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Owner:
    """This process, as the other ones see it. All methods may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"{_PREFIX}{uuid.uuid4().hex}"
        self._file: int | None = None

    def hold(self) -> None:
        """Says that this process lives. Call inside `alone`, so that nobody sweeps the file before it is locked."""
        if self._file is not None and (self._folder / self.name).exists():
            return
        self.close()
        self._file = os.open(self._folder / self.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        if self._file is not None:
            try:
                (self._folder / self.name).unlink(missing_ok=True)
            finally:  # the lock above all: with it, the process would live for ever in the eyes of the others
                os.close(self._file)
                self._file = None

    def alive(self, name: str) -> bool:
        """Whether the process of that name still runs. A session that was let go has the name ''."""
        if name == self.name:
            return True
        if not name:
            return False
        try:
            with (self._folder / name).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def sweep(self) -> None:
        """Removes the files of processes that ended. Call inside `alone`."""
        for path in self._folder.glob(f"{_PREFIX}*"):
            if not self.alive(path.name):
                path.unlink(missing_ok=True)
