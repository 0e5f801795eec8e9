"""Serves `/health/ready` like a service whose machine starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Health:
    """`ready` chooses the response; `asked` counts the calls; after `ready_after` calls it becomes ready by itself."""

    def __init__(self) -> None:
        self.url = ""
        self.ready = False
        self.ready_after: int | None = None
        self.asked = 0

    def status(self) -> int:
        self.asked += 1
        if self.ready_after is not None and self.asked > self.ready_after:
            self.ready = True
        return 200 if self.ready else 503


@contextmanager
def health_served() -> Iterator[Health]:
    health = Health()

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(health.status())
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        health.url = f"http://127.0.0.1:{server.server_port}/health/ready"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield health
        finally:
            server.shutdown()
            thread.join()
