"""`fleet work` as a separate process, cameras that write to Redis, and results that kcat reads from Kafka."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import redis as redis_library

from tests.support.redis import require_program
from tests.support.service import Service, assert_adds_up, process, wait_for_line, wait_until

GROUP = "inference-workers"
PATIENCE_S = 40.0
HOUR_MS = 3_600_000.0


@dataclass
class Fleet(Service):
    """A running `fleet work`; `port` is METRICS_PORT."""

    settings: Mapping[str, str]

    @classmethod
    @contextmanager
    def running(cls, folder: Path, settings: Mapping[str, str]) -> Iterator[Fleet]:
        """Waits until the worker is ready and has looked for cameras once."""
        folder.mkdir(parents=True)
        defaults = {"STATE_DIR": str(folder / "state"), "METRICS_PORT": "0", "FLEET_DISCOVER_S": "0.2"}
        # Tests write their frames beforehand: old is what a test says is old.
        defaults |= {"FRAME_STALENESS_MS": str(HOUR_MS), "HOST": "127.0.0.1"}
        settings = {**defaults, **settings}
        log_path = folder / "work.log"
        with process(["fleet", "work"], settings, log_path) as child:
            found = wait_for_line(child, log_path, r"metrics on http://127\.0\.0\.1:(\d+)/metrics")
            fleet = cls(int(found[1]), child, log_path, settings)
            wait_until(fleet, "/health/ready")
            yield fleet

    def counted(self, frames: int) -> dict[str, float]:
        """Frame counters once so many came in (they are written once a second) and nothing is in flight."""
        eventually(lambda: self.frames("fleet"), lambda counts: counts["received"] >= frames, self)
        return assert_adds_up(self, "fleet")

    def values(self) -> list[dict[str, Any]]:
        """Every value in the worker's topic, in order."""
        return topic_values(self.settings["KAFKA_BOOTSTRAP_SERVERS"], self.settings["KAFKA_TOPIC"])

    def values_once(self, count: int) -> list[dict[str, Any]]:
        """Waits until the topic holds `count` values; returns them in order."""
        return eventually(self.values, lambda values: len(values) >= count, self)


def topic_values(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """Every value of a topic, read by kcat up to its end; `key` is put into each."""
    require_program("kcat", "kcat")
    command = ["kcat", "-C", "-b", bootstrap, "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%k\t%s\n"]
    command += ["-X", "fetch.wait.max.ms=10"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    rows = (line.split(b"\t", 1) for line in done.stdout.splitlines())
    return [{"key": key.decode(), **orjson.loads(value)} for key, value in rows]


def eventually(ask: Callable[[], Any], enough: Callable[[Any], bool], fleet: Fleet | None = None) -> Any:
    """Calls until the value satisfies the condition; returns the value."""
    deadline = time.monotonic() + PATIENCE_S
    while not enough(answer := ask()):
        if time.monotonic() > deadline:
            log = "" if fleet is None else fleet.log[-4000:]
            raise AssertionError(f"after {PATIENCE_S:g} s: {str(answer)[-2000:]}\n{log}")
        time.sleep(0.1)
    return answer


def add_frames(
    redis: redis_library.Redis, camera: str, pictures: list[bytes], *, captured_at_ms: float | None = None
) -> list[str]:
    """Frames of a camera as ingest writes them; returns their ids."""
    pipe = redis.pipeline(transaction=False)
    for picture in pictures:
        now_ms = time.time() * 1000
        fields: dict[Any, Any] = {"camera_id": camera, "camera_type": "gate", "ingest_ts": now_ms, "frame": picture}
        fields["captured_at_ms"] = now_ms if captured_at_ms is None else captured_at_ms
        pipe.xadd(f"frames:{camera}", fields)
    return [entry.decode() for entry in pipe.execute()]


def group_of(redis: redis_library.Redis, camera: str) -> None:
    """Creates the workers' consumer group before a worker does."""
    redis.xgroup_create(f"frames:{camera}", GROUP, id="0", mkstream=True)


def left_by_the_dead(redis: redis_library.Redis, camera: str, count: int) -> list[str]:
    """Reads frames in the name of a dead worker: each is delivered once and never acknowledged."""
    answer = redis.xreadgroup(GROUP, "long-gone", {f"frames:{camera}": ">"}, count=count)
    return [entry.decode() for entry, _ in answer[0][1]]


def holders(redis: redis_library.Redis) -> dict[str, int]:
    """Number of pending entries over all cameras, by consumer; consumers without any are left out."""
    found: dict[str, int] = {}
    for key in redis.scan_iter(match="frames:*", _type="stream"):
        if any(group["name"] == GROUP.encode() for group in redis.xinfo_groups(key)):
            for consumer in redis.xpending(key, GROUP)["consumers"]:
                name = consumer["name"].decode()
                found[name] = found.get(name, 0) + consumer["pending"]
    return found


def pending(redis: redis_library.Redis) -> int:
    """Number of pending entries (delivered and not acknowledged)."""
    return sum(holders(redis).values())
