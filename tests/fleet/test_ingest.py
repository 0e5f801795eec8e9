"""Ingest of recordings into Redis: a video, a folder of images, JPEG passed through, and a frame's fields in Redis."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis as redis_library

from app.fleet.ingest import Outbox, OutgoingFrame
from app.fleet.streams import Keys
from tests.support import clip, forks
from tests.support.ingest import PATIENCE_S, entries, frames_counted, ingesting, on_a_terminal, until
from tests.support.redis import RedisServer
from tests.support.service import process

PAN = clip.Pan(step=(2, 1), count=20)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 20 frames, 15 a second."""
    return clip.write_mp4(tmp_path_factory.mktemp("films") / "pan.mp4", PAN.pictures(), fps=15)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with ten JPEGs and a file that is not a JPEG."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, jpeg in enumerate(PAN.jpegs()[:10]):
        (folder / f"{number:02}.jpg").write_bytes(jpeg)
    (folder / "03b.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("nor this")
    return folder


def test_a_film_comes_out_picture_by_picture_at_its_own_pace(
    redis_server: RedisServer, redis: redis_library.Redis, film: Path
) -> None:
    before = time.time() * 1000
    with ingesting(redis_server, f"gate={film}") as ingest:
        until(lambda: ingest.cameras and ingest.cameras["gate"].state == "ended")
        found = until(lambda: len(entries(redis, "gate")) == 20 and entries(redis, "gate"))
    after = time.time() * 1000
    for sent, seen in zip(PAN.pictures(), found, strict=True):
        assert set(seen) == {b"camera_id", b"camera_type", b"ingest_ts", b"frame", b"captured_at_ms"}
        assert (seen[b"camera_id"], seen[b"camera_type"]) == (b"gate", b"file")
        assert before <= float(seen[b"captured_at_ms"]) <= float(seen[b"ingest_ts"]) <= after
        got = clip.decode(seen[b"frame"]).astype(int)
        assert np.abs(got - sent).mean() < 5  # two codecs lie between
    captured = np.array([float(seen[b"captured_at_ms"]) for seen in found])
    # Not faster than it was filmed. From our start, not from the first picture: a stall may hold that one up.
    assert captured[-1] - before >= 1266
    assert redis.smembers("fleet:cameras") == {b"gate"}


def test_fewer_frames_are_taken_where_fewer_are_wanted(
    redis_server: RedisServer, redis: redis_library.Redis, film: Path
) -> None:
    left_out = frames_counted("sampled_out")
    with ingesting(redis_server, f"gate={film}", ingest_fps=5) as ingest:
        until(lambda: ingest.cameras and ingest.cameras["gate"].state == "ended")
        until(lambda: len(entries(redis, "gate")) == 7)
    assert frames_counted("sampled_out") - left_out == 13


def test_jpegs_of_a_folder_are_passed_through_and_what_is_none_is_left_out(
    redis_server: RedisServer, redis: redis_library.Redis, pictures: Path
) -> None:
    undecodable = frames_counted("undecodable")
    with ingesting(redis_server, str(pictures), ingest_fps=15):
        found = until(lambda: len(entries(redis, "pictures")) == 10 and entries(redis, "pictures"))
    assert [seen[b"frame"] for seen in found] == PAN.jpegs()[:10]
    assert found[0][b"camera_type"] == b"folder"
    assert frames_counted("undecodable") - undecodable == 1


def test_motion_jpeg_is_passed_through(redis_server: RedisServer, redis: redis_library.Redis, tmp_path: Path) -> None:
    film = tmp_path / "camera.mjpeg"
    film.write_bytes(b"".join(PAN.jpegs()[:5]))
    with ingesting(redis_server, str(film)):
        found = until(lambda: len(entries(redis, "camera")) == 5 and entries(redis, "camera"))
    assert [seen[b"frame"] for seen in found] == PAN.jpegs()[:5]


def test_a_looped_recording_starts_over(redis_server: RedisServer, redis: redis_library.Redis, pictures: Path) -> None:
    with ingesting(redis_server, str(pictures), loop=True, ingest_fps=15):
        found = until(lambda: len(entries(redis, "pictures")) >= 25 and entries(redis, "pictures"))
    first = PAN.jpegs()[0]
    assert [number for number, seen in enumerate(found[:25]) if seen[b"frame"] == first] == [0, 10, 20]


def test_redis_keeps_no_more_frames_than_asked_for(
    redis_server: RedisServer, redis: redis_library.Redis, pictures: Path
) -> None:
    with ingesting(redis_server, str(pictures), loop=True, ingest_maxlen=5):
        until(lambda: redis.exists("frames:pictures") and redis.xinfo_stream("frames:pictures")["entries-added"] >= 20)
        assert redis.xlen("frames:pictures") <= 10  # about: Redis drops whole nodes


def test_sources_of_the_hash_are_picked_up_and_given_up_while_running(
    redis_server: RedisServer, redis: redis_library.Redis, pictures: Path, film: Path
) -> None:
    with ingesting(redis_server, loop=True, ingest_refresh_s=0.2) as ingest:
        time.sleep(0.3)
        assert ingest.cameras == {}
        redis.hset("fleet:sources", "one", f'"{pictures}"')
        until(lambda: entries(redis, "one"))
        redis.hset("fleet:sources", "two", f'{{"source": "{film}", "type": "gate"}}')
        assert until(lambda: entries(redis, "two"))[0][b"camera_type"] == b"gate"

        redis.hset("fleet:sources", "two", f'{{"source": "{pictures}", "type": "hall"}}')
        until(lambda: entries(redis, "two")[-1][b"camera_type"] == b"hall")

        redis.hdel("fleet:sources", "one")
        until(lambda: redis.smembers("fleet:cameras") == {b"two"})
        assert 0 < redis.ttl("frames:one") <= 60  # workers may finish what is there
        assert list(ingest.cameras) == ["two"]

        redis.hset("fleet:sources", "one", f'"{pictures}"')
        until(lambda: redis.ttl("frames:one") == -1)
        assert redis.sismember("fleet:cameras", "one")


def test_frames_that_still_wait_do_not_bring_a_removed_camera_back(
    redis_server: RedisServer, redis: redis_library.Redis
) -> None:
    outbox = Outbox(redis_server.client(), Keys("frames:", "workers"), maxlen=100, register_s=60)
    for camera in ("gone", "back"):
        outbox.put(OutgoingFrame(camera, "gate", b"1", 0.0))
        outbox.remove(camera)
    outbox.put(OutgoingFrame("back", "gate", b"2", 0.0))
    outbox.start()
    assert outbox.close(PATIENCE_S)
    assert redis.smembers("fleet:cameras") == {b"back"}
    assert [len(entries(redis, camera)) for camera in ("gone", "back")] == [1, 2]
    assert (redis.ttl("frames:gone") > 0, redis.ttl("frames:back")) == (True, -1)
    assert list(outbox.sent) == ["back"]


def test_the_rate_falls_while_nobody_keeps_up_and_rises_when_somebody_does(
    redis_server: RedisServer, redis: redis_library.Redis, pictures: Path
) -> None:
    redis.xgroup_create("frames:pictures", "inference-workers", id="0", mkstream=True)
    limits = {"ingest_fps": 100, "ingest_busy_fps": 50, "ingest_min_fps": 40, "ingest_maxlen": 60}
    with ingesting(redis_server, str(pictures), loop=True, **limits) as ingest:
        camera = until(lambda: ingest.cameras.get("pictures"))
        until(lambda: camera.sampler.fps == 50)
        assert camera.lag is not None
        assert camera.lag > 6
        until(lambda: camera.sampler.fps == 40)

        def read() -> bool:
            redis.xreadgroup("inference-workers", "me", {"frames:pictures": ">"}, count=1000)
            return camera.sampler.fps > 50

        until(read)  # also though Redis counts what was dropped unread as lag for ever


def test_the_command_ends_by_itself_when_all_recordings_are_over(
    redis_server: RedisServer, redis: redis_library.Redis, pictures: Path
) -> None:
    given = {"REDIS_URL": redis_server.url, "METRICS_PORT": "0", "INGEST_FPS": "15"}
    done = forks.run("fleet", "ingest", str(pictures), **given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(entries(redis, "pictures")) == 10
    assert "metrics on http://127.0.0.1:" in done.stdout + done.stderr


def test_the_command_tells_its_health_and_ends_on_sigterm(
    redis_server: RedisServer, redis: redis_library.Redis, pictures: Path, film: Path, tmp_path: Path
) -> None:
    given = {"REDIS_URL": redis_server.url, "METRICS_PORT": "0"}
    log = tmp_path / "ingest.log"
    with process(["fleet", "ingest", str(pictures), f"two={film}", "--loop"], given, log) as child:
        until(lambda: entries(redis, "pictures") and entries(redis, "two"))
        address = re.search(r"metrics on (http://127.0.0.1:\d+)/metrics", log.read_text())
        assert address, log.read_text()
        health = until(
            lambda: (response := httpx.get(f"{address[1]}/health/ready")).status_code == 200 and response.json()
        )
        assert health["sources"] == {"connecting": 0, "running": 2, "retrying": 0, "ended": 0}
        assert 'sightline_ingest_frames_total{outcome="sent"}' in httpx.get(f"{address[1]}/metrics").text
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_table_is_shown_on_a_terminal(redis_server: RedisServer, redis: redis_library.Redis, pictures: Path) -> None:
    settings = {"REDIS_URL": redis_server.url, "METRICS_PORT": "0"}
    sources = (str(pictures), "cam=rtsp://admin:hunter2@127.0.0.1:1/live")
    with on_a_terminal("fleet", "ingest", *sources, "--loop", **settings) as (child, screen):
        until(lambda: "1 running, 1 retrying" in screen())
        until(lambda: "rtsp://127.0.0.1:1/live: Connection refused" in screen())
        child.send_signal(signal.SIGINT)
        assert until(lambda: screen() and child.poll() is not None)
        assert child.returncode == 0
        assert "hunter2" not in screen()


def test_a_wrong_source_ends_the_command_in_one_line(tmp_path: Path) -> None:
    done = forks.run("fleet", "ingest", "gopher://old/film")
    assert done.returncode == 2
    assert (done.stdout + done.stderr).startswith("sightline: gopher://old/film: gopher:// is not read; want rtsp,")
