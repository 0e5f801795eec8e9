"""A language model at a server of the tests, and the metrics that it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY

from app.settings import LlmSettings
from app.summary import LanguageModel, Spent
from app.summary.answer import SummaryContent
from tests.support.openai import FakeOpenAI


def settings(fake: FakeOpenAI, **changes) -> LlmSettings:
    """Of a model at this server; failures are repeated at once or not at all."""
    given = {"llm_model": "openai:test-model", "llm_base_url": fake.url, "llm_timeout_s": 10.0, "llm_retries": 0}
    return LlmSettings(**{**given, **changes})


@asynccontextmanager
async def model(fake: FakeOpenAI, **changes) -> AsyncIterator[LanguageModel]:
    opened = LanguageModel(settings(fake, **changes))
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


async def ask(model: LanguageModel, spent: Spent | None = None) -> SummaryContent:
    async with model.slot() as slot:
        return await model.ask("the rules", "the question", spent if spent is not None else Spent(), slot=slot)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Waits until the condition holds; other tasks bring it about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  servers in threads set no events of ours
            await asyncio.sleep(0.01)


class Counted:
    """A counter or gauge, and what it grew by since this was made."""

    def __init__(self, name: str, **labels: str) -> None:
        self._name, self._labels = name, labels
        self._begun = self.now

    @property
    def now(self) -> float:
        return REGISTRY.get_sample_value(self._name, self._labels) or 0.0

    @property
    def more(self) -> float:
        return self.now - self._begun
