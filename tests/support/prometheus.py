"""Debian's Prometheus on a free port, with the shipped configuration: only targets and intervals are others."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.settings import ROOT
from tests.support.service import process, wait_for_line

SHIPPED = ROOT / "prometheus"
INTERVAL = "500ms"
PATIENCE_S = 30.0


def require_program(name: str) -> str:
    """The program's path; skips by name at home, fails in CI, when it is not installed."""
    path = shutil.which(name)
    if path is not None:
        return path
    message = f"{name} is missing: Debian's package prometheus has it"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def promtool(*arguments: str | Path) -> str:
    """What `promtool` says about files; it must be content with them."""
    command = [require_program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, cwd=SHIPPED, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()
        assert answer["status"] == "success", f"{path} {parameters}: {answer}"
        return answer["data"]

    def numbers(self, expression: str) -> list[float]:
        """The expression's values now; those that are no numbers (a share of nothing) are left out."""
        found = self.get("query", query=expression)
        rows = [found["result"]] if found["resultType"] == "scalar" else [row["value"] for row in found["result"]]
        return [number for _, text in rows if math.isfinite(number := float(text))]

    def wait_for(self, expression: str) -> list[float]:
        """Waits until the expression has a value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (numbers := self.numbers(expression)):
            assert time.monotonic() < deadline, f"{expression} has no value"
            time.sleep(0.1)
        return numbers


def render(folder: Path, targets: Mapping[str, Sequence[str]]) -> Path:
    """The shipped files in `folder`: other targets by job (none for jobs not named), shorter intervals.

    Returns:
        The configuration's path.
    """
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    unknown = set(targets) - {job["job_name"] for job in config["scrape_configs"]}
    assert not unknown, f"prometheus.yml has no jobs {unknown}"
    for name in ("scrape_interval", "scrape_timeout", "evaluation_interval"):
        config["global"][name] = INTERVAL
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": list(targets.get(job["job_name"], ()))}]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": []}]}]
    for name in config["rule_files"]:
        shutil.copy(SHIPPED / name, folder / name)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """A Prometheus that reads `targets` (`host:port` by job) and works the shipped rules out; ended by its pid."""
    program = require_program("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log_path = folder / "prometheus.log"
    command = [
        program,
        f"--config.file={render(folder, targets)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=1h",
    ]
    with log_path.open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        _wait_until_ready(server, child, log_path)
        yield server
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_until_ready(server: Prometheus, child: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert child.poll() is None, log_path.read_text()
        try:
            if httpx.get(f"{server.url}/-/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, log_path.read_text()
        time.sleep(0.1)


@contextmanager
def running_triton(repository: Path, state: Path) -> Iterator[tuple[str, str]]:
    """The embedded Triton alone, on this repository.

    Yields:
        Its addresses, `host:port` both: gRPC, and metrics.
    """
    state.mkdir(parents=True, exist_ok=True)
    log_path = state / "triton-command.log"
    settings = {"TRITON_REPOSITORY": str(repository), "STATE_DIR": str(state)}
    with process(["triton"], settings, log_path) as child:
        metrics = wait_for_line(child, log_path, r"metrics\s+http://(\S+)/metrics")[1]
        yield wait_for_line(child, log_path, r"TRITON_URL=(\S+)")[1], metrics
