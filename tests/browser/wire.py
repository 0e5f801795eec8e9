"""A network between browser and service that a test can cut, and a `start-server` for tests."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.service import Service

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends only RST."""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Wire:
    """Carries bytes between a port of its own and a service's, until it is cut."""

    def __init__(self, service: Service) -> None:
        self._target = ("127.0.0.1", service.port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._up, self._hushed = True, False
        self._flowing = threading.Event()
        self._flowing.set()
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._take, daemon=True).start()

    def cut(self) -> None:
        """Resets every connection and refuses new ones until `mend`."""
        self._up = False
        for end in self._ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def hush(self) -> None:
        """Drops everything without telling either side, like a radio out of reach."""
        self._hushed = True

    def hold(self) -> None:
        """Holds everything until `mend` without losing any, like a network that stalls."""
        self._flowing.clear()

    def mend(self) -> None:
        self._up, self._hushed = True, False
        self._flowing.set()

    def close(self) -> None:
        self._door.close()
        self._flowing.set()
        self.cut()

    def _take(self) -> None:
        with suppress(OSError):  # the server was closed
            while True:
                near, _ = self._door.accept()
                if not self._up:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if not self._hushed:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def wired(service: Service) -> Iterator[Wire]:
    wire = Wire(service)
    try:
        yield wire
    finally:
        wire.close()


@dataclass
class Starter:
    """Answers like `start-server` and records the calls."""

    url: str
    answer: dict[str, Any]
    status: int = 200
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Method and `Authorization` of each call."""


@contextmanager
def start_server(**answer: Any) -> Iterator[Starter]:
    class Door(BaseHTTPRequestHandler):
        def do_OPTIONS(self) -> None:
            self.send_response(204)
            self._allow()
            self.end_headers()

        def do_POST(self) -> None:
            starter.asked.append((self.command, self.headers.get("Authorization")))
            body = json.dumps(starter.answer).encode()
            self.send_response(starter.status)
            self._allow()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def _allow(self) -> None:
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Methods", "GET, POST")
            self.send_header("Access-Control-Allow-Headers", "authorization, content-type")

        def log_message(self, *_: object) -> None:
            """Writes nothing on stderr."""

    with _served(Door) as origin:
        starter = Starter(f"{origin}/start", answer)
        yield starter


@contextmanager
def folder_served(folder: Path) -> Iterator[str]:
    """Serves a folder's files over HTTP; yields the origin."""

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *request: Any) -> None:
            super().__init__(*request, directory=str(folder))

        def log_message(self, *_: object) -> None:
            """Writes nothing on stderr."""

    with _served(Files) as origin:
        yield origin


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
