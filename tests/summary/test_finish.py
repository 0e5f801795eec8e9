"""The end of a session's summaries when time runs out."""

import asyncio

import pytest

from app.settings import SummarySettings
from app.summary import Spill, Summaries
from tests.summary.asking import Counted, until
from tests.summary.asking import settings as llm
from tests.summary.serving import NO_MODEL, Client, show, summaries
from tests.support import openai
from tests.support.openai import speaking

pytestmark = pytest.mark.anyio


async def test_an_end_that_is_cut_short_keeps_a_digest_of_what_was_at_the_model(state_dir):
    given_up = Counted("sightline_summaries_total", source="digest", outcome="finish")
    with speaking(openai.hangs) as fake:
        async with summaries(state_dir, llm(fake, llm_timeout_s=60), summary_finish_s=30) as service:
            session = service.session("one", None, Client().send)
            show(session, 1, 20, "cat")
            await until(lambda: fake.received)
            show(session, 21, 40, "dog")
            finishing = asyncio.create_task(session.finish())
            await until(lambda: len(fake.received) == 2)  # all of it, asked for once more
            finishing.cancel()  # as uvicorn does after its timeout_graceful_shutdown
            with pytest.raises(asyncio.CancelledError):
                await finishing
            (kept,) = await service.last("one", 9)
            assert await session.finish() is None
    assert (kept.source, kept.title) == ("digest", "One cat and one dog")
    assert (kept.first_frame_id, kept.last_frame_id) == (1, 40)
    assert given_up.more == 1
    async with summaries(state_dir) as service:
        assert await service.last("one", 9) == [kept]


async def test_a_summary_that_is_told_is_not_kept_again_by_an_end_that_is_cut_short(state_dir, monkeypatch):
    monkeypatch.setattr("app.summary.session.CLOSE_WAIT_S", 30)
    saving, go_on = asyncio.Event(), asyncio.Event()
    save = Spill.save_summary

    async def slow(spill, session_id, at_ms, data):
        saving.set()
        await go_on.wait()
        await save(spill, session_id, at_ms, data)

    monkeypatch.setattr(Spill, "save_summary", slow)
    async with summaries(state_dir, summary_min_interval_s=60, summary_max_interval_s=60) as service:
        session = service.session("one", None, Client().send)
        show(session, 1, 20, "cat")
        finishing = asyncio.create_task(session.finish())
        await asyncio.wait_for(saving.wait(), 20)
        finishing.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await finishing
    async with summaries(state_dir) as service:  # closing has waited for whatever was still being saved
        assert len(await service.last("one", 9)) == 1


@pytest.mark.parametrize(("finish_s", "drain_s", "bound_s"), [(3.0, 10.0, 3.0), (30.0, 10.0, 3.0), (3.0, 1.0, 0.3)])
def test_a_last_summary_leaves_the_rest_of_a_stop_its_time(state_dir, finish_s, drain_s, bound_s):
    service = Summaries(
        SummarySettings(summary_finish_s=finish_s), NO_MODEL, state_dir, workers=1, drain_timeout_s=drain_s
    )
    assert service.settings.summary_finish_s == pytest.approx(bound_s)
