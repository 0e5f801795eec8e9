"""A real Redis Sentinel over a master and its replica."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.support.redis import START_S, RedisServer, free_port, running_redis

SERVICE = "cams"


@dataclass
class Watched:
    """A Sentinel and its two servers; `first` begins as the master."""

    port: int
    first: RedisServer
    second: RedisServer

    @property
    def url(self) -> str:
        """A URL of two Sentinels: the first does not exist, the second runs."""
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.port}/{SERVICE}"

    def fail_over(self) -> None:
        """Makes the replica the master, both of them running on."""
        with redis.Redis(port=self.port) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        _wait_for_role(self.second, b"master")
        _wait_for_role(self.first, b"slave")


@contextmanager
def running_sentinel(folder: Path) -> Iterator[Watched]:
    """All three end with the block."""
    with running_redis(folder / "first") as first, running_redis(folder / "second") as second:
        with second.client() as client:
            client.replicaof("127.0.0.1", first.port)
        port = free_port()
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\nprotected-mode no\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 10000\n"
        )
        with (folder / "sentinel.log").open("wb") as log:
            child = subprocess.Popen(["redis-server", str(settings), "--sentinel"], stdout=log, stderr=log)
        try:
            _wait_for_the_replica(port)
            yield Watched(port, first, second)
        finally:
            child.terminate()
            child.wait(10)


def _wait_for_the_replica(port: int) -> None:
    """The Sentinel finds it by asking the master, every second or ten."""
    deadline = time.monotonic() + START_S
    with redis.Redis(port=port) as sentinel:
        while True:
            try:
                if any(replica["master-link-status"] == "ok" for replica in sentinel.sentinel_slaves(SERVICE)):
                    return
            except redis.RedisError:
                pass
            assert time.monotonic() < deadline, "the Sentinel does not see the replica"
            time.sleep(0.1)


def _wait_for_role(server: RedisServer, role: bytes) -> None:
    deadline = time.monotonic() + START_S
    with server.client() as client:
        while client.role()[0] != role:
            assert time.monotonic() < deadline, f"the server at {server.port} does not become {role!r}"
            time.sleep(0.05)
