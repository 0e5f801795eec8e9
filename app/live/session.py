"""One live session, a socket from its upgrade to `bye`; and `LiveEntryPoint`, which all sessions share.

A session has three tasks: `_read` takes the client's messages, `_serve` waits for a slot and then sends results,
`_watch_time` checks the timeouts. Each of them may `end` the session. `bye`, with the report, is sent in one place.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.websockets import WebSocket

from app import metrics
from app.auth import LIVE, Auth, Refusal, address_of, bearer
from app.errors import MAX_LONG_MESSAGE, ProtocolError, quoted, shortened
from app.live.admission import Admission, Rejected, WaitingSession
from app.live.receiver import Receiver
from app.live.sender import AHEAD, Gone, Results, Sender, SummaryStream, TooSlow
from app.live.stats import FrameStats
from app.logging import SESSION_ID
from app.pipeline.batching import LiveBatcher
from app.pipeline.multimodal import Pipeline
from app.pipeline.types import StreamMemory
from app.protocol import messages
from app.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    ByeReason,
    Error,
    Init,
    Limits,
    Notice,
    Patch,
    Pause,
    Ping,
    Queued,
    Ready,
    Resume,
    ServerMessage,
    SettingsInForce,
    Stop,
    StreamSettings,
    Update,
)
from app.protocol.stages import STAGES
from app.protocol.stream import SUMMARY
from app.settings import AccessSettings, LiveSettings, PipelineSettings
from app.sinks import Feed
from app.summary import Summaries

log = logging.getLogger(__name__)

_TICK_S = 0.5
"""Seconds between two checks of the timeouts."""
_MAX_REASON = 500
"""Characters of a model's own error message in a notice."""


class LiveEntryPoint:
    """The objects that all live sessions share: pipeline, summaries, settings, admission, and the open sessions."""

    def __init__(
        self,
        pipeline: Pipeline,
        summaries: Summaries,
        live: LiveSettings,
        access: AccessSettings,
        defaults: PipelineSettings,
        auth: Auth,
        *,
        inference_deadline_s: float,
        feed: Feed | None = None,
    ) -> None:
        """`feed`: gets the results of all sessions; None: no sinks."""
        self.pipeline = pipeline
        self.feed = feed
        self.batcher = LiveBatcher(pipeline)
        self.summaries = summaries
        self.live = live
        self.auth = auth
        self.admission = Admission(live, access)
        self.sessions: set[Session] = set()
        self.answer_s = inference_deadline_s + live.send_timeout_s
        """Seconds that a frame in flight may take: at the models, and until the client has read the result."""
        self.images = 0
        """Images that came by HTTP and are being analysed."""
        self.defaults = StreamSettings(confidence=defaults.confidence, iou=defaults.iou, max_age_ms=live.max_age_ms)
        """The settings of a client that asks for nothing."""
        self.limits = Limits(
            max_frame_bytes=live.max_frame_bytes,
            max_pixels=live.max_pixels,
            max_messages_per_s=live.max_messages_per_s,
            idle_timeout_s=live.idle_timeout_s,
            max_pause_s=live.max_pause_s,
            max_session_s=live.max_session_s,
        )
        self._inference_up = pipeline.well
        self._inference_reason = pipeline.watch.reason

    @property
    def open_now(self) -> int:
        """Sessions (served and waiting) plus images being analysed. While it is above 0, the machine must not stop."""
        return self.admission.active + self.admission.waiting + self.images

    def notify(self, notice: Notice) -> None:
        """Sends a notice to all sessions."""
        for session in [*self.sessions]:
            session.notify(notice)

    def notices(self) -> list[Notice]:
        """Notices of the parts that are degraded now, for a session that begins."""
        found = []
        if not self._inference_up:
            found.append(_inference_unavailable(self._inference_reason))
        found += [_stage_unavailable(name, reason) for name, reason in self.pipeline.broken.items()]
        return found

    def inference_changed(self, up: bool, reason: str | None) -> None:
        """Notifies sessions that the inference server came back or was lost, or that a model fails.

        Args:
            reason: the model's error; None if the server itself was lost, or all is well.
        """
        if up == self._inference_up and (up or reason is None):
            return
        before, self._inference_up, self._inference_reason = self._inference_reason, up, reason
        if up:
            self.notify(Notice("inference_restored", "what the models find is there again"))
        elif before is None or before != reason:
            self.notify(_inference_unavailable(reason))

    def stage_changed(self, name: str, available: bool, reason: str | None) -> None:
        """Notifies sessions that a part that a stage runs beside the inference server came back or was lost."""
        if available:
            self.notify(Notice(f"{name}_restored", f"{STAGES[name].title} is available again"))
        else:
            self.notify(_stage_unavailable(name, reason))


def _inference_unavailable(reason: str | None) -> Notice:
    if reason is None:
        return Notice("inference_unavailable", "nothing that models find until it is back; the other stages go on")
    return Notice("inference_unavailable", f"a model does not answer: {reason[:_MAX_REASON]}")


def _stage_unavailable(name: str, reason: str | None) -> Notice:
    return Notice(f"{name}_unavailable", f"{STAGES[name].title} is not available: {reason}")


class Session:
    """Runs one client's session over an upgraded socket."""

    def __init__(self, socket: WebSocket, entry_point: LiveEntryPoint) -> None:
        self.id = uuid.uuid4().hex
        self._socket = socket
        self._entry_point = entry_point
        self._live = entry_point.live
        self._sender = Sender(socket, entry_point.live.send_timeout_s)
        self._token = bearer(socket.scope)
        self.address = address_of(socket.scope)
        self._refused: Refusal | None = None
        """The refusal of the header's token, which is checked once, when the socket opens."""
        self._memory = StreamMemory()
        self._stats = FrameStats()
        self._receiver = Receiver(self.id, entry_point.live, self._stats)
        self._timeouts = Timeouts(entry_point.live, time.monotonic())
        self._summaries = SummaryStream(self.id, entry_point.summaries, self._send)
        self._results = Results(
            self.id,
            entry_point.batcher,
            self._memory,
            self._stats,
            self._summaries,
            self._send,
            entry_point.defaults,
            self._timeouts.judged,
            entry_point.feed,
        )
        self._begun = asyncio.Event()
        """Set by the first message, with a valid token if the service asks for one."""
        self._turned_away = False
        self._ready = False
        self._ending = asyncio.Event()
        self._reason: ByeReason | None = None
        self._message: str | None = None
        self._retry_after_s: float | None = None
        self._outcome = "disconnected"
        self._tasks: asyncio.TaskGroup | None = None
        self._serving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serves the session until either side ends it. Raises no error that the client causes."""
        SESSION_ID.set(self.id)
        self._entry_point.sessions.add(self)
        try:
            await self._socket.accept()
            await self._run()
        finally:
            self._entry_point.sessions.discard(self)

    async def _run(self) -> None:
        if self._token is not None:
            self._refused = self._check(self._token)
        if self._trusted:
            self._sender.trust()
        self._sender.on_shutdown(self._shut_down)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                serving = self._serving = tasks.create_task(self._serve())
                reading, watching = tasks.create_task(self._read()), tasks.create_task(self._watch_time())
                await self._ending.wait()
                if self._ready and self._reason in ("stopped", "shutdown", "max_session"):
                    # Frames in flight are answered, each within `answer_s`. The reading task ends when the client
                    # leaves; then no answer is needed.
                    frames = len(self._receiver.queue) + len(self._results)
                    timeout_s = self._entry_point.answer_s * (1 + frames)
                    await asyncio.wait({serving, reading}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for task in (serving, reading, watching):
                    task.cancel()
        except* Exception:  # the boundary of one session: its fault is logged and counted, the service goes on
            log.exception("session %s failed", self.id)
            self._outcome = "crashed"
            self._reason = self._reason or "protocol_error"
        finally:
            self._tasks = None
            self._entry_point.pipeline.forget(self._memory)
            try:
                await self._close()
            finally:
                metrics.SESSIONS.labels(self._outcome).inc()

    def end(self, reason: ByeReason | None, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        """Ends the session; only the first call counts.

        Args:
            reason: None if the client has left, so that no `bye` is sent.
        """
        if self._ending.is_set():
            return
        self._reason, self._message, self._retry_after_s = reason, message, retry_after_s
        self._outcome = reason or "disconnected"
        self._ending.set()
        self._receiver.queue.close()

    def _shut_down(self, within_s: float) -> None:
        """Ends the session because the service stops: half of the time is for frames in flight, half for `bye`."""
        self.end("shutdown")
        if self._serving is not None:
            asyncio.get_running_loop().call_later(within_s / 2, self._serving.cancel)

    def notify(self, notice: Notice) -> None:
        """Sends a notice soon, without waiting."""
        if self._ready and self._tasks is not None and not self._ending.is_set():
            self._tasks.create_task(self._send(notice))

    # --- from the client ---

    async def _read(self) -> None:
        receiver = self._receiver
        while not self._turned_away:  # a client that was refused is not read any more
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self.end(None)
                return
            data = message.get("bytes")
            if data is not None:
                await self._receive_frame(data)
            else:
                await self._receive_text(message.get("text") or "")
            if receiver.lossless:
                await receiver.space()

    async def _receive_frame(self, data: bytes) -> None:
        if not self._begun.is_set():
            if not self._authorize(None):
                self._stats.received(len(data))
                return
            self._begun.set()
        refusal = await self._receiver.receive(data)
        if refusal is None:
            self._timeouts.frame(time.monotonic())
        else:
            await self._send(refusal)

    async def _receive_text(self, text: str) -> None:
        await self._receiver.within_rate()
        try:
            await self._apply(messages.parse(text))
        except ProtocolError as error:
            await self._send(Error(error.code, shortened(str(error), MAX_LONG_MESSAGE), field=error.field))

    async def _apply(self, message: messages.ClientMessage) -> None:
        if self._ending.is_set():
            return
        if isinstance(message, Stop):
            self.end("stopped")
        elif isinstance(message, Init):
            self._init(message)
        elif isinstance(message, Update):
            if not self._begun.is_set():
                raise ProtocolError("`update` before `init` or a frame", code="not_started", field="type")
            self._results.settings = self._patched(message)
            if self._ready:
                await self._send(SettingsInForce(self._results.settings))
        elif isinstance(message, Pause):
            self._timeouts.pause(time.monotonic())
        elif isinstance(message, Resume):
            self._timeouts.resume(time.monotonic())

    def _init(self, message: Init) -> None:
        if self._begun.is_set():
            raise ProtocolError(
                "`init` comes once, before the first frame; use `update`", code="already_started", field="type"
            )
        if self._authorize(message.token):
            self._results.settings = self._patched(message)
            self._receiver.set_mode(self._results.settings.mode)
            self._begun.set()

    def _patched(self, patch: Patch) -> StreamSettings:
        names = self._entry_point.pipeline.model_set.class_names
        return apply_patch(patch, self._results.settings, names, self._entry_point.summaries.prompt)

    # --- whether the client may use the service ---

    @property
    def _trusted(self) -> bool:
        """Whether the handshake alone allows the client to use the service."""
        return not self._entry_point.auth.requires_token or (self._token is not None and self._refused is None)

    def _check(self, token: str | None) -> Refusal | None:
        return self._entry_point.auth.token(token, self.address, f"WEBSOCKET {LIVE}")

    def _authorize(self, token: str | None) -> bool:
        """Checks the token before the rest of its message and all later ones, because an answer may name our classes.

        Args:
            token: that of `init`, which goes before the header's; None if `init` has none.
        """
        if token:
            self._token, self._refused = token, self._check(token)
        elif not self._token:
            self._refused = self._check(None)
        if self._refused is None:
            self._sender.trust()
            return True
        self._turn_away(self._refused)
        return False

    def _turn_away(self, refusal: Refusal) -> None:
        self._turned_away = True
        if refusal.retry_after_s is None:
            self.end("unauthorized", refusal.message)
        else:
            self.end("rejected", refusal.message, retry_after_s=refusal.retry_after_s)

    # --- to the client ---

    async def _serve(self) -> None:
        if not await self._begin():
            return
        try:
            with self._entry_point.admission.admit(token=self._token, address=self.address) as waiting:
                await self._wait_for_slot(waiting)
                self._ready = True
                self._timeouts.serve(time.monotonic())
                greeting: list[ServerMessage] = [self._ready_message(), *self._entry_point.notices()]
                for message in greeting:
                    if not await self._send(message):
                        return
                at_once = min(AHEAD, self._live.credits) if self._results.settings.mode == "lossless" else 1
                await self._results.run(self._receiver.queue, at_once)
        except Rejected as error:
            self.end("rejected", str(error), retry_after_s=error.retry_after_s)

    async def _begin(self) -> bool:
        """Waits for the first message; returns whether it came in time."""
        try:
            async with asyncio.timeout(self._live.init_timeout_s):
                await self._begun.wait()
        except TimeoutError:
            within_s = self._live.init_timeout_s
            if self._trusted:
                self.end("idle", f"nothing came within {within_s:g} seconds")
            else:
                self._turn_away(self._entry_point.auth.late(self.address, f"WEBSOCKET {LIVE}", within_s))
            return False
        return True

    async def _wait_for_slot(self, waiting: WaitingSession) -> None:
        while not waiting.granted:
            waiting.moved.clear()
            position = waiting.position
            if not await self._send(Queued(position, position - 1, self._entry_point.admission.eta_s(position))):
                await asyncio.Event().wait()  # the session is over: `_run` cancels this task
            await waiting.moved.wait()

    def _ready_message(self) -> Ready:
        return Ready(
            protocol=PROTOCOL_VERSION,
            session_id=self.id,
            models=self._entry_point.pipeline.models,
            settings=self._results.settings,
            limits=self._entry_point.limits,
            credits=self._live.credits,
            prompts=self._entry_point.summaries.prompt_names,
            stages=messages.stage_descriptions(),
        )

    async def _send(self, message: ServerMessage) -> bool:
        """Sends a message; returns False if the session is over, because the client has left or does not read."""
        try:
            await self._sender.send(message)
        except TooSlow:
            self.end("slow_reader", f"nothing was read for {self._live.send_timeout_s:g} seconds")
            return False
        except Gone:
            self.end(None)
            return False
        return True

    async def _watch_time(self) -> None:
        while True:
            await asyncio.sleep(min(_TICK_S, self._live.ping_interval_s))
            now = time.monotonic()
            if self._timeouts.ping_due(now):
                await self._send(Ping(time.time() * 1000))
            over = self._timeouts.over(now)
            if over is not None:
                self.end(*over)
            # Once its queue is full, a session that waits for a slot is not read, so that only `left` shows that the
            # client has gone.
            if not self._ready and self._sender.left:
                self.end(None)

    async def _close(self) -> None:
        reason = self._reason
        self._stats.settle("disconnected" if reason is None else reason)
        summary = await self._summaries.finish()
        if reason is not None:
            await self._sender.close(Bye(reason, self._stats.report(summary), self._message, self._retry_after_s))


class Timeouts:
    """Decides when a session has lasted long enough. `now` is monotonic seconds everywhere; there is no I/O.

    Only frames keep a session's slot, and all pauses together may last MAX_PAUSE_S. Other messages keep no slot.
    """

    def __init__(self, live: LiveSettings, now: float) -> None:
        self._live = live
        self._started = self._last_frame = now
        self._next_ping = now + live.ping_interval_s
        self._paused_at: float | None = None
        self._paused_s = 0.0
        """Seconds of the pauses that are over, since the session got its slot."""
        self._serving = False
        self._useful = True
        """Whether the last frame that was judged was useful."""

    def serve(self, now: float) -> None:
        """Records that the session has its slot: it must send frames from now on. Earlier pauses do not count."""
        self._serving = True
        self._last_frame = now
        self._paused_s = 0.0
        if self._paused_at is not None:
            self._paused_at = now

    def frame(self, now: float) -> None:
        """Records a frame. It does not end a pause. After a useless frame, the next one counts once it is judged."""
        if self._useful:
            self._last_frame = now

    def judged(self, useful: bool, now: float) -> None:
        """Records whether a frame was useful, so that it got a result; a frame that is no image or too large is not."""
        self._useful = useful
        if useful:
            self._last_frame = now

    def pause(self, now: float) -> None:
        """Stops the idle timeout. A second pause does not lengthen the first."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Continues the idle timeout from where it stopped. Without a pause nothing changes."""
        if self._paused_at is not None:
            paused_s = now - self._paused_at
            self._paused_s += paused_s
            # A frame that came during the pause counts from then.
            self._last_frame += min(paused_s, now - self._last_frame)
            self._paused_at = None

    def ping_due(self, now: float) -> bool:
        """Whether a `ping` is due; if so, the next one is due an interval from now."""
        due = now >= self._next_ping
        if due:
            self._next_ping = now + self._live.ping_interval_s
        return due

    def over(self, now: float) -> tuple[ByeReason, str] | None:
        """The reason why the session ends now, and its description; None if it may go on."""
        live = self._live
        if now - self._started > live.max_session_s:
            return "max_session", f"sessions last {live.max_session_s:g} seconds at most"
        if not self._serving:
            return None
        if self._paused_at is not None:
            if self._paused_s + now - self._paused_at > live.max_pause_s:
                return "idle", f"paused for more than {live.max_pause_s:g} seconds"
        elif now - self._last_frame > live.idle_timeout_s:
            return "idle", f"no frame for {live.idle_timeout_s:g} seconds"
        return None


def apply_patch(
    patch: Patch,
    settings: StreamSettings,
    class_names: Sequence[str],
    prompt: Callable[[str | None], str] | None = None,
) -> StreamSettings:
    """Applies a client's settings patch to the settings in force.

    Args:
        prompt: `Summaries.prompt`, from the prompt that a client names to the one in force; None if there are no
            summaries.

    Raises:
        ProtocolError: the model does not know a class, or the operator has no such prompt.
    """
    given = patch.model_dump(
        exclude_none=True,
        include={"mode", "confidence", "iou", "motion_grid", "mask_rle", "max_age_ms"},
        warnings=False,
    )
    if patch.stages is not None:
        given["stages"] = settings.stages.but(**patch.stages)
    if patch.classes is not None:
        given["classes"] = _class_ids(patch.classes, class_names)
    if patch.summary is not None and prompt is not None:
        given["summary_prompt"] = prompt(patch.summary.prompt)
    changed: StreamSettings = dataclasses.replace(settings, **given)
    if prompt is None:  # because the settings in force must show which stages really run
        return dataclasses.replace(changed, stages=changed.stages.but(**{SUMMARY: False}))
    return dataclasses.replace(changed, summary_prompt=prompt(changed.summary_prompt))


def _class_ids(wanted: Sequence[int | str], names: Sequence[str]) -> tuple[int, ...] | None:
    """Ids of the wanted classes; None, which keeps all classes, for an empty list."""
    ids = {name.lower(): number for number, name in enumerate(names)}
    found: set[int] = set()
    for index, name in enumerate(wanted):
        number = name if isinstance(name, int) else ids.get(name.lower(), -1)
        if not 0 <= number < len(names):
            known = ", ".join(names[:100]) or "none, since no detection model is served now"
            raise ProtocolError(
                f"classes.{index}: {quoted(name)} is no class of this model; known: {known}",
                code="invalid_value",
                field=f"classes.{index}",
            )
        found.add(number)
    return tuple(sorted(found)) or None
