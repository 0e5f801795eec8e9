"""`InferenceClient`, the Protocol by which the pipeline uses an inference client, and the types that they exchange.

`triton.TritonClient` is the real client, `fake.FakeClient` the one for tests. A process has one client; the lifespan
opens it and passes it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:
    from app.inference.shared_memory import Buffer


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the server describes it."""

    name: str
    dtype: str
    """Triton's name: UINT8, FP16, FP32."""
    shape: tuple[int, ...]
    """With the batch dimension first; -1 if the server leaves a dimension open."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as the server describes it."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    """Largest batch of one request; at least 1."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The model configuration's string parameters. The pipeline reads `display_name` (the name of the network), `task`,
    `class_names` (a JSON array of names in the order of class ids), `layout`; of the input `input_size`, `resize`,
    `colour`, `scale`, `mean`, `std`; and others that a stage's reader names.
    """
    batched: bool = False
    """Whether the server batches requests by itself (dynamic batching)."""
    chosen: str = ""
    """Of an ensemble of which only some outputs are wanted: their names, which `outputs` then has; else empty."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request."""

    outputs: Mapping[str, NDArray[Any]]
    """By output name. With shared memory these are views of the request's buffer, valid until its `release`."""
    gate_s: float
    """Seconds that the request waited for the inference concurrency limit."""
    infer_s: float
    """Seconds from sending to the answer."""


class InferenceClient(Protocol):
    """Bound to one event loop."""

    @property
    def up(self) -> bool:
        """Whether the server answered the last time."""
        ...

    @property
    def generation(self) -> int:
        """Increases with every connection, because descriptions from before it may be out of date."""
        ...

    async def describe(self, model: str) -> ModelSpec | None:
        """The model's description; None if the server does not serve it.

        Raises:
            InferenceUnavailable: the server cannot be reached.
        """
        ...

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Input memory for one request; `dtype` is Triton's name. Never waits."""
        ...

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str, deadline_s: float | None = None) -> Reply:
        """Runs `model` on the buffer as its only input.

        Waits for the inference concurrency limit (fair between streams), then for the answer. If the awaiting task is
        cancelled, the request itself runs on until its deadline, and its answer is dropped.

        Args:
            deadline_s: from sending to the answer; None: TRITON_DEADLINE_S.

        Raises:
            InferenceTimeout: the deadline passed.
            InferenceUnavailable: the server cannot be reached.
            InferenceError: the server refused this request.
        """
        ...

    async def close(self) -> None:
        """Waits for requests in flight and closes the connection."""
        ...
