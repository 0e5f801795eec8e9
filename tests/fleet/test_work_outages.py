"""Kafka stopped and Triton killed under a worker at work: nothing that Redis holds is lost, and it all adds up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis as redis_library

from app.settings import TritonSettings
from benchmarks import canned
from tests.fleet.conftest import Work
from tests.fleet.work import eventually, film, pending
from tests.support.kafka import running_kafka
from tests.support.service import require_environment
from tests.support.triton import mortal

CAMERAS = 4
AWAY_S = 8.0


@contextmanager
def filming(redis: redis_library.Redis, jpeg: bytes) -> Iterator[set[tuple[str, str]]]:
    """Cameras that go on at 10 frames a second each while the block lasts; what they have filmed is in the set."""
    ended, filmed = threading.Event(), set()

    def run() -> None:
        while not ended.wait(0.1):
            for number in range(CAMERAS):
                filmed.update((f"cam-{number}", entry) for entry in film(redis, f"cam-{number}", [jpeg]))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield filmed
    finally:
        ended.set()
        thread.join()


def test_kafka_stopped_and_back_loses_nothing(
    work: Work, redis: redis_library.Redis, jpeg: bytes, tmp_path: Path
) -> None:
    with running_kafka(tmp_path / "kafka") as broker:
        fleet = work(KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap)
        with filming(redis, jpeg) as filmed:
            eventually(fleet.values, lambda values: len(values) > 8, fleet)
            broker.stop()
            time.sleep(AWAY_S)
            assert fleet.metrics()['sightline_kafka_publish_errors_total{reason="all_brokers_down"}'] > 0
            broker.start()
            time.sleep(2)
        values = fleet.values_once(len(filmed))
        assert {(value["key"], value["frame_id"]) for value in values} == filmed
        eventually(lambda: pending(redis), lambda count: count == 0, fleet)
        counts = fleet.counted(len(filmed))
        assert counts == {"received": len(filmed), "processed": len(filmed), "dropped": 0, "failed": 0}
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(30) == 0


def test_triton_killed_and_back_loses_nothing_that_is_fresh(
    work: Work, redis: redis_library.Redis, jpeg: bytes, tmp_path: Path
) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    with mortal(canned.write(tmp_path / "repository"), tmp_path / "triton") as triton:
        fleet = work(TRITON_URL=triton.url)
        with filming(redis, jpeg) as filmed:
            eventually(fleet.values, lambda values: len(values) > 8, fleet)
            triton.kill()
            before = len(fleet.values())
            eventually(fleet.values, lambda values: len(values) > before + 40, fleet)
        values = fleet.values_once(len(filmed))
        assert {(value["key"], value["frame_id"]) for value in values} == filmed
        assert all(value["error"] is None for value in values)
        eventually(lambda: pending(redis), lambda count: count == 0, fleet)
        counts = fleet.counted(len(filmed))
        assert counts == {"received": len(filmed), "processed": len(filmed), "dropped": 0, "failed": 0}
