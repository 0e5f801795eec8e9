"""A session's summaries, as its settings in force say: on or off, by which prompt."""

from __future__ import annotations

from app.protocol.messages import StreamSettings, Summary
from app.protocol.result import FrameResult
from app.summary import SendSummary, SessionSummaries, Summaries


class Telling:
    """Begins with the first result of a session that wants summaries. Switched off, it tells what it had and rests."""

    def __init__(self, session_id: str, summaries: Summaries, send: SendSummary) -> None:
        self._session_id = session_id
        self._summaries = summaries
        self._send = send
        self._told: SessionSummaries | None = None

    def offer(self, frame_id: int, result: FrameResult, at_ms: float, settings: StreamSettings) -> None:
        """One result, when it was sent. Never waits."""
        if not settings.stages.summary:
            if self._told is not None:
                self._told.pause()
            return
        if self._told is None:
            self._told = self._summaries.session(self._session_id, settings.summary_prompt, self._send)
        elif self._told.prompt != settings.summary_prompt:
            self._told.set_prompt(settings.summary_prompt)
        self._told.offer(frame_id, result, at_ms)

    async def finish(self) -> Summary | None:
        """What was seen since the last summary; takes SUMMARY_FINISH_S at most."""
        return await self._told.finish() if self._told is not None else None
