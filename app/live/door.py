"""What all live sessions share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.auth import Auth
from app.live.admission import Admission
from app.live.batches import Batches
from app.live.choices import defaults
from app.pipeline.multimodal import Pipeline
from app.protocol.messages import Limits, Notice, StreamSettings
from app.settings import AccessSettings, LiveSettings, PipelineSettings
from app.summary import Summaries

if TYPE_CHECKING:
    from app.live.session import Session


_LONGEST = 500
"""Letters of a model's own words in a notice."""


class LiveDoor:
    """The pipeline, the summaries, the settings, the line and the sessions now open."""

    def __init__(
        self,
        pipeline: Pipeline,
        summaries: Summaries,
        live: LiveSettings,
        access: AccessSettings,
        defaults_of: PipelineSettings,
        auth: Auth,
        *,
        inference_deadline_s: float,
        ocr_timeout_s: float,
    ) -> None:
        self.pipeline = pipeline
        self.batches = Batches(pipeline)
        self.summaries = summaries
        self.live = live
        self.auth = auth
        self.admission = Admission(live, access)
        self.sessions: set[Session] = set()
        self.answer_s = inference_deadline_s + live.send_timeout_s
        """Seconds that a frame in hand may take: at the models, and to be read."""
        self.ocr_timeout_s = ocr_timeout_s
        self.pictures = 0
        """Pictures that came by HTTP and are being analysed."""
        self.defaults: StreamSettings = defaults(defaults_of, live)
        self.limits = Limits(
            max_frame_bytes=live.max_frame_bytes,
            max_pixels=live.max_pixels,
            max_messages_per_s=live.max_messages_per_s,
            idle_timeout_s=live.idle_timeout_s,
            max_pause_s=live.max_pause_s,
            max_session_s=live.max_session_s,
        )
        self._inference_up = pipeline.well
        self._why = pipeline.watch.reason

    def enter(self, session: Session) -> None:
        """A socket was opened."""
        self.sessions.add(session)

    def leave(self, session: Session) -> None:
        self.sessions.discard(session)

    @property
    def open_now(self) -> int:
        """Sessions served and waiting, and pictures being analysed: what a machine must not be stopped under."""
        return self.admission.active + self.admission.waiting + self.pictures

    def notify(self, notice: Notice) -> None:
        """Tells every session."""
        for session in [*self.sessions]:
            session.notice(notice)

    def troubles(self) -> list[Notice]:
        """What is degraded now: a session that begins was not there to be told."""
        broken = self.pipeline.ocr.broken
        return [*([] if self._inference_up else [_away(self._why)]), *([] if broken is None else [_unread(broken)])]

    def inference_changed(self, up: bool, why: str | None) -> None:
        """The inference server came or went, or a model of its does not answer: `why`."""
        if up == self._inference_up and (up or why is None):
            return
        told, self._inference_up, self._why = self._why, up, why
        if up or told is None or told != why:
            self.notify(Notice("inference_restored", "detection and pose are back") if up else _away(why))

    def ocr_changed(self, available: bool, reason: str | None) -> None:
        """OCR came or went."""
        self.notify(Notice("ocr_restored", "text reading is back") if available else _unread(reason))


def _away(why: str | None) -> Notice:
    if why is None:
        return Notice("inference_unavailable", "no detection or pose until it is back; motion goes on")
    return Notice("inference_unavailable", f"a model does not answer: {why[:_LONGEST]}")


def _unread(reason: str | None) -> Notice:
    return Notice("ocr_unavailable", f"no text reading: {reason}")
