"""Shared parts of the benchmarks: processes on their own cores, the machine's description, ratios with spread."""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil

from app.settings import ROOT, SECTIONS

START_S = 90.0
PACKAGES = ("grpcio", "numpy", "opencv-python-headless", "orjson", "simplejpeg", "tritonclient", "uvicorn", "uvloop")
_OWN = {name.upper() for section in SECTIONS for name in section.model_fields} | {"PROMETHEUS_MULTIPROC_DIR"}
"""Variables that must not leak from a developer's shell into what is measured."""


class BenchmarkError(Exception):
    """A process of a benchmark failed. The message quotes its output."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of each process. With two cores the load shares Triton's; with one core all share it."""

    tested: frozenset[int]
    triton: frozenset[int]
    load: frozenset[int]


def cores(tested: int = 1) -> Cores:
    """Assigns this many cores to the tested process, one of the rest to the load, and all others to Triton."""
    mine = sorted(os.sched_getaffinity(0))
    under_test, rest = frozenset(mine[:tested]), frozenset(mine[tested:] or mine)
    load = frozenset(mine[-1:])
    return Cores(under_test, rest - load or rest, load)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without its Sightline settings, with those given."""
    kept = {name: value for name, value in os.environ.items() if name not in _OWN}
    return {**kept, "PYTHONUNBUFFERED": "1", **settings}


@contextmanager
def process(
    arguments: Sequence[str], on: frozenset[int], log: Path, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m …` on these cores, its output in `log`; ended by SIGTERM, by SIGKILL when that does not do."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment(settings),
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, on),
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def answer(arguments: Sequence[str], on: frozenset[int], timeout_s: float) -> dict[str, Any]:
    """The JSON that `python -m …` prints.

    Raises:
        BenchmarkError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        timeout=timeout_s,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, on),
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{arguments[0]} ended with {done.returncode}:\n{done.stderr.decode()[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def triton(repository: Path, state: Path, on: frozenset[int]) -> Iterator[tuple[str, list[int]]]:
    """The embedded Triton on these models: its gRPC address and the ids of its processes."""
    state.mkdir(parents=True, exist_ok=True)
    log = state / "triton-command.log"
    settings = {"TRITON_REPOSITORY": str(repository), "STATE_DIR": str(state)}
    with process(["app", "triton"], on, log, **settings) as child:
        deadline = time.monotonic() + START_S
        while "TRITON_URL=" not in (said := log.read_text(errors="replace")):
            check(child, log, deadline)
            time.sleep(0.05)
        url = said.rpartition("TRITON_URL=")[2].split()[0]
        # The command's own process and the reaper idle; what counts is the server and its backend's processes.
        yield url, [descendant.pid for descendant in psutil.Process(child.pid).children(recursive=True)]


def wait_until_ready(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Waits until `/health/ready` responds with 200."""
    deadline = time.monotonic() + START_S
    while True:
        check(child, log, deadline)
        try:
            if httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def check(child: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    """Raises when the process has ended, or the time is over."""
    if child.poll() is None and time.monotonic() < deadline:
        return
    why = f"ended with {child.returncode}" if child.poll() is not None else f"was not ready in {START_S:g} s"
    raise BenchmarkError(f"{' '.join(map(str, child.args[1:4]))} {why}:\n{log.read_text(errors='replace')[-3000:]}")  # type: ignore[index]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of a figure over the turns."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        if self.least == self.most:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} [dim]({self.least:,.{digits}f}–{self.most:,.{digits}f})[/]"


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return Spread(statistics.median(values), min(values), max(values))


def machine() -> dict[str, Any]:
    """A description of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }
