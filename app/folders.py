"""Folders that settings name."""

from __future__ import annotations

import os
from pathlib import Path

from app.errors import ConfigurationError


def writable(folder: Path, setting: str) -> Path:
    """The folder, made where it was not there.

    Args:
        setting: the variable that names it.

    Raises:
        ConfigurationError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else "this user may not write there"
    except FileExistsError:
        reason = "that is no folder"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is not None:
        raise ConfigurationError(f"{setting}='{folder}': {reason}; want a folder that can be made or written to")
    return folder
