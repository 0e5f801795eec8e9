"""Objects that are files below one folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.errors import MAX_MESSAGE, shortened
from app.segments.keys import split_file
from app.segments.ports import AddressRefused, ObjectMissing

PARTIAL = ".part"
"""How a file's name ends that is not whole yet; it begins with a dot."""


class FolderObjects:
    """See `Objects`. A file appears under its name once it is whole, also when the process is killed.

    Args:
        folder: nothing outside it is read or written, whatever an address or a link in it says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def download(self, uri: str, path: Path) -> None:
        _whole(path, lambda partial: shutil.copyfile(self._there(uri), partial))

    def upload(self, path: Path, uri: str) -> None:
        target = self._place(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        _whole(target, lambda partial: shutil.copyfile(path, partial))

    def read(self, uri: str) -> bytes:
        return self._there(uri).read_bytes()

    def write(self, uri: str, data: bytes) -> None:
        target = self._place(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        _whole(target, lambda partial: partial.write_bytes(data))

    def exists(self, uri: str) -> bool:
        return self._place(uri).is_file()

    def _there(self, uri: str) -> Path:
        path = self._place(uri)
        if not path.is_file():
            raise ObjectMissing(f"{shortened(uri, MAX_MESSAGE)}: there is no such file")
        return path

    def _place(self, uri: str) -> Path:
        try:
            path = Path(split_file(uri)).resolve()
        except ValueError as error:
            raise AddressRefused(str(error)) from None
        if not path.is_relative_to(self._folder) or path == self._folder:
            raise AddressRefused(f"{shortened(uri, MAX_MESSAGE)}: outside {self._folder}")
        return path


def _whole(path: Path, fill: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        fill(partial)
        partial.chmod(0o644)  # mkstemp's own is for its owner alone
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
