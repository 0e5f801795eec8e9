"""Objects by any address that this process may use: `s3://`, and `file://` inside one folder."""

from __future__ import annotations

import threading
from pathlib import Path

from app.errors import MAX_MESSAGE, quoted, shortened
from app.segments.aws import Clients, S3Objects
from app.segments.local import FolderObjects
from app.segments.ports import ObjectAddressRefused, Objects
from app.settings import AwsSettings


class AnyObjects:
    """See `Objects`.

    Args:
        folder: the only one whose files may be used; None: no files at all.
    """

    def __init__(self, aws: AwsSettings, folder: Path | None) -> None:
        self._aws = aws
        self._folder = FolderObjects(folder) if folder else None
        self._s3: S3Objects | None = None
        self._opening = threading.Lock()

    def download(self, uri: str, path: Path) -> None:
        self._by(uri).download(uri, path)

    def upload(self, path: Path, uri: str) -> None:
        self._by(uri).upload(path, uri)

    def read(self, uri: str) -> bytes:
        return self._by(uri).read(uri)

    def write(self, uri: str, data: bytes) -> None:
        self._by(uri).write(uri, data)

    def exists(self, uri: str) -> bool:
        return self._by(uri).exists(uri)

    def _by(self, uri: str) -> Objects:
        if uri.startswith("s3://"):
            with self._opening:  # AWS is not asked for by those who use files alone
                if self._s3 is None:
                    self._s3 = S3Objects(Clients(self._aws).s3())
                return self._s3
        if uri.startswith("file://"):
            if self._folder is None:
                raise ObjectAddressRefused(
                    f"{shortened(uri, MAX_MESSAGE)}: SEGMENT_FOLDER is unset, so no file may be read or written"
                )
            return self._folder
        raise ObjectAddressRefused(f"{quoted(uri)}: should begin with s3:// or file://")
