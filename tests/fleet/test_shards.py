"""Who reads what: even, stable, the same wherever it is computed, and never more than there is room for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.fleet.shards import Turns, assign, spread

CAMERAS = [f"cam-{number}" for number in range(200)]
names = st.text(min_size=1, max_size=6)


@given(st.sets(names), st.sets(names, min_size=1))
def test_every_camera_has_one_worker_and_no_worker_more_than_its_share(cameras: set[str], workers: set[str]) -> None:
    owners = assign(cameras, workers)
    assert owners.keys() == cameras
    assert set(owners.values()) <= workers
    share = -(-len(cameras) // len(workers))
    assert all(count <= share for count in Counter(owners.values()).values())
    assert assign(sorted(cameras, reverse=True), sorted(workers)) == owners


def test_without_workers_nobody_owns_anything() -> None:
    assert assign(CAMERAS, ()) == {}


def test_a_worker_that_leaves_moves_few_cameras_but_its_own() -> None:
    before = assign(CAMERAS, ["w1", "w2", "w3", "w4", "w5"])
    after = assign(CAMERAS, ["w1", "w2", "w3", "w4"])
    moved = [camera for camera in CAMERAS if before[camera] != after[camera] and before[camera] != "w5"]
    assert len(moved) < 0.2 * len(CAMERAS)


def test_a_new_camera_leaves_nearly_all_others_where_they_are() -> None:
    workers = ["w1", "w2", "w3"]
    before = assign(CAMERAS[1:], workers)
    after = assign(CAMERAS, workers)
    assert sum(before[camera] != after[camera] for camera in CAMERAS[1:]) <= 2 * len(workers)


def test_shards_are_as_many_as_there_is_work_for() -> None:
    assert spread([], 32) == []
    assert spread(CAMERAS[:10], 32) == [tuple(sorted(CAMERAS[:10]))]
    many = [f"cam-{number}" for number in range(5000)]
    shards = spread(many, 32)
    assert len(shards) == 32
    assert sorted(stream for shard in shards for stream in shard) == sorted(many)
    assert max(map(len, shards)) < 1.3 * len(many) / 32
    assert spread(reversed(many), 32) == shards


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.lists(st.integers(1, 30), min_size=60, max_size=60))
def test_a_read_never_brings_more_than_fits_and_every_stream_has_its_turn(sizes: list[int], rooms: list[int]) -> None:
    shards = [tuple(f"{number}-{one}" for one in range(size)) for number, size in enumerate(sizes)]
    turns = Turns(shards)
    asked: Counter[str] = Counter()
    for room in rooms:
        streams, count = turns.next(room)
        assert 0 < len(streams) * count <= room
        asked.update(streams)
    if sum(sizes) <= 60:
        assert set(asked) == {stream for shard in shards for stream in shard}
    assert max(asked.values()) - min(asked[stream] for stream in asked) <= 1
