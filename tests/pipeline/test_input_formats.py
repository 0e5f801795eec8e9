"""What models of other families want as their image, against each family's own preparation, written anew here."""

from __future__ import annotations

import resource
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.boxes import crop, points_to_image, stretch, to_image, top_left
from app.pipeline.layouts import InputFormat, input_format, to_images
from tests.pipeline.test_exact import picture, tensors
from tests.support.jpegs import by_opencv, encode, letterboxed

SIZES = [(640, 480), (480, 640), (1920, 400), (200, 900), (333, 517), (640, 427), (97, 61), (320, 320), (1281, 961)]
IMAGENET = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def spec(dtype: str = "FP32", shape: tuple[int, ...] = (-1, 3, 320, 320), **parameters: str) -> ModelSpec:
    return ModelSpec("net", "1", (TensorSpec("images", dtype, shape),), (), 1, parameters)


def stretched(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))


def of_yolox(pixels: NDArray[np.uint8], width: int, height: int) -> tuple[NDArray[np.float32], float]:
    """YOLOX's `preproc` (yolox/data/data_augment.py) of an RGB image: BGR planes of 0 to 255, and the ratio."""
    padded = np.full((height, width, 3), 114, np.uint8)
    ratio = min(height / pixels.shape[0], width / pixels.shape[1])
    small = (int(pixels.shape[1] * ratio), int(pixels.shape[0] * ratio))
    padded[: small[1], : small[0]] = cv2.resize(pixels[..., ::-1], small, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(padded.transpose(2, 0, 1), dtype=np.float32), ratio


def of_torchvision(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`Resize(size)` and `CenterCrop(size)` of an image of Pillow (torchvision/transforms/functional.py)."""
    height, width = pixels.shape[:2]
    short, long = min(width, height), int(size * max(width, height) / min(width, height))
    assert short > 0
    scaled = Image.fromarray(pixels).resize(
        (size, long) if width <= height else (long, size), Image.Resampling.BILINEAR
    )
    left, top = round((scaled.width - size) / 2.0), round((scaled.height - size) / 2.0)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", SIZES)
def test_each_way_to_fit_a_frame_gives_its_tools_pixels(size: tuple[int, int]) -> None:
    jpeg = encode(picture(*size, seed=3))
    pixels = by_opencv(jpeg)
    assert pixels is not None
    forms = [
        input_format(spec(layout="yolox")),
        input_format(spec(layout="boxes_logits", **IMAGENET)),
        input_format(spec("UINT8", (-1, 320, 416, 3), resize="stretch")),
        input_format(spec("UINT8", (-1, 224, 224, 3), resize="crop")),
        input_format(spec("UINT8", (-1, 3, 320, 320), resize="letterbox_top_left")),
        input_format(spec("UINT8", (-1, 320, 320, 3))),
    ]
    yolox, imagenet, plain, middle, corner, centred = tensors(jpeg, *forms)
    assert (yolox == of_yolox(pixels, 320, 320)[0]).all()
    scaled = stretched(pixels, 320, 320).astype(np.float32) / np.float32(255)
    assert (imagenet == ((scaled - MEAN) / STD).transpose(2, 0, 1)).all()
    assert (plain == stretched(pixels, 416, 320)).all()
    assert (middle == of_torchvision(pixels, 224)).all()
    assert (corner == of_yolox(pixels, 320, 320)[0][::-1]).all()
    assert (centred == letterboxed(pixels, 320, 320)).all()


def test_a_canvas_that_is_not_square_is_filled_smoothly() -> None:
    pixels = picture(640, 480, seed=4)
    (found,) = tensors(b"", input_format(spec("UINT8", (-1, 128, 224, 3), resize="crop")), pixels=pixels)
    assert (found == np.asarray(Image.fromarray(pixels).resize((224, 128), Image.Resampling.BILINEAR))).all()


@pytest.mark.parametrize("size", [(1500, 9), (20, 2000)])
def test_a_long_image_shows_its_middle_to_a_level(size: tuple[int, int]) -> None:
    pixels = picture(*size, seed=5)
    (found,) = tensors(b"", input_format(spec("UINT8", (-1, 224, 224, 3), resize="crop")), pixels=pixels)
    assert np.abs(found.astype(int) - of_torchvision(pixels, 224)).max() <= 1


def test_a_line_of_pixels_takes_no_memory_beyond_its_middle() -> None:
    """Scaled as a whole, 60,000x3 pixels would become 4,480,000x224: three gigabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    form = input_format(spec("UINT8", (-1, 224, 224, 3), resize="crop"))
    (found,) = tensors(b"", form, pixels=np.full((3, 60_000, 3), 77, np.uint8))
    assert (found == 77).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
@pytest.mark.parametrize(
    "parameters", [{}, {"scale": "1"}, IMAGENET, {"scale": "1", "mean": "[123.675, 116.28, 103.53]"}]
)
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_levels_become_numbers(layout: str, dtype: str, parameters: dict[str, str], colour: str) -> None:
    shape = (-1, 3, 48, 64) if layout == "NCHW" else (-1, 48, 64, 3)
    form = input_format(spec(dtype, shape, colour=colour, **parameters))
    canvas = picture(64, 48, seed=5)
    out = np.zeros(form.shape(2), {"FP32": np.float32, "FP16": np.float16}[dtype])
    form.fill(canvas, out[1])
    wanted = canvas[..., ::-1] if colour == "bgr" else canvas
    wanted = (wanted / form.scale - np.array(form.mean)) / np.array(form.std)
    if layout == "NCHW":
        wanted = wanted.transpose(2, 0, 1)
    error = np.abs(out[1] - wanted) / np.maximum(1, np.abs(wanted))
    assert error.max() < (1e-3 if dtype == "FP16" else 1e-5)
    assert not out[0].any()


def test_the_order_of_bytes_is_the_models() -> None:
    canvas = picture(64, 48, seed=6)
    form = input_format(spec("UINT8", (-1, 48, 64, 3), colour="bgr"))
    assert not form.is_image
    out = np.zeros(form.shape(1), np.uint8)
    form.fill(canvas, out[0])
    assert (out[0] == canvas[..., ::-1]).all()


def test_models_that_want_the_same_share_a_tensor() -> None:
    assert input_format(spec(layout="rtdetr")) == input_format(spec(resize="stretch", colour="rgb"))
    assert input_format(spec("UINT8", (1, 320, 320, 3), scale="1")) == input_format(spec("UINT8", (-1, 320, 320, 3)))
    forms = {
        input_format(spec(**given))
        for given in (
            {},
            {"resize": "stretch"},
            {"colour": "bgr"},
            {"scale": "1"},
            {"mean": "[0,0,0.5]"},
            {"std": "[1,1,2]"},
        )
    }
    assert len(forms) == 6


def test_a_models_own_parameters_go_before_its_layouts() -> None:
    form = input_format(spec(layout="yolox", colour="rgb", scale="255", **IMAGENET))
    assert (form.colour, form.scale, form.resize) == ("rgb", 255, "letterbox_top_left")
    assert form.mean == pytest.approx(MEAN)
    assert input_format(spec(layout="boxes_logits", resize="letterbox")).resize == "letterbox"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (spec(resize="squash"), ["'net'", "resize='squash'", "letterbox", "stretch", "crop"]),
        (spec(colour="yuv"), ["colour='yuv'", "rgb or bgr"]),
        (spec(scale="127"), ["scale='127'", "255 or 1"]),
        (spec(mean="0.5"), ["mean='0.5'", "JSON array of three numbers"]),
        (spec(mean="[0.5, 0.5]"), ["mean='[0.5, 0.5]'"]),
        (spec(std='["a", 1, 2]'), ["std="]),
        (spec(std="[1, NaN, 1]"), ["std="]),
        (spec(std="[1, 0, 1]"), ["std='[1, 0, 1]' has a 0"]),
        (spec("UINT8", (1, 320, 320, 3), scale="255"), ["scale='255'", "'images' is UINT8", "FP32"]),
        (spec("UINT8", (1, 320, 320, 3), mean="[1,2,3]"), ["mean=", "UINT8"]),
        (
            replace(spec(), inputs=(*spec().inputs, TensorSpec("orig_target_sizes", "INT64", (1, 2)))),
            ["2 (images, orig_target_sizes)", "post-processor", "boxes_logits", "rows_apart"],
        ),
    ],
)
def test_wrong_parameters_are_refused_by_name(model: ModelSpec, words: list[str]) -> None:
    with pytest.raises(ModelRejected) as refused:
        input_format(model)
    for word in words:
        assert word in str(refused.value)


def boxes_of(size: tuple[int, int]) -> NDArray[np.float32]:
    random = np.random.default_rng(7)
    corners = np.sort(random.uniform(0, 1, (20, 2, 2)), axis=1).astype(np.float32)
    return (corners * np.array(size, np.float32)).reshape(-1, 4)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_return_as_each_tool_takes_them_back(size: tuple[int, int]) -> None:
    width, height = size
    found = boxes_of((416, 320))
    ratio = min(320 / height, 416 / width)
    limit = np.array([width, height] * 2, np.float32)
    ways: list[tuple[Any, Any]] = [
        (top_left(width, height, 416, 320), found / np.float32(ratio)),  # YOLOX's demo: boxes_xyxy /= ratio
        # RT-DETR and D-FINE: shares of the image, times the frame's size
        (stretch(width, height, 416, 320), found / np.array([416, 320] * 2, np.float32) * limit),
    ]
    for box, wanted in ways:
        assert to_image(found, box) == pytest.approx(np.clip(wanted, 0, limit), rel=1e-5, abs=1e-3)
        points = to_images(found.reshape(-1, 2, 2), np.zeros(len(found), np.int64), [box])
        assert points.reshape(-1, 4) == pytest.approx(np.clip(wanted, 0, limit), rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_a_point_of_the_middle_lies_where_it_was(size: tuple[int, int]) -> None:
    """The brightest pixel of a dark frame is found on the canvas; its place there leads back to it."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    x, y = width // 2 - 3, height // 2 + 5
    pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
    form = InputFormat("images", 224, 224, "UINT8", "NHWC", "crop")
    (canvas,) = tensors(b"", form, pixels=pixels)
    levels = canvas[..., 0].astype(float)
    at = [(levels.sum(axis=axis) * (np.arange(224) + 0.5)).sum() / levels.sum() for axis in (0, 1)]
    back = points_to_image(np.array([at], np.float32), crop(width, height, 224, 224))
    assert back[0] == pytest.approx((x + 0.5, y + 0.5), abs=0.75)
