"""/metrics and /health of a fleet process."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress

import httpx
import pytest

from app import metrics_server
from app.auth import Hosts
from app.errors import ConfigurationError
from app.fleet import worker
from app.fleet.worker import WorkerHeartbeats
from app.settings import Settings


def test_health_tells_the_worst_of_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = WorkerHeartbeats(2)
    with (
        metrics_server.serve_metrics("127.0.0.1", 0, seen.report, Hosts(Settings())) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        assert http.get("/health").json()["state"] == "starting"
        assert http.get("/health/ready").status_code == 503
        for number in range(2):
            seen.of(number).beat(kafka=True, inference=True)
        assert http.get("/health/ready").status_code == 200
        seen.of(1).beat(kafka=False, inference=True)
        report = http.get("/health").json()
        assert (report["state"], [worker_report["state"] for worker_report in report["workers"]]) == (
            "degraded",
            ["ok", "degraded"],
        )
        assert http.get("/health").status_code == 200, "a restart would not bring Kafka back"
        assert http.get("/health/ready").status_code == 503
        monkeypatch.setattr(worker, "SILENT_S", -1.0)
        assert http.get("/health").status_code == 503


def test_metrics_are_served_and_other_paths_named() -> None:
    with metrics_server.serve_metrics("127.0.0.1", 0, WorkerHeartbeats(1).report, Hosts(Settings())) as port:
        assert "sightline_fleet_cameras" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 404


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = pytest.raises(ConfigurationError, match=f"METRICS_PORT={port}")
        with told, metrics_server.serve_metrics("127.0.0.1", port, WorkerHeartbeats(1).report, Hosts(Settings())):
            pass


def test_b1_another_name_gets_no_figures() -> None:
    with metrics_server.serve_metrics("127.0.0.1", 0, WorkerHeartbeats(1).report, Hosts(Settings())) as port:
        url = f"http://127.0.0.1:{port}"
        for path in ("/metrics", "/health", "/health/ready", "/"):
            answer = httpx.get(url + path, headers={"Host": f"evil.com:{port}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host")
        assert httpx.get(f"{url}/health/live", headers={"Host": "10.1.2.3"}).status_code == 200, "a probe of a pod"
        assert httpx.get(f"{url}/metrics", headers={"Host": "10.1.2.3"}).status_code == 421
        for request, status in (
            (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n", b"421"),
            (b"GET http://evil.com/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b"421"),
            (b"GET /metrics HTTP/1.0\r\n\r\n", b"421"),
            (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(request)
                assert connection.recv(1 << 16).split(b" ")[1] == status, request
    opened = Settings(host="0.0.0.0")  # where Prometheus asks pods and containers by their addresses
    with metrics_server.serve_metrics("127.0.0.1", 0, WorkerHeartbeats(1).report, Hosts(opened)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"Host": "10.1.2.3"}).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"Host": "evil.com"}).status_code == 421


def test_a4_connections_that_become_no_request_are_bounded_in_time_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(metrics_server, "MAX_CONNECTIONS", 20)
    with (
        metrics_server.serve_metrics("127.0.0.1", 0, WorkerHeartbeats(1).report, Hosts(Settings())) as port,
        ExitStack() as stack,
    ):
        open_ = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(40)]
        begun = time.monotonic()
        alive = open_
        while alive:  # a byte now and then does not help
            assert time.monotonic() - begun < 15, f"{len(alive)} connections are open"
            alive = [connection for connection in alive if still_open(connection)]
            time.sleep(0.1)
        assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200


def still_open(connection: socket.socket) -> bool:
    """Sends a byte of a request line; returns whether the server has not closed the connection."""
    try:
        connection.sendall(b"G")
        connection.setblocking(False)
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            connection.settimeout(20)
