"""Servers that speak Anthropic's and Ollama's protocols as LangChain's clients use them, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.openai import ANSWER, USAGE, Json, Received

PATHS = {"anthropic": "/v1/messages", "ollama": "/api/chat"}


@dataclass
class Maker:
    """A running server. `status` other than 200 is answered as an error, with `headers`."""

    name: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    url: str = ""


@contextmanager
def made_by(name: str) -> Iterator[Maker]:
    maker = Maker(name)

    class Exchange(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            maker.received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            assert self.path.partition("?")[0] == PATHS[name], self.path
            answer = _anthropic(body) if name == "anthropic" else _ollama(body)
            if maker.status != 200:
                answer = {"type": "error", "error": {"type": "some_error", "message": "no"}}
            data = json.dumps(answer).encode() + b"\n"
            self.send_response(maker.status)
            kind = "application/json" if name == "anthropic" else "application/x-ndjson"
            for key, value in {"content-type": kind, "content-length": str(len(data)), **maker.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Exchange) as server:
        server.daemon_threads = True
        maker.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield maker
        finally:
            server.shutdown()


def _anthropic(body: Json) -> Json:
    """A forced tool's call, or text in the format that was asked for."""
    content: Any = [{"type": "text", "text": json.dumps(ANSWER)}]
    if tools := body.get("tools"):
        content = [{"type": "tool_use", "id": "t1", "name": tools[0]["name"], "input": ANSWER}]
    usage = {"input_tokens": USAGE[0], "output_tokens": USAGE[1]}
    head = {"id": "m1", "type": "message", "role": "assistant", "model": body["model"]}
    return {**head, "content": content, "stop_reason": "tool_use" if body.get("tools") else "end_turn", "usage": usage}


def _ollama(body: Json) -> Json:
    message = {"role": "assistant", "content": json.dumps(ANSWER)}
    counts = {"prompt_eval_count": USAGE[0], "eval_count": USAGE[1]}
    return {"model": body["model"], "message": message, "done": True, "done_reason": "stop", **counts}
