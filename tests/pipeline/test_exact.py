"""The model's input tensor, against `cv2.imdecode`, `cv2.resize(INTER_LINEAR)` and Ultralytics' letterbox: equal."""

from __future__ import annotations

import time
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import UndecodableFrame
from app.inference.shared_memory import DTYPES, Buffer, Pool, Region
from app.pipeline.layouts import InputFormat
from app.pipeline.models import ModelSet
from app.pipeline.preprocess import Preprocessor
from app.pipeline.types import Batch, Frame, FrameJob, FrameState, Input, StreamMemory
from app.protocol.stream import Stages, StreamSettings
from app.settings import LiveSettings, PipelineSettings
from tests.support.jpegs import EOI, SOI, by_opencv, encode, letterboxed, photo, segment, sof, sos

WISHES = StreamSettings(stages=Stages(ocr=False))
CANVASES = [(640, 640), (416, 320), (960, 544)]


def tensors(
    jpeg: bytes,
    *forms: InputFormat,
    decode: Literal["exact", "fast"] = "exact",
    pixels: NDArray[np.uint8] | None = None,
    **job: Any,
) -> list[NDArray[Any]]:
    """A frame's inputs as models get them."""
    frame = Frame("a", jpeg, time.perf_counter(), 0.0, 1, pixels=pixels)
    batch = Batch([FrameState(FrameJob(frame, StreamMemory(), WISHES, **job))], ModelSet(), up=True)
    for form in forms:
        memory = np.full(form.shape(1), 7, {"UINT8": np.uint8, "FP32": np.float32}[form.dtype])
        batch.inputs[form] = Input(form, Buffer(memory, None, None))
    piece = Preprocessor(PipelineSettings(decode=decode), LiveSettings(max_frame_bytes=1 << 25)).piece(batch, 0)
    piece.work(piece)
    if batch.frames[0].error is not None:
        raise batch.frames[0].error
    return [tensor.buffer.array[0] for tensor in batch.inputs.values()]


def form(width: int, height: int, dtype: Literal["UINT8", "FP32"] = "UINT8") -> InputFormat:
    return InputFormat("images", height, width, dtype, "NHWC" if dtype == "UINT8" else "NCHW")


def off(jpeg: bytes, width: int, height: int, **options: Any) -> int:
    """Levels that the tensor is off by, at most."""
    pixels = by_opencv(jpeg)
    assert pixels is not None
    (found,) = tensors(jpeg, form(width, height), **options)
    return int(np.abs(found.astype(int) - letterboxed(pixels, width, height)).max())


def picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """A photograph with noise in it, so that every coefficient counts."""
    noise = np.random.default_rng(seed).integers(-40, 40, (height, width, 3))
    return np.clip(photo(width, height).astype(int) + noise, 0, 255).astype(np.uint8)


sides = st.one_of(st.integers(1, 64), st.integers(65, 700), st.sampled_from([640, 416, 320, 960, 544, 480, 1280]))
sizes = st.one_of(
    st.tuples(sides, sides),
    st.tuples(st.integers(1000, 4096), st.integers(1, 400)),
    st.tuples(st.integers(1, 300), st.integers(700, 2000)),
    st.sampled_from(
        [(1, 1), (1920, 400), (200, 900), (1920, 1080), (1280, 720), (640, 480), (641, 427), (4096, 2), (1281, 961)]
    ),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    size=sizes,
    mode=st.sampled_from(["RGB", "RGB", "RGB", "L", "CMYK"]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    restarts=st.sampled_from([0, 0, 1, 3]),
    canvas=st.sampled_from(CANVASES),
)
@example(size=(1, 1), mode="RGB", quality=1, subsampling=2, progressive=False, restarts=0, canvas=(640, 640))
@example(size=(1920, 400), mode="RGB", quality=90, subsampling=2, progressive=False, restarts=0, canvas=(640, 640))
@example(size=(200, 900), mode="CMYK", quality=90, subsampling=1, progressive=True, restarts=0, canvas=(640, 640))
@example(size=(4096, 2160), mode="RGB", quality=80, subsampling=2, progressive=True, restarts=0, canvas=(640, 640))
def test_c1_the_input_is_opencvs_to_the_level(
    size: tuple[int, int],
    mode: str,
    quality: int,
    subsampling: int,
    progressive: bool,
    restarts: int,
    canvas: tuple[int, int],
) -> None:
    options: dict[str, Any] = {"progressive": progressive}
    if mode != "L":
        options["subsampling"] = subsampling
    if restarts:
        options["restart_marker_rows"] = restarts
    jpeg = encode(picture(*size, seed=quality), mode, quality, **options)
    assert off(jpeg, *canvas) == 0


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (1920, 1080), (333, 517), (1920, 400)])
def test_c1_fp32_planes_and_two_models_of_two_sizes_get_the_same_pixels(size: tuple[int, int]) -> None:
    jpeg = encode(picture(*size, seed=1))
    pixels = by_opencv(jpeg)
    assert pixels is not None
    large, small = tensors(jpeg, form(640, 640, "FP32"), form(416, 320))
    wanted = letterboxed(pixels, 640, 640).astype(np.float32) * np.float32(1 / 255)
    assert (large == wanted.transpose(2, 0, 1)).all()
    assert (small == letterboxed(pixels, 416, 320)).all()


@pytest.mark.parametrize("size", [(640, 480), (2600, 1900), (1920, 400), (30, 900), (1300, 701)])
def test_c1_a_films_frames_are_scaled_as_its_jpegs_would_be(size: tuple[int, int]) -> None:
    pixels = picture(*size, seed=2)
    (found,) = tensors(b"", form(640, 640), pixels=pixels)
    assert (found == letterboxed(pixels, 640, 640)).all()


SAMPLINGS = {
    "411": (0x41, 0x11, 0x11),
    "440": (0x12, 0x11, 0x11),
    "441": (0x14, 0x11, 0x11),
    "410": (0x42, 0x11, 0x11),
    "311": (0x31, 0x11, 0x11),
    "unlike": (0x22, 0x21, 0x11),
    "chroma finer": (0x11, 0x22, 0x11),
    "grey 2x2": (0x22,),
    "CMYK 420": (0x22, 0x11, 0x11, 0x22),
    "CMYK 2111": (0x22, 0x11, 0x11, 0x11),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("marker", [0xC9, 0xCA], ids=["arithmetic", "progressive"])
def test_c1_subsamplings_and_codings_that_few_write_are_opencvs_too(sampling: str, marker: int) -> None:
    """Arithmetic-coded noise: any bytes are a picture."""
    factors = SAMPLINGS[sampling]
    noise = np.random.default_rng(1).integers(0, 255, 30_000, np.uint8).tobytes().replace(b"\xff", b"\xfe")
    tables, numbers = segment(0xDB, b"\0" + b"\x18" * 64), range(1, len(factors) + 1)
    first = sos(numbers) if marker == 0xC9 else sos(numbers, 0, 0)
    jpeg = SOI + tables + sof(marker, 250, 130, factors) + first + noise + EOI
    pixels = by_opencv(jpeg)
    assert pixels is not None
    assert pixels.std() > 5
    assert off(jpeg, 640, 640) == 0


def test_c1_fast_is_near_and_not_equal() -> None:
    jpeg = encode(picture(1920, 1080, seed=3))
    assert off(jpeg, 640, 640, decode="fast") > 8
    pixels = by_opencv(jpeg)
    assert pixels is not None
    (found,) = tensors(jpeg, form(640, 640), decode="fast")
    assert np.abs(found.astype(int) - letterboxed(pixels, 640, 640)).mean() < 12


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """By numpy, as Exif 2.32 puts it: where the first row and column of the data are to be seen."""
    return {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p),
    }[orientation](pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_c9_a_photo_is_turned_before_it_is_scaled_as_opencv_does_it(orientation: int) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encode(picture(900, 500, seed=4), exif=exif)
    lying = by_opencv(jpeg)
    assert lying is not None
    upright = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert upright is not None
    assert (turned(lying, orientation) == upright[..., ::-1]).all()
    (photo_,) = tensors(jpeg, form(640, 640), photo=True)
    (live,) = tensors(jpeg, form(640, 640))
    assert (photo_ == letterboxed(upright[..., ::-1], 640, 640)).all()  # type: ignore[arg-type]
    assert (live == letterboxed(lying, 640, 640)).all()


def test_c1_a_damaged_frame_leaves_no_strange_border_around_the_next() -> None:
    """Frames of one size that lie in the same memory share their border: it must be there first."""
    wanted = form(320, 320)
    pool = Pool(wanted.shape(1), DTYPES["UINT8"], 0)
    region = Region(pool.slot_bytes, 1)
    region.unlink()
    pool.add(region)
    tall, wide = encode(photo(200, 640)), encode(photo(640, 200))
    damaged = wide[: len(wide) * 2 // 3]
    preprocessor = Preprocessor(PipelineSettings(), LiveSettings())
    errors = []
    for jpeg in (tall, damaged, wide):
        buffer = pool.take(1)
        frame = Frame("a", jpeg, time.perf_counter(), 0.0, 1)
        batch = Batch([FrameState(FrameJob(frame, StreamMemory(), WISHES))], ModelSet(), up=True)
        batch.inputs[wanted] = Input(wanted, buffer)
        piece = preprocessor.piece(batch, 0)
        piece.work(piece)
        errors.append(type(batch.frames[0].error))
        found = buffer.array[0].copy()
        buffer.release()
    assert errors == [type(None), UndecodableFrame, type(None)]
    pixels = by_opencv(wide)
    assert pixels is not None
    np.testing.assert_array_equal(found, letterboxed(pixels, 320, 320))
