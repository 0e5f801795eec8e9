"""Asks an embedded Triton and each of its models, twice a deadline, whether they still answer; `liveness` judges.

A question is one blank picture, one for every process of the model at a time, so that each gets one: some ten
milliseconds of a core every few seconds, also while nobody else asks anything. Over HTTP: frames go by gRPC.
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
from dataclasses import dataclass
from typing import Any

import httpx

from app.inference.liveness import Awake, Pulse, Standstill
from app.inference.stubs import Stub, stopped

log = logging.getLogger(__name__)

_POLL_S = 0.25
_BYTES = {"TYPE_UINT8": 1, "TYPE_FP16": 2, "TYPE_FP32": 4}
_SICK = "is not healthy"
"""What Triton's Python backend answers for a process of its that does not."""


@dataclass(frozen=True, slots=True)
class _Question:
    """A request to one model."""

    head: bytes
    size: int

    @property
    def body(self) -> bytes:
        return self.head + bytes(self.size)


class Vitals:
    """Of one life of the server.

    Args:
        url: of its HTTP.
        server: its process id.
        stubs: the processes of its models.
        deadline_s: TRITON_DEADLINE_S.
    """

    def __init__(self, url: str, server: int, stubs: Sequence[Stub], deadline_s: float) -> None:
        self._url = url
        self._server = server
        self._stubs = {stub.pid: stub for stub in stubs}
        self._processes = Counter(stub.model for stub in stubs)
        self._deadline_s = deadline_s
        self._clock = Awake()
        self._alive = Pulse(deadline_s)
        self._pulses = {model: Pulse(deadline_s) for model in self._processes}
        self._standstill = Standstill(deadline_s)
        self._counts: dict[str, int] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def until_hung(self) -> str:
        """Returns once something is hung: in words, what."""
        # trust_env=False: a proxy named in the environment has no business between us and loopback. No time-out: an
        # answer that comes late is one.
        async with httpx.AsyncClient(base_url=self._url, timeout=None, trust_env=False) as http:
            try:
                return await self._watch(http)
            finally:
                for task in self._asking:
                    task.cancel()
                await asyncio.gather(*self._asking, return_exceptions=True)

    async def _watch(self, http: httpx.AsyncClient) -> str:
        questions: dict[str, _Question] = {}
        self._do(self._prepare(http, questions))
        again = self._alive.interval_s
        while True:
            now = self._clock.tick(time.monotonic())
            if now >= again:
                again = now + self._alive.interval_s
                self._round(http, questions, now)
            why = self._stopped(now) or await self._silent(http, now)
            if why is not None:
                return why
            await asyncio.sleep(_POLL_S)

    def _stopped(self, now: float) -> str | None:
        pid = self._standstill.look({pid for pid in (self._server, *self._stubs) if stopped(pid)}, now)
        if pid is None:
            return None
        what = f"the process {pid} of its model {self._stubs[pid].model}" if pid in self._stubs else "it"
        return f"Triton is hung: {what} has been stopped by a signal for {self._deadline_s * 2:.0f} s"

    async def _silent(self, http: httpx.AsyncClient, now: float) -> str | None:
        why = self._alive.hung(now)
        if why is not None:
            return f"Triton is hung: it {why}"
        for model, pulse in self._pulses.items():
            if pulse.old(now) and not self._alive.old(now):
                # Own questions may wait behind many of others: are those answered?
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, IndexError, TimeoutError):
                    async with asyncio.timeout(1.0):
                        count = await _answered(http, model)
                    if count > self._counts.setdefault(model, count):
                        pulse.sign(now)
                    self._counts[model] = count
            why = pulse.hung(now)
            if why is not None:
                return f"Triton is hung: its model {model} {why}"
        return None

    def _round(self, http: httpx.AsyncClient, questions: dict[str, _Question], now: float) -> None:
        """Puts one question to every process that has none."""
        if len(self._alive.asked) < 3:
            self._do(self._ask_server(http, self._alive.ask(now)))
        for model, question in questions.items():
            pulse = self._pulses[model]
            free = max(0, self._processes[model] - len(pulse.asked))
            if free:
                self._do(self._ask_model(http, model, question, [pulse.ask(now) for _ in range(free)]))

    async def _ask_server(self, http: httpx.AsyncClient, number: int) -> None:
        try:
            await http.get("/v2/health/live")
        except httpx.HTTPError:  # it ends, and somebody else says so; or this process has no descriptor left
            self._alive.withdraw(number)
        else:
            self._alive.answer(number, self._clock.now)

    async def _ask_model(self, http: httpx.AsyncClient, model: str, question: _Question, numbers: list[int]) -> None:
        pulse = self._pulses[model]
        well = await asyncio.gather(*(self._ask(http, model, question, number) for number in numbers))
        if all(well) and not pulse.asked:
            pulse.recover()

    async def _ask(self, http: httpx.AsyncClient, model: str, question: _Question, number: int) -> bool:
        """Whether a process that is well answered."""
        pulse, body = self._pulses[model], question.body
        headers = {"Inference-Header-Content-Length": str(len(question.head))}
        try:
            answer = await http.post(f"/v2/models/{model}/infer", content=body, headers=headers)
        except httpx.HTTPError:
            pulse.withdraw(number)
            return False
        if answer.status_code != 200 and _SICK in answer.text:
            pulse.refuse(number, self._clock.now)
            return False
        pulse.answer(number, self._clock.now)
        return True

    async def _prepare(self, http: httpx.AsyncClient, questions: dict[str, _Question]) -> None:
        for model in self._pulses:
            while True:
                try:
                    answer = await http.get(f"/v2/models/{model}/config")
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(self._alive.interval_s)
            with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
                question = _question(answer.json())
                if question is not None:
                    questions[model] = question

    def _do(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)


async def _answered(http: httpx.AsyncClient, model: str) -> int:
    """How many requests a model has answered in this life of the server."""
    stats = (await http.get(f"/v2/models/{model}/stats")).json()["model_stats"][0]
    return int(stats["inference_stats"]["success"]["count"])


def _question(config: dict[str, Any]) -> _Question | None:
    """A blank picture for a model with this configuration; None where it leaves open what it takes."""
    inputs, sizes = [], 0
    told = config.get("parameters", {}).get("input_size", {}).get("string_value", "").split("x")
    side = [int(one) for one in told] if all(one.isdecimal() for one in told) else []
    for tensor in config["input"]:
        dims = [int(size) for size in tensor["dims"]]
        open_sides = [at for at, size in enumerate(dims) if size < 0]
        if len(open_sides) == 2 and side:
            for at, size in zip(open_sides, (side[0], side[-1]), strict=True):
                dims[at] = size
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
    # One output will do, and as bytes.
    outputs = [{"name": config["output"][0]["name"], "parameters": {"binary_data": True}}]
    return _Question(json.dumps({"inputs": inputs, "outputs": outputs}).encode(), sizes)
