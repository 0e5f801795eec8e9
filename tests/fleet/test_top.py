"""`fleet top`: what it finds in Redis and in workers' metrics."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE, Popen

import orjson
import pytest
import redis as redis_library
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from app.fleet.monitor import FleetObserver, RedisAway, run
from app.fleet.streams import Keys
from app.settings import ROOT, RedisSettings, Settings
from tests.fleet.conftest import Work
from tests.fleet.work import add_frames, eventually
from tests.support import forks
from tests.support.ingest import on_a_terminal, until
from tests.support.kafka import running_kafka
from tests.support.redis import RedisServer, running_redis

GROUP = "inference-workers"


def add(redis: redis_library.Redis, camera: str, count: int, maxlen: int = 100) -> None:
    for _ in range(count):
        redis.xadd(f"frames:{camera}", {"frame": b"x" * 5000}, maxlen=maxlen, approximate=False)
    redis.sadd("fleet:cameras", camera)


def read(redis: redis_library.Redis, camera: str, count: int, worker: str) -> list[bytes]:
    ((_, entries),) = redis.xreadgroup(GROUP, worker, {f"frames:{camera}": ">"}, count=count)
    return [entry for entry, _ in entries]


@pytest.fixture
def fleet(redis: redis_library.Redis) -> redis_library.Redis:
    """Camera `one` lags by 6 with 4 frames in flight, `two` has no lag, `three` has no worker; one worker is gone."""
    for camera in ("one", "two"):
        redis.xgroup_create(f"frames:{camera}", GROUP, id="0", mkstream=True)
    add(redis, "one", 10)
    add(redis, "two", 3)
    add(redis, "three", 2)
    read(redis, "one", 4, "host-1-aa")
    for entry in read(redis, "two", 3, "host-2-bb")[:2]:
        redis.xack("frames:two", GROUP, entry)
    later_ms = time.time() * 1000 + 60_000
    redis.zadd(Keys("frames:", GROUP).workers, {"host-1-aa": later_ms, "host-3-cc": later_ms})
    redis.xadd("frames:dead", {"error": "x"})
    return redis


def test_cameras_with_lag_pending_and_age(fleet: redis_library.Redis, redis_server: RedisServer) -> None:
    overview = FleetObserver(fleet, RedisSettings(redis_url=redis_server.url)).look()
    found = {camera.camera_id: (camera.lag, camera.pending, camera.held, camera.unread) for camera in overview.cameras}
    assert found == {"one": (6, 4, 10, 0), "two": (0, 1, 3, 0), "three": (None, 0, 2, 0)}
    assert all(0 <= camera.age_s < 60 for camera in overview.cameras)
    assert all(camera.fps_in is None for camera in overview.cameras)  # there was no look before
    assert overview.dead_letters == 1


def test_workers_here_and_gone(fleet: redis_library.Redis, redis_server: RedisServer) -> None:
    overview = FleetObserver(fleet, RedisSettings(redis_url=redis_server.url)).look()
    found = {
        worker.name: (worker.cameras, worker.pending, worker.signed_on, worker.idle_s is None)
        for worker in overview.workers
    }
    assert found == {
        "host-1-aa": (1, 4, True, False),
        "host-2-bb": (1, 1, False, False),
        "host-3-cc": (0, 0, True, True),
    }


def test_rates_are_those_between_two_looks(fleet: redis_library.Redis, redis_server: RedisServer) -> None:
    observer = FleetObserver(fleet, RedisSettings(redis_url=redis_server.url))
    began = time.monotonic()
    observer.look()
    add(fleet, "one", 20)
    read(fleet, "one", 10, "host-1-aa")
    time.sleep(0.2)
    state = next(camera for camera in observer.look().cameras if camera.camera_id == "one")
    seconds = time.monotonic() - began
    assert state.fps_in is not None
    assert state.fps_out is not None
    assert 20 / seconds <= state.fps_in <= 20 / 0.2
    assert state.fps_out == pytest.approx(state.fps_in / 2)
    assert state.lag == 16


def test_frames_dropped_unread_are_no_lag_and_are_shown(redis: redis_library.Redis, redis_server: RedisServer) -> None:
    redis.xgroup_create("frames:one", GROUP, id="0", mkstream=True)
    observer = FleetObserver(redis, RedisSettings(redis_url=redis_server.url))
    add(redis, "one", 10)
    read(redis, "one", 1, "me")
    add(redis, "one", 40, maxlen=10)
    (state,) = observer.look().cameras
    assert (state.lag, state.held) == (10, 10)
    read(redis, "one", 100, "me")
    (state,) = observer.look().cameras
    assert (state.lag, state.unread) == (0, 39)
    add(redis, "one", 3, maxlen=10)
    (state,) = observer.look().cameras
    assert (state.lag, state.unread) == (3, 39)


def test_what_workers_say_of_themselves(redis: redis_library.Redis, redis_server: RedisServer) -> None:
    registry = CollectorRegistry()
    frames = Counter("sightline_frames_received_total", "…", ["entry"], registry=registry)
    frames.labels("fleet").inc(12)
    frames.labels("live").inc(99)
    Counter("sightline_frames_processed_total", "…", ["entry"], registry=registry).labels("fleet").inc(7)
    dropped = Counter("sightline_frames_dropped_total", "…", ["entry", "reason"], registry=registry)
    dropped.labels("fleet", "stale").inc(4)
    dropped.labels("fleet", "trimmed").inc(1)
    Gauge("sightline_pipeline_fps", "…", ["entry"], registry=registry).labels("fleet").set(3.5)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        addresses = (f"127.0.0.1:{server.server_port}", "127.0.0.1:1")
        good, bad = FleetObserver(redis, RedisSettings(redis_url=redis_server.url), addresses).look().services
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (good.fps, good.received, good.processed, good.failed) == (3.5, 12, 7, 0)
    assert good.dropped == {"stale": 4, "trimmed": 1}
    assert good.problem is None
    assert "refused" in str(bad.problem)


def test_the_command_prints_tables_once(fleet: redis_library.Redis, redis_server: RedisServer) -> None:
    said = command(redis_server, "--once", "--interval", "0.2")
    assert "3 cameras: 0 frames a second in, 0 out, lag 6, 0 dropped unread, 1 dead letters" in said
    assert "2 workers" in said
    assert [line.split()[1] for line in said.splitlines() if " one " in line or " two " in line] == ["one", "two"]
    assert "gone" in next(line for line in said.splitlines() if "host-2-bb" in line)


def test_an_empty_fleet_says_what_starts_it(redis: redis_library.Redis, redis_server: RedisServer) -> None:
    first, *others = command(redis_server, "--once", "--interval", "0.1").splitlines()
    assert first.startswith("0 cameras: ")
    assert others == [
        "`sightline fleet ingest` brings them in",
        "no worker is here; `sightline fleet work` starts one",
    ]


def test_the_command_prints_json(fleet: redis_library.Redis, redis_server: RedisServer) -> None:
    found = orjson.loads(command(redis_server, "--once", "--json", "--interval", "0.2"))
    assert [camera["camera_id"] for camera in found["cameras"]] == ["one", "three", "two"]
    assert found["cameras"][0]["fps_in"] == 0
    assert found["services"] == []


def test_it_is_live_on_a_terminal(fleet: redis_library.Redis, redis_server: RedisServer) -> None:
    with on_a_terminal("fleet", "top", "--interval", "0.1", REDIS_URL=redis_server.url) as (child, screen):
        until(lambda: "3 cameras: 0 frames a second in" in screen())
        add(fleet, "four", 1)
        until(lambda: "4 cameras:" in screen())
        child.send_signal(signal.SIGINT)
        assert until(lambda: screen() and child.poll() is not None)
        assert child.returncode == 0
        assert "Traceback" not in screen()


def test_on_a_terminal_redis_that_goes_away_stays_said_until_it_is_back(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path) as server,
        on_a_terminal("fleet", "top", "--interval", "0.1", REDIS_URL=server.url) as (child, screen),
    ):
        until(lambda: "0 cameras:" in screen())
        server.stop()
        until(lambda: "Redis does not answer" in screen())
        said = screen().rindex("Redis does not answer")
        time.sleep(1)
        assert "cameras:" not in screen()[said:]
        server.start()
        until(lambda: "0 cameras:" in screen()[said:])
        child.send_signal(signal.SIGINT)
        assert until(lambda: screen() and child.poll() is not None)
        assert child.returncode == 0


def test_redis_away_is_said_in_one_line() -> None:
    with pytest.raises(RedisAway, match="REDIS_URL: Redis does not answer"):
        run(Settings(redis_url="redis://127.0.0.1:1"), once=True)


@pytest.mark.parametrize("options", [("--json",), ()])
def test_redis_that_goes_away_meanwhile_is_said_in_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    with running_redis(tmp_path) as server:
        environment = {**os.environ, "REDIS_URL": server.url}
        arguments = [sys.executable, "-m", "app", "fleet", "top", "--interval", "0.1", *options]
        with Popen(arguments, env=environment, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline()
            server.stop()
            _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert said.startswith("sightline: REDIS_URL: Redis does not answer")
    assert said.count("\n") == 1


def test_d2_redis_that_refuses_is_said_with_its_word(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-smembers")
        with pytest.raises(RedisAway, match=r"REDIS_URL: Redis is there and refuses \(NOPERM\)"):
            run(Settings(redis_url=server.url), once=True)


def test_d12_kafka_away_is_said_by_its_workers_and_by_top(
    work: Work, redis: redis_library.Redis, redis_server: RedisServer, jpeg: bytes, tmp_path: Path
) -> None:
    observer = FleetObserver(redis, RedisSettings(redis_url=redis_server.url))
    with running_kafka(tmp_path / "kafka") as broker:
        fleet = work(KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap, FLEET_STAGES="detect")
        add_frames(redis, "gate", [jpeg])
        eventually(fleet.values, lambda values: len(values) == 1, fleet)
        assert [worker.away for worker in observer.look().workers] == [{}]
        broker.stop()
        add_frames(redis, "gate", [jpeg])
        eventually(
            lambda: [list(worker.away) for worker in observer.look().workers], lambda away: away == [["Kafka"]], fleet
        )
        said = command(redis_server, "--once", "--interval", "0.1")
        assert "Kafka is away: 1 of 1 worker cannot reach it (" in said
        assert "here, Kafka away" in said
        broker.start()
        eventually(lambda: [worker.away for worker in observer.look().workers], lambda away: away == [{}], fleet)
    redis.hset(Keys("frames:", GROUP).away, "long-gone", "{}")
    eventually(lambda: redis.hlen(Keys("frames:", GROUP).away), lambda left: left == 0, fleet)


def command(server: RedisServer, *arguments: str) -> str:
    done = forks.run("fleet", "top", *arguments, REDIS_URL=server.url, COLUMNS="140")
    assert done.returncode == 0, done.stderr
    return done.stdout
