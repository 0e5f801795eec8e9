"""One variant's window of measurement: frames, latencies, and the CPU time of all processes that took part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one variant in one window."""

    frames: int
    seconds: float
    p50_ms: float
    """Latency of a frame as the client sees it: from sent to answered."""
    p95_ms: float
    p99_ms: float
    cpu_s: float
    """User and system time of the process under test, all its threads."""
    triton_cpu_s: float
    load_cpu_s: float
    """CPU seconds of the load client; 0 if there is none."""
    machine_busy_s: float
    """CPU seconds of all CPUs, used by any process."""
    stolen_s: float
    """CPU seconds that the hypervisor gave to other machines."""
    page_faults: int = 0
    """Of the process under test."""

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a frame."""
        return self.cpu_s / max(1, self.frames) * 1e6


class Window:
    """Counts answers between `open` and `close`."""

    def __init__(self, watch: Sequence[int], triton: Sequence[int], *, own_load: bool = True) -> None:
        """`watch`: the processes under test. `own_load`: whether the calling process is the load client."""
        self._groups = watch, triton, [os.getpid()] if own_load else []
        self._latencies: list[float] = []
        self._open = False
        self.closed = False

    def answered(self, latency_s: float) -> None:
        if self._open:
            self._latencies.append(latency_s)

    def open(self) -> None:
        self._begun = _clocks(self._groups)
        self._faults = sum(map(_page_faults, self._groups[0]))
        self._open = True

    def close(self) -> None:
        self._open, self.closed = False, True
        self._ended = _clocks(self._groups)
        self._faults = sum(map(_page_faults, self._groups[0])) - self._faults

    def measured(self) -> Measured:
        seconds, cpu, triton, load, busy, stolen = (b - a for a, b in zip(self._begun, self._ended, strict=True))
        ordered = sorted(self._latencies) or [float("nan")]
        p50, p95, p99 = (round(ordered[int(q * (len(ordered) - 1))] * 1000, 3) for q in (0.50, 0.95, 0.99))
        return Measured(len(self._latencies), seconds, p50, p95, p99, cpu, triton, load, busy, stolen, self._faults)


def _clocks(groups: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Now; CPU seconds of each group; CPU seconds of the machine, and those stolen."""
    return perf_counter(), *(sum(map(cpu_s, group)) for group in groups), *machine_s()


def machine_s() -> tuple[float, float]:
    """CPU seconds of all CPUs, used by any process, and those that the hypervisor gave to other machines."""
    _, user, nice, system, _, _, hard, soft, stolen, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(map(int, (user, nice, system, hard, soft))) * _TICK_S, int(stolen) * _TICK_S


def cpu_s(pid: int) -> float:
    """User and system seconds of a process."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def lifetime_s(pid: int) -> float:
    """User and system seconds of a process and of all descendants already waited for; 0 once it is gone."""
    try:
        return sum(int(ticks) for ticks in _stat(pid)[11:15]) * _TICK_S
    except OSError:
        return 0.0


def _page_faults(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[7]) + int(fields[9])


def _stat(pid: int) -> list[str]:
    """Fields 3 and on of proc(5)'s `stat`; the name before them may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
