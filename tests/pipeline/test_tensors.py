"""What a model wants as its picture, and the filling of it."""

import numpy as np
import pytest

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.layouts import input_format


def spec(dtype, shape, **parameters):
    return ModelSpec("yolo", "1", (TensorSpec("images", dtype, shape),), (), 1, parameters)


@pytest.mark.parametrize(
    ("dtype", "shape", "parameters", "want"),
    [
        ("UINT8", (-1, 480, 640, 3), {}, (480, 640, "NHWC", True)),
        ("FP32", (1, 3, 320, 416), {}, (320, 416, "NCHW", False)),
        ("FP16", (-1, 3, -1, -1), {}, (640, 640, "NCHW", False)),
        ("FP32", (-1, 3, -1, -1), {"input_size": "320"}, (320, 320, "NCHW", False)),
        ("FP32", (-1, -1, -1, 3), {"input_size": "480x640"}, (480, 640, "NHWC", False)),
        ("UINT8", (-1, 3, 64, 64), {"input_size": "320"}, (64, 64, "NCHW", False)),
    ],
)
def test_the_format_is_read_from_the_metadata(dtype, shape, parameters, want):
    found = input_format(spec(dtype, shape, **parameters))
    assert (found.height, found.width, found.layout, found.is_image) == want
    assert found.dtype == dtype


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (spec("FP32", (1, 640, 640)), ["'yolo'", "'images'", "[1, 640, 640]", "[N, 3, H, W]"]),
        (spec("FP32", (1, 1, 640, 640)), ["[1, 1, 640, 640]"]),
        (spec("INT64", (1, 3, 640, 640)), ["INT64", "UINT8, FP16 or FP32"]),
        (spec("FP32", (1, 3, -1, -1), input_size="huge"), ["input_size='huge'", "480x640"]),
        (ModelSpec("two", "1", (TensorSpec("a", "FP32", (1,)), TensorSpec("b", "FP32", (1,))), (), 1), ["2 (a, b)"]),
    ],
)
def test_what_is_not_known_is_refused_by_name(model, words):
    with pytest.raises(ModelRejected) as refused:
        input_format(model)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("dtype", ["UINT8", "FP16", "FP32"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pixels_arrive_in_their_place(dtype, layout):
    canvas = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    form = input_format(spec(dtype, (-1, 48, 64, 3) if layout == "NHWC" else (-1, 3, 48, 64)))
    numpy_type = {"UINT8": np.uint8, "FP16": np.float16, "FP32": np.float32}[dtype]
    tensor = np.zeros(form.shape(2), numpy_type)
    form.fill(canvas, tensor[1])
    want = canvas if dtype == "UINT8" else canvas / 255
    if layout == "NCHW":
        want = want.transpose(2, 0, 1)
    assert np.abs(tensor[1].astype(np.float64) - want).max() < (5e-4 if dtype == "FP16" else 1e-6)
    assert not tensor[0].any()


def test_a_canvas_that_is_the_tensor_is_left_alone():
    form = input_format(spec("UINT8", (-1, 32, 32, 3)))
    tensor = np.full(form.shape(1), 7, np.uint8)
    form.fill(tensor[0], tensor[0])
    assert (tensor == 7).all()
