"""What the pipeline asks of an inference client. `triton.TritonClient` is the real one, `fake.FakeClient` a stand-in.

One client a process, opened by the lifespan and handed down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from app.inference.memory import Buffer


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the server describes it."""

    name: str
    dtype: str
    """Triton's name: UINT8, FP16, FP32."""
    shape: tuple[int, ...]
    """With the batch dimension first; -1 where the server leaves it open."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    """Largest batch of one request; at least 1."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The model configuration's string parameters. We read `display_name` (what really answers) and
    `class_names` (a JSON array of names in the order of class ids)."""
    batched: bool = False
    """Whether the server puts requests together by itself (dynamic batching)."""


@dataclass(frozen=True, slots=True)
class Reply:
    outputs: Mapping[str, NDArray[Any]]
    """By output name. Views of the request's buffer where memory is shared: valid until its `release`."""
    gate_s: float
    """Waited at the gate."""
    infer_s: float
    """From sent to answered."""


class InferenceClient(Protocol):
    @property
    def up(self) -> bool:
        """Whether the server answered last."""
        ...

    @property
    def generation(self) -> int:
        """Grows with every (re)connection: what was described before may be out of date."""
        ...

    async def describe(self, model: str) -> ModelSpec | None:
        """The model's tensors; None where the server does not serve it.

        Raises:
            InferenceUnavailable: the server cannot be reached.
        """
        ...

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Input memory for one request; `dtype` is Triton's name. Never waits."""
        ...

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str, deadline_s: float | None = None) -> Reply:
        """Runs `model` on the buffer as its only input.

        Waits at the gate (fair between streams), then for the answer. When the awaiting task is
        cancelled the request itself runs on to its own deadline and its answer is dropped.

        Args:
            deadline_s: that it has from when it is sent; None: TRITON_DEADLINE_S.

        Raises:
            InferenceTimeout: the deadline passed.
            InferenceUnavailable: the server cannot be reached.
            InferenceError: the server refused this request.
        """
        ...

    async def close(self) -> None: ...
