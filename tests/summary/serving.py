"""Summaries opened as the lifespan opens them, and a client that collects what they send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.protocol.messages import Notice, Summary
from app.settings import LlmSettings, SummarySettings
from app.summary import SessionSummaries, Summaries
from tests.summary.seeing import BEGUN_MS, frame

QUICK = {"summary_min_interval_s": 0.05, "summary_max_interval_s": 0.2, "summary_finish_s": 2.0}
NO_MODEL = LlmSettings(llm_model=None)


@asynccontextmanager
async def summaries(folder: Path, model: LlmSettings = NO_MODEL, **settings: Any) -> AsyncIterator[Summaries]:
    """Opens summaries, with short intervals unless the settings say otherwise."""
    service = Summaries(SummarySettings(**{**QUICK, **settings}), model, folder)
    await service.open()
    try:
        yield service
    finally:
        await service.close()


class Client:
    """A client that collects the messages of a session."""

    def __init__(self) -> None:
        self.heard: list[Summary | Notice] = []

    async def send(self, message: Summary | Notice) -> None:
        self.heard.append(message)

    @property
    def summaries(self) -> list[Summary]:
        return [message for message in self.heard if isinstance(message, Summary)]

    @property
    def notices(self) -> list[str]:
        return [notice.message for notice in self.heard if isinstance(notice, Notice)]


def show(session: SessionSummaries, first: int, last: int, *names: str, text: str | None = None) -> None:
    """Frames, ten a second, all with the same things in them."""
    for number in range(first, last + 1):
        session.offer(number, frame(*names, text=text), BEGUN_MS + number * 100)
