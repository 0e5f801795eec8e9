"""/metrics and /health of a fleet process."""

from __future__ import annotations

import socket

import httpx
import pytest

from app import pages
from app.errors import ConfigurationError
from app.fleet import vitals
from app.fleet.vitals import Vitals


def test_health_tells_the_worst_of_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Vitals(2)
    with pages.serving("127.0.0.1", 0, seen.report) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        assert http.get("/health").json()["state"] == "starting"
        assert http.get("/health/ready").status_code == 503
        for number in range(2):
            seen.pulse(number).beat(redis=True, kafka=True, inference=True)
        assert http.get("/health/ready").status_code == 200
        seen.pulse(1).beat(redis=True, kafka=False, inference=True)
        report = http.get("/health").json()
        assert (report["state"], [one["state"] for one in report["workers"]]) == ("degraded", ["ok", "degraded"])
        assert http.get("/health").status_code == 200, "a restart would not bring Kafka back"
        assert http.get("/health/ready").status_code == 503
        monkeypatch.setattr(vitals, "SILENT_S", -1.0)
        assert http.get("/health").status_code == 503


def test_metrics_are_served_and_other_paths_named() -> None:
    with pages.serving("127.0.0.1", 0, Vitals(1).report) as port:
        assert "sightline_fleet_cameras" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 404


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = pytest.raises(ConfigurationError, match=f"METRICS_PORT={port}")
        with told, pages.serving("127.0.0.1", port, Vitals(1).report):
            pass
