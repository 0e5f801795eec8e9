"""Spill repeats the operations that failed while the disk had errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from app.settings import SummarySettings
from app.summary import Backlog, Spill
from tests.summary.test_backlog import everything, offer_slowly, opened
from tests.summary.test_spill import database, errors

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("caught_up", ["every minute", "when it is closed"])
async def test_an_end_that_the_disk_did_not_take_is_repeated(tmp_path: Path, monkeypatch, caught_up: str) -> None:
    monkeypatch.setattr("app.summary.database.BUSY_S", 0.05)
    spill = Spill(tmp_path, settings := SummarySettings(summary_ram_items=4))
    await spill.open()
    told, left = Backlog("told", settings, spill), Backlog("left", settings, spill)
    for backlog in (told, left):
        await offer_slowly(backlog, range(1, 21), spill)
    other = sqlite3.connect(database(tmp_path))
    other.execute("BEGIN IMMEDIATE")  # the disk takes no write: full, say
    assert await everything(told) == list(range(1, 21))
    before = errors("busy")
    await told.close(keep=False)
    await left.close(keep=True)
    assert errors("busy") > before
    await spill.catch_up()  # in vain
    assert await spill.orphans() == []
    other.close()
    if caught_up == "every minute":
        await spill.catch_up()
        assert await spill.orphans() == ["left"]
    await spill.close()
    async with opened(tmp_path) as (again, _):
        assert await again.orphans() == ["left"]
        found = await Backlog.adopt("left", again)
        assert found is not None
        ids = await everything(found)
        assert ids == list(range(1, len(ids) + 1))
        await found.close(keep=False)


@pytest.mark.parametrize("caught_up", ["every minute", "when it is closed"])
async def test_the_last_summary_of_a_session_that_ended_meanwhile_is_written_once_the_disk_is_back(
    tmp_path: Path, caught_up: str
) -> None:
    blocked = tmp_path / "summaries"
    blocked.write_text("a file where the folder should be")
    lost = errors("unsaved")
    spill = Spill(blocked, SummarySettings(), retry_s=0.0 if caught_up == "every minute" else 3600.0)
    await spill.open()
    await spill.save_summary("ended", 1.0, b"last words")
    await spill.save_summary("too", 2.0, b"of another")
    await spill.catch_up()  # in vain
    assert await spill.summaries("ended", 9) == [b"last words"]
    blocked.unlink()
    if caught_up == "every minute":
        await spill.catch_up()
        assert spill.health()["state"] == "ok"
        async with opened(blocked) as (another, _):
            assert await another.summaries("ended", 9) == [b"last words"]
    await spill.close()
    async with opened(blocked) as (again, _):
        assert await again.summaries("ended", 9) == [b"last words"]
        assert await again.summaries("too", 9) == [b"of another"]
    assert errors("unsaved") == lost


async def test_summaries_that_no_disk_took_to_the_end_are_counted(tmp_path: Path, caplog) -> None:
    blocked = tmp_path / "summaries"
    blocked.write_text("a file where the folder should be")
    lost = errors("unsaved")
    async with opened(blocked) as (spill, _):
        for text in (b"first", b"last"):
            await spill.save_summary("a", 1.0, text)
    assert errors("unsaved") == lost + 2
    assert "did not take 2 summaries" in caplog.text


async def test_summaries_of_a_quiet_session_stay_while_it_is_open_whichever_worker_sweeps(tmp_path: Path) -> None:
    async with opened(tmp_path) as (here, settings), opened(tmp_path) as (another, _):
        quiet = Backlog("quiet", settings, here)
        for session_id in ("quiet", "ended"):
            await here.save_summary(session_id, 1.0, b"told")
        with sqlite3.connect(database(tmp_path)) as db:
            db.execute("UPDATE summaries SET saved = saved - 3000")  # most of an hour ago
        db.close()
        for spill in (here, another):
            await spill.sweep(3600)
        with sqlite3.connect(database(tmp_path)) as db:
            db.execute("UPDATE summaries SET saved = saved - 3000")
        db.close()
        await another.sweep(3600)
        assert await here.summaries("quiet", 9) == [b"told"]
        assert await here.summaries("ended", 9) == []
        await quiet.close(keep=False)
        with sqlite3.connect(database(tmp_path)) as db:
            db.execute("UPDATE summaries SET saved = saved - 3000")
        db.close()
        await here.sweep(3600)
        assert await here.summaries("quiet", 9) == []
