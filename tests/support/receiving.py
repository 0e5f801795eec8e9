"""A web server that takes what a webhook posts, or answers in another way for a while."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

Behaviour = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Receiver:
    """What arrived, and how the next requests are answered."""

    port: int
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Headers (names in lower case) and body of each request."""
    next: deque[Behaviour] = field(default_factory=deque)
    """One for each of the next requests; then `usual` answers."""
    connections: int = 0
    """Connections that were opened."""
    usual: Behaviour = lambda request: answer(request, 204)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/results"

    def values(self) -> list[dict[str, Any]]:
        """Every message that arrived, repeated ones too."""
        return [value for _, body in [*self.requests] for value in orjson.loads(body)]


def answer(request: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("content-length", "0")
    request.end_headers()


def answers(status: int, **headers: str) -> Behaviour:
    return lambda request: answer(request, status, **headers)


def hangs(request: BaseHTTPRequestHandler) -> None:
    """No answer, as long as the other side waits."""
    request.connection.settimeout(30)
    with suppress(OSError):
        request.connection.recv(1)
    request.close_connection = True


def trickles(request: BaseHTTPRequestHandler) -> None:
    """An answer of a byte now and then, so that no single read waits for long."""
    try:
        for letter in b"HTTP/1.1 204 No Content\r\nx-slow: " + b"a" * 10_000:
            request.wfile.write(bytes([letter]))
            request.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass
    request.close_connection = True


def closes(request: BaseHTTPRequestHandler) -> None:
    """The connection ends in place of an answer."""
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            receiver.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            (receiver.next.popleft() if receiver.next else receiver.usual)(self)

        def log_message(self, *_: object) -> None: ...

    server = _Server(("127.0.0.1", port), Handler)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
