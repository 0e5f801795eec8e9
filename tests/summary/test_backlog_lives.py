"""For any sequence of offers, takes, kills and restarts: in order, nothing twice, every frame accounted for."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.stateful as stateful
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.backlog import Life
from tests.support.observations import covered

RAM, DISK = 8, 40


class Lives(stateful.RuleBasedStateMachine):
    """The model: of every session, the ids of the frames that were not taken yet, which are always consecutive."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="backlog-"))
        self.sessions = 0
        self.orphans: dict[str, range] = {}
        self.adopted: dict[str, range] = {}
        self.start()

    def start(self) -> None:
        self.life = Life(self.folder, summary_ram_items=RAM, summary_disk_items=DISK)
        self.sessions += 1
        self.session = f"session {self.sessions}"
        self.waiting = range(1, 1)
        self.life.ask("begin", self.session)

    @stateful.rule(count=st.integers(1, 30))
    def offer(self, count: int) -> None:
        self.life.ask("offer", self.session, self.waiting.stop, count)
        self.waiting = range(self.waiting.start, self.waiting.stop + count)

    @stateful.rule()
    def settle(self) -> None:
        self.life.ask("settle")

    @stateful.rule(items=st.integers(1, 20))
    def take(self, items: int) -> None:
        self.waiting = self.took(self.session, self.waiting, items)

    @stateful.precondition(lambda self: self.orphans or self.adopted)
    @stateful.rule(items=st.integers(1, 20))
    def take_of_the_dead(self, items: int) -> None:
        if not self.adopted:
            name = next(iter(self.orphans))
            assert self.life.ask("adopt", name)
            self.adopted[name] = self.orphans.pop(name)
        name, waiting = next(iter(self.adopted.items()))
        left = self.took(name, waiting, items)
        if left:
            self.adopted[name] = left
        else:
            assert self.life.ask("take", name, 1) == []
            self.life.ask("close", name, False)
            del self.adopted[name]

    @stateful.rule()
    def kill(self) -> None:
        on_disk = self.life.ask("counts", self.session)["on_disk"]
        self.life.kill()
        self.after(on_disk)

    @stateful.rule()
    def restart(self) -> None:
        self.life.end()
        self.after(None)

    def after(self, on_disk: int | None) -> None:
        """A new life finds what was committed, in order; `on_disk` None: all that was."""
        last, waiting = self.session, self.waiting
        self.start()
        if waiting and on_disk != 0:
            self.orphans[last] = waiting
        self.orphans = {**self.adopted, **self.orphans}
        self.adopted = {}
        found = self.life.ask("orphans")
        if on_disk == 0 and last in found:  # what was on its way had arrived
            self.orphans[last] = waiting
        assert sorted(found) == sorted(self.orphans)
        if last in self.orphans and on_disk is not None:
            self.orphans[last] = self.survivors(last, waiting, on_disk)

    def survivors(self, name: str, waiting: range, on_disk: int) -> range:
        """Takes everything of a killed session: the oldest of what waited, no fewer than were known to be on disk."""
        assert self.life.ask("adopt", name)
        ids: list[int] = []
        while found := self.life.ask("take", name, 13):
            ids += covered(found)
        assert ids == list(waiting[: len(ids)])
        assert len(ids) >= on_disk
        self.life.ask("close", name, False)
        del self.orphans[name]
        return range(0)

    def took(self, name: str, waiting: range, items: int) -> range:
        found = self.life.ask("take", name, items)
        assert len(found) <= items
        assert bool(found) == bool(waiting)
        ids = covered(found)
        assert ids == list(waiting[: len(ids)])
        return waiting[len(ids) :]

    @stateful.invariant()
    def balanced(self) -> None:
        for name in (self.session, *self.adopted):
            counts = self.life.ask("counts", name)
            there = counts["in_ram"] + counts["on_disk"]
            assert counts["offered"] == counts["taken"] + counts["merged"] + counts["dropped"] + there
            assert counts["dropped"] == 0
            assert counts["on_disk"] <= DISK
            assert counts["in_ram"] <= 2 * RAM + RAM // 4

    def teardown(self) -> None:
        self.life.kill()
        shutil.rmtree(self.folder)


@pytest.mark.timeout(300)
def test_any_sequence_of_lives() -> None:
    stateful.run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
