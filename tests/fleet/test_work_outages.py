"""With Kafka stopped, Triton killed or a burst, no frame in Redis is lost and the counters add up."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from app.fleet.in_flight import MOST_RESULTS
from app.settings import TritonSettings
from benchmarks import canned
from tests.conftest import SLOW
from tests.fleet.conftest import Work
from tests.fleet.sending import SendingCameras
from tests.fleet.work import Fleet, eventually, pending
from tests.support.kafka import running_kafka
from tests.support.service import require_environment
from tests.support.triton import mortal

RATE, FAST = 10.0, 50.0
AWAY_S = 20.0


def nothing_is_lost(fleet: Fleet, redis: redis_library.Redis, cameras: SendingCameras) -> list[dict[str, Any]]:
    """Each frame has one result in Kafka, as kcat reads it; no frame is pending; the metrics add up."""
    good, bad = len(cameras.frames), len(cameras.broken)
    values = fleet.values_once(good)
    assert len(values) == good
    assert {(value["key"], value["frame_id"]) for value in values} == cameras.frames
    eventually(lambda: pending(redis), lambda left: left == 0, fleet)
    assert fleet.counted(good + bad) == {"received": good + bad, "processed": good, "dropped": bad, "failed": 0}
    return values


def test_kafka_stopped_and_back_loses_nothing(
    work: Work, redis: redis_library.Redis, jpeg: bytes, tmp_path: Path
) -> None:
    with running_kafka(tmp_path / "kafka") as broker:
        fleet = work(KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap)
        cameras = SendingCameras(rate=RATE)
        with cameras.on(redis, jpeg):
            eventually(fleet.values, lambda values: len(values) > 8, fleet)
            broker.stop()
            back = time.monotonic() + AWAY_S
            down = 'sightline_kafka_publish_errors_total{reason="all_brokers_down"}'
            eventually(fleet.metrics, lambda samples: samples.get(down, 0) > 0, fleet)
            cameras.rate = FAST  # what is in hand fills up, and nothing more is read
            eventually(lambda: pending(redis), lambda held: held > 0.9 * MOST_RESULTS, fleet)
            cameras.rate = RATE
            time.sleep(max(0.0, back - time.monotonic()))
            assert pending(redis) <= MOST_RESULTS < len(cameras.frames)
            broker.start()
            time.sleep(0.5)
        nothing_is_lost(fleet, redis, cameras)
        assert fleet.log.count("brokers are down") == 1, "it is said once"
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(30) == 0


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_triton_killed_and_back_loses_nothing_that_is_fresh(
    work: Work, redis: redis_library.Redis, jpeg: bytes, tmp_path: Path, mode: str
) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    with mortal(canned.write(tmp_path / "repository"), tmp_path / "triton") as triton:
        fleet = work(TRITON_URL=triton.url, FLEET_MODE=mode)
        cameras = SendingCameras(rate=RATE)
        with cameras.on(redis, jpeg):
            eventually(fleet.values, lambda values: len(values) > 8, fleet)
            triton.kill()
            before = len(fleet.values())
            eventually(fleet.values, lambda values: len(values) > before + 20, fleet)
        values = nothing_is_lost(fleet, redis, cameras)
        assert all(value["error"] is None and value["stages"]["detect"]["status"] == "ok" for value in values)
        assert fleet.log.count("waiting for Triton") <= 1, "it is said once"


def test_a_burst_of_five_times_the_rate_with_broken_frames_in_it_is_caught_up_with(
    work: Work, redis: redis_library.Redis, jpeg: bytes
) -> None:
    # Batches of 4 at the least and 16 at the most, 0.3 s each: 13 to 53 frames a second, of 40 and then 200 that come.
    fleet = work(**SLOW)
    cameras = SendingCameras(rate=RATE, bad=[jpeg[:-3000], b"", b"no picture at all", jpeg[:5000]] * 3)
    with cameras.on(redis, jpeg):
        eventually(fleet.values, lambda values: len(values) > 8, fleet)
        cameras.rate = 5 * RATE
        eventually(lambda: len(cameras.frames), lambda sent: sent > 250, fleet)
        cameras.rate = RATE / 2
        eventually(lambda: fleet.metrics()["sightline_fleet_lag_frames"], lambda lag: lag > 20, fleet)
        eventually(lambda: fleet.metrics()["sightline_fleet_lag_frames"], lambda lag: lag == 0, fleet)
    nothing_is_lost(fleet, redis, cameras)
    undecodable = fleet.metrics()['sightline_frames_dropped_total{entry="fleet",reason="undecodable"}']
    assert undecodable == len(cameras.broken) > 1
