"""Which observations are merged: older ones first, in memory and on disk alike."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.summary import Backlog
from app.summary.backlog import MemoryBuffer
from app.summary.observations import neighbours
from tests.summary.test_backlog import balanced, offer, offer_slowly, opened
from tests.support.observations import covered


@pytest.mark.parametrize(
    ("frames", "wanted", "chosen"),
    [
        ([1] * 8, 1, [0]),
        ([1] * 8, 3, [0, 2, 4]),
        ([2, 1, 1, 1, 1, 1, 1, 1], 1, [1]),  # an older pair that is larger for its age stays
        ([1], 5, []),
        ([], 5, []),
    ],
)
def test_the_oldest_of_the_small_go_first(frames: list[int], wanted: int, chosen: list[int]) -> None:
    assert neighbours(frames, wanted) == chosen


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(0, 40))
def test_pairs_share_nothing_and_are_as_many_as_wanted(frames: list[int], wanted: int) -> None:
    chosen = neighbours(frames, wanted)
    touched = [index for at in chosen for index in (at, at + 1)]
    assert len(set(touched)) == len(touched)
    assert all(0 <= index < len(frames) for index in touched)
    assert min(wanted, len(frames) // 3) <= len(chosen) <= wanted


@pytest.mark.anyio
@pytest.mark.parametrize("bounds", [{"summary_disk_items": 0}, {"summary_disk_items": 12}], ids=["memory", "disk"])
async def test_what_waits_long_is_coarse_and_the_newest_is_not(tmp_path: Path, bounds: dict[str, int]) -> None:
    async with opened(tmp_path, summary_ram_items=16 - bounds["summary_disk_items"], **bounds) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 401), spill)
        sizes = [item.frames for item in await backlog.take(100)]
        assert sum(sizes) == 400
        assert sizes[-1] == 1
        assert sizes[0] > 50
        assert all(older >= newer / 2 for older, newer in pairwise(sizes))
        offer(backlog, range(401, 403))
        await backlog.close(keep=False)


@pytest.mark.anyio
async def test_what_a_failing_disk_gives_back_is_folded_a_little_in_every_turn_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.summary.database.BUSY_S", 0.05)
    turn, folded_in = 0, Counter[int]()
    merge = MemoryBuffer.merge

    def counted(self: MemoryBuffer, pairs: int) -> int:
        folded = merge(self, pairs)
        folded_in[turn] += folded
        return folded

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async with opened(tmp_path, summary_ram_items=256) as (spill, settings):
        backlogs = [Backlog(name, settings, spill) for name in "abcdefgh"]
        other = sqlite3.connect(tmp_path / "backlog.sqlite")
        other.execute("BEGIN IMMEDIATE")  # the disk takes no write
        monkeypatch.setattr(MemoryBuffer, "merge", counted)
        all_is_offered = threading.Event()
        spill.writer.post(lambda file: all_is_offered.wait(30), lambda done: None)
        for backlog in backlogs:
            offer(backlog, range(1, 501))  # full, and nearly as much is on its way to the disk
        assert not folded_in
        counting = asyncio.create_task(count_turns())
        all_is_offered.set()
        await spill.orphans()  # the disk has failed by now
        async with asyncio.timeout(20):
            while any(backlog.counts.in_ram > 256 for backlog in backlogs):
                await asyncio.sleep(0.01)
                for backlog in backlogs:
                    balanced(backlog.counts)
        counting.cancel()
        other.close()
        assert max(folded_in.values()) <= 32
        assert sum(folded_in.values()) == sum(backlog.counts.merged for backlog in backlogs) >= 8 * (500 - 256)
        for backlog in backlogs:
            ids = covered(await backlog.take(300, 10**6))
            assert ids == list(range(1, 501))
            await backlog.close(keep=False)
