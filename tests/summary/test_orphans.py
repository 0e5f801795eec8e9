"""Recovery: the next start summarizes what a killed service left."""

import asyncio
import subprocess
import sys
from contextlib import contextmanager

import pytest
from prometheus_client import REGISTRY

from app.settings import ROOT
from app.summary import Backlog
from tests.summary.asking import settings as llm
from tests.summary.asking import until
from tests.summary.dying import OBSERVATIONS
from tests.summary.serving import Client, summaries
from tests.summary.test_backlog import offer_slowly, opened
from tests.support import openai
from tests.support.openai import speaking

pytestmark = pytest.mark.anyio


@contextmanager
def dying(folder):
    """A process with a spilled backlog, alive; killed at the end if it still lives."""
    command = [sys.executable, "-m", "tests.summary.dying", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


async def told(service, session_id):
    """Waits until the session has summaries; returns them."""
    async with asyncio.timeout(10):
        while not (found := await service.last(session_id, 9)):  # noqa: ASYNC110  another task tells them
            await asyncio.sleep(0.01)
    return found


async def test_a_killed_service_is_told_at_the_next_start_once_and_in_order(state_dir):
    with dying(state_dir) as child:
        child.kill()
        child.wait()
        with speaking() as fake:
            async with summaries(state_dir, llm(fake)) as service:
                await until(lambda: len(fake.received) == 2)
                async with summaries(state_dir, llm(fake)) as other:  # another worker finds nothing more
                    (first,) = await told(service, "first")
                    (second,) = await told(other, "second")
    assert (first.source, first.first_frame_id, first.last_frame_id) == ("llm", 1, (OBSERVATIONS - 1) * 10)
    assert second.first_frame_id == 1
    assert ['"cat"' in request.texts[1] for request in fake.received] == [True, False]
    assert len(fake.received) == 2


async def test_what_a_living_process_holds_is_left_alone(state_dir):
    with dying(state_dir) as child, speaking() as fake:
        async with summaries(state_dir, llm(fake)) as service:
            session = service.session("mine", None, Client().send)
            assert await session.finish() is None
            assert await service.last("first", 1) == []
        assert child.poll() is None
    assert fake.received == []


async def test_a_start_that_is_cut_short_tells_by_rule_what_it_had_in_hand(state_dir):
    with dying(state_dir) as child:
        child.kill()
        child.wait()
    with speaking(openai.hangs) as fake:
        async with summaries(state_dir, llm(fake)):
            await until(lambda: fake.received)
    async with summaries(state_dir) as service:
        (first,) = await told(service, "first")
        (second,) = await told(service, "second")
    assert (first.source, first.title) == ("digest", "One cat")
    assert (second.source, second.title) == ("digest", "One dog")


async def left_behind(state_dir, count):
    """An orphan of so many observations; the disk never behind, so that none is folded."""
    async with opened(state_dir / "summaries", summary_ram_items=16) as (spill, settings):
        backlog = Backlog("a", settings, spill)
        await offer_slowly(backlog, range(1, count + 1), spill)
        await backlog.close(keep=True)


async def test_an_orphan_older_than_summary_orphan_hours_is_deleted_without_a_summary(state_dir):
    def dropped():
        return REGISTRY.get_sample_value("sightline_summary_observations_total", {"outcome": "dropped"}) or 0.0

    await left_behind(state_dir, 40)
    before = dropped()
    async with summaries(state_dir, summary_orphan_hours=1e-9) as service:
        await until(lambda: dropped() == before + 40)
        assert await service.last("a", 9) == []


@pytest.mark.parametrize("ends", ["by a shutdown", "by a fault"])
async def test_what_was_read_when_reading_is_cut_short_is_told_by_rule_and_the_rest_is_left(
    state_dir, monkeypatch, ends
):
    await left_behind(state_dir, 400)
    take, takes, stuck = Backlog.take, 0, asyncio.Event()

    async def slow_take(self, *bounds, **named):
        nonlocal takes
        takes += 1
        if takes == 3:
            stuck.set()
            if ends == "by a fault":
                raise RuntimeError("ours")
            await asyncio.Event().wait()
        return await take(self, *bounds, **named)

    monkeypatch.setattr(Backlog, "take", slow_take)
    async with summaries(state_dir) as service:
        await asyncio.wait_for(stuck.wait(), 20)
        if ends == "by a fault":
            await told(service, "a")
    monkeypatch.setattr(Backlog, "take", take)
    async with summaries(state_dir) as service:
        async with asyncio.timeout(20):
            while len(found := await service.last("a", 9)) < 2:  # noqa: ASYNC110  another task tells them
                await asyncio.sleep(0.01)
    first, rest = found
    assert (first.source, first.first_frame_id) == ("digest", 1)
    assert first.last_frame_id + 1 == rest.first_frame_id
    assert first.last_frame_id > 120
    assert rest.last_frame_id == 400
