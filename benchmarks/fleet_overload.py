"""Twice as many frames as a fleet worker can analyse: how evenly it serves its cameras, 100 and 500 of them.

`fleet work` with default settings runs in a process of its own, on Redis, librdkafka's mock cluster and canned models
on Triton; cameras write as ingest does. The benchmark first measures the worker's capacity with more frames than that,
then sends twice the capacity. A camera's share is the number of its results in Kafka; their timestamps are those of the
hand-over to Kafka's client.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from benchmarks import canned, fleet_servers, harness, photographs, turns
from benchmarks.fleet_servers import TOPIC
from benchmarks.fleet_soak import port_of, sending_cameras
from benchmarks.harness import BenchmarkError, Cores
from benchmarks.turns import Figures, Ratio

MORE_THAN_ENOUGH_PER_S = 1500.0
"""Frames per second while the capacity is measured."""
VARIANTS = {"cameras-100": "100 cameras", "cameras-500": "500 cameras"}
RATIOS = tuple(
    ratio
    for variant, title in VARIANTS.items()
    for ratio in (
        Ratio(f"{title} at twice the capacity: Jain's index of their shares", "jain", variant, at_least=0.95),
        Ratio(f"{title}: longest silence of a camera, seconds", "silence_s", variant, at_most=2),
        Ratio(f"{title}: stale, of what was read", "stale_share", variant, at_most=0.05),
        Ratio(f"{title}: rate at twice the capacity, over the capacity", "of_capacity", variant),
    )
)


@dataclass(frozen=True, slots=True)
class Plan(turns.Plan):
    seconds: float = 25.0
    warm_up_s: float = 4.0
    turns: int = 3
    variants: tuple[str, ...] = tuple(VARIANTS)


@dataclass(frozen=True, slots=True)
class Stand:
    plan: Plan
    cores: Cores
    folder: Path
    triton: str
    clips: Sequence[Sequence[bytes]]


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all shares are equal, 1/n if one of n has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def silence(times: Sequence[float], begin: float, end: float) -> float:
    """The longest time without a result between `begin` and `end`, in seconds."""
    marks = [begin, *sorted(times), end]
    return max(later - earlier for earlier, later in pairwise(marks))


def run_turn(stand: Stand, variant: str) -> Figures:
    """Measures one turn, with servers of its own.

    Raises:
        BenchmarkError: a process did not start, or a frame is unaccounted for.
    """
    plan, cameras = stand.plan, int(variant.rpartition("-")[2])
    with tempfile.TemporaryDirectory(dir=stand.folder) as name, ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(fleet_servers.redis_server(folder, stand.cores.load))
        kafka = stack.enter_context(fleet_servers.kafka(folder, stand.cores.load))
        settings = {"REDIS_URL": url, "KAFKA_BOOTSTRAP_SERVERS": kafka, "TRITON_URL": stand.triton}
        settings |= {"METRICS_PORT": "0", "STATE_DIR": str(folder / "state"), "FLEET_STAGES": "detect"}
        log = folder / "work.log"
        child = stack.enter_context(harness.process(["app", "fleet", "work"], stand.cores.tested, log, **settings))
        deadline = time.monotonic() + harness.START_S
        while (port := port_of(log)) is None:
            harness.check(child, log, deadline)
            time.sleep(0.1)
        metrics = f"http://127.0.0.1:{port}/metrics"
        with sending_cameras(url, stand.clips, cameras, MORE_THAN_ENOUGH_PER_S):
            while _counts(metrics)["processed"] == 0:
                harness.check(child, log, deadline)
                time.sleep(0.2)
            time.sleep(plan.warm_up_s)
            before, began = _counts(metrics), time.monotonic()
            time.sleep(plan.warm_up_s)
            capacity = (_counts(metrics)["processed"] - before["processed"]) / (time.monotonic() - began)
        time.sleep(3)  # until the frames that are left are stale
        with sending_cameras(url, stand.clips, cameras, 2 * capacity):
            time.sleep(plan.warm_up_s)
            before, begin = _counts(metrics), time.time()
            time.sleep(plan.seconds)
            after, end = _counts(metrics), time.time()
        time.sleep(3)
        final = _counts(metrics)
        if final["received"] != final["processed"] + final["dropped"] + final["failed"]:
            raise BenchmarkError(f"the counts do not add up: {final}")
        results = _results(kafka, begin, end)
    times = [results.get(f"cam{number:03}", []) for number in range(cameras)]
    grown = {figure: after[figure] - before[figure] for figure in after}
    read = grown["received"] - grown["skipped"]
    return {
        "rate": grown["processed"] / (end - begin),
        "capacity": capacity,
        "of_capacity": grown["processed"] / (end - begin) / capacity,
        "jain": jain([len(found) for found in times]),
        "silence_s": max(silence(found, begin, end) for found in times),
        "stale_share": max(0.0, grown["stale"] - grown["skipped"]) / read if read else 0.0,
        "skipped_per_s": grown["skipped"] / (end - begin),
    }


def _counts(url: str) -> dict[str, float]:
    outcomes = ("received", "processed", "dropped", "failed")
    found = dict.fromkeys((*outcomes, "stale", "skipped"), 0.0)
    for family in text_string_to_metric_families(httpx.get(url, timeout=10, trust_env=False).text):
        outcome = family.name.removeprefix("sightline_frames_")
        for sample in family.samples:
            if outcome in outcomes and sample.labels.get("entry") == "fleet":
                found[outcome] += sample.value
                if sample.labels.get("reason") == "stale":
                    found["stale"] += sample.value
            elif family.name == "sightline_fleet_skipped":
                found["skipped"] += sample.value
    return found


def _results(address: str, begin: float, end: float) -> dict[str, list[float]]:
    """The times between `begin` and `end` at which each camera's results were handed to Kafka."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "shares", "log_level": 0})
    found: dict[str, list[float]] = {}
    try:
        partitions = consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
        places = [TopicPartition(TOPIC, number, OFFSET_BEGINNING) for number in partitions]
        left = sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
        consumer.assign(places)
        while left > 0:
            messages = consumer.consume(500, timeout=10)
            if not messages:
                raise BenchmarkError(f"{left} results could not be read from Kafka")
            left -= len(messages)
            for message in messages:
                at = message.timestamp()[1] / 1000
                if begin <= at <= end:
                    found.setdefault(orjson.loads(message.value() or b"{}")["camera_id"], []).append(at)
    finally:
        consumer.close()
    return found


def measure(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the plan and returns all measurements.

    Raises:
        BenchmarkError: a process did not start, or a frame is unaccounted for.
    """
    places = harness.cores()
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        clips = photographs.read(photographs.write(folder / "frames", 8))
        models = canned.write(folder / "repository")
        triton, _ = stack.enter_context(harness.triton(models, folder / "triton", places.triton))
        stand = Stand(plan, places, folder, triton, clips)
        return turns.run("fleet_overload", plan, lambda variant: run_turn(stand, variant), RATIOS, say, shown="jain")


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    columns = {"capacity": "capacity", "rate": "frames/s", "skipped_per_s": "skipped/s", "jain": "Jain"}
    columns |= {"silence_s": "silence s", "stale_share": "stale of read"}
    seconds = results["plan"]["seconds"]
    turns.show(results, f"fleet_overload: twice the capacity for {seconds:g} s", VARIANTS, columns, console)


def plan_from(**given: Any) -> Plan:
    """The plan with these values; None leaves a default."""
    return turns.plan_from(Plan, given)
