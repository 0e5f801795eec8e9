"""Requests as bytes are what protobuf would have written."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from app.inference.client import ModelSpec, TensorSpec
from app.inference.requests import plain_request

SPEC = ModelSpec("yolo", "1", (TensorSpec("images", "UINT8", (-1, 4, 4, 3)),), (), 8)


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (3, 100, 100, 3), (0, 4, 4, 3)])
def test_a_request_reads_as_the_message_that_it_is(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    message = service_pb2.ModelInferRequest(model_name="yolo")
    message.inputs.add(name="images", datatype="UINT8").shape.extend(shape)
    message.raw_input_contents.append(pixels.tobytes())
    assert plain_request(SPEC, pixels) == message.SerializeToString()


def test_pixels_that_do_not_lie_in_order_are_laid_so() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3, 1), np.uint8).transpose(3, 0, 1, 2)
    read = service_pb2.ModelInferRequest.FromString(plain_request(SPEC, pixels))
    assert read.raw_input_contents[0] == pixels.tobytes()
