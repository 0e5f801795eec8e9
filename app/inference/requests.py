"""Triton's messages: what a model is, requests whose tensors lie in shared memory or in themselves, and their answers.

Pure.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from app.errors import InferenceError
from app.inference.client import ModelSpec, TensorSpec
from app.inference.memory import DTYPES, Buffer, output_bytes

_RAW = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_RAW_TAG = bytes([_RAW << 3 | 2])  # wire type 2: a length, then so many bytes

Placed = dict[str, tuple[int, tuple[int, ...]]]
"""Where outputs land: by name, bytes from the slot's start, and their shape."""


def read_spec(name: str, metadata: Any, config: Any, *, batched: bool = False) -> ModelSpec:
    """A model as the server describes it by its metadata and its configuration."""
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
    """ModelInfer on a channel of grpc or grpc.aio, for requests in bytes: what does not change is written once."""
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def plain_request(model: ModelSpec, array: NDArray[Any]) -> bytes:
    """A request with its pixels in it, copied once: set into a message they would be copied again as it is written.

    The pixels' field follows the others', which is where protobuf takes it from as well
    (https://protobuf.dev/programming-guides/encoding/).
    """
    tensor = model.inputs[0]
    head = _head(model.name, tensor.name, tensor.dtype, array.shape)
    return b"".join((head, _RAW_TAG, _varint(array.nbytes), np.ascontiguousarray(array).data))


@lru_cache(maxsize=256)
def _head(model: str, tensor: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """All of a request but its pixels."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor, datatype=dtype).shape.extend(shape)
    written: bytes = request.SerializeToString()
    return written


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def item_bytes(spec: ModelSpec) -> int:
    """Bytes of all outputs for a batch of one; 0 where they are not known beforehand."""
    return output_bytes([(t.dtype, (1, *t.shape[1:])) for t in spec.outputs]) or 0


def shared_request(model: ModelSpec, buffer: Buffer) -> tuple[bytes, Placed, int]:
    """A request whose input, and outputs where they fit, are in the buffer's slot; and where the next one's may go."""
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
        return request.SerializeToString(), {}, buffer.cursor  # open or too large: the outputs travel in the answer
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
    """The answer's tensors by name: views of the slot, or of the message where they travelled in it.

    Raises:
        InferenceError: a type that we do not read; or not all that the model has, or of other shapes. Triton leaves
            outputs out of an ensemble's answer, without an error, where a process of one of its models came back.
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
                f"{answer.model_name}: output {tensor.name!r} holds less or more than its shape {list(shape)} says"
            ) from None
    count = len(buffer.array)
    for expected in model.outputs:
        found = out.get(expected.name)
        if found is None:
            raise InferenceError(f"{answer.model_name}: the answer lacks its output {expected.name!r}")
        if not _fits(found.shape, (count, *expected.shape[1:])):
            raise InferenceError(
                f"{answer.model_name}: output {expected.name!r} is {list(found.shape)} for {count} pictures; "
                f"want {[count, *expected.shape[1:]]}"
            )
    return out


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))
