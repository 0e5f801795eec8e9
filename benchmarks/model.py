"""A language model that hangs, or answers after a fixed time: OpenAI's chat protocol on a free port, in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = {
    "title": "A person and a dog",
    "scene": "A person and a dog are in view. Little changes.",
    "activities": ["a person stands"],
    "visible_text": [],
    "concerns": [],
    "confidence": 0.9,
}


@dataclass
class Model:
    answer_s: float | None
    """Seconds until the answer; None if it never comes."""
    port: int = 0
    requests: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def completion(self) -> bytes:
        message = {"role": "assistant", "content": json.dumps(WORDS)}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": "bench"}
        return json.dumps({**head, "choices": choices, "usage": usage}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    model: Model

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores the connections that the service closes when it ends."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        model = self.server.model
        self.rfile.read(int(self.headers["content-length"]))
        model.requests += 1
        model.over.wait(model.answer_s)
        data = model.completion
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@contextmanager
def serving(answer_s: float | None) -> Iterator[Model]:
    """Serves a model that answers after so many seconds, or never."""
    model = Model(answer_s)
    with _Server(("127.0.0.1", 0), _Connection) as server:
        server.model, model.port = model, server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield model
        finally:
            model.over.set()
            server.shutdown()
            thread.join()
