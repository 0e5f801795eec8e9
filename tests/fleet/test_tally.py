"""Buffered observations give the same histogram as observations one by one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

from app import metrics
from app.fleet.in_flight import ENTRY_POINT, FRAMES, MetricsBuffer


def test_buffered_values_give_the_same_histogram_as_single_ones() -> None:
    values = [0.0, 0.001, 0.0010001, 0.5, 1.0, 1.0, 99.0]
    alone, together = (
        Histogram("seconds", "…", buckets=(0.001, 0.5, 1.0), registry=CollectorRegistry()) for _ in range(2)
    )
    for value in values:
        alone.observe(value)
    metrics.observe_all(together, values)
    metrics.observe_all(together, [])
    assert [metric.samples for metric in together.collect()] == [metric.samples for metric in alone.collect()]


def seen() -> float:
    return (
        metrics.REGISTRY.get_sample_value("sightline_stage_seconds_count", {"entry": ENTRY_POINT, "stage": "decode"})
        or 0.0
    )


def test_stages_are_written_a_hundred_frames_at_a_time() -> None:
    counts, before = MetricsBuffer(), seen()
    counts.received(FRAMES)
    for _ in range(FRAMES - 1):
        counts.timed({"decode": 0.001})
        counts.processed(0.1)
    assert seen() == before
    counts.timed({"decode": 0.001})
    counts.processed(0.1)
    assert seen() == before + FRAMES
