"""Requests as bytes are what protobuf would have written."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from app.errors import InferenceError
from app.inference.client import ModelSpec, TensorSpec
from app.inference.shared_memory import Buffer
from app.inference.triton import outputs, plain_request, read_spec

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


HEADS = ModelSpec(
    "vision",
    "1",
    (TensorSpec("images", "UINT8", (-1, 4, 4, 3)),),
    (TensorSpec("detections", "FP32", (-1, 3, 6)), TensorSpec("poses", "FP32", (-1, -1, 57))),
    8,
)


def answered(**shapes: tuple[int, ...]) -> service_pb2.ModelInferResponse:
    answer = service_pb2.ModelInferResponse(model_name="vision")
    for name, shape in shapes.items():
        answer.outputs.add(name=name, datatype="FP32").shape.extend(shape)
        answer.raw_output_contents.append(np.zeros(shape, np.float32).tobytes())
    return answer


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({"detections": (2, 3, 6)}, "lacks its output 'poses'"),
        ({}, "lacks its output 'detections'"),
        ({"detections": (2, 3, 6), "poses": (1, 4, 57)}, r"'poses' is \[1, 4, 57\] for 2 images"),
        ({"detections": (2, 4, 6), "poses": (2, 4, 57)}, "'detections' is"),
        ({"detections": (2, 18), "poses": (2, 4, 57)}, "'detections' is"),
    ],
)
def test_d7_an_answer_without_all_outputs_is_an_error_of_the_model(
    shapes: dict[str, tuple[int, ...]], why: str
) -> None:
    """Triton leaves outputs out where a process of an ensemble's model came back from a stop."""
    buffer = Buffer(np.zeros((2, 4, 4, 3), np.uint8), None, None)
    with pytest.raises(InferenceError, match=why):
        outputs(answered(**shapes), HEADS, buffer, {})
    whole = outputs(answered(detections=(2, 3, 6), poses=(2, 9, 57)), HEADS, buffer, {})
    assert whole["poses"].shape == (2, 9, 57)


def test_d7_an_answer_that_holds_less_than_it_says_is_an_error_of_the_model() -> None:
    buffer = Buffer(np.zeros((2, 4, 4, 3), np.uint8), None, None)
    for left in ([], [b""], [bytes(8)], [bytes(2 * 3 * 6 * 4)]):
        answer = answered(detections=(2, 3, 6), poses=(2, 9, 57))
        del answer.raw_output_contents[:]
        answer.raw_output_contents.extend(left)
        with pytest.raises(InferenceError, match=r"vision: output '(detections|poses)' holds less"):
            outputs(answer, HEADS, buffer, {})
    empty = outputs(answered(detections=(2, 3, 6), poses=(2, 0, 57)), HEADS, buffer, {})
    assert empty["poses"].shape == (2, 0, 57)


def described(images: tuple[int, ...], max_batch: int, **shapes: tuple[int, ...]) -> ModelSpec:
    metadata = service_pb2.ModelMetadataResponse(versions=["1"])
    metadata.inputs.add(name="images", datatype="FP32").shape.extend(images)
    for name, shape in shapes.items():
        metadata.outputs.add(name=name, datatype="INT64" if name == "labels" else "FP32").shape.extend(shape)
    return read_spec("net", metadata, model_config_pb2.ModelConfig(max_batch_size=max_batch))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_outputs_of_one_image_without_a_batch_dimension_get_one(count: int) -> None:
    """As torchvision's detectors have them: a model that takes exactly one image."""
    spec = described((1, 3, 8, 8), 0, boxes=(-1, 4), labels=(-1,), scores=(-1,))
    assert [t.shape for t in spec.outputs] == [(1, -1, 4), (1, -1), (1, -1)]
    answer = service_pb2.ModelInferResponse(model_name="net")
    labels = np.arange(count) + (1 << 40)
    for name, array in (
        ("boxes", np.ones((count, 4), np.float32)),
        ("labels", labels),
        ("scores", np.ones(count, "f4")),
    ):
        kind = "INT64" if name == "labels" else "FP32"
        answer.outputs.add(name=name, datatype=kind).shape.extend(array.shape)
        answer.raw_output_contents.append(array.tobytes())
    found = outputs(answer, spec, Buffer(np.zeros((1, 3, 8, 8), np.float32), None, None), {})
    assert {name: array.shape for name, array in found.items()} == {
        "boxes": (1, count, 4),
        "labels": (1, count),
        "scores": (1, count),
    }
    assert found["labels"].tolist() == [labels.tolist()]


def test_other_outputs_stay_as_they_are_described() -> None:
    shapes = {"boxes": (-1, 4), "rows": (-1, -1, 6), "vector": (-1, 1000)}
    for images, max_batch in (((-1, 3, 8, 8), 0), ((-1, 3, 8, 8), 8), ((1, 3, 8, 8), 8)):
        assert [t.shape for t in described(images, max_batch, **shapes).outputs] == [*shapes.values()]
    kept = described((1, 3, 8, 8), 0, rows=(-1, -1, 6), vector=(-1, 1000), head=(1, 84, -1))
    assert [t.shape for t in kept.outputs] == [(-1, -1, 6), (-1, 1000), (1, 84, -1)]
