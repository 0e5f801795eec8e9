"""The list of cameras from the command line, YAML and Redis, and the errors of wrong entries."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis as redis_library

from app.errors import ConfigurationError
from app.fleet.ingest import CameraSource, SourceList, from_argument, from_yaml

KEY = "fleet:sources"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("films/gate.mp4", CameraSource("gate", "films/gate.mp4", "file")),
        ("north=films/gate.mp4", CameraSource("north", "films/gate.mp4", "file")),
        ("/data/a=b.mp4", CameraSource("a-b", "/data/a=b.mp4", "file")),
        ("0", CameraSource("video0", "/dev/video0", "device")),
        ("desk=2", CameraSource("desk", "/dev/video2", "device")),
        ("/dev/video7", CameraSource("video7", "/dev/video7", "device")),
        ("rtsp://10.0.0.7:554/h264?ch=1", CameraSource("10.0.0.7-554-h264", "rtsp://10.0.0.7:554/h264?ch=1", "rtsp")),
        ("yard=HTTP://cam/mjpg?a=b", CameraSource("yard", "HTTP://cam/mjpg?a=b", "http")),
    ],
)
def test_a_source_on_the_command_line(text: str, expected: CameraSource) -> None:
    assert from_argument(text) == expected


def test_a_folder_is_one_camera(tmp_path: Path) -> None:
    folder = tmp_path / "hall one"
    folder.mkdir()
    assert from_argument(str(folder), loop=True) == CameraSource("hall-one", str(folder), "folder", loop=True)


def test_a_password_is_neither_in_the_id_nor_shown() -> None:
    source = from_argument("rtsp://admin:hunter2@10.0.0.7/live")
    assert "hunter2" in source.address
    assert source.shown == "rtsp://10.0.0.7/live"
    assert source.camera_id == "10.0.0.7-live"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gopher://user:word@old/x", "gopher://old/x: gopher:// is not read; want rtsp, "),
        ("dead=a.mp4", "'dead': this name is reserved"),
    ],
)
def test_a_wrong_source_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_argument(text)
    assert said in str(caught.value)
    assert "word" not in str(caught.value)


def test_yaml_as_a_list(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(
        "- films/a.mp4\n- rtsp://cam/1\n- {id: yard, source: 0, type: outdoor}\n- {source: b.mp4, loop: true}\n"
    )
    assert from_yaml(path) == [
        CameraSource("a", str(tmp_path / "films/a.mp4"), "file"),
        CameraSource("cam-1", "rtsp://cam/1", "rtsp"),
        CameraSource("yard", "/dev/video0", "outdoor"),
        CameraSource("b", str(tmp_path / "b.mp4"), "file", loop=True),
    ]


def test_yaml_as_a_mapping_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text("gate: rtsp://cam/1\nhall:\n  source: /films/hall.mp4\n  type: indoor\n")
    assert from_yaml(path, loop=True) == [
        CameraSource("gate", "rtsp://cam/1", "rtsp", loop=True),
        CameraSource("hall", "/films/hall.mp4", "indoor", loop=True),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gate: [", "cannot be read as YAML"),
        ("12", "holds 12; want a list of sources"),
        ("gate: {adress: x}", "source gate: the field 'adress' is unknown"),
        ("gate: {source: true}", "source gate: its address is True"),
        ("gate: {type: indoor}", "source gate: its address is None"),
        ("gate: {source: a.mp4, loop: 3}", "`loop` is true or false"),
        ('"a\\nb": a.mp4', "a name has 1 to 128 characters"),
    ],
)
def test_a_wrong_yaml_names_the_file_and_the_entry(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        SourceList([str(path)], KEY)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_two_sources_of_one_id_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"two sources have the id 'a': x/a.mp4 and y/a.mp4.*NAME=SOURCE"):
        SourceList(["x/a.mp4", "y/a.mp4"], KEY)


def test_yaml_is_read_again_and_stays_as_it_was_while_it_is_broken(tmp_path: Path, redis: redis_library.Redis) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text("- a.mp4")
    listing = SourceList([str(path), "b=/b.mp4"], KEY)
    path.write_text("- a.mp4\n- c.mp4")
    assert sorted(listing.read(redis)[0]) == ["a", "b", "c"]
    path.write_text("- [")
    sources, problems = listing.read(redis)
    assert sorted(sources) == ["a", "b", "c"]
    assert "its sources stay as they were" in problems[0]
    path.write_text("[]")
    assert sorted(listing.read(redis)[0]) == ["b"]


def test_without_any_source_the_hash_in_redis_is_read(redis: redis_library.Redis) -> None:
    listing = SourceList([], KEY)
    assert listing.read(redis) == ({}, [])
    redis.hset(KEY, "gate", '"rtsp://cam/1"')
    redis.hset(KEY, "hall", '{"source": "/films/hall.mp4", "type": "indoor", "loop": true}')
    assert listing.read(redis)[0] == {
        "gate": CameraSource("gate", "rtsp://cam/1", "rtsp"),
        "hall": CameraSource("hall", "/films/hall.mp4", "indoor", loop=True),
    }
    redis.hdel(KEY, "gate")
    assert list(listing.read(redis)[0]) == ["hall"]


def test_a_wrong_entry_of_the_hash_leaves_the_others_alone(redis: redis_library.Redis) -> None:
    redis.hset(KEY, "good", '"/films/a.mp4"')
    redis.hset(KEY, "torn", '{"source": ')
    redis.hset(KEY, "odd", '{"source": ["x"]}')
    sources, problems = SourceList(["redis"], KEY).read(redis)
    assert list(sources) == ["good"]
    assert any("source torn: fleet:sources holds no JSON" in line for line in problems)
    assert any("source odd: its address is ['x']" in line for line in problems)


def test_sources_stay_while_redis_is_away(redis: redis_library.Redis) -> None:
    redis.hset(KEY, "gate", '"rtsp://cam/1"')
    listing = SourceList([], KEY)
    listing.read(redis)
    with redis_library.Redis(port=1) as nobody:
        sources, problems = listing.read(nobody)
    assert list(sources) == ["gate"]
    assert "cannot be read from Redis" in problems[0]
