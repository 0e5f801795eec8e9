"""`sightline load`, as a process, against a real service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.settings import ROOT
from tests.conftest import SLOW, Serve
from tests.support.service import Service, assert_adds_up


def load(service: Service | str, folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, figures, what it said."""
    url = service if isinstance(service, str) else service.url
    told = folder / "figures.json"
    command = [
        sys.executable,
        "-m",
        "app",
        "load",
        url,
        "--ramp",
        "0.5",
        "--warm-up",
        "0.5",
        f"--json={told}",
        *options,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    figures = orjson.loads(told.read_bytes())["figures"] if told.exists() else {}
    return done.returncode, figures, done.stderr.decode()


def test_what_the_client_counts_the_service_counted(serve: Serve, tmp_path: Path) -> None:
    service = serve()
    options = ("--sessions=6", "--fps=10", "--duration=2", "--churn=1", "--bare=0.5", "--slo=fairness=0.5")
    report = tmp_path / "report.html"
    code, found, said = load(service, tmp_path, *options, f"--report={report}")
    assert code == 0, said
    assert found["disagreements"] == []
    assert found["sessions"] > 6
    assert set(found["outcomes"]) == {"stopped"}
    assert 0 < found["results"] <= found["due"] == pytest.approx(120, abs=6)
    assert found["p50_age_ms"] <= found["p95_age_ms"] <= found["p99_age_ms"] <= found["max_age_ms"]
    counts = assert_adds_up(service)
    assert counts["received"] >= found["results"]
    page = report.read_text()
    assert "<svg" in page
    assert page.count("<polyline") == 3


def test_a_missed_objective_is_told_and_fails(serve: Serve, tmp_path: Path) -> None:
    code, found, said = load(
        serve(**SLOW), tmp_path, "--sessions=2", "--fps=15", "--duration=2", "--slo=dropped=0.1", "--slo=p50_age_ms=100"
    )
    assert code == 1
    assert found["dropped"] > 0.5  # a model of 0.3 s answers three of fifteen
    assert found["reasons"]["superseded"] > 20
    assert found["disagreements"] == []
    assert said.count("missed") == 2


def test_a_stall_counts_for_every_frame_that_was_due_in_it(serve: Serve, tmp_path: Path) -> None:
    """Open loop: ages count from when a frame was due, not from when a slow service let it be sent."""
    code, found, said = load(serve(**SLOW), tmp_path, "--sessions=1", "--fps=10", "--duration=2")
    assert code == 0, said
    assert found["p50_age_ms"] >= 300
    assert found["due"] == pytest.approx(20, abs=1)


def test_sessions_over_two_processes(service: Service, tmp_path: Path) -> None:
    code, found, said = load(service, tmp_path, "--sessions=4", "--fps=5", "--duration=1", "--processes=2")
    assert code == 0, said
    assert found["sessions"] == 4
    assert found["due"] == pytest.approx(20, abs=4)


def test_a_token_that_does_not_open_the_service(serve: Serve, tmp_path: Path) -> None:
    service = serve(AUTH_TOKENS="right")
    code, _, said = load(service, tmp_path, "--sessions=1", "--duration=1", "--token=wrong")
    assert code == 1
    assert "unauthorized" in said
    code, found, said = load(service, tmp_path, "--sessions=1", "--duration=1", "--token=right")
    assert code == 0, said
    assert found["results"]


def test_nobody_there(tmp_path: Path) -> None:
    code, _, said = load("http://127.0.0.1:9", tmp_path, "--sessions=2", "--duration=1")
    assert code == 1
    assert "is the service there?" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--slo=speed=1",), "p95_age_ms"),
        (("--sessions=2", "--slow-readers=3"), "at most --sessions"),
        (("--source=no/such/film.mp4",), "no such file"),
    ],
)
def test_what_is_asked_for_wrongly_is_named(
    service: Service, tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    code, _, said = load(service, tmp_path, "--duration=1", *options)
    assert code in (1, 2)
    assert word in said
    assert "Traceback" not in said
