"""Uvicorn's connections, and what they lack: a bound on each from accept on, clocks on peers that say or read nothing,
an answer to every bad handshake, a graceful end, an abort."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import h11
import orjson
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.server import ServerProtocol

from app import metrics
from app.admittance import Admittance, Entry, Refusal
from app.live.voice import CONNECTION
from app.settings import LiveSettings
from app.words import shortened

_MAX_FRAGMENTS = 4096
"""Of one message: empty ones count for nothing in its size, and would add up."""
_BEFORE_TOKEN = 64 * 1024
"""Bytes of a message that are kept for a client whose token was not seen yet: `init` is far smaller."""
_MOST_HEAD = 16 * 1024
"""Bytes of a request's line and headers, as they came."""
_MOST_HEADERS = 128
_MOST_LINE = 8 * 1024
"""Bytes of an upgrade's line, and of each of its headers: what the WebSocket library reads."""
_LINGER_S = 1.0
"""Closing a socket with unread bytes makes the kernel reset it, and the answer is lost: so long they are read."""
_LINGER_BYTES = 256 * 1024
_BODY_GRACE_S = 1.0
"""A route that reads a body has a clock of its own, which says more; this one is for those that have none."""
_REFUSED_HEAD_S = 2.0
"""Seconds that a connection beyond the limits has to ask, and to be told so."""
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
"""Linux only."""
_ESTABLISHED = 1
_ALWAYS = ("/health/live", "/health/ready", "/metrics")
"""Answered beyond MAX_CONNECTIONS, too, and then closed: a full service is no dead one, and must not be restarted."""


class ServerConfig(uvicorn.Config):
    """Uvicorn's, and the clocks and the bounds of its connections; it travels to worker processes as it is."""

    live: LiveSettings
    _admittance: Admittance | None = None

    @property
    def admittance(self) -> Admittance:
        """This process's connections."""
        if self._admittance is None:
            self._admittance = Admittance(self.live)
        return self._admittance


class ReaderClock:
    """Aborts a connection once its peer reads nothing for `patience_s`; winds itself up as long as it does."""

    def __init__(self, transport: asyncio.Transport, patience_s: float) -> None:
        self._transport = transport
        self._patience_s = patience_s
        self._wind_up()

    def _wind_up(self) -> None:
        unread = self._transport.get_write_buffer_size()
        self._clock = asyncio.get_running_loop().call_later(self._patience_s, self._look, unread)

    def _look(self, before: int) -> None:
        if self._transport.get_write_buffer_size() < before:
            self._wind_up()
        else:
            metrics.CONNECTIONS_REFUSED.labels("slow_reader").inc()
            self._transport.abort()

    def stop(self) -> None:
        self._clock.cancel()


class TimedHttp(H11Protocol):
    """Ends a connection whose next request is wrong, or not here in time, or that reads nothing of its answer.

    There is a clock at every moment but those in which the application works on a request that is here whole.
    """

    config: ServerConfig
    entry: Entry | None = None
    """None: beyond all bounds, and about to be gone."""
    _reader: ReaderClock | None = None
    _clock: asyncio.TimerHandle | None = None
    _lingering: int | None = None
    """Bytes that may still come and be thrown away, once the last word is said."""
    _last = False
    """The request in hand is the last that is answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._application, self.app = self.app, self._answer
        self.entry = self.config.admittance.enter(self.client[0] if self.client else None)
        if self.entry is None:
            transport.abort()
        else:
            refused = self.entry.refused is not None
            patience_s = self.config.live.init_timeout_s
            self._wind_up(min(_REFUSED_HEAD_S, patience_s) if refused else patience_s, self._too_slow)

    # --- clocks ---

    def _wind_up(self, patience_s: float, call: Any) -> None:
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self.loop.call_later(patience_s, call)

    def _too_slow(self) -> None:
        """No request came in time, or not all of its head."""
        if self.cycle is not None and not self.cycle.response_complete:
            return  # one is with the application, which winds up the clock when it is done
        begun = bool(self.conn.trailing_data[0])
        if begun or self.entry is None or self.entry.state == "handshake":
            metrics.CONNECTIONS_REFUSED.labels("slow_head" if begun else "silent").inc()
        if not begun or self.transport.get_write_buffer_size() or self.conn.our_state is not h11.IDLE:
            self.transport.abort()
            return
        self.transport.write(_problem(408, "timeout", "the request was not here whole in time"))
        self._close_soon()

    def _body_late(self) -> None:
        """The application has had a request for INIT_TIMEOUT_S and more, and its body is not here whole."""
        if not self.cycle.more_body or self.cycle.response_complete:
            return
        words = f"the body was not here whole within {self.config.live.init_timeout_s:g} seconds"
        self._refuse(408, "slow_body", "timeout", words)

    def _close_soon(self) -> None:
        self._move("closing")
        self.transport.close()
        self._wind_up(min(_LINGER_S, self.config.live.send_timeout_s), self.transport.abort)

    # --- refusals ---

    def _refuse(self, status: int, reason: str, code: str, words: str, headers: str = "") -> None:
        """Says why, by hand, and closes: h11 speaks only where the request was right."""
        metrics.CONNECTIONS_REFUSED.labels(reason).inc()
        self._unset_keepalive_if_required()
        speaks = True
        if self.cycle is not None and not self.cycle.response_complete:
            speaks = not self.cycle.response_started
            self.cycle.disconnected = True  # for the application the client is gone
            self.cycle.message_event.set()
        elif self.conn.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            speaks = False  # it has its answer; what is wrong is the rest of its body
        if self.transport.is_closing():
            return
        if speaks:
            self.transport.write(_problem(status, code, words, headers))
        self._linger()

    def _linger(self) -> None:
        """The last word is said. What still comes is read for a moment, so that it arrives."""
        self._lingering = _LINGER_BYTES
        self._move("closing")
        self.flow.resume_reading()
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wind_up(min(_LINGER_S, self.config.live.init_timeout_s / 2), self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's way to say that h11 found fault with a request."""
        fault = sys.exception()
        status = getattr(fault, "error_status_hint", 400)
        if status == 431:
            self._refuse(431, "large_head", "headers_too_large", f"more than {_MOST_HEAD} bytes before a body")
        else:
            self._refuse(status, "malformed", "bad_request", "this is no HTTP request")

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.transport.abort()
        elif self.entry is not None:
            super().data_received(data)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose head is here whole."""
        if self._lingering is not None:
            return  # its body came with it, and was wrong
        if self.cycle.more_body:
            self._wind_up(self.config.live.init_timeout_s + _BODY_GRACE_S, self._body_late)
        elif self._clock is not None:
            self._clock.cancel()
        self._move("http")
        scope["extensions"] = {CONNECTION: self}
        if scope["http_version"] not in ("1.0", "1.1"):
            self._last = True
            metrics.CONNECTIONS_REFUSED.labels("malformed").inc()
            await _json_problem(505, "version", "HTTP/1.1 is spoken here")(scope, receive, send)
        elif _too_long(self.headers, scope["raw_path"]):
            self._last = True
            metrics.CONNECTIONS_REFUSED.labels("large_head").inc()
            words = f"more than {_MOST_HEAD} bytes or {_MOST_HEADERS} headers before a body"
            await _json_problem(431, "headers_too_large", words)(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    def answer_no_more(self) -> None:
        """The request in hand is the last one of this connection."""
        self._last = True

    def on_response_complete(self) -> None:
        # Uvicorn's own clock between requests stops at the next byte, whatever it is.
        self._wind_up(self.config.live.init_timeout_s, self._too_slow)
        if self._last and not self.transport.is_closing():
            self._linger()
            return
        if self.transport.is_closing():
            self._move("closing")
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._move("http")
        lines = [b"%s %s HTTP/%s" % (event.method, event.target, event.http_version)]
        lines += [name + b": " + value for name, value in self.headers]
        if _too_long(self.headers, event.target) or max(map(len, lines)) > _MOST_LINE - 2:
            words = f"an upgrade may have {_MOST_HEADERS} headers of {_MOST_LINE} bytes, and {_MOST_HEAD} bytes in all"
            self._refuse(431, "large_head", "headers_too_large", words)
            return
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        fault = _fault(head)
        if fault is not None:
            self._refuse(fault[0], "bad_upgrade", "bad_upgrade", fault[1], "Sec-WebSocket-Version: 13\r\n")
            return
        if self._clock is not None:
            self._clock.cancel()
        self.connections.discard(self)
        protocol = LiveSocket(self.config, self.server_state, self.app_state)
        protocol.take_over(self.transport, self.entry, head, bytes(self.conn.trailing_data[0]))

    # --- the transport's words ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = ReaderClock(self.transport, self.config.live.send_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.stop()

    def shutdown(self) -> None:
        if self._lingering is not None or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE, h11.SEND_BODY):
            self.transport.abort()  # it has had its answer
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clock is not None:
            self._clock.cancel()
        if self._reader is not None:
            self._reader.stop()
        if self.entry is not None:
            self.entry.leave()
        super().connection_lost(exc)

    def _move(self, state: str) -> None:
        if self.entry is not None:
            self.entry.move(state)


class LiveSocket(WebSocketsSansIOProtocol):
    """Lets the session end itself when the service stops, and abort a peer that never reads."""

    end_session: Any = None
    """Set by the session: called when the service stops, with the seconds that it waits."""
    trusted = False
    """Set by the session once it has seen the client's token, or needs none."""
    config: ServerConfig
    entry: Entry | None = None
    _reader: ReaderClock | None = None
    _heard = False
    """Whether anything came since the clock of the last ping was wound up."""
    _unproven = 0
    """Bytes that came before the token."""
    _early: bytes | None = None
    """What came behind the upgrade, before it was answered; more is not read until then. None once it is."""
    _unanswered: asyncio.TimerHandle | None = None

    def take_over(self, transport: asyncio.Transport, entry: Entry | None, head: bytes, early: bytes) -> None:
        """Goes on with a connection whose upgrade is in order."""
        self.entry = entry
        self._early = early
        self._unanswered = self.loop.call_later(self.config.live.init_timeout_s, transport.abort)
        if entry is not None:
            entry.move("websocket")
        self.connection_made(transport)
        super().data_received(head)
        transport.set_protocol(self)
        if self._early is not None:
            transport.pause_reading()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # The handshake was refused in full. Uvicorn forgets that, and would log every refusal as an error.
            self.handshake_complete = True
        if self._early is not None and self.handshake_complete:
            early, self._early = self._early, None
            if self._unanswered is not None:
                self._unanswered.cancel()
            if self.close_sent or self.transport.is_closing():
                self._cut_off_soon()
                return
            self.transport.resume_reading()
            if early:
                self.data_received(early)

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[CONNECTION] = self
        await super().run_asgi()
        if not self.disconnected:
            self._cut_off_soon()

    def answer_no_more(self) -> None:
        """An upgrade is the last request of its connection anyway."""

    def _cut_off_soon(self) -> None:
        """Closing in order flushes first: a peer that does not read would keep its socket open for good."""
        if self.entry is not None:
            self.entry.move("closing")
        if self._reader is None:
            self._reader = ReaderClock(self.transport, self.config.live.send_timeout_s)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)
        if not self.trusted and self.handshake_complete:
            self._bound(len(data))

    def _bound(self, size: int) -> None:
        self._unproven += size
        # A whole message has paused reading: the session looks at it first, and there may be a token in it.
        if self._unproven > _BEFORE_TOKEN and not self.read_paused and not self.close_sent:
            self.conn.fail(1009, "too much before a token")
            self.handle_parser_exception()

    def keepalive_timeout(self) -> None:
        """No pong came. It may stand behind frames that we do not read yet; and who sends frames is there."""
        if (self.read_paused or self._heard) and self.ping_timeout is not None:
            self._heard = False
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self._cut_off_soon()

    def send_keepalive_ping(self) -> None:
        self._heard = False
        super().send_keepalive_ping()

    @property
    def left(self) -> bool:
        """Whether the peer has ended the connection, also where we do not read and would not come to its end."""
        if self.disconnected or not self.read_paused or _TCP_INFO is None:
            return self.disconnected
        wire = self.transport.get_extra_info("socket")
        state: int = wire.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]
        return state != _ESTABLISHED

    def connection_lost(self, exc: Exception | None) -> None:
        if self._unanswered is not None:
            self._unanswered.cancel()
        if self._reader is not None:
            self._reader.stop()
        if self.entry is not None:
            self.entry.leave()
        super().connection_lost(exc)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # dropped: pongs to a peer that does not read would pile up without bound

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < _MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.conn.fail(1009, "too many fragments")
            self.handle_parser_exception()

    def shutdown(self) -> None:
        if self.end_session is None:
            super().shutdown()
        else:
            # Answers what is in flight, says `bye`, closes; uvicorn waits for it so long.
            self.end_session(self.config.timeout_graceful_shutdown)

    def say(self, text: bytes) -> bool:
        """Sends one text message, UTF-8, if that takes no waiting; False: nothing was sent, go the ASGI way.

        The way of every result: no clock, no layers, no way from bytes to text and back.
        """
        if self.close_sent or self.disconnected or not (self.handshake_complete and self.writable.is_set()):
            return False
        try:
            self.conn.send_text(text)
        except InvalidState:
            return False
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    @property
    def unread(self) -> int:
        """Bytes that the transport could not hand on, since the peer does not read."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Closes at once; closing in order would wait for the peer to read."""
        self.transport.abort()


class WithinBounds:
    """Answers connections beyond MAX_CONNECTIONS and MAX_CONNECTIONS_PER_ADDRESS with 503 and 429. Outermost of all.

    A connection counts for the address that it came from until a request says, through a proxy that is believed, for
    whom it comes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope.get("extensions", {}).get(CONNECTION) if scope["type"] in ("http", "websocket") else None
        if connection is None or connection.entry is None:  # the lifespan; another server than ours
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        refusal: Refusal | None = connection.entry.claim(client[0] if client else None)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        connection.answer_no_more()
        if refusal.reason == "full" and scope["type"] == "http" and scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
            return
        metrics.CONNECTIONS_REFUSED.labels(refusal.reason).inc()
        if refusal.reason == "address":
            metrics.AUTH_FAILURES.labels("address_limit").inc()
        answer = _json_problem(503 if refusal.reason == "full" else 429, "rejected", refusal.words)
        answer.headers["Retry-After"] = "5"
        if scope["type"] == "websocket":
            metrics.SESSIONS.labels("refused").inc()
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)


def _too_long(headers: list[tuple[bytes, bytes]], target: bytes) -> bool:
    """Whether a head is longer than any; h11 itself looks only while one is not here whole."""
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
    return size > _MOST_HEAD or len(headers) > _MOST_HEADERS


def _fault(head: bytes) -> tuple[int, str] | None:
    """What is wrong with an upgrade: a status and words; None where it is in order.

    The library that will speak with the client says so. Where it cannot even read the request it says nothing.
    """
    probe = ServerProtocol()
    probe.receive_data(head)
    requests = probe.events_received()
    if not requests:
        why: BaseException | None = probe.handshake_exc
        return 400, f"this is no upgrade to a WebSocket: {(why.__cause__ if why else None) or why}"
    answer = probe.accept(requests[0])  # type: ignore[arg-type]
    if answer.status_code == 101:
        return None
    return answer.status_code, f"this is no upgrade to a WebSocket: {probe.handshake_exc}"


def _body(code: str, words: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": shortened(words), "field": None}})


def _json_problem(status: int, code: str, words: str) -> Response:
    return Response(_body(code, words), status, media_type="application/json")


def _problem(status: int, code: str, words: str, headers: str = "") -> bytes:
    """A whole answer, the last of its connection."""
    body = _body(code, words)
    phrase = STATUS_PHRASES.get(status, b"")
    rest = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n"
    return b"HTTP/1.1 %d %s\r\n" % (status, phrase) + rest.encode() + body
