"""Asks the service's own readers whether they would read a model that has this configuration."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from configs import parsed
from layouts import UnknownLayout
from tritonclient.grpc import model_config_pb2

from app.errors import ModelRejected
from app.inference.client import ModelSpec
from app.inference.triton import read_spec
from app.pipeline.stages.classify import classify_reader
from app.pipeline.stages.detect import detect_reader
from app.pipeline.stages.obb import obb_reader
from app.pipeline.stages.pose import pose_reader
from app.pipeline.stages.segment import segment_reader

_READERS: dict[str, Callable[[ModelSpec], Any]] = {
    "detect": detect_reader, "pose": pose_reader, "segment": segment_reader, "obb": obb_reader,
    "classify": classify_reader,
}  # fmt: skip


def check_readable(task: str, text: str, source: str) -> None:
    """Checks a configuration as the service does when it connects to Triton.

    Raises:
        UnknownLayout: the stage for this task would refuse the model; the message says why.
    """
    config = parsed(text)
    batch = [-1] if config.max_batch_size else []

    def tensors(given: Any) -> list[SimpleNamespace]:
        kinds = model_config_pb2.DataType.Name
        return [
            SimpleNamespace(name=t.name, datatype=kinds(t.data_type).removeprefix("TYPE_"), shape=[*batch, *t.dims])
            for t in given
        ]

    seen = SimpleNamespace(versions=["1"], inputs=tensors(config.input), outputs=tensors(config.output))
    try:
        _READERS[task](read_spec(config.name, seen, config))
    except ModelRejected as error:
        raise UnknownLayout(f"{source}: stage `{task}` would not read it: {error}") from None
