"""Redis servers that refuse commands (a replica, a full server, a Cluster), and failover by Sentinel."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis as redis_library
from redis._parsers.base import BaseParser

from app.errors import ConfigurationError
from app.fleet.connection import OTHER, check_redis, connect, error_word, is_outage, refuse_cluster
from app.fleet.delivery import Acknowledgements
from app.fleet.in_flight import InFlight
from app.fleet.leases import Leases
from app.fleet.streams import CameraFrame, FrameOrigin, Keys
from app.fleet.worker import WorkerHeartbeats
from app.settings import RedisSettings
from tests.fleet.lives import ROOM, Life
from tests.fleet.work import GROUP, add_frames
from tests.support import clip, forks
from tests.support.ingest import entries, frames_counted, ingesting, until
from tests.support.redis import RedisServer, free_port, running_redis
from tests.support.sentinel import SERVICE, running_sentinel

ADMIN = "redis://admin:secret@127.0.0.1:{port}"
STATES = ("READONLY", "NOREPLICAS", "NOPERM", "OOM", "MISCONF", "BUSY", "NOAUTH")
CLUSTER = ("--cluster-enabled", "yes", "--cluster-port")
"""Options of a Cluster's node; its bus port follows. The default, port + 10000, may be in use by a connection."""


@pytest.fixture(scope="module")
def pan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip.write_mp4(tmp_path_factory.mktemp("films") / "pan.mp4", clip.Pan(count=20).pictures(), fps=15)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "data").mkdir()
    with running_redis(tmp_path, "--dir", str(tmp_path / "data"), "--busy-reply-threshold", "50") as redis:
        with redis.client() as client:
            client.acl_setuser("admin", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"])
        yield redis


@contextmanager
def admin(server: RedisServer) -> Iterator[redis_library.Redis]:
    with redis_library.Redis.from_url(ADMIN.format(port=server.port)) as client:
        yield client


@contextmanager
def refusing(server: RedisServer, word: str, folder: Path) -> Iterator[None]:
    """The server refuses every write with this error, and closes no connection, until the block ends."""
    with admin(server) as client:
        if word == "READONLY":
            client.replicaof("127.0.0.1", free_port())
            yield
            client.replicaof("NO", "ONE")
        elif word == "NOREPLICAS":
            client.config_set("min-replicas-to-write", 1)
            yield
            client.config_set("min-replicas-to-write", 0)
        elif word == "NOPERM":
            client.execute_command("ACL", "SETUSER", "default", "-@write")
            yield
            client.execute_command("ACL", "SETUSER", "default", "+@write")
        elif word == "OOM":
            client.config_set("maxmemory", 1)
            yield
            client.config_set("maxmemory", 0)
        elif word == "NOAUTH":
            client.config_set("requirepass", "another")
            client.client_kill_filter(user="default")
            yield
            client.config_set("requirepass", "")
        elif word == "MISCONF":
            shutil.rmtree(folder / "data")
            client.config_set("save", "3600 1")
            client.bgsave()
            until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            yield
            client.config_set("save", "")
        else:
            thread = threading.Thread(target=endless, args=(server,))
            thread.start()
            until(lambda: busy(client))
            yield
            with suppress(redis_library.ResponseError):
                until(lambda: client.script_kill())
            thread.join()


def busy(client: redis_library.Redis) -> bool:
    try:
        client.ping()
    except redis_library.ResponseError as error:
        return error_word(error) == "BUSY"
    return False


def endless(server: RedisServer) -> None:
    with admin(server) as client, suppress(redis_library.RedisError):
        client.eval("while true do end", 0)


@pytest.mark.parametrize("word", STATES)
def test_d2_ingest_says_what_redis_says_counts_and_recovers(
    server: RedisServer, pan: Path, tmp_path: Path, word: str
) -> None:
    with ingesting(server, f"film={pan}", loop=True, ingest_refresh_s=0.2) as ingest:
        until(lambda: ingest.outbox.sent.get("film", 0) > 2 and ingest.report()["state"] == "ok")
        lost = frames_counted("redis_away")
        with refusing(server, word, tmp_path):
            until(lambda: ingest.report()["redis_says"] == word)
            assert (ingest.report()["state"], ingest.report()["redis"]) == ("degraded", False)
            until(lambda: frames_counted("redis_away") - lost >= 5)
        sent = ingest.outbox.sent["film"]
        until(lambda: ingest.outbox.sent["film"] > sent and ingest.report()["state"] == "ok")
    assert ingest.cameras["film"].taken == ingest.outbox.sent["film"] + ingest.outbox.dropped["film"]


@pytest.mark.parametrize("word", [word for word in STATES if word != "OOM"])  # a full Redis is read, see below
def test_d2_a_worker_says_what_redis_says_and_reads_on_afterwards(
    server: RedisServer, tmp_path: Path, word: str
) -> None:
    life = Life(server, "w")
    with admin(server) as client:
        add_frames(client, "gate", [b"1"])
        life.answered(client, until(lambda: life.read()))
        with refusing(server, word, tmp_path):
            until(lambda: life.read() == [] and life.consumer.redis_error == word)
        add_frames(client, "gate", [b"2"])
        (frame,) = until(lambda: life.read())
        assert frame.jpeg == b"2"
        assert life.consumer.redis_error == ""
    life.consumer.leave()


def test_d2_a_full_redis_is_read_to_its_end_by_workers_that_were_there_join_and_take_over(
    server: RedisServer, tmp_path: Path
) -> None:
    cameras = [f"cam-{number}" for number in range(8)]
    with admin(server) as client:
        first = Life(server, "first")
        for camera in cameras:
            add_frames(client, camera, [b"x"])
        begun: list[CameraFrame] = []
        while len(begun) < 8:
            begun += until(first.read)
        for camera in cameras:
            add_frames(client, camera, [b"x"] * 40)
        found: list[tuple[str, str]] = []

        def read(life: Life, in_all: int) -> None:
            while len(found) < in_all:
                some = until(life.read)
                life.answered(client, some)
                found.extend((frame.origin.stream, frame.origin.entry) for frame in some)

        with refusing(server, "OOM", tmp_path):
            with pytest.raises(redis_library.exceptions.OutOfMemoryError):
                add_frames(client, "cam-0", [b"x"])
            first.answered(client, begun)
            read(first, 100)
            second = Life(server, "second")
            until(lambda: (first.read(0), second.read(0), second.consumer.epochs)[-1])
            read(second, len(found) + 20)
            # The first dies. Its cameras, and what it had in hand, are the second's once its lease is over.
            left = until(first.read)
            read(second, 320)
            assert {(frame.origin.stream, frame.origin.entry) for frame in left} <= set(found)
            assert len(set(found)) == len(found) == 320
            assert client.zcard(Keys.of(RedisSettings()).leases) == 2
        assert client.xpending("frames:cam-0", GROUP)["pending"] == 0
    assert (first.consumer.redis_error, second.consumer.redis_error) == ("", "")
    second.consumer.leave()


def test_d2_a_full_redis_takes_frames_again_once_workers_have_answered_what_it_holds(
    server: RedisServer, pan: Path
) -> None:
    with admin(server) as client, ingesting(server, f"film={pan}", loop=True) as ingest:
        until(lambda: ingest.outbox.sent.get("film", 0) > 20)
        life = Life(server, "w")
        begun = until(life.read)
        client.config_set("maxmemory", client.info("memory")["used_memory"])
        until(lambda: ingest.report()["redis_says"] == "OOM")
        before = client.xlen("frames:film")
        time.sleep(0.5)
        oldest = client.xrange("frames:film", count=1)[0][0].decode()
        assert oldest <= begun[0].origin.entry, "what is pending is kept"
        life.answered(client, begun)
        while frames := life.read():
            life.answered(client, frames)
        sent = ingest.outbox.sent["film"]
        until(lambda: ingest.outbox.sent["film"] > sent)
        assert client.xlen("frames:film") < before
        life.consumer.leave()
    assert ingest.cameras["film"].taken == ingest.outbox.sent["film"] + ingest.outbox.dropped["film"]


def test_d2_ingest_that_starts_on_a_full_redis_makes_room_of_what_was_answered(server: RedisServer, pan: Path) -> None:
    with admin(server) as client:
        life = Life(server, "w")
        add_frames(client, "film", [b"x"])
        life.answered(client, until(life.read))
        add_frames(client, "film", [b"x" * 10_000] * 100)
        while frames := life.read():
            life.answered(client, frames)
        assert client.xpending("frames:film", GROUP)["pending"] == 0
        client.config_set("maxmemory", client.info("memory")["used_memory"])
        with ingesting(server, f"film={pan}", loop=True) as ingest:
            until(lambda: ingest.outbox.sent.get("film", 0) > 0)
        life.consumer.leave()


def test_d2_a_camera_that_lags_is_read_from_its_newest_frames_in_a_full_redis(
    server: RedisServer, tmp_path: Path
) -> None:
    with admin(server) as client:
        life = Life(server, "w", frame_staleness_ms=400)
        add_frames(client, "cam", [b"x"])
        until(lambda: life.read(0) == [] and life.consumer.epochs)
        entries = add_frames(client, "cam", [b"x"] * 20)
        time.sleep(0.15)  # more than a quarter of it
        with refusing(server, "OOM", tmp_path):
            frames = until(lambda: life.read(4))
            assert frames[-1].origin.entry == entries[-1]
            assert life.consumer.redis_error == ""
    life.consumer.leave()


@pytest.mark.parametrize("word", ["READONLY", "NOREPLICAS", "NOPERM", "BUSY"])
def test_d2_acknowledgements_wait_for_a_redis_that_refuses(server: RedisServer, tmp_path: Path, word: str) -> None:
    settings = RedisSettings(redis_url=server.url)
    keys, in_flight, client = Keys.of(settings), InFlight(8), connect(settings)
    acks = Acknowledgements(client, Leases(client, "w", keys, 60_000), in_flight)
    with admin(server) as other:
        (entry,) = add_frames(other, "gate", [b"1"])
        other.xgroup_create("frames:gate", GROUP, id="0")
        other.xreadgroup(GROUP, "w", {"frames:gate": ">"})
        acks.flush(last=True)
        acks.add(FrameOrigin("frames:gate", entry, "gate", None, 0.0), delivered=True)
        with refusing(server, word, tmp_path):
            until(lambda: acks.flush(last=True) or acks.redis_error == word)
            assert len(acks) == 1
        until(lambda: acks.flush(last=True) or not len(acks))
        assert acks.redis_error == ""
        assert other.xpending("frames:gate", GROUP)["pending"] == 0
    acks.close()


def test_d2_a_key_that_is_barred_hurts_no_other_and_is_said(server: RedisServer, pan: Path) -> None:
    with admin(server) as client:
        client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~frames:even", "~fleet:*")
        refused = frames_counted("refused")
        with ingesting(server, f"odd={pan}", f"even={pan}", loop=True) as ingest:
            until(lambda: ingest.outbox.sent.get("even", 0) > 10)
            until(lambda: ingest.report()["redis_says"] == "NOPERM")
            assert frames_counted("refused") > refused
            assert ingest.outbox.dropped.get("even", 0) == 0
            life = Life(server, "w")
            add_frames(client, "odd", [b"1"])
            until(lambda: any(frame.origin.camera_id == "even" for frame in life.read()))
            assert life.consumer.redis_error == "NOPERM"
            client.execute_command("ACL", "SETUSER", "default", "~*")
            until(lambda: ingest.report()["state"] == "ok")
            until(lambda: any(frame.origin.camera_id == "odd" for frame in life.read()))
            life.consumer.leave()


def test_d2_the_table_of_sources_that_cannot_be_read_is_said(server: RedisServer) -> None:
    with admin(server) as client, ingesting(server, "redis", ingest_refresh_s=0.1) as ingest:
        until(lambda: ingest.report()["state"] == "ok")
        client.execute_command("ACL", "SETUSER", "default", "-hgetall")
        until(lambda: ingest.report()["redis_says"] == "NOPERM")
        client.execute_command("ACL", "SETUSER", "default", "+hgetall")
        until(lambda: ingest.report()["state"] == "ok")


@pytest.mark.parametrize(
    ("text", "word", "outage"),
    [
        ("LOADING Redis is loading the dataset in memory", "LOADING", True),
        ("MASTERDOWN Link with MASTER is down", "MASTERDOWN", True),
        ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "TRYAGAIN", True),
        ("MISCONF Redis is configured to save RDB snapshots", "MISCONF", True),
        ("ERR max number of clients reached", "no answer", True),
        ("BUSYGROUP Consumer Group name already exists", OTHER, False),
        ("WRONGTYPE Operation against a key", OTHER, False),
        ("NOPERM No permissions to access a key", "NOPERM", False),
        ("NOPERM this user has no permissions to run the 'xadd' command", "NOPERM", True),
    ],
)
def test_d2_errors_of_the_server_are_told_from_those_of_a_command(text: str, word: str, outage: bool) -> None:
    error = BaseParser.parse_error(text)
    assert (error_word(error), is_outage(error)) == (word, outage)


def test_d2_health_of_a_worker_gives_the_servers_word() -> None:
    heartbeats = WorkerHeartbeats(2)
    heartbeats.of(0).beat(kafka=True, inference=True)
    heartbeats.of(1).beat(redis_error="READONLY", kafka=True, inference=True)
    report = heartbeats.report()
    assert report["state"] == "degraded"
    assert [(worker["redis"], worker["redis_says"]) for worker in report["workers"]] == [
        (True, None),
        (False, "READONLY"),
    ]


def test_d2_a_failover_by_sentinel_is_followed(pan: Path, tmp_path: Path) -> None:
    with running_sentinel(tmp_path) as watched:
        check_redis(RedisSettings(redis_url=watched.url))
        with ingesting(watched, f"film={pan}", loop=True, ingest_refresh_s=0.2) as ingest:  # type: ignore[arg-type]
            life = Life(watched, "w")  # type: ignore[arg-type]
            until(lambda: life.read())
            watched.fail_over()
            with watched.second.client() as client:
                before = client.xinfo_stream("frames:film")["entries-added"]
                until(lambda: client.xinfo_stream("frames:film")["entries-added"] > before + 5)
                until(lambda: ingest.report()["state"] == "ok")
                newest = entries(client, "film")[-1][b"captured_at_ms"]
            until(lambda: any(frame.origin.captured_at_ms >= float(newest) for frame in life.read(ROOM)))
            life.consumer.leave()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://host:26379", "is missing after the hosts"),
        ("redis+sentinel://host:26379/", "is missing after the hosts"),
        ("redis+sentinel:///cams", "is not host:port"),
        ("redis+sentinel://host:26379,/cams", "is not host:port"),
        ("redis+sentinel://host:x/cams", "no port from 1 to 65535"),
        ("redis+sentinel://host:70000/cams", "no port from 1 to 65535"),
        ("redis+sentinel://host/cams/one", "the database is 'one'"),
        ("redis+sentinel://host/cams?colour=red", "the option 'colour' is unknown"),
        ("http://host", "redis+sentinel://user:password@host"),
    ],
)
def test_d2_an_address_of_sentinels_that_is_wrong_is_said(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL: ") as refused:
        connect(RedisSettings(redis_url=url.replace("://host", "://me:hunter2@host")))
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_d2_an_address_of_sentinels_is_taken_apart() -> None:
    url = "rediss+sentinel://me:p%40ss@one,[::1]:5000/cams/3?sentinel_password=other&ssl_ca_certs=ca.pem"
    with connect(RedisSettings(redis_url=url)) as client:
        options = client.connection_pool.connection_kwargs
        assert (options["username"], options["password"], options["db"]) == ("me", "p@ss", 3)
        assert client.connection_pool.service_name == "cams"  # type: ignore[attr-defined]
        manager = client.connection_pool.sentinel_manager  # type: ignore[attr-defined]
        found = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
        assert [(sentinel["host"], sentinel["port"], sentinel["password"]) for sentinel in found] == [
            ("one", 26379, "other"),
            ("::1", 5000, "other"),
        ]
        assert options["ssl_ca_certs"] == found[0]["ssl_ca_certs"] == "ca.pem"


def test_d2_sentinels_are_asked_at_the_start(tmp_path: Path) -> None:
    with running_sentinel(tmp_path) as watched:
        for url, said in (
            (watched.url.replace(SERVICE, "unknown"), f"know no service 'unknown', only {SERVICE}"),
            (f"redis+sentinel://127.0.0.1:{watched.first.port}/{SERVICE}", "is not a Sentinel"),
            (f"redis://127.0.0.1:{watched.port}", "the server is a Sentinel"),
        ):
            with pytest.raises(ConfigurationError, match=said):
                check_redis(RedisSettings(redis_url=url))
    check_redis(RedisSettings(redis_url=watched.url))  # away: it is waited for


@pytest.mark.parametrize("command", [("ingest", "0"), ("work",), ("top", "--once")])
def test_d3_a_cluster_is_refused_by_name_at_the_start(tmp_path: Path, command: tuple[str, ...]) -> None:
    with running_redis(tmp_path, *CLUSTER, str(free_port())) as server:
        given = {"REDIS_URL": server.url, "METRICS_PORT": "0", "STATE_DIR": str(tmp_path / "state")}
        done = forks.run("fleet", *command, **given)
    assert done.returncode != 0
    assert "REDIS_URL: the server is a node of a Redis Cluster" in done.stderr + done.stdout
    assert "redis+sentinel://" in done.stderr + done.stdout


def test_d3_a_cluster_that_shows_only_later_is_refused_too(tmp_path: Path, pan: Path) -> None:
    with running_redis(tmp_path, *CLUSTER, str(free_port())) as server:
        server.stop()
        life = Life(server, "w")
        life.consumer.check()
        assert life.read() == []
        with ingesting(server, f"film={pan}", loop=True) as ingest:
            until(lambda: ingest.outbox.redis_error == "no answer")
            server.start()
            until(lambda: "Redis Cluster" in ingest.outbox.unfit)
            with pytest.raises(ConfigurationError, match="Redis Cluster"):
                ingest.until(threading.Event())
        with pytest.raises(ConfigurationError, match="Redis Cluster"):
            until(lambda: life.read() and time.sleep(0.01))
        life.consumer.leave()


@pytest.mark.parametrize("text", ["MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381", "CROSSSLOT Keys in request"])
def test_d3_what_only_a_cluster_says_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="Redis Cluster"):
        refuse_cluster(BaseParser.parse_error(text))
