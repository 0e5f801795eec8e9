"""Objects in S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import MAX_MESSAGE, shortened
from app.segments.keys import split_s3
from app.segments.ports import AddressRefused, ObjectMissing

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_KINDS = {".mp4": "video/mp4", ".jsonl": "application/x-ndjson", ".json": "application/json"}
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}


class S3Objects:
    """See `Objects`. A put is whole or not at all; large files go in parts."""

    def __init__(self, client: S3Client) -> None:
        self._client = client

    def download(self, uri: str, path: Path) -> None:
        bucket, key = _place(uri)
        with _found(uri):
            self._client.download_file(bucket, key, str(path))

    def upload(self, path: Path, uri: str) -> None:
        bucket, key = _place(uri)
        with _found(uri):
            self._client.upload_file(str(path), bucket, key, ExtraArgs={"ContentType": _kind(key)})

    def read(self, uri: str) -> bytes:
        bucket, key = _place(uri)
        with _found(uri):
            return self._client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def write(self, uri: str, data: bytes) -> None:
        bucket, key = _place(uri)
        with _found(uri):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=_kind(key))

    def exists(self, uri: str) -> bool:
        bucket, key = _place(uri)
        try:
            with _found(uri):
                self._client.head_object(Bucket=bucket, Key=key)
        except ObjectMissing:
            return False
        return True


def _place(uri: str) -> tuple[str, str]:
    try:
        return split_s3(uri)
    except ValueError as error:
        raise AddressRefused(str(error)) from None


def _kind(key: str) -> str:
    return _KINDS.get(Path(key).suffix, "application/octet-stream")


@contextmanager
def _found(uri: str) -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        with _plain():
            yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _MISSING:
            raise ObjectMissing(f"{shortened(uri, MAX_MESSAGE)}: there is no such object, or no such bucket") from None
        raise


@contextmanager
def _plain() -> Iterator[None]:
    """What boto3's transfers wrap in errors of their own, as every other call says it: botocore's."""
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError
    from botocore.exceptions import ClientError, HTTPClientError

    try:
        yield
    except S3UploadFailedError as error:
        if isinstance(error.__context__, ClientError):
            raise error.__context__ from None
        raise
    except RetriesExceededError as error:  # a download that broke off each time
        raise HTTPClientError(error=error.last_exception) from None  # type: ignore[attr-defined]
