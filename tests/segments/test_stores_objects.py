"""Objects: the same in S3 (moto's) and in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.segments.keys import uri
from app.segments.objects import AnyObjects
from app.segments.objects_folder import FolderObjects
from app.segments.objects_s3 import S3Objects
from app.segments.ports import AddressRefused, ObjectMissing, Objects
from app.settings import AwsSettings
from tests.support.aws import Aws
from tests.support.segments import estate


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
    with pytest.raises(AddressRefused):
        place[0].read(address)


def test_a_bucket_that_is_missing_is_told(aws: Aws, tmp_path: Path) -> None:
    objects = S3Objects(aws.client("s3"))
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(ObjectMissing):
        objects.write("s3://no-such-bucket-anywhere/x", b"x")
    with pytest.raises(ObjectMissing):
        objects.upload(tmp_path / "x", "s3://no-such-bucket-anywhere/x")
    assert not objects.exists("s3://no-such-bucket-anywhere/x")


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
        with pytest.raises(AddressRefused, match="outside"):
            objects.read(f"file://{way}")
        with pytest.raises(AddressRefused, match="outside"):
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
    with pytest.raises(AddressRefused, match="SEGMENT_FOLDER is unset"):
        AnyObjects(AwsSettings(), None).read(f"file://{tmp_path}/one")
    with pytest.raises(AddressRefused, match="should begin with"):
        objects.read("gs://bucket/one")


def test_a_region_that_nobody_knows_is_told(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(ConfigurationError, match="AWS_REGION is unset"):
        AnyObjects(AwsSettings(), None).read("s3://bucket/key")
