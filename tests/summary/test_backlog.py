"""Backlog: in order over memory and disk, bounded, and every observation is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.settings import SummarySettings
from app.summary import Backlog, BacklogCounts, Spill
from tests.support.observations import covered, observed

pytestmark = pytest.mark.anyio

_CAME = ("offered", "adopted")
_BECAME = ("taken", "merged", "dropped", "kept", "ram_items", "disk_items")


@asynccontextmanager
async def opened(folder: Path, **given: Any) -> AsyncIterator[tuple[Spill, SummarySettings]]:
    settings = SummarySettings(**given)
    spill = Spill(folder, settings)
    await spill.open()
    try:
        yield spill, settings
    finally:
        await spill.close()


def offer(backlog: Backlog, numbers: Iterable[int]) -> None:
    for number in numbers:
        backlog.offer(observed(number))
        balanced(backlog.counts)


async def offer_slowly(backlog: Backlog, numbers: Iterable[int], spill: Spill) -> None:
    """Offers observations no faster than the disk writes them."""
    for number in numbers:
        offer(backlog, [number])
        if number % 2 == 0:
            await spill.orphans()  # the disk is done with what came before


def balanced(counts: BacklogCounts) -> None:
    assert counts.offered == counts.taken + counts.merged + counts.dropped + counts.in_ram + counts.on_disk


def outcomes() -> dict[str, float]:
    """The counters of this process: by outcome, and what waits by the gauges."""
    figures = {
        outcome: REGISTRY.get_sample_value("sightline_summary_observations_total", {"outcome": outcome}) or 0.0
        for outcome in ("offered", "adopted", "spilled", "taken", "merged", "dropped", "kept")
    }
    for where in ("ram", "disk"):
        for unit in ("items", "bytes"):
            name = f"sightline_summary_backlog_{unit}"
            figures[f"{where}_{unit}"] = REGISTRY.get_sample_value(name, {"where": where}) or 0.0
    return figures


def since(before: dict[str, float]) -> dict[str, float]:
    """Growth of the counters since `before`; checks that every observation has an outcome."""
    more = {name: value - before[name] for name, value in outcomes().items() if value != before[name]}
    came, became = (sum(more.get(name, 0) for name in names) for names in (_CAME, _BECAME))
    assert came == became
    return more


async def everything(backlog: Backlog, items: int = 7) -> list[int]:
    ids: list[int] = []
    while found := await backlog.take(items):
        assert len(found) <= items
        ids += covered(found)
        balanced(backlog.counts)
    return ids


async def test_the_oldest_comes_first_out_of_memory(tmp_path: Path) -> None:
    async with opened(tmp_path) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        offer(backlog, range(1, 6))
        assert covered(await backlog.take(2)) == [1, 2]
        offer(backlog, [6])
        assert covered(await backlog.take()) == [3, 4, 5, 6]
        assert await backlog.take() == []
        assert backlog.counts == BacklogCounts(6, 6, 0, 0, 0, 0, 0, 0)


async def test_what_memory_does_not_hold_goes_to_disk_and_comes_back_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=8) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 101), spill)
        counts = backlog.counts
        assert counts.in_ram <= 8
        assert counts.on_disk == 100 - counts.in_ram
        assert counts.disk_bytes > 0
        assert (counts.merged, counts.dropped) == (0, 0)
        assert await everything(backlog) == list(range(1, 101))
        assert backlog.counts == BacklogCounts(100, 100, 0, 0, 0, 0, 0, 0)


async def test_offers_while_a_take_waits_for_the_disk_stay_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=8) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        offer(backlog, range(1, 13))
        taking = asyncio.create_task(backlog.take(100))
        await asyncio.sleep(0)
        offer(backlog, range(13, 21))
        ids = covered(await taking)
        assert ids == list(range(1, len(ids) + 1))
        assert ids + await everything(backlog) == list(range(1, 21))


async def test_a_cancelled_take_loses_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=8) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 13), spill)
        taken: list[int] = []
        for turns in range(4):
            taking = asyncio.create_task(backlog.take(6))
            for _ in range(turns):
                await asyncio.sleep(0)
            taking.cancel()
            await asyncio.wait([taking])
            if not taking.cancelled():  # the disk was quicker
                taken += covered(taking.result())
            balanced(backlog.counts)
        assert [*taken, *await everything(backlog)] == list(range(1, 13))


async def test_a_take_keeps_to_its_bytes_but_gives_one(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 13), spill)
        size = observed(1).size
        assert covered(await backlog.take(100, max_bytes=1)) == [1]
        assert covered(await backlog.take(100, max_bytes=3 * size)) == [2, 3, 4]
        assert await everything(backlog) == list(range(5, 13))


async def test_without_a_disk_neighbours_are_folded_and_no_frame_is_lost(tmp_path: Path) -> None:
    before = outcomes()
    async with opened(tmp_path, summary_ram_items=8, summary_disk_items=0) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        offer(backlog, range(1, 101))
        counts = backlog.counts
        assert (counts.in_ram, counts.on_disk, counts.dropped) == (8, 0, 0)
        assert counts.merged == 92
        assert backlog.pressure == 1
        found = await backlog.take(100)
        assert covered(found) == list(range(1, 101))
        assert found[0].frames > found[-1].frames  # the newest keep their detail
        assert since(before) == {"offered": 100, "merged": 92, "taken": 8}


async def test_a_full_disk_bound_folds_what_is_there(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=4, summary_disk_items=10) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        for number in range(1, 101):
            await offer_slowly(backlog, [number], spill)
            assert backlog.counts.on_disk <= 10
            assert backlog.counts.in_ram <= 4 + 1  # one is on its way
        counts = backlog.counts
        assert counts.dropped == 0
        assert counts.merged == 100 - counts.in_ram - counts.on_disk
        assert backlog.pressure > 0.8
        assert await everything(backlog) == list(range(1, 101))


async def test_bytes_on_disk_are_bounded_over_all_sessions(tmp_path: Path) -> None:
    size = observed(1000).size
    async with opened(tmp_path, summary_ram_items=4, summary_disk_bytes=40 * size) as (spill, settings):
        first, second = Backlog("a", settings, spill), Backlog("b", settings, spill)
        for number in range(1, 101):
            for backlog in (first, second):
                offer(backlog, [number])
            await spill.orphans()
            assert first.counts.disk_bytes + second.counts.disk_bytes <= 40 * size
        for backlog in (first, second):
            assert backlog.counts.dropped == 0
            assert backlog.counts.merged > 0
            assert await everything(backlog) == list(range(1, 101))


async def test_what_cannot_even_be_folded_is_dropped_and_counted(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_bytes=1024, summary_disk_items=0) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        backlog.offer(observed(1, text="x" * 2000))
        balanced(backlog.counts)
        assert backlog.counts.dropped == 1
        offer(backlog, [2])
        assert covered(await backlog.take()) == [2]


async def test_pressure_rises_over_memory_and_disk(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=10, summary_disk_items=100) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        assert backlog.pressure == 0
        offer(backlog, range(10))
        assert backlog.pressure == 0.5
        for number in range(10, 100):
            offer(backlog, [number])
            await spill.orphans()
        assert 0.8 < backlog.pressure <= 1


async def test_what_is_not_kept_is_dropped_and_gone(tmp_path: Path) -> None:
    before = outcomes()
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 13), spill)
        await backlog.close(keep=False)
        await backlog.close(keep=False)
        backlog.offer(observed(13))
        assert backlog.counts == BacklogCounts(13, 0, 0, 13, 0, 0, 0, 0)
        assert await spill.orphans() == []
    assert since(before) == {"offered": 13, "spilled": 8, "dropped": 13}


async def test_what_is_kept_is_there_at_the_next_start(tmp_path: Path) -> None:
    before = outcomes()
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        for name in ("first", "second"):
            backlog = Backlog(name, settings, spill)
            await offer_slowly(backlog, range(1, 13), spill)
            assert covered(await backlog.take(2)) == [1, 2]
            await backlog.close(keep=True)
            balanced(backlog.counts)
            assert backlog.counts.on_disk == 10
        backlog.offer(observed(13))
        assert backlog.counts.dropped == 1
        empty = Backlog("third", settings, spill)
        await empty.close(keep=True)
    left = {"offered": 25, "spilled": 24, "dropped": 1}
    assert since(before) == {**left, "taken": 4, "kept": 20}
    async with opened(tmp_path, summary_ram_items=4) as (spill, _):
        assert await spill.orphans() == ["first", "second"]
        for name in ("first", "second"):
            found = await Backlog.adopt(name, spill)
            assert found is not None
            assert found.counts.offered == found.counts.on_disk == 10
            assert await everything(found, items=3) == list(range(3, 13))
            await found.close(keep=False)
            assert await Backlog.adopt(name, spill) is None
        assert await spill.orphans() == []
    assert since(before) == {**left, "adopted": 20, "taken": 24, "kept": 20}


async def test_a_cancelled_take_just_before_the_end_is_kept_too(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 13), spill)
        taking = asyncio.create_task(backlog.take(6))
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        await backlog.close(keep=True)
        found = await Backlog.adopt("a", spill)
        assert found is not None
        assert await everything(found) == list(range(1, 13))
        await found.close(keep=False)
