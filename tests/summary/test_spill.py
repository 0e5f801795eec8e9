"""Spill: the disk outlives the process; a failing disk is logged, counted and done without."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from app.settings import SummarySettings
from app.summary import Backlog, Spill
from tests.summary.test_backlog import balanced, everything, offer, offer_slowly, opened
from tests.support.observations import covered

pytestmark = pytest.mark.anyio


def errors(reason: str) -> float:
    return REGISTRY.get_sample_value("sightline_summary_disk_errors_total", {"reason": reason}) or 0.0


def damage(path: Path, *, at: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xa5" * size)


def set_aside(folder: Path) -> list[Path]:
    return list(folder.glob("*.damaged-*"))


def database(folder: Path) -> Path:
    (found,) = folder.glob("*.sqlite")
    return found


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


async def leave(folder: Path, session_id: str, numbers: range) -> None:
    """Leaves observations as a process does that ended in order before it summarized them."""
    async with opened(folder, summary_ram_items=4) as (spill, settings):
        backlog = Backlog(session_id, settings, spill)
        await offer_slowly(backlog, numbers, spill)
        await backlog.close(keep=True)


async def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await leave(tmp_path, "a", range(1, 21))
    damage(database(tmp_path), at=0, size=100)
    before = errors("damaged")
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        assert errors("damaged") == before + 1
        assert spill.health() == {"state": "ok", "reason": None}
        assert await spill.orphans() == []
        backlog = Backlog("b", settings, spill)
        await offer_slowly(backlog, range(1, 21), spill)
        assert await everything(backlog) == list(range(1, 21))
    (aside,) = set_aside(tmp_path)
    assert aside.name in caplog.text
    assert aside.read_bytes().startswith(b"\xa5" * 100)


async def test_a_damaged_page_is_found_at_the_start(tmp_path: Path) -> None:
    await leave(tmp_path, "a", range(1, 201))
    damage(database(tmp_path), at=4096, size=os.stat(database(tmp_path)).st_size - 4096)
    async with opened(tmp_path) as (spill, _):
        assert await spill.orphans() == []
    assert len(set_aside(tmp_path)) == 1


async def test_a_file_damaged_while_in_use_is_replaced_and_its_rows_are_counted_dropped(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 201), spill)
        on_disk = backlog.counts.on_disk
        assert on_disk > 190
        with sqlite3.connect(database(tmp_path)) as other:  # into the file itself, out of the log that hides it
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        damage(database(tmp_path), at=4096, size=os.stat(database(tmp_path)).st_size - 4096)
        before = errors("damaged")
        rest = await backlog.take(100)
        for number in range(201, 241):
            await offer_slowly(backlog, [number], spill)
        assert errors("damaged") > before
        assert backlog.counts.dropped > 0
        balanced(backlog.counts)
        ids = covered(rest) + await everything(backlog)
        assert ids == sorted(set(ids))
        assert ids[-40:] == list(range(201, 241))
        balanced(backlog.counts)
        assert len(ids) + backlog.counts.dropped == 240
    assert len(set_aside(tmp_path)) == 1


async def test_a_torn_record_is_skipped_and_counted(tmp_path: Path) -> None:
    await leave(tmp_path, "a", range(1, 21))
    with sqlite3.connect(database(tmp_path)) as other:
        other.execute("UPDATE observations SET data = substr(data, 1, 20) WHERE seq IN (7, 20)")
    other.close()
    before = errors("record")
    async with opened(tmp_path) as (spill, _):
        found = await Backlog.adopt("a", spill)
        assert found is not None
        assert await everything(found, items=1) == [number for number in range(1, 20) if number != 7]
        assert found.counts.dropped == 2
        balanced(found.counts)
        await found.close(keep=False)
    assert errors("record") == before + 2


async def test_a_torn_record_that_is_in_the_way_of_folding_is_counted(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=4, summary_disk_items=10) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 15), spill)
        with sqlite3.connect(database(tmp_path)) as other:
            other.execute("UPDATE observations SET data = x'00' WHERE seq = 1")
        other.close()
        before = errors("record")
        await offer_slowly(backlog, range(15, 61), spill)
        assert errors("record") == before + 1
        assert backlog.counts.dropped == 1
        assert await everything(backlog) == list(range(2, 61))
        balanced(backlog.counts)


async def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    await leave(tmp_path, "a", range(1, 21))
    with sqlite3.connect(database(tmp_path)) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    async with opened(tmp_path) as (spill, _):
        assert await spill.orphans() == []
    (aside,) = set_aside(tmp_path)
    with sqlite3.connect(aside) as old:
        assert old.execute("SELECT SUM(items) FROM sessions").fetchone() == (20,)
    old.close()


async def test_only_the_last_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(5):
        async with opened(tmp_path):
            pass
        damage(database(tmp_path), at=0, size=100)
    async with opened(tmp_path):
        pass
    assert len(set_aside(tmp_path)) == 3


async def test_a_file_that_somebody_removed_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = errors("moved")
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 21), spill)
        lost = backlog.counts.on_disk
        remove_all(tmp_path)
        await offer_slowly(backlog, range(21, 41), spill)
        assert backlog.counts.dropped == lost
        assert await everything(backlog) == list(range(lost + 1, 41))
        balanced(backlog.counts)
    assert errors("moved") == before + 1
    assert "was moved or removed while in use" in caplog.text


async def test_rows_that_somebody_removed_are_counted_and_do_not_hold_up_what_is_newer(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, 21), spill)
        lost = backlog.counts.on_disk
        with sqlite3.connect(database(tmp_path)) as other:
            other.execute("DELETE FROM observations")
        other.close()
        assert await everything(backlog) == list(range(lost + 1, 21))
        assert backlog.counts.dropped == lost
        await offer_slowly(backlog, range(21, 41), spill)
        assert await everything(backlog) == list(range(21, 41))
        balanced(backlog.counts)
        await backlog.close(keep=True)
        assert await spill.orphans() == []


async def test_a_folder_that_cannot_be_had_leaves_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "summaries"
    blocked.write_text("a file where the folder should be")
    settings = SummarySettings(summary_ram_items=4)
    spill = Spill(blocked, settings, retry_s=0.05)
    await spill.open()
    assert spill.health() == {"state": "degraded", "reason": "unavailable"}
    assert "STATE_DIR must be a folder on a local disk" in caplog.text
    backlog = Backlog("a", settings, spill)
    offer(backlog, range(1, 21))
    assert covered(await backlog.take(100)) == list(range(1, 21))
    assert backlog.counts.dropped == 0
    await spill.save_summary("a", 1.0, b"in memory")
    assert await spill.summaries("a", 5) == [b"in memory"]
    blocked.unlink()  # the operator saw the log
    with caplog.at_level(logging.WARNING):
        for number in range(21, 200):
            await offer_slowly(backlog, [number], spill)
            if backlog.counts.on_disk:
                break
            await asyncio.sleep(0.005)
    assert backlog.counts.on_disk > 0
    assert spill.health()["state"] == "ok"
    assert "can be written again" in caplog.text
    assert (await everything(backlog))[0] == 21
    await spill.save_summary("a", 2.0, b"on disk")
    await backlog.close(keep=False)
    await spill.close()
    async with opened(blocked) as (again, _):
        assert await again.summaries("a", 5) == [b"in memory", b"on disk"]


async def test_a_spill_that_is_closed_leaves_memory(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
    offer(backlog, range(1, 21))
    assert covered(await backlog.take(100)) == list(range(1, 21))
    offer(backlog, range(21, 25))
    await backlog.close(keep=True)
    balanced(backlog.counts)
    assert backlog.counts.dropped == 4


async def test_sweeping_removes_what_is_old_and_nobodys(tmp_path: Path) -> None:
    await leave(tmp_path, "old", range(1, 9))
    dropped = REGISTRY.get_sample_value("sightline_summary_observations_total", {"outcome": "dropped"}) or 0.0
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        mine = Backlog("mine", settings, spill)
        await offer_slowly(mine, range(1, 21), spill)
        await spill.save_summary("old", 1.0, b"told")
        assert await spill.sweep(3600) == 0
        assert await spill.orphans() == ["old"]
        assert await spill.summaries("old", 1) == [b"told"]
        assert await spill.sweep(-1) == 8
        assert await spill.orphans() == []
        assert await spill.summaries("old", 1) == []
        assert await everything(mine) == list(range(1, 21))
        await mine.close(keep=False)
    after = REGISTRY.get_sample_value("sightline_summary_observations_total", {"outcome": "dropped"})
    assert after == dropped + 8


async def test_the_last_summaries_of_a_session_are_kept_over_restarts(tmp_path: Path) -> None:
    async with opened(tmp_path, summary_keep=3) as (spill, _):
        for number in range(5):
            await spill.save_summary("a", float(number), b"a%d" % number)
        await spill.save_summary("b", 0.0, b"b0")
    async with opened(tmp_path, summary_keep=3) as (spill, _):
        assert await spill.summaries("a", 10) == [b"a2", b"a3", b"a4"]
        assert await spill.summaries("a", 2) == [b"a3", b"a4"]
        assert await spill.summaries("b", 10) == [b"b0"]
        assert await spill.summaries("c", 10) == []


async def test_a_summary_is_kept_once_whoever_gives_up_waiting_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (spill, _):
        for number in range(2):
            saving = asyncio.create_task(spill.save_summary("a", float(number), b"a%d" % number))
            await asyncio.sleep(0)
            saving.cancel()
            assert (await asyncio.gather(saving, return_exceptions=True))[0] is not None
        await spill.save_summary("a", 2.0, b"a2")
        assert await spill.summaries("a", 10) == [b"a0", b"a1", b"a2"]
        assert await spill.summaries("a", 0) == []


async def test_summaries_that_no_disk_takes_are_kept_for_some_sessions_and_counted_beyond(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    given_up = REGISTRY.get_sample_value("sightline_summary_disk_errors_total", {"reason": "unsaved"}) or 0.0
    async with opened(tmp_path / "blocked") as (spill, _):
        for number in range(70):
            for text in (b"first", b"last"):
                await spill.save_summary(f"{number}", 0.0, text)
        assert await spill.summaries("69", 5) == [b"first", b"last"]
        assert await spill.summaries("0", 5) == []
    after = REGISTRY.get_sample_value("sightline_summary_disk_errors_total", {"reason": "unsaved"})
    assert after == given_up + 2 * 70  # 6 for want of room, 64 when it was closed


async def test_a_session_of_the_same_name_starts_its_own_backlog(tmp_path: Path) -> None:
    await leave(tmp_path, "a", range(1, 9))
    async with opened(tmp_path, summary_ram_items=4) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(101, 113), spill)
        found = await Backlog.adopt("a", spill)
        assert found is not None
        assert await everything(found) == list(range(1, 9))
        assert await everything(backlog) == list(range(101, 113))
        for open_backlog in (found, backlog):
            await open_backlog.close(keep=False)
