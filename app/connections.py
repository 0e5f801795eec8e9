"""TCP connections from accept to close: limits on their number, timeouts on peers that send or read nothing, an error
response to every bad request or handshake, orderly closing and abort. Built on uvicorn's protocols."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import Counter
from dataclasses import dataclass
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
from app.errors import shortened
from app.limits import Latch
from app.live.sender import CONNECTION
from app.settings import LiveSettings

try:
    import resource
except ImportError:  # not Unix: descriptors are not counted there
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_MAX_FRAGMENTS = 4096
"""Most fragments of one message. Empty fragments add nothing to its size, so their number is limited, too."""
_MAX_BEFORE_TOKEN = 64 * 1024
"""Bytes of a message from a client that has not sent its token yet: `init` is far smaller."""
_MAX_HEAD_BYTES = 16 * 1024
"""Bytes of a request's line and headers, as received."""
_MAX_HEADERS = 128
_MAX_LINE_BYTES = 8 * 1024
"""Bytes of an upgrade's line and of each of its headers: the limit of the WebSocket library."""
_LINGER_S = 1.0
"""Seconds for which input is read and discarded after a refusal, because closing a socket with unread bytes would lose
the response."""
_LINGER_BYTES = 256 * 1024
_BODY_GRACE_S = 1.0
"""Added to the body's timeout here, so that a route with a timeout of its own answers first, and in more detail."""
_REFUSED_HEAD_S = 2.0
"""Seconds for a connection beyond the limits to send a request, which is then refused."""
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
"""On Linux only."""
_ESTABLISHED = 1
_ALWAYS = ("/health/live", "/health/ready", "/metrics")
"""Paths answered beyond MAX_CONNECTIONS, too: a full service is alive and must not be restarted."""
_OVERFLOW = 64
"""Connections beyond the limits that are accepted in order to refuse them; more are closed without an answer."""
_SPARE = 24
"""Descriptors reserved for what opens and closes: files, the inference server, OCR, the summaries' disk."""
_ELSEWHERE = 256
"""Descriptors for everything but connections, when the soft limit is raised at the start."""
STATES = ("handshake", "http", "websocket", "closing")


# --- limits: how many connections, in which state, from which address ---


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a connection is not served."""

    reason: str
    """`full` or `address`."""
    message: str


class ConnectionRecord:
    """One connection from accept to its end: its state, address and whether it is refused."""

    def __init__(self, limits: ConnectionLimits, address: str, refused: Rejection | None) -> None:
        self.state = "handshake"
        self.address = address
        self.refused = refused
        self._limits = limits
        self._left = False

    def move(self, state: str) -> None:
        """Puts the connection into another of STATES."""
        if not self._left and state != self.state:
            self._limits.moved(self.state, state)
            self.state = state

    def claim(self, address: str | None) -> Rejection | None:
        """Counts the connection for the client of its request. Returns why it is not served, or None."""
        if self._left:
            return None
        if address is not None and address != self.address:
            self.refused = self._limits.transferred(self, address)
            self.address = address
        return self.refused

    def leave(self) -> None:
        """Removes the connection; further calls do nothing."""
        if not self._left:
            self._left = True
            self._limits.left(self)


class ConnectionLimits:
    """Counts the connections of one process, and refuses those beyond the limits."""

    def __init__(self, live: LiveSettings) -> None:
        self.most = live.max_connections
        self._most_per_address = live.max_connections_per_address
        self._by_address: Counter[str] = Counter()
        self._open = 0
        self._overflow = _OVERFLOW
        self._limited_by_descriptors = False
        self._gauges = {state: metrics.CONNECTIONS.labels(state) for state in STATES}

    def enter(self, address: str | None) -> ConnectionRecord | None:
        """Counts an accepted connection. None: close it at once.

        Args:
            address: None for a peer on a Unix socket; all such peers count as one.
        """
        address = address or "local"
        if self._open >= self.most + self._overflow:
            metrics.CONNECTIONS_REFUSED.labels("full").inc()
            return None
        if self._by_address[address] >= self._most_per_address + self._overflow:
            metrics.CONNECTIONS_REFUSED.labels("address").inc()
            return None
        refused = self._full() if self._open >= self.most else self._crowded(address)
        self._open += 1
        self._by_address[address] += 1
        self._gauges["handshake"].inc()
        return ConnectionRecord(self, address, refused)

    def moved(self, before: str, now: str) -> None:
        """Counts a connection in state `now` instead of `before`; both are of STATES."""
        self._gauges[before].dec()
        self._gauges[now].inc()

    def transferred(self, record: ConnectionRecord, address: str) -> Rejection | None:
        """Counts a connection for another address from now on. Returns why it is refused, or None."""
        self._forget(record.address)
        refused = record.refused if record.refused and record.refused.reason == "full" else self._crowded(address)
        self._by_address[address] += 1
        return refused

    def left(self, record: ConnectionRecord) -> None:
        """Stops counting a connection that is closed."""
        self._open -= 1
        self._gauges[record.state].dec()
        self._forget(record.address)

    def fit_descriptors(self) -> None:
        """Lowers the limit to the number that open files allow. Call it once everything else is open."""
        if resource is None:
            return
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            used = len(os.listdir("/proc/self/fd"))
        except OSError:  # not Linux
            used = 64
        overflow = min(_OVERFLOW, allowed // 16)
        fitting = max(1, allowed - used - _SPARE - overflow)
        if allowed != resource.RLIM_INFINITY and fitting < self.most:
            log.warning(
                "this process may have %d files open (ulimit -n) and has %d: it takes %d connections, not "
                "MAX_CONNECTIONS=%d; allow it %d, or set MAX_CONNECTIONS to %d",
                allowed,
                used,
                fitting,
                self.most,
                descriptors_needed(self.most),
                fitting,
            )
            self.most, self._overflow, self._limited_by_descriptors = fitting, overflow, True

    def _full(self) -> Rejection:
        why = (
            "as many as its limit of open files allows" if self._limited_by_descriptors else "which is MAX_CONNECTIONS"
        )
        return Rejection("full", f"{self.most} connections are open, {why}")

    def _crowded(self, address: str) -> Rejection | None:
        most = self._most_per_address
        if self._by_address[address] < most:
            return None
        return Rejection("address", f"this address has {most} connections open, as MAX_CONNECTIONS_PER_ADDRESS allows")

    def _forget(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def descriptors_needed(connections: int) -> int:
    """Descriptors that a process with this many connections may need."""
    return connections + _OVERFLOW + _ELSEWHERE


def raise_descriptor_limit(live: LiveSettings) -> None:
    """Raises the soft limit of open files to the number that MAX_CONNECTIONS needs, up to the hard limit."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors_needed(live.max_connections)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.info("files that may be open (ulimit -n): raised from %d to %d", soft, wanted)


class DescriptorWatch:
    """Logs once when no descriptor is left, and once when there is one again."""

    def __init__(self) -> None:
        self._latch = Latch()

    def check(self) -> None:
        """Tries to open a file. Call it about once a second."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if self._latch.begins("out of descriptors"):
                metrics.CONNECTIONS_REFUSED.labels("descriptors").inc()
                log.error(
                    "no file can be opened and no connection accepted: %s. Allow the process more (ulimit -n), or set "
                    "a smaller MAX_CONNECTIONS",
                    error.strerror or error,
                )
            return
        if self._latch.ends():
            log.warning("files can be opened again")


# --- protocols ---


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration with the limits of connections. It is pickled for worker processes."""

    live: LiveSettings
    _limits: ConnectionLimits | None = None

    @property
    def limits(self) -> ConnectionLimits:
        """The connections of this process."""
        if self._limits is None:
            self._limits = ConnectionLimits(self.live)
        return self._limits


class SlowReaderTimeout:
    """Aborts a connection once its peer has read nothing for `timeout_s`."""

    def __init__(self, transport: asyncio.Transport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._start_timer()

    def _start_timer(self) -> None:
        unread = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._check, unread)

    def _check(self, before: int) -> None:
        if self._transport.get_write_buffer_size() < before:
            self._start_timer()
        else:
            metrics.CONNECTIONS_REFUSED.labels("slow_reader").inc()
            self._transport.abort()

    def stop(self) -> None:
        """Stops watching the peer."""
        self._timer.cancel()


class HttpConnection(H11Protocol):
    """HTTP/1.1 with timeouts: ends a connection whose request is malformed or late, or that does not read its answer.

    A timer runs at all times except while the application works on a complete request.
    """

    config: ServerConfig
    record: ConnectionRecord | None = None
    """None if the connection exceeds all limits and is being closed."""
    _reader_timeout: SlowReaderTimeout | None = None
    _timer: asyncio.TimerHandle | None = None
    _lingering: int | None = None
    """Bytes that are still read and discarded after the last answer; None before it."""
    _is_last = False
    """Whether the current request is the last one of this connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._application, self.app = self.app, self._answer
        self.record = self.config.limits.enter(self.client[0] if self.client else None)
        if self.record is None:
            transport.abort()
        else:
            refused = self.record.refused is not None
            timeout_s = self.config.live.init_timeout_s
            self._start_timer(min(_REFUSED_HEAD_S, timeout_s) if refused else timeout_s, self._too_slow)

    # --- timers ---

    def _start_timer(self, timeout_s: float, call: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(timeout_s, call)

    def _too_slow(self) -> None:
        """Closes the connection, because no request arrived in time, or not its whole head."""
        if self.cycle is not None and not self.cycle.response_complete:
            return  # `on_response_complete` starts the timer again
        begun = bool(self.conn.trailing_data[0])
        if begun or self.record is None or self.record.state == "handshake":
            metrics.CONNECTIONS_REFUSED.labels("slow_head" if begun else "silent").inc()
        if not begun or self.transport.get_write_buffer_size() or self.conn.our_state is not h11.IDLE:
            self.transport.abort()
            return
        self.transport.write(_error_response(408, "timeout", "the request did not arrive completely in time"))
        self._close_soon()

    def _body_late(self) -> None:
        """Refuses a request whose body is still incomplete INIT_TIMEOUT_S after its head arrived."""
        if not self.cycle.more_body or self.cycle.response_complete:
            return
        message = f"the body did not arrive completely within {self.config.live.init_timeout_s:g} seconds"
        self._refuse(408, "slow_body", "timeout", message)

    def _close_soon(self) -> None:
        self._move("closing")
        self.transport.close()
        self._start_timer(min(_LINGER_S, self.config.live.send_timeout_s), self.transport.abort)

    # --- refusals ---

    def _refuse(self, status: int, reason: str, code: str, message: str, headers: str = "") -> None:
        """Responds with the reason and closes. Writes the response by hand: h11 responds only to valid requests."""
        metrics.CONNECTIONS_REFUSED.labels(reason).inc()
        self._unset_keepalive_if_required()
        answers = True
        if self.cycle is not None and not self.cycle.response_complete:
            answers = not self.cycle.response_started
            self.cycle.disconnected = True  # the application sees a disconnected client
            self.cycle.message_event.set()
        elif self.conn.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            answers = False  # answered already; only the rest of its body is wrong
        if self.transport.is_closing():
            return
        if answers:
            self.transport.write(_error_response(status, code, message, headers))
        self._linger()

    def _linger(self) -> None:
        """Reads and discards input for a moment, so that the last answer reaches the peer."""
        self._lingering = _LINGER_BYTES
        self._move("closing")
        self.flow.resume_reading()
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_timer(min(_LINGER_S, self.config.live.init_timeout_s / 2), self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when h11 rejects a request."""
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        if status == 431:
            self._refuse(431, "large_head", "headers_too_large", f"more than {_MAX_HEAD_BYTES} bytes before a body")
        else:
            self._refuse(status, "malformed", "bad_request", "this is not an HTTP request")

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.transport.abort()
        elif self.record is not None:
            super().data_received(data)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request whose head is complete."""
        if self._lingering is not None:
            return  # its body arrived with the head and was refused
        if self.cycle.more_body:
            self._start_timer(self.config.live.init_timeout_s + _BODY_GRACE_S, self._body_late)
        elif self._timer is not None:
            self._timer.cancel()
        self._move("http")
        scope["extensions"] = {CONNECTION: self}
        if scope["http_version"] not in ("1.0", "1.1"):
            self._is_last = True
            metrics.CONNECTIONS_REFUSED.labels("malformed").inc()
            await _json_error(505, "version", "this service speaks HTTP/1.1")(scope, receive, send)
        elif _too_long(self.headers, scope["raw_path"]):
            self._is_last = True
            metrics.CONNECTIONS_REFUSED.labels("large_head").inc()
            message = f"more than {_MAX_HEAD_BYTES} bytes or {_MAX_HEADERS} headers before a body"
            await _json_error(431, "headers_too_large", message)(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    def answer_no_more(self) -> None:
        """Makes the current request the last one of this connection."""
        self._is_last = True

    def on_response_complete(self) -> None:
        # uvicorn's own keep-alive timer stops at the next byte, whatever it is.
        self._start_timer(self.config.live.init_timeout_s, self._too_slow)
        if self._is_last and not self.transport.is_closing():
            self._linger()
            return
        if self.transport.is_closing():
            self._move("closing")
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._move("http")
        lines = [b"%s %s HTTP/%s" % (event.method, event.target, event.http_version)]
        lines += [name + b": " + value for name, value in self.headers]
        if _too_long(self.headers, event.target) or max(map(len, lines)) > _MAX_LINE_BYTES - 2:
            each = f"{_MAX_HEADERS} headers of {_MAX_LINE_BYTES} bytes"
            message = f"an upgrade may have {each}, and {_MAX_HEAD_BYTES} bytes in all"
            self._refuse(431, "large_head", "headers_too_large", message)
            return
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        error = _upgrade_error(head)
        if error is not None:
            self._refuse(error[0], "bad_upgrade", "bad_upgrade", error[1], "Sec-WebSocket-Version: 13\r\n")
            return
        if self._timer is not None:
            self._timer.cancel()
        self.connections.discard(self)
        protocol = LiveSocket(self.config, self.server_state, self.app_state)
        protocol.take_over(self.transport, self.record, head, bytes(self.conn.trailing_data[0]))

    # --- callbacks of the transport ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timeout = SlowReaderTimeout(self.transport, self.config.live.send_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_timeout is not None:
            self._reader_timeout.stop()

    def shutdown(self) -> None:
        if self._lingering is not None or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE, h11.SEND_BODY):
            self.transport.abort()  # answered already
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reader_timeout is not None:
            self._reader_timeout.stop()
        if self.record is not None:
            self.record.leave()
        super().connection_lost(exc)

    def _move(self, state: str) -> None:
        if self.record is not None:
            self.record.move(state)


class LiveSocket(WebSocketsSansIOProtocol):
    """WebSocket with limits: bounded handshake and fragments. When the service stops, its session ends itself."""

    end_session: Any = None
    """Set by the session; called with the seconds to drain when the service stops."""
    trusted = False
    """Set by the session once the client has sent a valid token, or needs none."""
    config: ServerConfig
    record: ConnectionRecord | None = None
    _reader_timeout: SlowReaderTimeout | None = None
    _received = False
    """Whether anything arrived since the last ping."""
    _untrusted_bytes = 0
    """Bytes received before the token."""
    _early_data: bytes | None = None
    """Bytes that came with the upgrade before it was answered; reading pauses until then. None afterwards."""
    _handshake_timer: asyncio.TimerHandle | None = None

    def take_over(
        self, transport: asyncio.Transport, record: ConnectionRecord | None, head: bytes, early_data: bytes
    ) -> None:
        """Takes a connection over from HttpConnection after a valid upgrade."""
        self.record = record
        self._early_data = early_data
        self._handshake_timer = self.loop.call_later(self.config.live.init_timeout_s, transport.abort)
        if record is not None:
            record.move("websocket")
        self.connection_made(transport)
        super().data_received(head)
        transport.set_protocol(self)
        if self._early_data is not None:
            transport.pause_reading()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # The handshake was refused and answered. uvicorn would log that as an error.
            self.handshake_complete = True
        if self._early_data is not None and self.handshake_complete:
            early_data, self._early_data = self._early_data, None
            if self._handshake_timer is not None:
                self._handshake_timer.cancel()
            if self.close_sent or self.transport.is_closing():
                self._abort_unless_read()
                return
            self.transport.resume_reading()
            if early_data:
                self.data_received(early_data)

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[CONNECTION] = self
        await super().run_asgi()
        if not self.disconnected:
            self._abort_unless_read()

    def answer_no_more(self) -> None:
        """Does nothing: an upgrade is the last request of its connection anyway."""

    def _abort_unless_read(self) -> None:
        """Orderly closing flushes first, and a peer that does not read would keep its socket open; this bounds it."""
        if self.record is not None:
            self.record.move("closing")
        if self._reader_timeout is None:
            self._reader_timeout = SlowReaderTimeout(self.transport, self.config.live.send_timeout_s)

    def data_received(self, data: bytes) -> None:
        self._received = True
        super().data_received(data)
        if not self.trusted and self.handshake_complete:
            self._bound(len(data))

    def _bound(self, size: int) -> None:
        self._untrusted_bytes += size
        # A complete message has paused reading: it may contain the token, so the session handles it first.
        if self._untrusted_bytes > _MAX_BEFORE_TOKEN and not self.read_paused and not self.close_sent:
            self.conn.fail(1009, "too much before a token")
            self.handle_parser_exception()

    def keepalive_timeout(self) -> None:
        """Closes after a missing pong, unless the peer sent anything: its pong may be behind frames not read yet."""
        if (self.read_paused or self._received) and self.ping_timeout is not None:
            self._received = False
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self._abort_unless_read()

    def send_keepalive_ping(self) -> None:
        self._received = False
        super().send_keepalive_ping()

    @property
    def left(self) -> bool:
        """Whether the peer has closed the connection, also while reading is paused."""
        if self.disconnected or not self.read_paused or _TCP_INFO is None:
            return self.disconnected
        wire = self.transport.get_extra_info("socket")
        state: int = wire.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]
        return state != _ESTABLISHED

    def connection_lost(self, exc: Exception | None) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if self._reader_timeout is not None:
            self._reader_timeout.stop()
        if self.record is not None:
            self.record.leave()
        super().connection_lost(exc)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # dropped, because pongs to a peer that does not read would pile up

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
            # The session answers frames in flight, sends `bye` and closes; uvicorn waits this long.
            self.end_session(self.config.timeout_graceful_shutdown)

    def try_send(self, text: bytes) -> bool:
        """Sends one UTF-8 text message if that does not have to wait; False: nothing was sent, use ASGI.

        Results go this way: without a timer, without ASGI's layers, without decoding bytes to text and back.
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
        """Bytes in the transport that the peer has not read."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Closes at once; orderly closing would wait for the peer to read."""
        self.transport.abort()


class ConnectionLimitMiddleware:
    """Answers connections beyond MAX_CONNECTIONS and MAX_CONNECTIONS_PER_ADDRESS with 503 and 429. Outermost.

    A connection counts for its own address until a request names its client through a trusted proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope.get("extensions", {}).get(CONNECTION) if scope["type"] in ("http", "websocket") else None
        if connection is None or connection.record is None:  # the lifespan, or another server
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        refusal: Rejection | None = connection.record.claim(client[0] if client else None)
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
        answer = _json_error(503 if refusal.reason == "full" else 429, "rejected", refusal.message)
        answer.headers["Retry-After"] = "5"
        if scope["type"] == "websocket":
            metrics.SESSIONS.labels("refused").inc()
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)


def _too_long(headers: list[tuple[bytes, bytes]], target: bytes) -> bool:
    """Whether a head exceeds the limits; h11 checks only incomplete heads."""
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
    return size > _MAX_HEAD_BYTES or len(headers) > _MAX_HEADERS


def _upgrade_error(head: bytes) -> tuple[int, str] | None:
    """Status and message for an invalid upgrade; None if it is valid.

    The WebSocket library decides; if it cannot parse a request, its exception has the reason.
    """
    probe = ServerProtocol()
    probe.receive_data(head)
    requests = probe.events_received()
    if not requests:
        why: BaseException | None = probe.handshake_exc
        return 400, f"this is not an upgrade to a WebSocket: {(why.__cause__ if why else None) or why}"
    answer = probe.accept(requests[0])  # type: ignore[arg-type]
    if answer.status_code == 101:
        return None
    return answer.status_code, f"this is not an upgrade to a WebSocket: {probe.handshake_exc}"


def _body(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": shortened(message), "field": None}})


def _json_error(status: int, code: str, message: str) -> Response:
    return Response(_body(code, message), status, media_type="application/json")


def _error_response(status: int, code: str, message: str, headers: str = "") -> bytes:
    """A complete answer, the last of its connection."""
    body = _body(code, message)
    phrase = STATUS_PHRASES.get(status, b"")
    rest = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n"
    return b"HTTP/1.1 %d %s\r\n" % (status, phrase) + rest.encode() + body
