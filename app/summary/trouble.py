"""What can be wrong with the disk or the file on it, in a word for the counter."""

from __future__ import annotations

import errno
import sqlite3

_BY_CODE = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "io",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_READONLY: "unavailable",
    sqlite3.SQLITE_CANTOPEN: "unavailable",
    sqlite3.SQLITE_PERM: "unavailable",
    sqlite3.SQLITE_AUTH: "unavailable",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

ADVICE = {
    "full": "make room on the disk of STATE_DIR, or lower SUMMARY_DISK_BYTES",
    "io": "the disk of STATE_DIR is full over a quota, or failing: look at the kernel's log",
    "busy": "another process holds the file: look for one that hangs",
    "unavailable": "STATE_DIR must be a folder on a local disk that the service may write",
}


class NoRoom(Exception):
    """Folding the session's own rows does not help: SUMMARY_DISK_BYTES is for all sessions, and others hold them."""


def reason(error: sqlite3.Error | OSError) -> str:
    """`full`, `io`, `damaged`, `busy`, `unavailable` or `other`."""
    if isinstance(error, OSError):
        return "full" if error.errno in _FULL else "unavailable"
    code = getattr(error, "sqlite_errorcode", None)
    return "other" if code is None else _BY_CODE.get(code & 0xFF, "other")  # the low byte; extended codes add to it
