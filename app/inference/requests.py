"""Triton's protocol without I/O: models' descriptions, requests, answers, and gRPC's errors as ours.

A request's tensors lie in shared memory or in the message itself.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from app import metrics
from app.errors import InferenceError, InferenceTimeout, InferenceUnavailable
from app.inference.client import ModelSpec, TensorSpec
from app.inference.shared_memory import DTYPES, Buffer, output_bytes

_RAW = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_RAW_TAG = bytes([_RAW << 3 | 2])  # wire type 2: a length, then so many bytes

Placed = dict[str, tuple[int, tuple[int, ...]]]
"""Outputs in shared memory: name -> (bytes from the start of the slot, shape)."""


def read_spec(name: str, metadata: Any, config: Any, *, batched: bool = False) -> ModelSpec:
    """Makes a model's description from the server's metadata and configuration of it (protobuf messages)."""
    return ModelSpec(
        name=name,
        version=max(metadata.versions, key=int, default=""),
        inputs=tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in metadata.inputs),
        outputs=tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in metadata.outputs),
        max_batch=max(1, config.max_batch_size),
        batched=batched,
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )


def infer_method(channel: Any) -> Any:
    """ModelInfer on a channel of grpc.aio, for serialized requests: their fixed part is written only once."""
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def plain_request(model: ModelSpec, array: NDArray[Any]) -> bytes:
    """A request that carries its pixels, copied once; a protobuf message would copy them again when it is serialized.

    The pixels' field follows the other fields; protobuf accepts fields in any order
    (https://protobuf.dev/programming-guides/encoding/).
    """
    tensor = model.inputs[0]
    head = _head(model.name, tensor.name, tensor.dtype, array.shape)
    return b"".join((head, _RAW_TAG, _varint(array.nbytes), np.ascontiguousarray(array).data))


@lru_cache(maxsize=256)
def _head(model: str, tensor: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """A serialized request without its pixels."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor, datatype=dtype).shape.extend(shape)
    serialized: bytes = request.SerializeToString()
    return serialized


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def shared_request(model: ModelSpec, buffer: Buffer) -> tuple[bytes, Placed, int]:
    """A request whose input, and outputs if they fit, are in the buffer's slot.

    Returns:
        The serialized request, the places of its outputs, and the new `cursor`, at which the next request's outputs may
        begin.
    """
    slot = buffer.slot
    assert slot is not None
    array, region = buffer.array, slot.region
    request = service_pb2.ModelInferRequest(model_name=model.name)
    tensor = request.inputs.add(name=model.inputs[0].name, datatype=model.inputs[0].dtype)
    tensor.shape.extend(array.shape)
    _place(tensor, region.name, slot.offset, array.nbytes)
    shapes = {t.name: (array.shape[0], *t.shape[1:]) for t in model.outputs}
    size = output_bytes([(t.dtype, shapes[t.name]) for t in model.outputs])
    if size is None or buffer.cursor + size > region.slot_bytes:
        # An open shape, or too large: the outputs come in the answer.
        return request.SerializeToString(), {}, buffer.cursor
    placed: Placed = {}
    cursor = buffer.cursor
    for output in model.outputs:
        used = output_bytes([(output.dtype, shapes[output.name])])
        assert used is not None
        _place(request.outputs.add(name=output.name), region.name, slot.offset + cursor, used)
        placed[output.name] = (cursor, shapes[output.name])
        cursor += used
    return request.SerializeToString(), placed, cursor


def _place(tensor: Any, region: str, offset: int, size: int) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def outputs(answer: Any, model: ModelSpec, buffer: Buffer, placed: Placed) -> dict[str, NDArray[Any]]:
    """The answer's tensors by name: views of the slot, or of the message that carried them.

    Raises:
        InferenceError: an output is missing, or has a type that we do not read or another shape. Triton leaves
            outputs out of an ensemble's answer, without an error, after a process of one of its models restarted.
    """
    out: dict[str, NDArray[Any]] = {}
    raw = iter(answer.raw_output_contents)
    for tensor in answer.outputs:
        dtype = DTYPES.get(tensor.datatype)
        if dtype is None:
            raise InferenceError(
                f"{answer.model_name}: output {tensor.name} is {tensor.datatype}; known: {', '.join(DTYPES)}"
            )
        shape = tuple(tensor.shape)
        count = math.prod(shape)
        try:
            if tensor.name in placed:
                assert buffer.slot is not None
                offset = buffer.slot.offset + placed[tensor.name][0]
                out[tensor.name] = np.frombuffer(buffer.slot.region.memory, dtype, count, offset).reshape(shape)
            else:
                out[tensor.name] = np.frombuffer(next(raw, b""), dtype).reshape(shape)
        except ValueError:
            raise InferenceError(
                f"{answer.model_name}: output {tensor.name!r} holds less or more than its shape {list(shape)}"
            ) from None
    count = len(buffer.array)
    for expected in model.outputs:
        found = out.get(expected.name)
        if found is None:
            raise InferenceError(f"{answer.model_name}: the answer lacks its output {expected.name!r}")
        if not _fits(found.shape, (count, *expected.shape[1:])):
            raise InferenceError(
                f"{answer.model_name}: output {expected.name!r} is {list(found.shape)} for {count} images; "
                f"want {[count, *expected.shape[1:]]}"
            )
    return out


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))


# --- errors ---


def failure(model: str, error: Any, *, url: str, deadline_s: float) -> InferenceError:
    """Counts an error of gRPC and returns the error to raise for it."""
    details = error.details() or error.code().name
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        metrics.INFERENCE_ERRORS.labels("timeout").inc()
        return InferenceTimeout(f"{model}: no answer within TRITON_DEADLINE_S={deadline_s:g} seconds")
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        metrics.INFERENCE_ERRORS.labels("unavailable").inc()
        return InferenceUnavailable(f"Triton at {url}: {details}")
    metrics.INFERENCE_ERRORS.labels("refused").inc()
    return InferenceError(f"{model}: {details}")


def description_failure(error: InferenceError) -> InferenceError:
    """The error to raise when a description fails: a server that is too busy to describe a model counts as away."""
    if isinstance(error, InferenceTimeout):
        return InferenceUnavailable("the server did not describe its models in time")
    return error
