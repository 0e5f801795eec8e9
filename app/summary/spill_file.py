"""The file under the backlog: opened, checked, and set aside when it is damaged. Blocking; for the writer's thread.

Several processes share the file. Each touches only rows of sessions that it owns.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from app.settings import SummarySettings
from app.summary.owner import Owner, alone
from app.summary.rows import Rows
from app.summary.schema import connect
from app.summary.trouble import reason

log = logging.getLogger(__name__)

NAME = "backlog.sqlite"
_ASIDE_KEPT = 3
"""Damaged files kept for whoever wants to look; they must not fill the disk."""


class SpillFile:
    """Open from its making to `close`."""

    def __init__(
        self, folder: Path, settings: SummarySettings, owner: Owner, on_trouble: Callable[[sqlite3.Error], None]
    ) -> None:
        """A damaged file is set aside, and a new one begun; `on_trouble` hears of it.

        Raises:
            sqlite3.Error, OSError: it cannot be had; see `trouble.reason`.
        """
        self.folder = folder
        self.path = folder / NAME
        self.owner = owner
        with alone(folder):
            owner.hold()
            owner.sweep()
            try:
                self.db = connect(self.path)
            except sqlite3.DatabaseError as error:
                if reason(error) != "damaged":
                    raise
                on_trouble(error)
                _rename(self.path)
                self.db = connect(self.path)
            self._inode = os.stat(self.path).st_ino
        self.rows = Rows(self.db, settings, on_trouble)

    @property
    def moved(self) -> bool:
        """Whether somebody else renamed or removed the file: nobody would find what is written to it.

        Raises:
            OSError: that cannot be told.
        """
        try:
            return os.stat(self.path).st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        self.db.close()

    def set_aside(self) -> None:
        """Closes it as damaged. Another process may have set it aside before: its successor stays."""
        self.close()
        with alone(self.folder):
            if not self.moved:
                _rename(self.path)


def _rename(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    log.error(
        "summaries: %s is damaged; it was set aside as %s, and the observations in it are lost to the summaries",
        path,
        aside.name,
    )
    whole = sorted(one for one in path.parent.glob(f"{path.name}.damaged-*") if not one.name.endswith(("-wal", "-shm")))
    for old in whole[:-_ASIDE_KEPT]:
        for suffix in ("-wal", "-shm", ""):
            old.with_name(old.name + suffix).unlink(missing_ok=True)
