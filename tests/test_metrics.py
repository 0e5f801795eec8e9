"""`/metrics` includes figures that are buffered before they reach a metric."""

from __future__ import annotations

from app import metrics


def seen(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_stage_times_are_written_a_hundred_frames_at_a_time_or_when_somebody_looks() -> None:
    times = metrics.stage_times("test")

    def counted() -> float:
        return seen("sightline_stage_seconds_count", entry="test", stage="decode")

    for _ in range(99):
        times.add({"decode": 0.001, "infer": 0.2})
    assert counted() == 0
    times.add({"decode": 0.001})
    assert counted() == 100
    assert seen("sightline_stage_seconds_count", entry="test", stage="infer") == 99
    times.add({"decode": 0.001})
    text = metrics.exposition().decode()
    assert 'sightline_stage_seconds_count{entry="test",stage="decode"} 101.0' in text
    assert round(seen("sightline_stage_seconds_sum", entry="test", stage="decode"), 6) == 0.101


def test_so_are_ages() -> None:
    ages = metrics.ages("test")
    for _ in range(3):
        ages.add(0.02)
    assert 'sightline_frame_age_seconds_bucket{entry="test",le="0.025"} 3.0' in metrics.exposition().decode()
    ages.flush()
    assert seen("sightline_frame_age_seconds_count", entry="test") == 3
