"""Summaries over the whole service: a real socket, a real Triton, and a model's server that tests can spoil."""

import asyncio

import httpx
import pytest

from tests.support import openai
from tests.support.live import ready
from tests.support.openai import speaking

pytestmark = pytest.mark.anyio

OFTEN = {"SUMMARY_MIN_INTERVAL_S": "0.3", "SUMMARY_MAX_INTERVAL_S": "0.6", "SUMMARY_FINISH_S": "1"}


@pytest.fixture(scope="module")
def fake():
    with speaking() as one:
        yield one


@pytest.fixture(scope="module")
def summarising(serve, fake):
    return serve(LLM_MODEL="openai:test", LLM_BASE_URL=fake.url, **OFTEN)


async def frames_until(live, jpeg, *kinds):
    """Sends frames, one for each answer, until one of these messages comes."""
    async with asyncio.timeout(20):
        await live.frame(jpeg)
        while (message := await live.receive())["type"] not in kinds:
            if message["type"] == "result":
                await asyncio.sleep(0.02)
                await live.frame(jpeg)
    return message


async def test_a_stream_is_told_while_it_runs_at_its_end_and_afterwards(summarising, fake, jpeg):
    fake.script = [openai.answer()]
    async with ready(summarising, stages={"summary": True}, summary={"prompt": "security"}) as live:
        assert live.welcome["prompts"] == ["default", "retail", "security"]
        told = await frames_until(live, jpeg, "summary")
        assert (told["source"], told["title"]) == ("llm", "Two people at a gate")
        await frames_until(live, jpeg, "result")
        await asyncio.sleep(0.1)
        last = (await live.stop())["report"]["summary"]
    assert last["first_frame_id"] > told["last_frame_id"]
    rules, asked = fake.received[0].texts
    assert "security desk" in rules
    assert '"class":"person"' in asked
    kept = httpx.get(f"{summarising.url}/v1/sessions/{live.welcome['session_id']}/summaries").json()["summaries"]
    assert [one["first_frame_id"] for one in kept][:1] == [told["first_frame_id"]]
    assert kept[-1] == last
    assert httpx.get(f"{summarising.url}/health/ready").json()["summaries"]["model"] == "openai:test"


async def test_a_model_that_hangs_holds_up_neither_frames_nor_the_end(summarising, fake, jpeg):
    fake.script = [openai.hangs]
    before = len(fake.received)
    async with ready(summarising, stages={"summary": True}) as live:
        while len(fake.received) == before:
            await frames_until(live, jpeg, "result")
        for _ in range(20):
            await frames_until(live, jpeg, "result")
        report = (await live.stop())["report"]
    assert report["summary"]["source"] == "digest"
    assert report["processed"] == report["received"]


async def test_an_unknown_prompt_is_answered_with_those_known(summarising):
    async with ready(summarising, stages={"summary": True}) as live:
        await live.say("update", summary={"prompt": "poem"})
        error = await live.until("error")
    assert (error["code"], error["field"]) == ("invalid_value", "summary.prompt")
    assert error["message"].endswith("known: default, retail, security")
