"""Ingest survives a source that fails and returns, a source that never existed, and an outage of Redis."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import redis as redis_library
from prometheus_client import REGISTRY

from tests.fleet.rtsp import PASSWORD, camera
from tests.support import clip
from tests.support.ingest import entries, frames_counted, ingesting, network_source, until
from tests.support.kafka import free_ports
from tests.support.redis import RedisServer, running_redis


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return clip.write_mp4(tmp_path / "pan.mp4", clip.Pan(step=(2, 1), count=20).pictures(), fps=15)


def test_a_network_source_that_dies_is_opened_again_and_others_run_on(
    redis_server: RedisServer, redis: redis_library.Redis, film: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    url = f"tcp://127.0.0.1:{port}"
    reconnects = REGISTRY.get_sample_value("sightline_ingest_reconnects_total") or 0.0
    sources = (f"net={url}", f"film={film}")
    with ingesting(redis_server, *sources, loop=True, ingest_reconnect_max_s=0.5) as ingest:
        with network_source(film, port, tmp_path / "ffmpeg.log"):
            seen = until(lambda: entries(redis, "net"))
            assert clip.decode(seen[0][b"frame"]).shape == (480, 640, 3)
            assert seen[0][b"camera_type"] == b"tcp"
        until(lambda: ingest.cameras["net"].state == "retrying")
        assert ingest.cameras["net"].problem.startswith(url)
        assert ingest.cameras["film"].state == "running"
        until(lambda: REGISTRY.get_sample_value("sightline_ingest_sources", {"state": "retrying"}) == 1)

        had = redis.xinfo_stream("frames:net")["entries-added"]
        with network_source(film, port, tmp_path / "ffmpeg.log"):
            until(lambda: redis.xinfo_stream("frames:net")["entries-added"] > had)
            assert ingest.cameras["net"].state == "running"
    assert (REGISTRY.get_sample_value("sightline_ingest_reconnects_total") or 0.0) > reconnects
    assert "source net is back" in caplog.text or "source net is lost" in caplog.text


def test_an_rtsp_camera_is_read_live_with_its_password_and_missed_when_it_hangs_up(
    redis_server: RedisServer, redis: redis_library.Redis, film: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as plugged:
        url = plugged.enter_context(camera(film, tmp_path / "camera"))
        with ingesting(redis_server, f"gate={url}", ingest_reconnect_max_s=0.5) as ingest:
            (first, *_) = until(lambda: len(seen := entries(redis, "gate")) >= 10 and seen)
            assert clip.decode(first[b"frame"]).shape == (480, 640, 3)
            assert first[b"camera_type"] == b"rtsp"
            seen = [float(fields[b"captured_at_ms"]) for fields in entries(redis, "gate")]
            assert seen == sorted(seen)
            plugged.close()
            until(lambda: ingest.cameras["gate"].state == "retrying")
    assert "source gate is lost" in caplog.text
    assert PASSWORD not in caplog.text


def test_a_source_that_cannot_be_opened_is_named_once_and_keeps_being_tried(
    redis_server: RedisServer, redis: redis_library.Redis, film: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = tmp_path / "late.mp4"
    with ingesting(
        redis_server, f"late={late}", "cam=rtsp://admin:hunter2@127.0.0.1:1/live", ingest_reconnect_max_s=0.2
    ) as ingest:
        until(lambda: {camera.state for camera in ingest.cameras.values()} == {"retrying"})
        assert ingest.cameras["late"].problem == f"{late}: No such file or directory"
        assert ingest.cameras["cam"].problem == "rtsp://127.0.0.1:1/live: Connection refused"
        late.write_bytes(film.read_bytes())
        until(lambda: len(entries(redis, "late")) == 20)
    assert caplog.text.count("source cam is lost") == 1
    assert "hunter2" not in caplog.text


def test_a_folder_without_a_single_picture_is_said_to_be_one(
    redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with ingesting(redis_server, f"empty={tmp_path}", loop=True) as ingest:
        until(lambda: ingest.cameras and ingest.cameras["empty"].problem == f"{tmp_path}: it contains no frame")


def test_frames_are_given_up_and_counted_while_redis_is_away(film: Path, tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        with ingesting(server, f"film={film}", loop=True, ingest_refresh_s=0.2) as ingest, server.client() as client:
            until(lambda: entries(client, "film"))
            lost = frames_counted("redis_away")
            server.stop()
            until(lambda: frames_counted("redis_away") - lost >= 5)
            assert not ingest.outbox.up
            assert ingest.cameras["film"].state == "running"
            server.start()  # empty: nothing was written to disk
            until(lambda: ingest.outbox.up)
            until(lambda: client.smembers("fleet:cameras") == {b"film"})
            until(lambda: len(entries(client, "film")) >= 3)
        taken, sent, dropped = ingest.cameras["film"].taken, ingest.outbox.sent["film"], ingest.outbox.dropped["film"]
        assert taken == sent + dropped


def test_a_redis_that_was_never_there_ends_nothing(film: Path, redis_server: RedisServer, tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as server:
        server.stop()
        with ingesting(server, f"film={film}", loop=True) as ingest:
            until(lambda: not ingest.outbox.up)
            server.start()
            until(lambda: ingest.outbox.sent.get("film", 0) > 0)


def test_a_stream_that_redis_refuses_hurts_no_other(
    redis_server: RedisServer, redis: redis_library.Redis, film: Path
) -> None:
    redis.set("frames:odd", "not a stream")
    refused = frames_counted("refused")
    with ingesting(redis_server, f"odd={film}", f"even={film}") as ingest:
        until(lambda: len(entries(redis, "even")) == 20)
        until(lambda: ingest.cameras["odd"].state == "ended")
    assert frames_counted("refused") - refused == ingest.cameras["odd"].taken
