"""Spill with processes that die, that share a folder, and whose disk is full."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.backlog import Life
from tests.support.observations import covered


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Any]:
    """Starts processes on one folder; kills those that are left."""
    started: list[Life] = []

    def start(**settings: Any) -> Life:
        started.append(Life(tmp_path / "summaries", **settings))
        return started[-1]

    yield start
    for life in started:
        life.__exit__()


def everything(life: Life, session_id: str, items: int = 500) -> list[int]:
    ids: list[int] = []
    while found := life.ask("take", session_id, items):
        ids += covered(found)
    return ids


def balanced(counts: dict[str, int]) -> None:
    there = counts["in_ram"] + counts["on_disk"]
    assert counts["offered"] == counts["taken"] + counts["merged"] + counts["dropped"] + there


@pytest.mark.parametrize("committed", [1, 2500, 7000])
def test_a_kill_while_ten_thousand_are_spilled(lives: Any, committed: int) -> None:
    life = lives()
    life.ask("begin", "a")
    life.send("flood", "a", 10_000)
    on_disk = 0
    while on_disk < committed:
        on_disk = life.hear()
    life.kill()
    after = lives()
    assert after.ask("orphans") == ["a"]
    assert after.ask("adopt", "a")
    found = after.ask("counts", "a")["on_disk"]
    assert found >= on_disk
    ids = everything(after, "a")
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) >= found
    balanced(after.ask("counts", "a"))
    after.ask("close", "a", False)
    assert after.ask("orphans") == []


def test_what_was_taken_before_a_kill_is_not_given_again(lives: Any) -> None:
    life = lives(summary_ram_items=4)
    life.ask("begin", "a")
    for number in range(1, 41, 2):
        life.ask("offer", "a", number, 2)
        life.ask("settle")
    taken = covered(life.ask("take", "a", 10))
    life.kill()
    after = lives()
    assert after.ask("adopt", "a")
    left = everything(after, "a")
    assert left[0] == taken[-1] + 1
    assert left == list(range(left[0], left[-1] + 1))
    assert left[-1] >= 36  # the newest were in memory


def test_two_processes_share_a_folder(lives: Any) -> None:
    first, second = lives(summary_ram_items=4), lives(summary_ram_items=4)
    for life, name in ((first, "one"), (second, "two")):
        life.ask("begin", name)
    for number in range(1, 101, 2):
        for life, name in ((first, "one"), (second, "two")):
            life.ask("offer", name, number, 2)
    for life in (first, second):
        life.ask("settle")
        assert life.ask("orphans") == []  # both live
    first.ask("save", "one", b"told by one")
    assert second.ask("summaries", "one") == [b"told by one"]
    assert not second.ask("adopt", "one")
    first.kill()
    assert second.ask("orphans") == ["one"]
    assert second.ask("adopt", "one")
    left = everything(second, "one")
    assert left[0] == 1
    assert left == list(range(1, len(left) + 1))
    assert everything(second, "two") == list(range(1, 101))
    assert second.ask("summaries", "one") == [b"told by one"]


def test_an_orphan_has_one_heir(lives: Any) -> None:
    dead = lives(summary_ram_items=4)
    dead.ask("begin", "a")
    dead.ask("offer", "a", 1, 6)
    dead.ask("settle")
    dead.kill()
    heirs = [lives() for _ in range(3)]
    for heir in heirs:
        heir.send("adopt", "a")
    assert sorted(heir.hear() for heir in heirs) == [False, False, True]


def test_an_heir_that_is_killed_leaves_the_rest_to_the_next(lives: Any) -> None:
    dead = lives(summary_ram_items=4)
    dead.ask("begin", "a")
    for number in range(1, 41, 2):
        dead.ask("offer", "a", number, 2)
        dead.ask("settle")
    dead.kill()
    heir = lives()
    assert heir.ask("adopt", "a")
    ids = covered(heir.ask("take", "a", 10))
    heir.kill()
    last = lives()
    assert last.ask("adopt", "a")
    ids += everything(last, "a")
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) >= 36


def test_a_file_that_one_process_sets_aside_is_left_by_the_other(lives: Any, tmp_path: Path) -> None:
    life = lives(summary_ram_items=4)
    life.ask("begin", "a")
    life.ask("offer", "a", 1, 8)
    life.ask("settle")
    (path,) = (tmp_path / "summaries").glob("*.sqlite")
    with sqlite3.connect(path) as other:  # into the file itself, out of the log that hides it
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with path.open("r+b") as file:
        file.write(b"\xa5" * 100)
    next_life = lives(summary_ram_items=4)  # finds it damaged
    lost = life.ask("counts", "a")["on_disk"]
    for number in range(9, 41, 2):
        life.ask("offer", "a", number, 2)
        life.ask("settle")
    counts = life.ask("counts", "a")
    assert counts["dropped"] == lost
    balanced(counts)
    life.kill()
    assert next_life.ask("orphans") == ["a"]
    assert next_life.ask("adopt", "a")
    ids = everything(next_life, "a")
    assert ids == list(range(lost + 1, ids[-1] + 1))
    assert len(list((tmp_path / "summaries").glob("*.damaged-*"))) == 1


def test_a_full_disk_stops_the_spilling_and_nothing_else(lives: Any) -> None:
    life = lives(summary_ram_items=16)
    life.ask("begin", "a")
    life.ask("limit", 1_000_000)
    for number in range(1, 2001, 4):
        life.ask("offer", "a", number, 4)
        life.ask("settle")
    counts = life.ask("counts", "a")
    assert life.ask("health")["state"] == "degraded"
    assert 0 < counts["on_disk"] < 1900
    assert counts["merged"] > 0
    assert counts["dropped"] == 0
    assert counts["in_ram"] <= 16
    balanced(counts)
    assert covered(life.ask("take", "a", 10)) == list(range(1, 11))  # given once, though it cannot be deleted now
    assert covered(life.ask("take", "a", 10)) == list(range(11, 21))
    life.ask("limit", -1)
    deadline = time.monotonic() + 30
    end = 2001
    while life.ask("health")["state"] != "ok":  # it is tried again by itself
        assert time.monotonic() < deadline
        life.ask("offer", "a", end, 4)
        end += 4
        time.sleep(0.02)
    assert everything(life, "a") == list(range(21, end))
    balanced(life.ask("counts", "a"))
    assert life.ask("counts", "a")["dropped"] == 0


def test_a_full_disk_keeps_what_it_has_for_the_next_start(lives: Any) -> None:
    life = lives(summary_ram_items=16)
    life.ask("begin", "a")
    life.ask("limit", 1_000_000)
    for number in range(1, 1001, 4):
        life.ask("offer", "a", number, 4)
        life.ask("settle")
    on_disk = life.ask("counts", "a")["on_disk"]
    life.kill()
    after = lives()
    assert after.ask("adopt", "a")
    ids = everything(after, "a")
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) >= on_disk
