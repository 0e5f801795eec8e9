"""Runs the two loads of `soak` and samples memory meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import psutil

from benchmarks import harness, ledger, memory
from benchmarks.harness import BenchmarkError
from benchmarks.service import Bench, Running
from benchmarks.turns import Figures

GROUPS = {"service": "the service", "triton": "Triton", "ocr": "the OCR process"}
"""Groups of processes whose memory is measured together."""
MB = 1e6
_REST_S = 30.0
"""In which, after the load, all sessions end and all frames are accounted for."""


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float = 1200.0
    sessions: int = 12
    """Cameras; a sixth of them hardly reads, a third sends no headers."""
    fps: float = 5.0
    churn_s: float = 10.0
    """Mean length of a camera's session."""
    unruly: int = 4
    """Other clients at once."""
    look_s: float = 5.0
    ocr: bool = True
    turns: int = 1
    variants: tuple[str, ...] = tuple(GROUPS)


def loaded(
    stand: Bench, running: Running, plan: Plan, say: Callable[[str], None]
) -> tuple[list[Figures], dict[str, Any]]:
    """Looks at the memory while both loads last, and what the loads saw."""
    told, seconds = stand.folder / "load.json", f"{plan.seconds:g}"
    cameras = ["app", "load", running.url, f"--sessions={plan.sessions}", f"--fps={plan.fps:g}"]
    cameras += ["--ramp=1", "--warm-up=0", f"--duration={seconds}", f"--churn={plan.churn_s:g}", f"--json={told}"]
    cameras += ["--bare=0.34", f"--slow-readers={plan.sessions // 6}"]
    others = ["benchmarks.unruly", f"--url={running.socket_url}", f"--seconds={seconds}", f"--seats={plan.unruly}"]
    looks: list[Figures] = []
    logs = stand.folder / "cameras.log", stand.folder / "others.log"
    with (
        harness.process(cameras, stand.cores.load, logs[0]) as first,
        harness.process(others, stand.cores.load, logs[1]) as second,
    ):
        began = time.monotonic()
        while first.poll() is None or second.poll() is None:
            time.sleep(plan.look_s)
            looks.append(_look(stand, running, time.monotonic() - began, say))
            if looks[-1]["at_s"] > 2 * plan.seconds + 60:
                raise BenchmarkError(f"the load does not end:\n{logs[0].read_text()}{logs[1].read_text()}")
    for child, log in ((first, logs[0]), (second, logs[1])):
        _check(child, log.read_text(errors="replace"))
    figures = json.loads(told.read_text())["figures"]
    return looks, {"cameras": figures, "others": json.loads(logs[1].read_text())}


def _check(child: Popen[bytes], said: str) -> None:
    if child.returncode != 0:
        name = " ".join(map(str, child.args[2:4]))  # type: ignore[index]
        raise BenchmarkError(f"{name} ended with {child.returncode}:\n{said[-3000:]}")


def _look(stand: Bench, running: Running, at_s: float, say: Callable[[str], None]) -> Figures:
    """MB of each group of processes: resident, and their own."""
    if not psutil.pid_exists(running.pid):
        raise BenchmarkError(f"the service is gone:\n{(stand.folder / 'service.log').read_text()[-3000:]}")
    groups = {"service": [running.pid], "triton": stand.triton_pids, "ocr": running.pids[1:]}
    found: Figures = {"at_s": at_s}
    for name, pids in groups.items():
        found[name], found[f"own_{name}"] = (count / MB for count in memory.resident(pids))
    books = ledger.read(running.url)
    amounts = ", ".join(f"{title} {found[name]:,.1f} MB" for name, title in GROUPS.items() if found[name])
    say(f"{at_s:,.0f} s: {amounts}; {books.sessions} sessions, {books.received:,} frames")
    return found


def settled(running: Running) -> ledger.Ledger:
    """The service's frame counts once all sessions have ended."""
    deadline = time.monotonic() + _REST_S
    while (books := ledger.read(running.url)).sessions or not books.adds_up:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"after {_REST_S:g} s without a client the books do not add up: {books}")
        time.sleep(0.2)
    return books
