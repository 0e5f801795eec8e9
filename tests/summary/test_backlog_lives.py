"""For any sequence of offers, takes, kills and restarts: in order, nothing twice, and every frame is counted."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis.stateful as stateful
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.backlog import Life
from tests.support.observations import covered

RAM, DISK = 8, 40


@dataclass
class Waiting:
    """One session's frame ids that were not taken yet; they are always consecutive."""

    first: int = 1
    end: int = 1
    sure: int | None = None
    """After a kill: so many of the first were on disk, the others may be lost. None: all are there."""

    def take(self, ids: list[int]) -> bool:
        """Checks what was taken; whether this was all."""
        assert ids == list(range(self.first, self.first + len(ids)))
        self.first += len(ids)
        assert self.first <= self.end
        if self.sure is None:
            assert bool(ids) or self.first == self.end
        else:
            self.sure = max(0, self.sure - len(ids))
            assert bool(ids) or not self.sure
        return not ids


class Lives(stateful.RuleBasedStateMachine):
    """Drives the process under test and a model of what it must return."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="backlog-"))
        self.sessions = 0
        self.orphans: dict[str, Waiting] = {}
        self.adopted: dict[str, Waiting] = {}
        self.start()

    def start(self) -> None:
        self.life = Life(self.folder, summary_ram_items=RAM, summary_disk_items=DISK)
        self.sessions += 1
        self.session = f"session {self.sessions}"
        self.waiting = Waiting()
        self.life.ask("begin", self.session)

    @stateful.rule(count=st.integers(1, 30))
    def offer(self, count: int) -> None:
        self.life.ask("offer", self.session, self.waiting.end, count)
        self.waiting.end += count

    @stateful.rule()
    def settle(self) -> None:
        self.life.ask("settle")

    @stateful.rule(items=st.integers(1, 20))
    def take(self, items: int) -> None:
        self.waiting.take(self.taken(self.session, items))

    @stateful.precondition(lambda self: self.orphans or self.adopted)
    @stateful.rule(items=st.integers(1, 20))
    def take_of_the_dead(self, items: int) -> None:
        if not self.adopted:
            name = next(iter(self.orphans))
            assert self.life.ask("adopt", name)
            self.adopted[name] = self.orphans.pop(name)
        name, waiting = next(iter(self.adopted.items()))
        if waiting.take(self.taken(name, items)):
            self.life.ask("close", name, False)
            del self.adopted[name]

    @stateful.rule()
    def kill(self) -> None:
        self.waiting.sure = self.life.ask("counts", self.session)["on_disk"]
        self.life.kill()
        self.look_around()

    @stateful.rule()
    def restart(self) -> None:
        self.life.end()
        self.look_around()

    def look_around(self) -> None:
        """A new life finds every session that left something."""
        left = {**self.adopted, **self.orphans, self.session: self.waiting}
        self.adopted = {}
        self.start()
        found = self.life.ask("orphans")
        assert found == [name for name in left if name in found]
        for name in set(left) - set(found):
            assert left[name].take([])
        self.orphans = {name: left[name] for name in found}

    def taken(self, name: str, items: int) -> list[int]:
        found = self.life.ask("take", name, items)
        assert len(found) <= items
        return covered(found)

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
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
