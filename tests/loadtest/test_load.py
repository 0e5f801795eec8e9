"""`sightline load`, as a process, against a real service."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import SLOW, Serve, photograph
from tests.support import forks
from tests.support.live import ready
from tests.support.service import Service, assert_adds_up, serving


def load(service: Service | str, folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, figures, what it said."""
    url = service if isinstance(service, str) else service.url
    told = folder / "figures.json"
    done = forks.run("load", url, "--ramp", "0.5", "--warm-up", "0.5", f"--json={told}", *options)
    figures = orjson.loads(told.read_bytes())["figures"] if told.exists() else {}
    return done.returncode, figures, done.stderr


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
    assert all(f"<path class='{name}' d='M" in page for name in ("p50", "p95", "p99", "due", "results"))


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
    assert found["outcomes"] == {"stopped": 4}


def test_a_slow_reader_is_one_and_others_are_served_as_before(service: Service, tmp_path: Path) -> None:
    options = ("--sessions=3", "--slow-readers=1", "--fps=15", "--duration=4", "--slo=fairness=0.8")
    code, found, said = load(service, tmp_path, *options)
    assert code == 0, said
    # It had not read the end of its answers when it was not waited for any longer.
    assert (found["outcomes"], found["slow"]["outcomes"]) == ({"stopped": 2}, {"lost": 1})
    assert found["disagreements"] == []
    # It reads an answer a second: the last of them are 15 s old, and would be a tenth of all.
    assert found["p95_age_ms"] < 5000
    assert found["due"] == pytest.approx(120, abs=4)
    assert found["dropped"] == pytest.approx(1 - found["results"] / found["due"], abs=1e-4)
    assert found["slow"]["due"] == pytest.approx(60, abs=2)
    assert found["slow"]["results"] > 5
    assert "slow readers, apart" in said
    assert_adds_up(service)


def test_ones_own_pictures(service: Service, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, width in enumerate((320, 200)):
        (pictures / f"{number}.jpg").write_bytes(photograph(width, 120))
    before = service.frames()["processed"]
    code, found, said = load(service, tmp_path, "--sessions=1", "--fps=10", "--duration=1", f"--source={pictures}")
    assert code == 0, said
    assert service.frames()["processed"] >= before + found["results"] > before
    (pictures / "1.jpg").write_bytes(b"no picture")
    failed = assert_adds_up(service)["failed"]
    code, found, said = load(service, tmp_path, "--sessions=1", "--fps=10", "--duration=1", f"--source={pictures}")
    assert code == 0, said
    assert f"left out: {pictures / '1.jpg'}" in said
    assert found["results"] > 0
    # What is no picture is not sent to be refused. On a busy machine a frame may be due before the session is ready, or
    # wait too long: that is no refusal.
    assert set(found["reasons"]) <= {"no_session", "superseded", "stale"}
    assert assert_adds_up(service)["failed"] == failed
    assert found["disagreements"] == []


def test_frames_refused_on_arrival_cost_no_older_one_its_result(serve: Serve, tmp_path: Path) -> None:
    """They are answered at once, while an older one is still at the models."""
    service = serve(**SLOW, MAX_MESSAGES_PER_S="5")
    options = ("--ramp=0", "--warm-up=0", "--sessions=1", "--fps=40", "--duration=3")
    code, found, said = load(service, tmp_path, *options)
    assert code == 0, said
    assert found["reasons"]["rate_limited"] > 50
    assert found["results"] == service.frames()["processed"] > 3


@pytest.mark.anyio
async def test_a_load_that_nobody_lets_in_is_written_down_all_the_same(serve: Serve, tmp_path: Path) -> None:
    service, report = serve(MAX_SESSIONS="1", MAX_WAITING="1"), tmp_path / "report.html"
    options = ("--sessions=1", "--fps=10", "--duration=1", "--slo=fairness=0.5", f"--report={report}")
    async with ready(service):
        code, found, said = await asyncio.to_thread(load, service, tmp_path, *options)
    assert code == 1
    assert "no session was ever ready (queued)" in said
    assert "is the service there?" not in said
    assert (found["results"], found["fairness"], found["dropped"]) == (0, None, 1)
    assert "no session was ever ready (queued)" in report.read_text()
    assert orjson.loads((tmp_path / "figures.json").read_bytes())["missed"] == [
        "fairness >= 0.5: it is none, no frame was answered"
    ]


@pytest.mark.anyio
async def test_sessions_that_stand_in_line_for_good_end_with_the_load(serve: Serve, tmp_path: Path) -> None:
    service = serve(MAX_SESSIONS="2", MAX_WAITING="1")
    options = ("--sessions=3", "--fps=10", "--duration=2", "--slo=dropped=0.1")
    async with ready(service):
        code, found, said = await asyncio.to_thread(load, service, tmp_path, *options)
    assert code == 1, said
    assert found["outcomes"]["stopped"] == found["outcomes"]["queued"] == 1
    assert 1 <= found["outcomes"]["rejected"] <= 8  # not tried again and again without a pause
    assert found["reasons"]["no_session"] > 20
    assert found["disagreements"] == []


def test_results_without_the_models_are_told_apart(tmp_path: Path) -> None:
    with serving(tmp_path, {"TRITON_URL": "127.0.0.1:9", "OCR": "off"}, ready=False) as service:
        code, found, said = load(
            service, tmp_path, "--sessions=1", "--fps=10", "--duration=1", "--slo=p99_age_ms=10000", "--slo=degraded=0"
        )
    assert (code, found["degraded"]) == (1, 1.0)
    assert said.count("missed") == 1


def test_a_service_that_dies_under_the_load_is_no_success(serve: Serve, tmp_path: Path) -> None:
    service = serve()

    def kill() -> None:
        while service.frames()["processed"] < 5:
            time.sleep(0.1)
        service.process.kill()

    killing = threading.Thread(target=kill)
    killing.start()
    code, found, said = load(service, tmp_path, "--ramp=0", "--warm-up=0", "--sessions=2", "--fps=10", "--duration=8")
    killing.join()
    assert code == 1
    assert found["results"] > 0
    assert found["disagreements"]
    assert "no report came (lost)" in said


def test_a_token_that_does_not_open_the_service(serve: Serve, tmp_path: Path) -> None:
    service = serve(AUTH_TOKENS="right")
    code, _, said = load(service, tmp_path, "--sessions=1", "--duration=300", "--token=wrong")  # over before that
    assert code == 1
    assert "given up" in said
    assert "unauthorized: this token does not open the service" in said
    code, found, said = load(service, tmp_path, "--sessions=1", "--duration=1", "--token=right")
    assert code == 0, said
    assert found["results"]


@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_there_is_said_at_once_and_written_down(tmp_path: Path, processes: int) -> None:
    report = tmp_path / "report.html"
    options = ("--sessions=2", "--duration=300", f"--report={report}", f"--processes={processes}")  # over before that
    code, found, said = load("http://127.0.0.1:9", tmp_path, *options)
    assert code == 1
    assert "ws://127.0.0.1:9/ws/inference: given up" in said
    assert "is the service there?" in said
    assert "Traceback" not in said
    assert found["results"] == 0
    assert found["dropped"] in (None, 1)  # it may not have come to what is measured
    assert "No result came" in report.read_text()


def test_another_address_of_the_same_server_is_refused_with_its_answer(service: Service, tmp_path: Path) -> None:
    code, _, said = load(f"{service.url}/elsewhere", tmp_path, "--sessions=1", "--duration=300")
    assert code == 1
    assert "refused: HTTP 404" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--slo=speed=1",), "p95_age_ms"),
        (("--slo=dropped=5",), "from 0 to 1"),
        (("--sessions=2", "--slow-readers=3"), "at most --sessions"),
        (("--source=no/such/film.mp4",), "no/such/film.mp4: No such file"),
        (("--report=no/such/folder/report.html",), "--report"),
    ],
)
def test_what_is_asked_for_wrongly_is_named(
    service: Service, tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    code, _, said = load(service, tmp_path, "--duration=1", *options)
    assert code in (1, 2)
    assert word in said
    assert "Traceback" not in said


@pytest.mark.parametrize("url", ["localhost:8000", "udp://127.0.0.1:8000", "http://", "127.0.0.1", "http://host:port"])
def test_what_is_no_address_is_named(tmp_path: Path, url: str) -> None:
    code, _, said = load(url, tmp_path, "--duration=1")
    assert code == 2
    shown = "http://…" if url == "http://host:port" else url  # what cannot be taken apart may hold a secret anywhere
    assert f"{shown}: should be an address such as http://127.0.0.1:8000" in said
    assert "Traceback" not in said
