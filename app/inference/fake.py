"""An inference client without a server, whose models are plain functions.

It is part of the product, so that your tests can use it as ours do: pass `FakeClient` where a `TritonClient` would go.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from app.errors import InferenceUnavailable
from app.inference.client import ModelSpec, Reply
from app.inference.shared_memory import DTYPES, Buffer, Pool, Region, pooled_shape
from app.inference.triton import FairSemaphore

Model = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]
"""From the input batch to outputs by name."""


class _PrivateRegion(Region):
    """One slot that no other process maps, so that memory is lent and returned as with the real client."""

    def __init__(self, slot_bytes: int) -> None:
        self.name = ""
        self.slot_bytes = self.size = slot_bytes
        self.slots = 1
        self.memory = mmap.mmap(-1, slot_bytes)


class FakeClient:
    """An `InferenceClient` whose models are functions from the input batch to outputs by name.

    A test may set `up` and `latency_s` (seconds that each request takes), and read `calls`.
    """

    def __init__(self, models: Mapping[str, tuple[ModelSpec, Model]], *, max_in_flight: int = 8) -> None:
        self._models = dict(models)
        self._concurrency = FairSemaphore(max_in_flight)
        self.up = True
        self.generation = 1
        self.latency_s = 0.0
        self._pools: dict[tuple[tuple[int, ...], str], Pool] = {}
        self.calls: list[tuple[str, str]] = []
        """(model, stream) of all requests, in the order of their start."""

    async def describe(self, model: str) -> ModelSpec | None:
        """See `InferenceClient.describe`."""
        if not self.up:
            raise InferenceUnavailable("the fake is down")
        return self._models[model][0] if model in self._models else None

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """See `InferenceClient.buffer`."""
        slot_shape = pooled_shape(shape)
        pool = self._pools.get((slot_shape, dtype))
        if pool is None:
            pool = self._pools[slot_shape, dtype] = Pool(slot_shape, DTYPES[dtype], output_bytes=0)
        if not pool.free:
            pool.add(_PrivateRegion(pool.slot_bytes))
        return pool.take(shape[0])

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str, deadline_s: float | None = None) -> Reply:
        """See `InferenceClient.infer`."""
        await self._concurrency.acquire(stream)
        try:
            self.calls.append((model.name, stream))
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            if not self.up:
                raise InferenceUnavailable("the fake is down")
            return Reply(self._models[model.name][1](buffer.array), gate_s=0.0, infer_s=self.latency_s)
        finally:
            self._concurrency.release()

    async def close(self) -> None:
        """Does nothing: there is no connection."""
