"""An open breaker: no session waits for the model, and LLM_MAX_IN_FLIGHT holds when the breaker closes."""

import asyncio
from time import monotonic

import pytest

from app.summary import NoAnswer, Spent, llm
from tests.summary.asking import ask, model
from tests.support import openai
from tests.support.openai import answer, speaking

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(llm, "FIRST_S", 0.01)


async def test_the_time_a_server_asked_for_is_not_waited_out_before_a_digest():
    asked_s = 120
    with speaking(openai.fails(429, retry_after=str(asked_s))) as fake:
        async with model(fake, llm_breaker_failures=1, llm_breaker_s=600, llm_timeout_s=600) as language_model:
            begun = monotonic()
            with pytest.raises(NoAnswer):
                await ask(language_model)
            assert language_model.breaker == "open"
            with pytest.raises(NoAnswer, match=r"circuit breaker .* is open"):
                await ask(language_model)
            assert monotonic() - begun < asked_s / 2
    assert len(fake.received) == 1


async def test_who_waits_as_the_server_asked_stops_waiting_once_the_model_is_left_alone():
    asked_s = 120
    with speaking(openai.fails(429, retry_after=str(asked_s)), openai.fails(500)) as fake:
        async with model(fake, llm_breaker_failures=2, llm_breaker_s=600, llm_timeout_s=600) as language_model:
            begun = monotonic()
            with pytest.raises(NoAnswer):
                await ask(language_model)
            waiting = asyncio.create_task(ask(language_model))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            language_model._failed("another session's request, sent before, failed as well")
            with pytest.raises(NoAnswer, match=r"circuit breaker .* is open"):
                await waiting
            assert monotonic() - begun < asked_s / 2
    assert len(fake.received) == 1


async def test_no_more_than_allowed_are_in_flight_when_that_time_ends():
    """A request that came while the breaker was open holds no slot and is not sent."""
    with speaking(openai.fails(500), answer()) as fake:
        async with model(fake, llm_breaker_failures=1, llm_breaker_s=600, llm_max_in_flight=1) as language_model:
            with pytest.raises(NoAnswer):
                await ask(language_model)
            async with language_model.slot() as slot:
                assert not slot
                language_model._breaker._until = monotonic()  # the ten minutes are over
                assert language_model.breaker == "half-open"
                with pytest.raises(NoAnswer, match=r"circuit breaker .* is open"):
                    await language_model.ask("the rules", "the question", Spent(), slot=slot)
            assert len(fake.received) == 1
            await ask(language_model)
            assert language_model.breaker == "closed"
