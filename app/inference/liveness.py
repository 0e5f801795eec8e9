"""Checks that an embedded Triton, its models and their processes still answer, and separates a hang from slowness.

`LivenessProbe` probes the server and each of its models twice a deadline. A probe of a model is one blank image for
every process of the model that has none: some ten milliseconds of a core every few seconds, also while there is no
other load. Probes go over HTTP, because frames go over gRPC. `ProbeRecord` and `StoppedProcesses`, which do
no I/O, decide whether a process hangs. One of these facts separates a hung process from a slow one:

- the kernel reports that the process is *stopped* (SIGSTOP);
- a probe is old, and *nothing at all* was answered for two deadlines; or
- a probe is old, and a *later one was answered*: probes are taken in order, so one process holds the old one.

The slower the answers, the older a probe must be: at least three times the slowest answer (or the later probe's own).
All times are *awake* seconds: a check that comes late, because the machine was suspended or this process got no CPU
time, counts as one check (`AwakeClock`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

log = logging.getLogger(__name__)

DEADLINES = 2
"""A model that has not answered for so many deadlines is hung."""
_OLD = 1.5
"""Deadlines after which an unanswered probe is old. Probes are sent twice a deadline, so at most two pass first."""
_SLOW = 3.0
"""Times the slowest answer that a probe may take before silence counts as a hang."""
_LEAST_DEADLINE_S = 1.0
_CHECK_S = 1.0
"""The most awake seconds that one check adds."""
_POLL_S = 0.25
"""Seconds between two checks."""
_BYTES = {"TYPE_UINT8": 1, "TYPE_FP16": 2, "TYPE_FP32": 4}
_SICK = "is not healthy"
"""Triton's Python backend answers this on behalf of a process of its own that does not answer."""
_BACKEND_NAME = "triton_python_b"
"""A backend process's name in /proc: the kernel keeps 15 characters of it."""


@dataclass(frozen=True, slots=True)
class BackendProcess:
    """A process in which Triton's Python backend runs a model ("stub" in Triton's words).

    Triton does not notice when such a process ends: it still reports that it is ready, and every frame that it gives to
    that process fails. Linux only, as the embedded server is.
    """

    pid: int
    started: str
    """Clock ticks from the start of the machine. A later process with the same id has another value."""
    model: str

    @property
    def alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat[0] not in "ZX" and stat[19] == self.started


def backend_processes(server: int) -> tuple[BackendProcess, ...]:
    """The backend processes of a server now; empty if its models run inside the server itself.

    Args:
        server: its process id.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        stat = _stat(pid)
        if stat is None or stat[1] != str(server):
            continue
        try:
            if (folder / "comm").read_text().strip() != _BACKEND_NAME:
                continue
            arguments = (folder / "cmdline").read_text(errors="replace").split("\0")
        except OSError:  # the process ended meanwhile
            continue
        # The second argument is MODEL/VERSION/model.py in the repository.
        model = Path(arguments[1]).parent.parent.name if len(arguments) > 1 else "?"
        found.append(BackendProcess(pid, stat[19], model))
    return tuple(found)


def _stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP) has stopped the process. A process under a debugger does not count as stopped."""
    stat = _stat(pid)
    return stat is not None and stat[0] == "T"


def _stat(pid: int) -> list[str] | None:
    """Fields of proc(5)'s stat from the third (the state) on; None if there is no such process."""
    try:
        # The second field may hold spaces and ends with the last parenthesis.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _limit(deadline_s: float) -> float:
    """Seconds: two deadlines, less the time that may pass before the next check."""
    return deadline_s * DEADLINES - min(_CHECK_S, deadline_s / 4)


class AwakeClock:
    """A clock that stands still while this process does not run."""

    def __init__(self) -> None:
        self.now = 0.0
        self._last: float | None = None

    def tick(self, monotonic: float) -> float:
        """Takes the monotonic time, and returns the awake seconds since the first call."""
        if self._last is not None:
            self.now += min(max(0.0, monotonic - self._last), _CHECK_S)
        self._last = monotonic
        return self.now


@dataclass(slots=True)
class ProbeRecord:
    """The probes of one model, or of the server itself, and when it answered them. Times are awake seconds.

    A model that has never answered is not reported as hung: a restart would not help, because first answers may take
    long, and readiness reports that there are none yet.
    """

    deadline_s: float
    pending: dict[int, float] = field(default_factory=dict)
    """Unanswered probes: number -> time sent."""
    slowest_s: float = 0.0
    """The slowest of all answers since the server started."""
    last: float | None = None
    """Time of the last answer, to a probe or to any other request; None: it has never answered."""
    sick: float | None = None
    """Time since which Triton reports one of the model's processes as not healthy; None: it reports none."""
    latest: tuple[float, float] | None = None
    """The latest probe that was answered: time sent, and seconds until its answer."""
    _number: int = 0

    def __post_init__(self) -> None:
        self.deadline_s = max(self.deadline_s, _LEAST_DEADLINE_S)

    @property
    def interval_s(self) -> float:
        """Seconds between two rounds of probes."""
        return self.deadline_s / 2

    def send(self, now: float) -> int:
        """Records a new probe; returns its number."""
        self._number += 1
        self.pending[self._number] = now
        return self._number

    def answer(self, number: int, now: float) -> None:
        """Records an answer, good or bad: a model that refuses a probe is alive."""
        put = self.pending.pop(number, None)
        if put is None:
            return
        took = now - put
        self.slowest_s = max(self.slowest_s, took)
        self.last = now
        if self.latest is None or put >= self.latest[0]:
            self.latest = (put, took)

    def withdraw(self, number: int) -> None:
        """Records that a probe could not be sent, or that its connection broke: this does not count as silence."""
        self.pending.pop(number, None)

    def refuse(self, number: int, now: float) -> None:
        """Records that Triton answered in place of a process that is not healthy."""
        self.pending.pop(number, None)
        self.sick = now if self.sick is None else self.sick

    def recover(self) -> None:
        """Records that a whole round of probes was answered."""
        self.sick = None

    def answered_another(self, now: float) -> None:
        """Records that the model answered a request that was no probe."""
        self.last = now

    def old(self, now: float) -> bool:
        """Whether a probe has waited so long that it is worth checking whether other requests are answered."""
        return any(now - put >= self.deadline_s * _OLD for put in self.pending.values())

    def hung(self, now: float) -> str | None:
        """The reason why it counts as hung; None if it does not, or if this is unknown yet."""
        if self.sick is not None and now - self.sick >= self.deadline_s * _OLD:
            return f"has had a process that is not healthy for {now - self.sick:.0f} s"
        if self.last is None or self.latest is None or not self.pending:
            return None  # its usual answer time is not known yet
        oldest = min(self.pending.values())
        age, silent = now - oldest, now - self.last
        if age >= max(self.deadline_s * _OLD, _SLOW * self.slowest_s) and silent >= max(
            _limit(self.deadline_s), _SLOW * self.slowest_s
        ):
            return f"has answered nothing for {silent:.0f} s"
        put, took = self.latest
        if put - oldest >= self.interval_s / 2 and age >= max(self.deadline_s * _OLD, _SLOW * took):
            return f"has not answered a probe for {age:.0f} s, and has answered a later one"
        return None


@dataclass(slots=True)
class StoppedProcesses:
    """How long a signal has kept processes stopped, by process id. Times are awake seconds."""

    deadline_s: float
    since: dict[int, float] = field(default_factory=dict)

    def check(self, stopped: set[int], now: float) -> int | None:
        """Takes the processes that are stopped now; returns one that has been stopped for two deadlines, if any."""
        self.since = {pid: self.since.get(pid, now) for pid in stopped}
        limit = _limit(max(self.deadline_s, _LEAST_DEADLINE_S))
        return next((pid for pid, start in self.since.items() if now - start >= limit), None)


@dataclass(frozen=True, slots=True)
class _ProbeRequest:
    """The HTTP body of a probe of one model: the JSON head, then zeros."""

    head: bytes
    size: int

    @property
    def body(self) -> bytes:
        return self.head + bytes(self.size)


class LivenessProbe:
    """Probes one server, from its start to its end.

    Args:
        url: the server's HTTP address.
        server: the server's process id.
        backends: the processes of its models.
        deadline_s: TRITON_DEADLINE_S.
    """

    def __init__(self, url: str, server: int, backends: Sequence[BackendProcess], deadline_s: float) -> None:
        self._url = url
        self._server = server
        self._backends = {backend.pid: backend for backend in backends}
        self._processes = Counter(backend.model for backend in backends)
        self._deadline_s = deadline_s
        self._clock = AwakeClock()
        self._server_record = ProbeRecord(deadline_s)
        self._records = {model: ProbeRecord(deadline_s) for model in self._processes}
        self._stopped = StoppedProcesses(deadline_s)
        self._counts: dict[str, int] = {}
        self._probing: set[asyncio.Task[None]] = set()

    async def until_hung(self) -> str:
        """Waits until the server or one of its models is hung; returns which one and why."""
        # trust_env=False: a proxy named in the environment must not stand between us and loopback. No timeout,
        # because a late answer is an answer.
        async with httpx.AsyncClient(base_url=self._url, timeout=None, trust_env=False) as http:
            try:
                return await self._watch(http)
            finally:
                for task in self._probing:
                    task.cancel()
                await asyncio.gather(*self._probing, return_exceptions=True)

    async def _watch(self, http: httpx.AsyncClient) -> str:
        requests: dict[str, _ProbeRequest] = {}
        self._start(self._prepare(http, requests))
        next_round = self._server_record.interval_s
        while True:
            now = self._clock.tick(time.monotonic())
            if now >= next_round:
                next_round = now + self._server_record.interval_s
                self._round(http, requests, now)
            why = self._stopped_reason(now) or await self._silent_reason(http, now)
            if why is not None:
                return why
            await asyncio.sleep(_POLL_S)

    def _stopped_reason(self, now: float) -> str | None:
        pid = self._stopped.check({pid for pid in (self._server, *self._backends) if _stopped(pid)}, now)
        if pid is None:
            return None
        what = f"the process {pid} of its model {self._backends[pid].model}" if pid in self._backends else "it"
        return f"Triton is hung: {what} has been stopped by a signal for {self._deadline_s * 2:.0f} s"

    async def _silent_reason(self, http: httpx.AsyncClient, now: float) -> str | None:
        why = self._server_record.hung(now)
        if why is not None:
            return f"Triton is hung: it {why}"
        for model, record in self._records.items():
            if record.old(now) and not self._server_record.old(now):
                # Our probes may wait behind many frames, so answers to those count, too.
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, IndexError, TimeoutError):
                    async with asyncio.timeout(1.0):
                        count = await _answered(http, model)
                    if count > self._counts.setdefault(model, count):
                        record.answered_another(now)
                    self._counts[model] = count
            why = record.hung(now)
            if why is not None:
                return f"Triton is hung: its model {model} {why}"
        return None

    def _round(self, http: httpx.AsyncClient, requests: dict[str, _ProbeRequest], now: float) -> None:
        """Sends one probe to every process that has none."""
        if len(self._server_record.pending) < 3:
            self._start(self._probe_server(http, self._server_record.send(now)))
        for model, request in requests.items():
            record = self._records[model]
            free = max(0, self._processes[model] - len(record.pending))
            if free:
                self._start(self._probe_model(http, model, request, [record.send(now) for _ in range(free)]))

    async def _probe_server(self, http: httpx.AsyncClient, number: int) -> None:
        try:
            await http.get("/v2/health/live")
        except httpx.HTTPError:  # the server ends, which is noticed elsewhere; or this process has no descriptor left
            self._server_record.withdraw(number)
        else:
            self._server_record.answer(number, self._clock.now)

    async def _probe_model(
        self, http: httpx.AsyncClient, model: str, request: _ProbeRequest, numbers: list[int]
    ) -> None:
        record = self._records[model]
        healthy = await asyncio.gather(*(self._probe(http, model, request, number) for number in numbers))
        if all(healthy) and not record.pending:
            record.recover()

    async def _probe(self, http: httpx.AsyncClient, model: str, request: _ProbeRequest, number: int) -> bool:
        """Returns whether a healthy process answered."""
        record, body = self._records[model], request.body
        headers = {"Inference-Header-Content-Length": str(len(request.head))}
        try:
            answer = await http.post(f"/v2/models/{model}/infer", content=body, headers=headers)
        except httpx.HTTPError:
            record.withdraw(number)
            return False
        if answer.status_code != 200 and _SICK in answer.text:
            record.refuse(number, self._clock.now)
            return False
        record.answer(number, self._clock.now)
        return True

    async def _prepare(self, http: httpx.AsyncClient, requests: dict[str, _ProbeRequest]) -> None:
        for model in self._records:
            while True:
                try:
                    answer = await http.get(f"/v2/models/{model}/config")
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(self._server_record.interval_s)
            with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
                request = _probe_request(answer.json())
                if request is not None:
                    requests[model] = request

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)


async def _answered(http: httpx.AsyncClient, model: str) -> int:
    """How many requests a model has answered since the server started."""
    stats = (await http.get(f"/v2/models/{model}/stats")).json()["model_stats"][0]
    return int(stats["inference_stats"]["success"]["count"])


def _probe_request(config: dict[str, Any]) -> _ProbeRequest | None:
    """A blank image for a model with this configuration; None if the configuration leaves the input open."""
    inputs, sizes = [], 0
    size_parameter = config.get("parameters", {}).get("input_size", {}).get("string_value", "").split("x")
    sides = [int(side) for side in size_parameter] if all(map(str.isdecimal, size_parameter)) else []
    for tensor in config["input"]:
        dims = [int(size) for size in tensor["dims"]]
        open_dims = [index for index, size in enumerate(dims) if size < 0]
        if len(open_dims) == 2 and sides:
            for index, size in zip(open_dims, (sides[0], sides[-1]), strict=True):
                dims[index] = size
        if min(dims) < 1 or tensor["data_type"] not in _BYTES:
            return None
        shape = [1, *dims] if config.get("max_batch_size", 0) else dims
        size = math.prod(shape) * _BYTES[tensor["data_type"]]
        sizes += size
        inputs.append(
            {
                "name": tensor["name"],
                "shape": shape,
                "datatype": tensor["data_type"].removeprefix("TYPE_"),
                "parameters": {"binary_data_size": size},
            }
        )
    # One output is enough, and as bytes.
    outputs = [{"name": config["output"][0]["name"], "parameters": {"binary_data": True}}]
    return _ProbeRequest(json.dumps({"inputs": inputs, "outputs": outputs}).encode(), sizes)
