"""`GET /metrics` and `GET /health` on METRICS_PORT, for processes that are not the web service."""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from app import metrics
from app.auth import Hosts, RefusalLog
from app.errors import ConfigurationError
from app.limits import Latch

HealthReport = Callable[[], dict[str, Any]]

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""Most connections at once; each has a thread."""
TIMEOUT_S = 10.0
"""Seconds from accept to the end of the response, however steadily the client sends or reads."""
_PAUSE_S = 0.5
"""Seconds before the next accept while no descriptor is left. Without it the loop would spin, because the listening
socket stays readable."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    report: HealthReport
    hosts: Hosts
    refusals: RefusalLog

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: dict[Any, float] = {}
        """By connection: when it times out, monotonic seconds."""
        self._latch = Latch()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            accepted = super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if self._latch.begins("out of descriptors"):
                    log.error("no connection for metrics can be accepted: %s (ulimit -n)", error.strerror)
                    metrics.CONNECTIONS_REFUSED.labels("descriptors").inc()
                time.sleep(_PAUSE_S)
            raise
        self._latch.ends()
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            metrics.CONNECTIONS_REFUSED.labels("full").inc()
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic() + TIMEOUT_S
        metrics.CONNECTIONS.labels("http").inc()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        if self._open.pop(request, None) is not None:
            metrics.CONNECTIONS.labels("http").dec()
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Shuts late connections down, so that their threads end. `serve_forever` calls it several times a second."""
        now = time.monotonic()
        for request, due in [*self._open.items()]:
            # `pop`, because the connection's thread may end it at the same time.
            if now > due and self._open.pop(request, None) is not None:
                metrics.CONNECTIONS.labels("http").dec()
                metrics.CONNECTIONS_REFUSED.labels("slow_head").inc()
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # an OSError: the client left or timed out
            log.exception("a request for metrics or health failed")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds that a silent client may hold a thread

    def do_GET(self) -> None:
        refusal = self.server.hosts.refusal(self.headers.get_all("Host") or [], self.path)
        if refusal is not None:
            metrics.AUTH_FAILURES.labels(refusal.reason).inc()
            self.server.refusals.refused(self.client_address[0], f"GET {self.path}", refusal.reason)
            self._respond(refusal.status, bytes(refusal.response().body), "application/json")
        elif self.path == "/metrics":
            self._respond(200, metrics.exposition(), CONTENT_TYPE_LATEST)
        elif self.path in ("/health", "/health/live"):
            report = self.server.report()
            self._respond(503 if report["state"] == "silent" else 200, orjson.dumps(report), "application/json")
        elif self.path == "/health/ready":
            report = self.server.report()
            self._respond(200 if report["state"] == "ok" else 503, orjson.dumps(report), "application/json")
        else:
            self._respond(404, b"this server has /metrics, /health, /health/live and /health/ready\n", "text/plain")

    def _respond(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing per request."""


@contextmanager
def serve_metrics(host: str, port: int, report: HealthReport, hosts: Hosts) -> Iterator[int]:
    """Serves from a thread while the block lasts; yields the port.

    Args:
        port: 0 takes a free one.
        report: returns the body of /health. /health and /health/live answer 503 if its `state` is `silent`,
            /health/ready unless it is `ok`.
        hosts: host names that the server answers to.

    Raises:
        ConfigurationError: HOST and METRICS_PORT cannot be listened on.
    """
    kind = type("_Server6", (_Server,), {"address_family": socket.AF_INET6}) if ":" in host else _Server
    try:
        server = kind((host, port), _Handler)
    except OSError as error:
        raise ConfigurationError(
            f"HOST='{host}' METRICS_PORT={port}: cannot listen there ({error.strerror or error}); "
            "stop what uses the port, or set METRICS_PORT to another (0 takes a free one)"
        ) from None
    server.report, server.hosts, server.refusals = report, hosts, RefusalLog()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="metrics-server", daemon=True
    )
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
