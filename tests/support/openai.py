"""A server that speaks OpenAI's chat protocol as LangChain's client uses it, over real HTTP on a free port.

Every request takes the next behaviour of its script, the last one for ever. What came in is kept for the tests.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
Behaviour = Callable[["Exchange"], None]

ANSWER: Json = {
    "title": "Two people at a gate",
    "scene": "Two people wait at a gate; one leaves.",
    "activities": ["two people stand at the gate", "one person leaves"],
    "visible_text": ["GATE 7"],
    "concerns": [],
    "confidence": 0.8,
}
"""An answer that fits."""
USAGE = (321, 45)
"""Tokens that the server says it read and wrote."""


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: Json

    @property
    def texts(self) -> list[str]:
        """What its messages say, in order."""
        return [message["content"] for message in self.body["messages"]]


class Exchange(BaseHTTPRequestHandler):
    """One connection; behaviours answer through its methods."""

    protocol_version = "HTTP/1.1"
    server: _Server
    received: Received
    in_flight = False

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length))
        self.received = Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        fake = self.server.fake
        with suppress(BrokenPipeError, ConnectionResetError):
            if self.path != "/v1/chat/completions":
                self.json({"error": {"message": f"no such path {self.path}"}}, 404)
                return
            fake.next(self.received)(self)

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.bytes(json.dumps(value).encode(), status, "application/json", headers)

    def bytes(self, data: bytes, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.server.fake.answered(self)
        self.wfile.write(data)

    def completion(self, content: str | None, finish: str = "stop", refusal: str | None = None) -> None:
        """A chat completion, streamed where the request asks for it; as tool call where it brings a tool."""
        tools = self.received.body.get("tools")
        tool = tools[0]["function"]["name"] if tools else None
        finish = "tool_calls" if tool and finish == "stop" else finish
        if self.received.body.get("stream"):
            self._stream(content or "", finish, tool)
            return
        message: Json = {"role": "assistant", "content": content, "refusal": refusal}
        if tool:
            message = {"role": "assistant", "content": None, "tool_calls": [call(tool, content or "")]}
        self.json({**self._head("chat.completion"), "usage": usage(), "choices": [choice(finish, message=message)]})

    def _stream(self, content: str, finish: str, tool: str | None) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        head = self._head("chat.completion.chunk")
        for at in range(0, len(content), 16):
            piece = content[at : at + 16]
            delta: Json = {"role": "assistant", "content": piece}
            if tool:
                part = call(tool, piece) if at == 0 else {"function": {"arguments": piece}}
                delta = {"role": "assistant", "tool_calls": [{"index": 0, **part}]}
            self._event({**head, "choices": [choice(None, delta=delta)]})
        self._event({**head, "choices": [choice(finish, delta={})]})
        if (self.received.body.get("stream_options") or {}).get("include_usage"):
            self._event({**head, "choices": [], "usage": usage()})
        self.server.fake.answered(self)
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, value: Json) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _head(self, kind: str) -> Json:
        return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": self.received.body["model"]}

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def choice(finish: str | None, **more: Any) -> Json:
    return {"index": 0, "finish_reason": finish, "logprobs": None, **more}


def call(tool: str, arguments: str) -> Json:
    return {"id": "call-1", "type": "function", "function": {"name": tool, "arguments": arguments}}


def usage() -> Json:
    read, wrote = USAGE
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


# --- behaviours ---


def answer(**changes: Any) -> Behaviour:
    """`ANSWER` with these changes."""
    return says(json.dumps({**ANSWER, **changes}))


def says(content: str, finish: str = "stop") -> Behaviour:
    """A completion with this text."""
    return lambda exchange: exchange.completion(content, finish)


def refuses(exchange: Exchange) -> None:
    exchange.completion(None, refusal="I cannot help with that.")


def fails(status: int, **headers: str) -> Behaviour:
    """An HTTP error as OpenAI words it; `retry_after="1"` is the header of that name."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange: exchange.json({"error": {"message": f"status {status}", "type": "test"}}, status, named)


def page(exchange: Exchange) -> None:
    """200 and HTML: no model, but some other server."""
    exchange.bytes(b"<html>It works!</html>", 200, "text/html")


def hangs(exchange: Exchange) -> None:
    """Says nothing until the server ends."""
    exchange.server.fake.over.wait()


def drips(exchange: Exchange) -> None:
    """A byte every 50 ms: every single read succeeds, the answer never ends."""
    exchange.send_response(200)
    exchange.send_header("content-type", "application/json")
    exchange.send_header("content-length", "100000")
    exchange.end_headers()
    while not exchange.server.fake.over.wait(0.05):
        exchange.wfile.write(b" ")


def cuts(exchange: Exchange) -> None:
    """Closes the connection without an answer."""
    exchange.close_connection = True
    exchange.connection.close()


def slow(seconds: float, then: Behaviour) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        exchange.server.fake.over.wait(seconds)
        then(exchange)

    return behave


# --- the server ---


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeOpenAI

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here."""


@dataclass
class FakeOpenAI:
    """A running server: change `script` at any time."""

    script: list[Behaviour]
    received: list[Received] = field(default_factory=list)
    port: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    in_flight: int = 0
    most_in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def next(self, received: Received) -> Behaviour:
        with self._lock:
            self.received.append(received)
            behaviour = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return self._counted(behaviour)

    def _counted(self, behaviour: Behaviour) -> Behaviour:
        def behave(exchange: Exchange) -> None:
            with self._lock:
                exchange.in_flight = True
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                behaviour(exchange)
            finally:
                self.answered(exchange)

        return behave

    def answered(self, exchange: Exchange) -> None:
        """It is in flight no more. Said before an answer's last bytes: who has them may ask again at once."""
        with self._lock:
            self.in_flight -= exchange.in_flight
            exchange.in_flight = False


@contextmanager
def speaking(*script: Behaviour) -> Iterator[FakeOpenAI]:
    """A server with this script; `answer()` without one."""
    fake = FakeOpenAI([*script] or [answer()])
    with _Server(("127.0.0.1", 0), Exchange) as server:
        server.fake = fake
        fake.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            fake.over.set()
            server.shutdown()
            thread.join()
