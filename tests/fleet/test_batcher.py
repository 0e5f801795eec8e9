"""Micro-batches: when a batch is due, which frames it holds, and how large it may get."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.fleet.batcher import LATENCY, THROUGHPUT, BatchLimits, MicroBatcher, batch_limits, fit_limits
from app.fleet.streams import CameraFrame, FrameOrigin
from app.settings import FleetSettings

FOUR = BatchLimits(4, 0.020)


def frame(camera: str, number: int = 0, arrived: float = 0.0) -> CameraFrame:
    origin = FrameOrigin(f"frames:{camera}", f"{number}-0", camera, None, 0.0)
    return CameraFrame(origin, b"", arrived)


def cameras(batch: list[CameraFrame]) -> list[str]:
    return [frame.origin.camera_id for frame in batch]


def test_a_full_batch_is_due_at_once_and_a_part_of_one_when_its_first_frame_has_waited() -> None:
    batcher = MicroBatcher()
    batcher.add([frame("a", arrived=1.000), frame("b", arrived=1.010), frame("c", arrived=1.015)])
    assert batcher.take(FOUR, now=1.019) == []
    assert batcher.due(FOUR) == 1.020
    batcher.add([frame("d", arrived=1.019), frame("e", arrived=1.019)])
    assert cameras(batcher.take(FOUR, now=1.019)) == ["a", "b", "c", "d"]
    assert batcher.take(FOUR, now=1.030) == []
    assert cameras(batcher.take(FOUR, now=1.040)) == ["e"]
    assert batcher.due(FOUR) is None


def test_every_camera_has_a_frame_in_before_one_has_two() -> None:
    batcher = MicroBatcher()
    batcher.add([frame("a", 1), frame("a", 2), frame("a", 3), frame("b", 1)])
    batch = batcher.take(BatchLimits(3, 0.0), now=0.0)
    assert [(frame.origin.camera_id, frame.origin.entry) for frame in batch] == [
        ("a", "1-0"),
        ("b", "1-0"),
        ("a", "2-0"),
    ]


def test_a_camera_at_work_waits_and_is_not_what_a_batch_is_due_for() -> None:
    batcher = MicroBatcher()
    batcher.add([frame("a", 1), frame("b", 1)])
    first = batcher.take(BatchLimits(2, 0.0), now=0.0)
    batcher.add([frame("a", 2), frame("b", 2)])
    assert batcher.take(BatchLimits(2, 0.0), now=9.0) == []
    assert batcher.due(BatchLimits(2, 0.0)) is None
    assert len(batcher) == 2
    batcher.done(first)
    assert cameras(batcher.take(BatchLimits(2, 0.0), now=9.0)) == ["a", "b"]
    assert len(batcher) == 0


@given(
    st.lists(st.one_of(st.tuples(st.just("add"), st.integers(0, 5)), st.just(("take", 0)), st.just(("done", 0)))),
    st.integers(1, 6),
)
def test_no_frame_is_lost_or_doubled_and_no_camera_is_in_two_batches(steps: list[tuple[str, int]], size: int) -> None:
    batcher, given_, out, at_work = MicroBatcher(), [], [], []
    for number, (step, camera) in enumerate([*steps, *[("done", 0), ("take", 0)] * (len(steps) + 1)]):
        if step == "add":
            given_.append(frame(str(camera), number))
            batcher.add(given_[-1:])
        elif step == "take":
            batch = batcher.take(BatchLimits(size, 0.0), now=1.0)
            assert len(batch) <= size
            assert not set(cameras(batch)) & {camera for other in at_work for camera in cameras(other)}
            if batch:
                at_work.append(batch)
                out += batch
        elif at_work:
            batcher.done(at_work.pop(0))
    assert len(batcher) == 0
    assert sorted(map(id, out)) == sorted(map(id, given_))
    for camera in set(cameras(out)):
        mine = [frame for frame in out if frame.origin.camera_id == camera]
        assert mine == [frame for frame in given_ if frame.origin.camera_id == camera]


def test_batches_grow_from_the_one_profile_to_the_other_with_what_waits() -> None:
    low, high = batch_limits(FleetSettings())
    assert (low, high) == (LATENCY, THROUGHPUT)
    assert fit_limits(low, high, waiting=0, batches=4) == BatchLimits(4, 0.020)
    assert fit_limits(low, high, waiting=40, batches=4) == BatchLimits(10, 0.0125)
    assert fit_limits(low, high, waiting=10_000, batches=4) == BatchLimits(16, 0.005)


def test_what_was_set_is_not_adapted() -> None:
    low, high = batch_limits(FleetSettings(batch_size=8, batch_timeout_ms=50))
    assert low == high == BatchLimits(8, 0.050)
    assert batch_limits(FleetSettings(fleet_profile="throughput")) == (THROUGHPUT, THROUGHPUT)
    low, high = batch_limits(FleetSettings(batch_size=8))
    assert fit_limits(low, high, waiting=0, batches=4) == BatchLimits(8, 0.020)
    assert fit_limits(low, high, waiting=100, batches=4) == BatchLimits(8, 0.005)
