"""A stand-in for tests and for trying a pipeline without a server: models are plain functions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InferenceUnavailable
from app.inference.client import ModelSpec, Reply
from app.inference.gate import Gate
from app.inference.memory import DTYPES, Buffer

Model = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]


class FakeClient:
    """An `InferenceClient` whose models are functions from the input batch to outputs by name.

    `up`, `latency_s` and `calls` are there to be set and read by a test.
    """

    def __init__(self, models: Mapping[str, tuple[ModelSpec, Model]], *, max_in_flight: int = 8) -> None:
        self._models = dict(models)
        self._gate = Gate(max_in_flight)
        self.up = True
        self.generation = 1
        self.latency_s = 0.0
        self.calls: list[tuple[str, str]] = []
        """(model, stream) of every request, in the order of their start."""

    async def describe(self, model: str) -> ModelSpec | None:
        """See `InferenceClient.describe`."""
        if not self.up:
            raise InferenceUnavailable("the fake is down")
        return self._models[model][0] if model in self._models else None

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """See `InferenceClient.buffer`."""
        return Buffer(np.empty(shape, DTYPES[dtype]), None, None)

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str) -> Reply:
        """See `InferenceClient.infer`."""
        await self._gate.acquire(stream)
        try:
            self.calls.append((model.name, stream))
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            if not self.up:
                raise InferenceUnavailable("the fake is down")
            return Reply(self._models[model.name][1](buffer.array), gate_s=0.0, infer_s=self.latency_s)
        finally:
            self._gate.release()

    async def close(self) -> None:
        """Nothing to close."""
