"""One live session: a socket, from its upgrade to its `bye`.

Three tasks: `_read` takes what the client sends, `_serve` waits for a slot and then has frames
answered, `_keep_time` watches the clocks. Any of them may `end` the session; the
last word, with the report, is said in one place.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

from starlette.websockets import WebSocket

from app import metrics
from app.auth import LIVE, Refusal, address_of, bearer
from app.errors import MAX_LONG_MESSAGE, ProtocolError, shortened
from app.live import choices
from app.live.admission import Place, Rejected
from app.live.answering import AHEAD, Answering
from app.live.clocks import Clocks
from app.live.door import LiveDoor
from app.live.intake import Intake
from app.live.ledger import Ledger
from app.live.telling import Telling
from app.live.voice import Gone, TooSlow, Voice
from app.pipeline.types import StreamMemory
from app.protocol import messages
from app.protocol.messages import (
    PROTOCOL_VERSION,
    Bye,
    ByeReason,
    Error,
    Init,
    Notice,
    Pause,
    Ping,
    Queued,
    Ready,
    Result,
    Resume,
    ServerMessage,
    SettingsInForce,
    Stop,
    StreamSettings,
    Update,
)

log = logging.getLogger(__name__)

_TICK_S = 0.5
_NOT_ITS_FAULT = ("stale", "internal")
"""What a frame is answered that may be as good as any."""


class Session:
    """Runs one client's session over an upgraded socket."""

    def __init__(self, socket: WebSocket, door: LiveDoor) -> None:
        self.id = uuid.uuid4().hex
        self._socket = socket
        self._door = door
        self._live = door.live
        self._voice = Voice(socket, door.live.send_timeout_s)
        self._token = bearer(socket.scope)
        self.address = address_of(socket.scope)
        self._refused: Refusal | None = None
        """Of the token in the header; it is looked at once, as the socket opens."""
        self._settings: StreamSettings = door.defaults
        self._memory = StreamMemory()
        self._ledger = Ledger()
        self._intake = Intake(self.id, door.live, self._ledger)
        telling = self._telling = Telling(self.id, door.summaries, self._send)
        self._answering = Answering(self.id, door.batches, self._memory, self._ledger, telling, self._answered)
        self._begun = asyncio.Event()
        """The first message came, with a token where one is asked for."""
        self._turned_away = False
        self._ready = False
        self._clocks = Clocks(door.live, time.monotonic())
        self._ending = asyncio.Event()
        self._reason: ByeReason | None = None
        self._message: str | None = None
        self._retry_after_s: float | None = None
        self._outcome = "disconnected"
        self._tasks: asyncio.TaskGroup | None = None
        self._serving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serves the session until either side ends it. Raises nothing that is the client's doing."""
        self._door.enter(self)
        try:
            await self._socket.accept()
            await self._run()
        finally:
            self._door.leave(self)

    async def _run(self) -> None:
        if self._token is not None:
            self._refused = self._look_at(self._token)
        if self._trusted:
            self._voice.trust()
        self._voice.on_shutdown(self._shut_down)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                serving = self._serving = tasks.create_task(self._serve())
                reading, timing = tasks.create_task(self._read()), tasks.create_task(self._keep_time())
                await self._ending.wait()
                if self._ready and self._reason in ("stopped", "shutdown", "max_session"):
                    # Each frame in flight has its time. Reading ends when the client leaves: then nobody waits.
                    patience_s = self._door.answer_s * (1 + len(self._intake.line) + len(self._answering))
                    await asyncio.wait({serving, reading}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in (serving, reading, timing):
                    task.cancel()
        except* Exception:  # the door's boundary: one session's fault is logged and counted, the service goes on
            log.exception("session %s failed", self.id)
            self._outcome = "crashed"
            self._reason = self._reason or "protocol_error"
        finally:
            self._tasks = None
            self._door.pipeline.ocr.forget(self._memory.ocr)
            try:
                await self._farewell()
            finally:
                metrics.SESSIONS.labels(self._outcome).inc()

    def end(self, reason: ByeReason | None, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        """Ends the session; the first reason stays. None: the client is gone, there is nobody to say `bye` to."""
        if self._ending.is_set():
            return
        self._reason, self._message, self._retry_after_s = reason, message, retry_after_s
        self._outcome = reason or "disconnected"
        self._ending.set()
        self._intake.line.close()

    def _shut_down(self, within_s: float) -> None:
        """The service stops: half of the time is for what is in flight, half for the last words."""
        self.end("shutdown")
        if self._serving is not None:
            asyncio.get_running_loop().call_later(within_s / 2, self._serving.cancel)

    def notice(self, notice: Notice) -> None:
        """Tells the client, soon."""
        if self._ready and self._tasks is not None and not self._ending.is_set():
            self._tasks.create_task(self._send(notice))

    # --- what the client sends ---

    async def _read(self) -> None:
        while not self._turned_away:  # whose words are not listened to any more
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self.end(None)
                return
            data = message.get("bytes")
            if data is not None:
                await self._frame(data)
            else:
                await self._control(message.get("text") or "")
            await self._intake.room()

    async def _frame(self, data: bytes) -> None:
        if not self._begun.is_set():
            if not self._let_in(None):
                self._ledger.received(len(data))
                return
            self._begun.set()
        refusal = await self._intake.take(data)
        if refusal is None:
            self._clocks.frame(time.monotonic())
        else:
            await self._send(refusal)

    async def _control(self, text: str) -> None:
        await self._intake.turn()
        try:
            message = messages.parse(text)
            await self._obey(message)
        except ProtocolError as error:
            await self._send(Error(error.code, shortened(str(error), MAX_LONG_MESSAGE), field=error.field))

    async def _obey(self, message: messages.ClientMessage) -> None:
        if self._ending.is_set():
            return
        if isinstance(message, Stop):
            self.end("stopped")
        elif isinstance(message, Init):
            self._init(message)
        elif isinstance(message, Update):
            self._require_begun()
            self._settings = self._apply(message)
            if self._ready:
                await self._send(SettingsInForce(self._settings))
        elif isinstance(message, Pause):
            self._clocks.pause(time.monotonic())
        elif isinstance(message, Resume):
            self._clocks.resume(time.monotonic())

    def _init(self, message: Init) -> None:
        if self._begun.is_set():
            raise ProtocolError(
                "`init` comes once, before the first frame; use `update`", code="already_started", field="type"
            )
        if self._let_in(message.token):
            self._settings = self._apply(message)
            self._intake.choose(self._settings.mode)
            self._begun.set()

    @property
    def _trusted(self) -> bool:
        """Whether the client may use the service by what came with the handshake."""
        return not self._door.auth.asks or (self._token is not None and self._refused is None)

    def _look_at(self, token: str | None) -> Refusal | None:
        return self._door.auth.token(token, self.address, f"WEBSOCKET {LIVE}")

    def _let_in(self, token: str | None) -> bool:
        """Looks at the token, before anything that came with it or after it: an answer may tell of our classes.

        Args:
            token: of `init`, which wins over the header's; None: there is none in it.
        """
        if token:
            self._token, self._refused = token, self._look_at(token)
        elif not self._token:
            self._refused = self._look_at(None)
        if self._refused is None:
            self._voice.trust()
            return True
        self._turn_away(self._refused)
        return False

    def _require_begun(self) -> None:
        if not self._begun.is_set():
            raise ProtocolError("`update` before `init` or a frame", code="not_started", field="type")

    def _apply(self, wishes: messages.Patch) -> StreamSettings:
        detect = self._door.pipeline.model_set.detect
        names = detect.class_names if detect is not None else ()
        return choices.apply(wishes, self._settings, names, self._door.summaries.prompt)

    # --- what the client gets ---

    async def _serve(self) -> None:
        if not await self._begin():
            return
        try:
            with self._door.admission.place(token=self._token, address=self.address) as place:
                await self._wait(place)
                self._ready = True
                self._clocks.serve(time.monotonic())
                greeting: list[ServerMessage] = [self._welcome(), *self._door.troubles()]
                for message in greeting:
                    if not await self._send(message):
                        return
                at_once = min(AHEAD, self._live.credits) if self._settings.mode == "lossless" else 1
                await self._answering.run(self._intake.line, lambda: self._settings, at_once)
        except Rejected as error:
            self.end("rejected", str(error), retry_after_s=error.retry_after_s)

    async def _begin(self) -> bool:
        """Waits for the first message; whether the client may go on."""
        try:
            async with asyncio.timeout(self._live.init_timeout_s):
                await self._begun.wait()
        except TimeoutError:
            within_s = self._live.init_timeout_s
            if self._trusted:
                self.end("idle", f"nothing came within {within_s:g} seconds")
            else:
                self._turn_away(self._door.auth.late(self.address, f"WEBSOCKET {LIVE}", within_s))
            return False
        return True

    def _turn_away(self, refusal: Refusal) -> None:
        self._turned_away = True
        if refusal.retry_after_s is None:
            self.end("unauthorized", refusal.message)
        else:
            self.end("rejected", refusal.message, retry_after_s=refusal.retry_after_s)

    async def _wait(self, place: Place) -> None:
        while not place.granted:
            place.moved.clear()
            position = place.position
            if not await self._send(Queued(position, position - 1, self._door.admission.eta_s(position))):
                await asyncio.Event().wait()  # the session is over; `run` cancels this task
            await place.moved.wait()

    def _welcome(self) -> Ready:
        return Ready(
            protocol=PROTOCOL_VERSION,
            session_id=self.id,
            models=self._door.pipeline.models,
            settings=self._settings,
            limits=self._door.limits,
            credits=self._live.credits,
            prompts=self._door.summaries.prompt_names,
        )

    async def _send(self, message: ServerMessage) -> bool:
        """Sends; False when the session is over, because the client is gone or does not read."""
        try:
            await self._voice.say(message)
        except TooSlow:
            self.end("slow_reader", f"nothing was read for {self._live.send_timeout_s:g} seconds")
            return False
        except Gone:
            self.end(None)
            return False
        return True

    async def _answered(self, message: ServerMessage) -> bool:
        """Sends what became of a frame, and has the clocks know whether it was of use."""
        if isinstance(message, Result):
            self._clocks.judged(True, time.monotonic())
        elif isinstance(message, Error) and message.code not in _NOT_ITS_FAULT:
            self._clocks.judged(False, time.monotonic())
        return await self._send(message)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(min(_TICK_S, self._live.ping_interval_s))
            now = time.monotonic()
            if self._clocks.ping_due(now):
                await self._send(Ping(time.time() * 1000))
            over = self._clocks.over(now)
            if over is not None:
                self.end(*over)
            if not self._ready and self._voice.left:  # in line, and not read since its inbox is full
                self.end(None)

    async def _farewell(self) -> None:
        reason = self._reason
        self._ledger.settle("disconnected" if reason is None else reason)
        last = await self._telling.finish()
        if reason is not None:
            report = self._ledger.report(last)
            await self._voice.farewell(Bye(reason, report, self._message, self._retry_after_s))
