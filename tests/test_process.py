"""How commands end on SIGTERM, and which lines a start logs while it waits."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

import orjson
import pytest

from app.process import log_while_waiting
from app.settings import TritonSettings
from benchmarks import canned
from tests.support.service import process, require_environment, wait_for_line


def said(log: Path) -> list[str]:
    """The lines of an end in order, by their first word."""
    lines = [orjson.loads(line)["message"] for line in log.read_text().splitlines() if line.startswith("{")]
    words = [line.replace(":", " ").split(" ")[0] for line in lines]
    return [word for word in words if word in ("stopping", "drained", "ended")]


@pytest.mark.parametrize("command", ["work", "reassemble"])
def test_d11_recorded_film_ends_in_order_and_says_so(tmp_path: Path, command: str) -> None:
    settings = {"STATE_DIR": str(tmp_path / "state"), "METRICS_PORT": "0", "INFERENCE_BACKEND": "stub"}
    with process(
        ["segments", "--local", str(tmp_path / "films"), command], settings, tmp_path / "log", anew=True
    ) as child:
        wait_for_line(child, tmp_path / "log", "metrics on http")
        time.sleep(0.5)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0, (tmp_path / "log").read_text()
    assert said(tmp_path / "log") == ["stopping", "drained", "ended"]


def test_e7_a_start_says_what_it_waits_for(tmp_path: Path) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    repository = canned.write(tmp_path / "repository")
    (repository / "yolo" / "1" / "model.py").write_text("import time\ntime.sleep(120)\n")
    settings = {"TRITON_REPOSITORY": str(repository), "OCR": "off", "PORT": "0", "STATE_DIR": str(tmp_path / "state")}
    with process(["serve"], settings, tmp_path / "log", anew=True) as child:
        for seconds in (3, 6):
            wait_for_line(
                child, tmp_path / "log", rf"waiting for the embedded Triton and its models, {seconds} s so far"
            )


def test_e7_whatever_holds_up_the_event_loop_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), log_while_waiting("an import", every_s=0.05):
        time.sleep(0.5)
    assert len([line for line in caplog.messages if line.startswith("starting: waiting for an import, ")]) >= 2
    caplog.clear()
    with caplog.at_level(logging.INFO), log_while_waiting("nothing", every_s=0.5):
        pass
    time.sleep(0.6)
    assert not caplog.messages
