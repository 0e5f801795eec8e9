"""Summaries over the socket: when they come, whose words they are, and where they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from app.client import Refused, connect
from tests.conftest import Serve
from tests.support.live import Live, Message, ready
from tests.support.openai import FakeOpenAI, answer, hangs, speaking
from tests.support.service import Service

pytestmark = pytest.mark.anyio
QUICK = {"SUMMARY_MIN_INTERVAL_S": "0.5", "SUMMARY_MAX_INTERVAL_S": "1"}


@pytest.fixture(scope="module")
def quick(serve: Serve) -> Service:
    """A service that summarises twice a second, and has no language model."""
    return serve(**QUICK)


@pytest.fixture(scope="module")
def calm(serve: Serve) -> Service:
    """A service that says what it saw when a session ends, and not before."""
    return serve(SUMMARY_MIN_INTERVAL_S="60")


@pytest.fixture(scope="module")
def llm() -> Iterator[FakeOpenAI]:
    """A server of language models; tests give it a script."""
    with speaking() as fake:
        yield fake


@pytest.fixture(scope="module")
def written(serve: Serve, llm: FakeOpenAI) -> Service:
    """A service with a language model that it is patient with, but not at the end of a session."""
    wait = {"LLM_TIMEOUT_S": "60", "DRAIN_TIMEOUT_S": "1"}
    return serve(**QUICK, **wait, LLM_MODEL="openai:test", LLM_BASE_URL=llm.url, LLM_API_KEY="my secret")


async def until_summary(live: Live, jpeg: bytes, *, most: int = 200) -> Message:
    """Sends frames, one after the other, until a summary comes between their results."""
    for _ in range(most):
        await live.frame(jpeg)
        while (message := await live.receive())["type"] != "result":
            if message["type"] == "summary":
                return message
        await asyncio.sleep(0.05)
    raise AssertionError(f"no summary within {most} frames")


async def kept(service: Service, live: Live) -> list[Message]:
    """What the service kept of a session's summaries."""
    session_id = live.welcome["session_id"]  # type: ignore[attr-defined]
    async with httpx.AsyncClient() as http:
        told = (await http.get(f"{service.url}/v1/sessions/{session_id}/summaries")).json()
    assert told["session_id"] == session_id
    summaries: list[Message] = told["summaries"]
    return summaries


async def test_without_a_model_a_digest_tells_what_was_seen(quick: Service, jpeg: bytes) -> None:
    async with ready(quick, stages={"summary": True}) as live:
        assert live.welcome["settings"]["stages"]["summary"] is True
        summary = await until_summary(live, jpeg)
    assert summary["source"] == "digest"
    assert "person" in summary["scene"]
    assert "dog" in summary["scene"]
    assert summary["first_frame_id"] >= 1
    assert summary["last_frame_id"] >= summary["first_frame_id"]


async def test_nothing_is_summarised_unless_asked_for(quick: Service, jpeg: bytes) -> None:
    async with ready(quick) as live:
        with pytest.raises(AssertionError, match="no summary"):
            await until_summary(live, jpeg, most=30)
        bye = await live.stop()
    assert bye["report"]["summary"] is None
    assert await kept(quick, live) == []


async def test_a_switch_in_the_middle_of_a_session(quick: Service, jpeg: bytes) -> None:
    async with ready(quick) as live:
        await live.say("update", stages={"summary": True})
        assert (await live.until("settings"))["settings"]["stages"]["summary"] is True
        await until_summary(live, jpeg)
        await live.until("result")  # of the frame that the summary came before
        await live.frame(jpeg)  # one more, a part of a second
        last = (await live.until("result"))["frame_id"]
        await live.say("update", stages={"summary": False})
        await live.until("settings")
        await live.frame(jpeg)
        while (await live.until("summary"))["last_frame_id"] < last:  # what it had is told; then it rests
            pass
        with pytest.raises(AssertionError, match="no summary"):
            await until_summary_of_new(live, jpeg)


async def until_summary_of_new(live: Live, jpeg: bytes) -> None:
    """Frames sent while summaries are off: a summary that covers one of them is wrong."""
    await live.frame(jpeg)
    first = (await live.until("result"))["frame_id"]
    for _ in range(30):
        await live.frame(jpeg)
        while (message := await live.receive())["type"] != "result":
            assert message["type"] == "summary"
            assert message["last_frame_id"] < first
        await asyncio.sleep(0.05)
    raise AssertionError("no summary of them")


async def test_the_last_words_come_with_bye_and_are_kept(calm: Service, jpeg: bytes) -> None:
    async with ready(calm, stages={"summary": True}) as live:
        for _ in range(5):
            await live.frame(jpeg)
            await live.answer()
        bye = await live.stop()
    last = bye["report"]["summary"]
    assert (last["first_frame_id"], last["last_frame_id"]) == (1, 5)
    assert await kept(calm, live) == [last]


async def test_a_client_that_left_is_summarised_too(calm: Service, jpeg: bytes) -> None:
    async with ready(calm, stages={"summary": True}) as live:
        await live.frame(jpeg)
        await live.answer()
        live.connection.transport.abort()
    async with asyncio.timeout(10):
        while not (told := await kept(calm, live)):  # noqa: ASYNC110  nobody tells us
            await asyncio.sleep(0.1)
    assert "person" in told[0]["scene"]


async def test_a_prompt_is_chosen_by_name(quick: Service) -> None:
    async with ready(quick, stages={"summary": True}) as live:
        names = live.welcome["prompts"]
        assert "default" in names
        other = next(name for name in names if name != "default")
        await live.say("update", summary={"prompt": other})
        assert (await live.until("settings"))["settings"]["summary_prompt"] == other
        await live.say("update", summary={"prompt": "shop window"})
        error = await live.until("error")
    assert error["field"] == "summary.prompt"
    assert all(name in error["message"] for name in names)


async def test_a_prompt_that_nobody_wrote_is_refused_at_the_start_with_those_known(quick: Service) -> None:
    with pytest.raises(Refused, match=r"no prompt is named 'poem'; known: default, retail, security"):
        async with connect(quick.url, stages={"summary": True}, summary_prompt="poem"):
            pass


@pytest.mark.parametrize("query", ["last=0", "last=many"])
def test_a_wrong_number_of_summaries_is_named(quick: Service, query: str) -> None:
    answer = httpx.get(f"{quick.url}/v1/sessions/{'0' * 32}/summaries?{query}")
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "last"


async def test_a_language_model_writes_the_summaries(written: Service, llm: FakeOpenAI, jpeg: bytes) -> None:
    llm.script, llm.received = [answer()], []
    async with ready(written, stages={"summary": True}) as live:
        summary = await until_summary(live, jpeg)
        await live.stop()
    assert summary["source"] == "llm"
    assert summary["title"] == "Two people at a gate"
    assert "person" in llm.received[0].texts[-1]
    assert llm.received[0].headers["authorization"] == "Bearer my secret"
    assert "my secret" not in written.log


async def test_a_model_that_hangs_holds_up_no_frame_and_no_goodbye(
    written: Service, llm: FakeOpenAI, jpeg: bytes
) -> None:
    llm.script, llm.received = [hangs], []
    async with ready(written, stages={"summary": True}) as live:
        while not llm.received:
            await live.frame(jpeg)
            assert (await live.receive())["type"] == "result"
            await asyncio.sleep(0.05)
        for _ in range(20):  # the request is on its way for as long as it likes
            await live.frame(jpeg)
            assert (await live.receive())["type"] == "result"
        bye = await live.stop()
    assert bye["report"]["processed"] >= 21
    assert bye["report"]["summary"]["source"] == "digest"


def test_the_health_tells_of_them(quick: Service) -> None:
    part = httpx.get(f"{quick.url}/health/ready").json()["summaries"]
    assert part["state"] == "ok"
