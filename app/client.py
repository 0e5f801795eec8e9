"""A Python client of the live protocol.

async with connect("http://127.0.0.1:8000") as session:
    async for result in session.stream(frames):
        print(result.frame.objects)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

import orjson
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, WebSocketException

from app.addresses import leads_to_loopback
from app.drawing import to_supervision
from app.errors import ConfigurationError, SightlineError
from app.pipeline import registry
from app.protocol import header, messages
from app.protocol.messages import Bye, Mode, Notice, Queued, Ready, Result, ServerMessage, SettingsInForce
from app.sources.address import redact

__all__ = ["LiveSession", "Refused", "SessionEnded", "connect", "decode", "to_supervision"]

assert registry.BUILT_IN  # imported because it declares the parts that `decode` reads
_ADAPTERS: dict[str, TypeAdapter[Any]] = {}
SILENCE_S = 60.0
"""Seconds of silence after which the connection counts as lost; the service sends `ping` every 15 s."""
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_RESULT_FIELDS = frozenset(field.name for field in fields(Result)) - {"frame"}


class SessionEnded(SightlineError):
    """The service ended the session, or the connection broke. `bye` is the service's last message, if it sent one."""

    def __init__(self, message: str, bye: Bye | None = None) -> None:
        super().__init__(message)
        self.bye = bye


class Refused(SightlineError):
    """The service answered `error` to a message that is not a frame."""

    def __init__(self, error: messages.Error) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.error = error


def decode(text: str | bytes) -> ServerMessage:
    """Parses one message of the service.

    Raises:
        SightlineError: this version does not know the message's type.
    """
    data = orjson.loads(text)
    name = data.get("type")
    for model in messages.SERVER_MESSAGES:
        if model.__dataclass_fields__["type"].default == name:
            if model is Result:
                data["frame"] = {key: data.pop(key) for key in [*data] if key not in _RESULT_FIELDS}
            if name not in _ADAPTERS:
                _ADAPTERS[name] = TypeAdapter(model)
            message: ServerMessage = _ADAPTERS[name].validate_python(data)
            return message
    raise SightlineError(f"the service sent {name!r}, which this client does not know")


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: str | None = None,
    mode: Mode = "realtime",
    stages: dict[str, bool] | None = None,
    confidence: float | None = None,
    iou: float | None = None,
    classes: Iterable[str | int] | None = None,
    motion_grid: bool | None = None,
    mask_rle: bool | None = None,
    max_age_ms: float | None = None,
    summary_prompt: str | None = None,
) -> AsyncIterator[LiveSession]:
    """Opens a session and waits until it is ready, also while it waits for a slot.

    Args:
        url: the service's address, `http://host:port`; `https`, `ws` and `wss` work, too.
        token: one of the service's AUTH_TOKENS, if it requires one.
        mode: `realtime`, where a new frame replaces one that waits, or `lossless`, where every frame is answered.
        stages: stages to switch on or off, as `{"summary": True}`; the others keep the service's defaults.
        confidence: least score of a detection, 0 to 1.
        iou: NMS threshold, 0 to 1.
        classes: names or ids of the classes to keep; an empty list keeps all.
        motion_grid: whether results contain the flow as a grid of vectors.
        mask_rle: whether segments contain their masks as COCO's run lengths.
        max_age_ms: milliseconds after which a waiting frame is dropped, in `realtime` mode.
        summary_prompt: one of `ready.prompts`, for summaries.

    Raises:
        ConfigurationError: `url` is not the address of a service.
        SessionEnded: the service cannot be reached, or rejected the session.
        Refused: a setting is wrong.
    """
    settings = {
        "mode": mode,
        "token": token,
        "stages": stages,
        "confidence": confidence,
        "iou": iou,
        "classes": None if classes is None else list(classes),
        "motion_grid": motion_grid,
        "mask_rle": mask_rle,
        "max_age_ms": max_age_ms,
        "summary": summary_prompt and {"prompt": summary_prompt},
    }
    init = {"type": "init", "protocol": messages.PROTOCOL_VERSION}
    init |= {key: value for key, value in settings.items() if value is not None}
    service = address(url)
    try:
        # Compression costs the sender 0.9 ms a frame and gains nothing on JPEG. No pings, because the service answers
        # them in order with our frames, which may have to wait.
        opened = await open_socket(
            service,
            compression=None,
            max_size=None,
            ping_interval=None,
            proxy=None if leads_to_loopback(service) else True,  # True: the proxy that the environment names
        )
    # ImportError: the environment names a SOCKS proxy, and the package for it is not installed.
    except (OSError, WebSocketException, ImportError) as error:
        raise SessionEnded(f"{redact(url)}: {_failure(error)}") from None
    async with opened:
        session = LiveSession(opened)
        await session._send(orjson.dumps(init).decode())
        await session._until_ready()
        yield session


_ELSEWHERE = "start one with `sightline serve`, or give the address of one that runs (send: --url)"
_LONGEST_BODY = 300


def _failure(error: Exception) -> str:
    """Describes why no session could be opened, with a remedy."""
    if isinstance(error, InvalidStatus):
        return _http_failure(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}); use the name that it is for, or make its issuer "
            "known by SSL_CERT_FILE"
        )
    if isinstance(error, ssl.SSLError):
        return (
            f"the server does not speak TLS ({(error.reason or 'TLS failed').lower().replace('_', ' ')}); try http://"
        )
    if isinstance(error, socket.gaierror):
        return f"this host name is not known ({error.strerror}); check the address (send: --url)"
    if isinstance(error, TimeoutError):
        return f"no server answers in time; check address and firewall, {_ELSEWHERE}"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return f"no service answers there (connection refused); {_ELSEWHERE}"
    if isinstance(error, InvalidMessage | ConnectionResetError | EOFError):
        return f"the server there is no Sightline service, or it speaks TLS (https://); {_ELSEWHERE}"
    if isinstance(error, OSError):
        return f"no connection ({error.strerror or error}); check the address, {_ELSEWHERE}"
    return redact(str(error))


def _http_failure(error: InvalidStatus) -> str:
    """Describes an HTTP response that came instead of a WebSocket handshake, with a remedy."""
    status = error.response.status_code
    body = " ".join((error.response.body or b"").decode(errors="replace").split())[:_LONGEST_BODY]
    answer = error.response.reason_phrase if body.startswith("<") or not body else body
    remedy = {
        401: "give one of its AUTH_TOKENS (send: --token, or SIGHTLINE_TOKEN)",
        403: "the service takes no session from here; see its ALLOWED_ORIGINS, AUTH_TOKENS and log",
        404: f"no Sightline service is at this path; {_ELSEWHERE}",
        421: "the service does not go by this name; see its ALLOWED_HOSTS",
        429: "try again later",
        502: "the proxy in front of it reaches no service; is it started?",
        503: "try again later",
    }
    hint = remedy.get(status, _ELSEWHERE if status in (200, 301, 302, 307, 308, 400, 405, 426) else "")
    return f"HTTP {status} {answer}" + (f"; {hint}" if hint else "")


def address(url: str) -> str:
    """The WebSocket address of the service at `url`.

    Raises:
        ConfigurationError: `url` is not the address of a service.
    """
    try:
        parts = urlsplit(url.strip())
        named = parts.hostname is not None and parts.hostname.encode("idna") and parts.port != 0
    except ValueError:  # the port is no number, an IPv6 address is incomplete, or a label of the name is empty
        named = False
    scheme = _SCHEMES.get(parts.scheme) if named else None
    if scheme is None:
        raise ConfigurationError(
            f"{redact(url)}: should be an address such as http://127.0.0.1:8000, with http, https, ws or wss and a host"
        )
    path = parts.path.rstrip("/")
    path += "" if path.endswith("/ws/inference") else "/ws/inference"
    return parts._replace(scheme=scheme, path=path, fragment="").geturl()


class LiveSession:
    """An open session. One task may send while another receives; `stream` does both."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._seq = 0
        self._in_flight: set[int] = set()
        self._credit = asyncio.Event()
        self._ended: SessionEnded | None = None
        self.ready: Ready
        """The service's `ready`, received before `connect` yields: session id, models, settings, limits, credits."""
        self.bye: Bye | None = None
        """The service's last message, with the report; None until it comes."""
        self.notices: list[Notice] = []
        """Notices that `stream` received."""
        self.summaries: list[messages.Summary] = []
        """Summaries that `stream` received."""
        self.refused: list[messages.Error] = []
        """Errors of the frames that the service could not use."""

    async def _until_ready(self) -> None:
        while True:
            message = await self.receive()
            if isinstance(message, Ready):
                self.ready = message
                return
            if isinstance(message, messages.Error):
                raise Refused(message)
            if not isinstance(message, Queued | messages.Ping | Notice):
                raise SessionEnded(f"the service sent {message.type} before `ready`")

    async def send_frame(self, jpeg: bytes, *, captured_at_ms: float | None = None) -> int:
        """Sends one JPEG as soon as there is a credit; returns its `seq`.

        Args:
            captured_at_ms: when the image was taken, epoch milliseconds; default: now.

        Raises:
            SessionEnded: the session is over. Only `receive` notices this, so another task must call it meanwhile.
        """
        while self._ended is None and len(self._in_flight) >= self.ready.credits:
            self._credit.clear()
            await self._credit.wait()
        if self._ended is not None:
            raise self._ended
        self._seq += 1
        self._in_flight.add(self._seq)
        now = time.time() * 1000 if captured_at_ms is None else captured_at_ms
        await self._send(header.pack(jpeg, seq=self._seq, captured_at_ms=now))
        return self._seq

    async def _send(self, message: bytes | str) -> None:
        try:
            await self._socket.send(message)
        except ConnectionClosed as error:  # `bye`, if the service sent one, is still to be received
            raise SessionEnded(f"the session ended: {error}", self.bye) from None

    async def receive(self) -> ServerMessage:
        """Waits for the next message of any kind, and answers a `ping`.

        Raises:
            SessionEnded: the session is over; `bye` has its report.
        """
        try:
            async with asyncio.timeout(SILENCE_S):
                text = await self._socket.recv()
        except TimeoutError:
            self._socket.transport.abort()
            raise self._end(f"the service sent nothing for {SILENCE_S:g} seconds") from None
        except ConnectionClosed as error:
            raise self._end(self.bye.message or self.bye.reason if self.bye else str(error)) from None
        message = decode(text)
        if isinstance(message, Bye):
            self.bye = message
            return await self.receive()
        if isinstance(message, messages.Ping):
            with contextlib.suppress(ConnectionClosed):  # the next `recv` reports it
                await self._socket.send(orjson.dumps({"type": "pong", "t": message.t}).decode())
        elif isinstance(message, Result):
            # Results come in order, so older frames without an answer were superseded.
            self._acknowledge({seq for seq in self._in_flight if seq <= message.seq})
        elif isinstance(message, messages.Error) and message.seq is not None:
            # A frame that is refused on arrival is answered before an older one that is at the models.
            self._acknowledge({message.seq})
        return message

    def _end(self, reason: str) -> SessionEnded:
        self._ended = SessionEnded(f"the session ended: {reason}", self.bye)
        self._credit.set()
        return self._ended

    def _acknowledge(self, frames: set[int]) -> None:
        self._in_flight -= frames
        self._credit.set()

    async def update(self, **settings: Any) -> None:
        """Changes settings from the next frame on; the service answers with `SettingsInForce`."""
        await self._send(orjson.dumps({"type": "update", **settings}).decode())

    async def stop(self) -> None:
        """Asks the service to finish. `receive` then returns the remaining messages and raises `SessionEnded`."""
        await self._send('{"type":"stop"}')

    async def stream(self, frames: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[Result]:
        """Sends frames and yields their results; ends when all frames are answered.

        `refused` gets the frames that the service could not use; afterwards `bye` has the session's report.

        Raises:
            SessionEnded: the service ended the session before that.
            Exception: the source of the frames raised it; the frames in flight are answered first.
        """
        sending = asyncio.create_task(self._send_all(frames))
        try:
            while True:
                message = await self.receive()
                if isinstance(message, Result):
                    yield message
                elif isinstance(message, Notice):
                    self.notices.append(message)
                elif isinstance(message, messages.Summary):
                    self.summaries.append(message)
                elif isinstance(message, messages.Error):
                    if message.seq is None:
                        raise Refused(message)
                    self.refused.append(message)
                elif isinstance(message, SettingsInForce):
                    continue
        except SessionEnded:
            if self.bye is None or self.bye.reason != "stopped":
                raise
        finally:
            sending.cancel()
            (outcome,) = await asyncio.gather(sending, return_exceptions=True)
            if isinstance(outcome, Exception) and not isinstance(outcome, SessionEnded):
                raise outcome

    async def _send_all(self, frames: AsyncIterable[bytes] | Iterable[bytes]) -> None:
        try:
            if isinstance(frames, AsyncIterable):
                async for jpeg in frames:
                    await self.send_frame(jpeg)
            else:
                for jpeg in frames:
                    await self.send_frame(jpeg)
        finally:
            task = asyncio.current_task()
            if self._ended is None and not (task and task.cancelling()):
                # Also if the source fails, so that the frames in flight are answered before the error is raised.
                await self.stop()
