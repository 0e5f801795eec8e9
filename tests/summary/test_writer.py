"""The writer's thread answers every request and keeps running, even when its folder fails."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from app.settings import SummarySettings
from app.summary import Backlog, Spill
from app.summary.spill import DiskFailure, DiskWriter
from tests.summary.test_backlog import balanced, everything, offer_slowly
from tests.support.observations import covered

pytestmark = pytest.mark.anyio


async def within(awaitable, seconds=20):
    async with asyncio.timeout(seconds):
        return await awaitable


async def test_a_folder_that_becomes_a_file_while_in_use_is_done_without_until_it_is_back(tmp_path: Path) -> None:
    folder, aside = tmp_path / "summaries", tmp_path / "aside"
    spill = Spill(folder, settings := SummarySettings(summary_ram_items=4), retry_s=0.05)
    await spill.open()
    backlog = Backlog("a", settings, spill)
    await within(offer_slowly(backlog, range(1, 21), spill))
    on_disk = backlog.counts.on_disk
    assert on_disk > 10
    os.rename(folder, aside)
    folder.write_text("what stat says of a file in it is ENOTDIR; EACCES, EIO and ESTALE are alike")
    await within(offer_slowly(backlog, range(21, 41), spill))
    assert spill.health() == {"state": "degraded", "reason": "unavailable"}
    assert backlog.counts.dropped == on_disk
    balanced(backlog.counts)
    assert await within(spill.summaries("a", 9)) == []
    folder.unlink()
    os.rename(aside, folder)
    for number in range(41, 400):
        await within(offer_slowly(backlog, [number], spill))
        if backlog.counts.on_disk:
            break
        await asyncio.sleep(0.005)
    assert spill.health()["state"] == "ok"
    assert (await within(everything(backlog)))[0] == on_disk + 1
    balanced(backlog.counts)
    await within(backlog.close(keep=False))
    assert await within(spill.orphans()) == ["a"]  # what was there before: nobody else's now, and not lost
    found = await within(Backlog.adopt("a", spill))
    assert found is not None
    assert covered(await within(found.take(100))) == list(range(1, on_disk + 1))
    await within(found.close(keep=False))
    await within(spill.close())


async def test_a_fault_of_our_own_in_the_thread_is_answered_and_the_next_work_is_done(
    tmp_path: Path, monkeypatch
) -> None:
    writer = DiskWriter(tmp_path, SummarySettings(), retry_s=0.05, on_lost=lambda: None)
    writer.start()

    def broken(*_: object) -> None:
        raise KeyError("ours")

    with monkeypatch.context() as patch:
        patch.setattr("app.summary.spill.SpillFile", broken)
        assert await within(writer.ask(lambda file: "done")) == DiskFailure("internal")
    assert await within(writer.ask(lambda file: "done")) == "done"
    await within(writer.stop())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_should_the_thread_end_all_the_same_everybody_is_answered_and_health_says_so(tmp_path: Path) -> None:
    spill = Spill(tmp_path, SummarySettings(), retry_s=0.05)
    await spill.open()

    def ends(file: object) -> None:
        raise SystemExit

    in_hand, queued = asyncio.create_task(spill.writer.ask(ends)), asyncio.create_task(spill.orphans())
    assert await within(in_hand) == DiskFailure("closed")
    assert await within(queued) == []
    assert await within(spill.writer.ask(lambda file: "done")) == DiskFailure("closed")
    assert spill.health() == {"state": "degraded", "reason": "internal"}
    await within(spill.save_summary("a", 1.0, b"in memory"))
    assert await within(spill.summaries("a", 5)) == [b"in memory"]
    await within(spill.close())
