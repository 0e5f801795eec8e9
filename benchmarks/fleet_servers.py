"""Redis filled with frames, and librdkafka's mock cluster as Kafka, so that no broker's disk is measured.

python -m benchmarks.fleet_servers FILE       runs the mock cluster until SIGTERM; writes its address into FILE
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import harness
from benchmarks.harness import BenchmarkError

GROUP, TOPIC = "inference-workers", "vision.detections"


@contextmanager
def redis_server(folder: Path, on: frozenset[int]) -> Iterator[str]:
    """Runs `redis-server` on these cores, without persistence; yields its URL.

    Raises:
        BenchmarkError: it is not installed, or does not start.
    """
    if shutil.which("redis-server") is None:
        raise BenchmarkError("redis-server is missing: install Debian's package redis-server")
    port, log = harness.free_port(), folder / "redis.log"
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=lambda: os.sched_setaffinity(0, on))
    try:
        with redis.Redis(port=port) as client:
            deadline = time.monotonic() + harness.START_S
            while True:
                harness.check(child, log, deadline)
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


@contextmanager
def kafka(folder: Path, on: frozenset[int]) -> Iterator[str]:
    """Runs the mock cluster in a process of its own; yields its `host:port`."""
    place, log = folder / "kafka-address", folder / "kafka.log"
    place.unlink(missing_ok=True)
    with harness.process(["benchmarks.fleet_servers", str(place)], on, log) as child:
        deadline = time.monotonic() + harness.START_S
        while not place.exists():
            harness.check(child, log, deadline)
            time.sleep(0.05)
        yield place.read_text()


def fill(url: str, clips: Sequence[Sequence[bytes]], cameras: int, frames: int) -> None:
    """Empties Redis, and adds `frames` frames, evenly over the cameras, with the fields that ingest writes."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
        names = [f"cam{number:03}" for number in range(cameras)]
        client.sadd("fleet:cameras", *names)
        for name in names:
            client.xgroup_create(f"frames:{name}", GROUP, id="0", mkstream=True)
        pipe = client.pipeline(transaction=False)
        for number in range(frames):
            name, clip = names[number % cameras], clips[number % cameras % len(clips)]
            now = f"{time.time() * 1000:.3f}"
            fields = {"camera_id": name, "camera_type": "bench", "ingest_ts": now, "captured_at_ms": now}
            pipe.xadd(f"frames:{name}", {**fields, "frame": clip[number // cameras % len(clip)]})  # type: ignore[dict-item]
            if number % 256 == 255:
                pipe.execute()
        pipe.execute()


def acknowledged(url: str) -> int:
    """The number of frames that were read of all cameras.

    Raises:
        BenchmarkError: some were not acknowledged.
    """
    with redis.Redis.from_url(url) as client:
        streams = list(client.scan_iter(match="frames:*", _type="stream"))
        groups = [client.xinfo_groups(stream)[0] for stream in streams]
    pending = sum(group["pending"] for group in groups)
    if pending:
        raise BenchmarkError(f"{pending} frames were read and never acknowledged")
    return sum(group["entries-read"] or 0 for group in groups)


def written(address: str) -> int:
    """The number of messages in the topic."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "count", "log_level": 0})
    try:
        topic = consumer.list_topics(TOPIC, timeout=10).topics[TOPIC]
        places = [TopicPartition(TOPIC, number) for number in topic.partitions]
        return sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
    finally:
        consumer.close()


def main() -> None:
    place = Path(sys.argv[1])
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (node,) = owner.list_topics(timeout=10).brokers.values()
    aside = place.with_suffix(".new")
    aside.write_text(f"{node.host}:{node.port}")
    aside.rename(place)
    for _ in count():
        if signal.sigtimedwait([signal.SIGTERM, signal.SIGINT], 1):
            return


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    main()
