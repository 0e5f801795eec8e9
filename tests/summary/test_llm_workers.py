"""Several workers of one service, each with its own client, stay within the service's limits together."""

import asyncio

import pytest

from app.summary import LanguageModel, NoAnswer
from tests.summary.asking import ask, settings
from tests.support import openai
from tests.support.openai import USAGE, answer, speaking

pytestmark = pytest.mark.anyio

WORKERS = 3


async def test_workers_share_the_hours_tokens_and_the_requests_in_flight():
    most = 9000
    with speaking(openai.slow(0.1, answer())) as fake:
        given = settings(fake, llm_max_output_tokens=400, llm_max_in_flight=7, llm_hour_tokens=most)
        workers = [LanguageModel(given, WORKERS) for _ in range(WORKERS)]
        for worker in workers:
            await worker.open()
        told = await asyncio.gather(*(ask(worker) for worker in workers for _ in range(9)), return_exceptions=True)
        for worker in workers:
            await worker.close()
    assert {str(outcome) for outcome in told if isinstance(outcome, NoAnswer)} == {"LLM_HOUR_TOKENS is reached"}
    assert WORKERS <= len(fake.received) <= most / sum(USAGE)


async def test_workers_share_the_slots():
    with speaking(openai.slow(0.3, answer())) as fake:
        given = settings(fake, llm_max_in_flight=5)
        workers = [LanguageModel(given, WORKERS) for _ in range(WORKERS)]
        for worker in workers:
            await worker.open()
        await asyncio.gather(*(ask(worker) for worker in workers for _ in range(4)))
        for worker in workers:
            await worker.close()
    assert len(fake.received) == 12
    assert fake.most_in_flight <= 5
