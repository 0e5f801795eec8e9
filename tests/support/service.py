"""The service and its Triton as separate processes, and queries of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.settings import ROOT, SECRETS, SECTIONS
from tests.support import forks

START_S = 90.0
_OWN = {name.upper() for section in SECTIONS for name in section.model_fields} | {"PROMETHEUS_MULTIPROC_DIR"}
_OWN |= {f"{name}_FILE" for name in SECRETS}
"""A developer's own settings must not change what is tested."""


def require_environment(python: Path, command: str) -> None:
    """Skips by name at home, fails in CI, when an environment that a test needs is not installed."""
    if python.exists():
        return
    message = f"{python} is missing: run `{command}`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@dataclass
class Service:
    """A running service."""

    port: int
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/inference"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def metrics(self) -> dict[str, float]:
        """Every sample, by name and labels as exposed."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def frames(self, entry: str = "live") -> dict[str, float]:
        """Frame counters of an entry point: received, processed, and dropped and failed over all reasons."""
        samples = self.metrics()
        label = f'entry="{entry}"'
        return {
            word: sum(v for k, v in samples.items() if k.startswith(f"sightline_frames_{word}_total") and label in k)
            for word in ("received", "processed", "dropped", "failed")
        }


def assert_adds_up(service: Service, entry: str = "live") -> dict[str, float]:
    """received = processed + dropped + failed, once nothing is in flight; returns the counters."""
    counts = service.frames(entry)
    deadline = time.monotonic() + 5
    while counts["received"] != counts["processed"] + counts["dropped"] + counts["failed"]:
        assert time.monotonic() < deadline, counts
        time.sleep(0.05)
        counts = service.frames(entry)
    return counts


@contextmanager
def process(
    arguments: list[str], settings: Mapping[str, str], log_path: Path, *, anew: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m app …` with these settings; SIGTERM at the end, SIGKILL when that does not do.

    Args:
        anew: starts Python for it, rather than fork a process that has imported the application.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _OWN}
    environment |= {"PYTHONUNBUFFERED": "1", **settings}
    child: subprocess.Popen[bytes]
    with log_path.open("wb") as log:
        if anew:
            command = [sys.executable, "-m", "app", *arguments]
            child = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        else:
            child = forks.start(arguments, environment, stdout=log.fileno(), stderr=log.fileno())  # type: ignore[assignment]
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_for_line(child: subprocess.Popen[bytes], log_path: Path, pattern: str) -> re.Match[str]:
    """Waits until the log has a line that matches."""
    deadline = time.monotonic() + START_S
    while True:
        text = log_path.read_text(errors="replace")
        found = re.search(pattern, text)
        if found:
            return found
        assert child.poll() is None, f"ended with {child.returncode} before it said {pattern!r}:\n{text[-4000:]}"
        assert time.monotonic() < deadline, f"did not say {pattern!r} in {START_S:g} s:\n{text[-4000:]}"
        time.sleep(0.05)


@contextmanager
def serving(folder: Path, settings: Mapping[str, str], *, ready: bool = True) -> Iterator[Service]:
    """A service on a free port, ready to analyse."""
    log_path = folder / "service.log"
    settings = {"STATE_DIR": str(folder / "state"), "PORT": "0", **settings}
    with process(["serve"], settings, log_path) as child:
        found = wait_for_line(child, log_path, r"starting on http://127\.0\.0\.1:(\d+)")
        service = Service(int(found[1]), child, log_path)
        wait_until(service, "/health/ready" if ready else "/health/live")
        yield service


def wait_until(service: Service, path: str, status: int = 200) -> httpx.Response:
    """Polls a path of the service until it answers with this status."""
    deadline = time.monotonic() + START_S
    while True:
        assert service.process.poll() is None, service.log[-4000:]
        try:
            answer = httpx.get(service.url + path, timeout=START_S)
            if answer.status_code == status:
                return answer
        except httpx.TransportError as error:
            answer = error  # type: ignore[assignment]
        assert time.monotonic() < deadline, f"{path}: {answer}\n{service.log[-4000:]}"
        time.sleep(0.1)


@contextmanager
def running_triton(repository: Path, state: Path, **more: str) -> Iterator[str]:
    """The embedded Triton alone, on this repository; yields its gRPC address. `more`: further settings."""
    state.mkdir(parents=True, exist_ok=True)
    settings = {"TRITON_REPOSITORY": str(repository), "STATE_DIR": str(state), **more}
    with process(["triton"], settings, state / "triton-command.log") as child:
        yield wait_for_line(child, state / "triton-command.log", r"TRITON_URL=(\S+)")[1]
