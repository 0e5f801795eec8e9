"""What a service's `/health/ready` answers while its machine starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Health:
    """`ready` says what it answers; `asked` counts the calls, and `ready_after` of them it is ready by itself."""

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
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        health.url = f"http://127.0.0.1:{server.server_port}/health/ready"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield health
        finally:
            server.shutdown()
            thread.join()
