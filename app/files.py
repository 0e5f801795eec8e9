"""Folders that settings name, and files that appear only when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ConfigurationError

_LONGEST_STEM = 200
"""Bytes; file systems allow 255 for a whole name."""


def writable_folder(folder: Path, setting: str) -> Path:
    """Returns the folder, and makes it if it does not exist.

    Args:
        setting: the variable that names it.

    Raises:
        ConfigurationError: the folder cannot be made, or this user may not write to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else "this user may not write there"
    except FileExistsError:
        reason = "that is not a folder"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is not None:
        raise ConfigurationError(f"{setting}='{folder}': {reason}; want a folder that can be made or written to")
    return folder


def partial_path(path: Path) -> Path:
    """A hidden name in the same folder for a file that is renamed to `path` once it is complete.

    The name is a new one at each call, so that several threads and processes may write the same file at once.
    It is short enough for any file system.
    """
    stem = os.fsencode(path.name)[:_LONGEST_STEM].decode("ascii", "replace").replace("\ufffd", "_")
    return path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}.part")


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, and renames it to `path` at the end of the `with` block.

    Makes the folder if it does not exist. After an error no temporary file is left and `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
