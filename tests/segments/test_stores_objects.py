"""Objects: the same in S3 (moto's) and in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from app.errors import ConfigurationError
from app.segments.aws import S3Objects
from app.segments.http import AnyObjects
from app.segments.keys import uri
from app.segments.local import FolderObjects
from app.segments.ports import ObjectAddressRefused, ObjectMissing, Objects
from app.settings import AwsSettings
from tests.support.aws import Aws
from tests.support.segments import estate
from tests.support.worker import Page, listening


@pytest.fixture(params=["s3", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Objects, str]:
    """Objects, and a bucket of theirs."""
    if request.param == "folder":
        return FolderObjects(tmp_path / "o ü"), str(tmp_path / "o ü")
    aws: Aws = request.getfixturevalue("aws")
    bucket = estate(aws).settings.output_bucket_name
    assert bucket
    return S3Objects(aws.client("s3")), bucket


def test_what_is_written_is_read(place: tuple[Objects, str], tmp_path: Path) -> None:
    objects, bucket = place
    address = uri(bucket, "jobs/a b/00000.mp4")
    assert not objects.exists(address)
    film = tmp_path / "film.mp4"
    film.write_bytes(bytes(range(256)) * 40_000)  # above S3's size of a part
    objects.upload(film, address)
    assert objects.exists(address)
    objects.download(address, tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == film.read_bytes()
    objects.write(address, b"short")
    assert objects.read(address) == b"short"


def test_what_is_missing_is_told(place: tuple[Objects, str], tmp_path: Path) -> None:
    objects, bucket = place
    address = uri(bucket, "jobs/none.mp4")
    with pytest.raises(ObjectMissing, match=r"none\.mp4"):
        objects.read(address)
    with pytest.raises(ObjectMissing, match=r"none\.mp4"):
        objects.download(address, tmp_path / "x")
    assert not list(tmp_path.glob("*x*")), "nothing half is left"


@pytest.mark.parametrize("address", ["", "http://bucket/key", "s3://", "file://", "/etc/passwd", "ftp://x/y"])
def test_addresses_of_no_known_kind(place: tuple[Objects, str], address: str) -> None:
    with pytest.raises(ObjectAddressRefused):
        place[0].read(address)


def test_a_bucket_that_is_missing_is_told(aws: Aws, tmp_path: Path) -> None:
    objects = S3Objects(aws.client("s3"))
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(ObjectMissing):
        objects.write("s3://no-such-bucket-anywhere/x", b"x")
    with pytest.raises(ObjectMissing):
        objects.upload(tmp_path / "x", "s3://no-such-bucket-anywhere/x")
    assert not objects.exists("s3://no-such-bucket-anywhere/x")


def test_what_may_not_be_written_is_said_in_the_words_of_s3(aws: Aws, tmp_path: Path) -> None:
    settings = estate(aws).settings
    bucket, s3 = settings.output_bucket_name, aws.client("s3")
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [denied]}))
    (tmp_path / "film.mp4").write_bytes(b"x")
    # Whoever calls knows botocore's errors; boto3's transfers have others.
    with pytest.raises(ClientError, match=r"403|AccessDenied|Forbidden"):
        S3Objects(s3).upload(tmp_path / "film.mp4", f"s3://{bucket}/film.mp4")


class BreaksOff(Page):
    """An S3 whose answers end in the middle."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"some")
        self.close_connection = True


def test_a_download_that_breaks_off_each_time_is_aws_s_trouble(tmp_path: Path) -> None:
    with listening(None, BreaksOff) as url:
        s3 = boto3.client("s3", "us-east-1", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x")
        with pytest.raises(BotoCoreError, match=r"HTTP Client .* 4 read, but total bytes expected is 1000"):
            S3Objects(s3).download("s3://films/a.mp4", tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_nothing_outside_the_folder_is_touched(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(b"x")
    (inside / "link").symlink_to(outside)
    objects = FolderObjects(inside)
    for way in (
        f"{outside}/secret",
        f"{inside}/../out/secret",
        f"{inside}/link/secret",
        str(inside),
        f"{inside}/%2e%2e/out/secret",
    ):
        with pytest.raises(ObjectAddressRefused, match="outside"):
            objects.read(f"file://{way}")
        with pytest.raises(ObjectAddressRefused, match="outside"):
            objects.write(f"file://{way}", b"y")
    assert (outside / "secret").read_bytes() == b"x"


def test_the_kind_of_address_chooses(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    bucket = estate(aws).settings.input_bucket_name
    objects = AnyObjects(AwsSettings(), tmp_path)
    for address in (f"s3://{bucket}/one", f"file://{tmp_path}/one"):
        objects.write(address, b"1")
        assert objects.read(address) == b"1"
        assert objects.exists(address)
    with pytest.raises(ObjectAddressRefused, match="SEGMENT_FOLDER is unset"):
        AnyObjects(AwsSettings(), None).read(f"file://{tmp_path}/one")
    with pytest.raises(ObjectAddressRefused, match="should begin with"):
        objects.read("gs://bucket/one")


def test_a_region_that_nobody_knows_is_told(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(ConfigurationError, match="AWS_REGION is unset"):
        AnyObjects(AwsSettings(), None).read("s3://bucket/key")
