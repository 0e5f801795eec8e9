"""Faces: how they are laid upright, which are refused, and what the model is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.pipeline.stages.faces import MIN_SIDE, TEMPLATE, align, crop, decode_embedding, encode_embedding, face_reader
from tests.support import faces

# --- alignment ---


@given(st.floats(0.4, 8), st.floats(-180, 180), st.floats(-50, 2000), st.floats(-50, 2000))
def test_the_transform_that_laid_a_face_there_is_found(scale: float, degrees: float, x: float, y: float) -> None:
    to_frame = faces.place(scale, degrees, (x, y))
    found = align(faces.keypoints(to_frame))
    assert not isinstance(found, str)
    np.testing.assert_allclose(found, to_frame.inverse.params[:2], atol=1e-6 * (1 + abs(x) + abs(y)))


@given(st.integers(0, 2**32 - 1))
def test_it_is_the_best_one_where_none_fits_exactly(seed: int) -> None:
    """Weighted least squares over the four numbers of a similarity, as numpy solves it."""
    random = np.random.default_rng(seed)
    keypoints = faces.keypoints(faces.place(1.5, 20, (300, 200)))
    keypoints[:5, :2] += random.normal(0, 3, (5, 2))
    found = align(keypoints)
    assert not isinstance(found, str)
    weights = np.sqrt([0.5, 1, 1, 0.25, 0.25]).repeat(2)
    x, y = keypoints[:5, 0], keypoints[:5, 1]
    rows = np.stack([[x, -y, np.ones(5), np.zeros(5)], [y, x, np.zeros(5), np.ones(5)]]).transpose(2, 0, 1)
    a, b, c, d = np.linalg.lstsq(rows.reshape(10, 4) * weights[:, None], TEMPLATE.ravel() * weights, rcond=None)[0]
    np.testing.assert_allclose(found, [(a, -b, c), (b, a, d)], rtol=1e-6, atol=1e-6)


def test_a_crop_shows_the_face_upright() -> None:
    frame = np.full((480, 640, 3), 114, np.uint8)
    to_frame = faces.place(1.7, -25, (250, 120))
    chart = faces.chart(1)
    faces.paint(frame, chart, to_frame)
    matrix = align(faces.keypoints(to_frame))
    assert not isinstance(matrix, str)
    (found,) = crop(frame, [matrix])
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(found[inner].astype(int) - chart[inner]).mean() < 1.5


def test_beyond_the_frame_it_is_black() -> None:
    matrix = align(faces.keypoints(faces.place(1, 0, (-56, 0))))
    assert not isinstance(matrix, str)
    (found,) = crop(np.full((200, 200, 3), 255, np.uint8), [matrix])
    assert not found[:, :55].any()
    assert (found[:, 57:] == 255).all()


def test_ears_bring_it_nearer_to_all_five_points_of_a_real_head() -> None:
    """MediaPipe's canonical face model (vertices of eyes, nose, mouth, ears), turned, seen with 2 pixels of noise."""
    eye, mouth, ear = (
        (-3.1511455, 2.624618, 3.465663),
        (-2.456206, -4.342621, 4.283884),
        (-7.664182, 0.673132, -2.435867),
    )
    nose = (0.0, -1.126865, 7.475604)
    mirrored = [np.multiply(point, (-1, 1, 1)) for point in (eye, ear, mouth)]
    head = np.array([nose, mirrored[0], eye, mirrored[1], ear, mirrored[2], mouth])  # COCO's five, the mouth's corners
    five = np.vstack([TEMPLATE[:3], [(70.7299, 92.2041), (41.5493, 92.3655)]])
    corners = np.array([(0, 0, 1), (112, 0, 1), (0, 112, 1), (112, 112, 1), (56, 56, 1)])
    random = np.random.default_rng(7)
    errors: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(300):
        yaw, pitch = np.radians(random.uniform((-30, -20), (30, 20)))
        sideways = np.array([(np.cos(yaw), 0, np.sin(yaw)), (0, 1, 0), (-np.sin(yaw), 0, np.cos(yaw))])
        nod = np.array([(1, 0, 0), (0, np.cos(pitch), -np.sin(pitch)), (0, np.sin(pitch), np.cos(pitch))])
        seen = (head @ (nod @ sideways).T)[:, :2] * (5.6, -5.6) + (300, 200)
        truth = faces.SimilarityTransform.from_estimate(seen[[0, 1, 2, 5, 6]], five)
        keypoints = np.column_stack([seen[:5] + random.normal(0, 2, (5, 2)), np.full(5, 0.9)])
        for ears in (True, False):
            keypoints[3:, 2] = 0.9 if ears else 0.1
            matrix = align(np.vstack([keypoints, np.zeros((12, 3))]))
            if not isinstance(matrix, str):
                moved = corners @ np.linalg.inv(truth.params).T @ np.vstack([matrix, (0, 0, 1)]).T
                errors[ears].append(float(np.sqrt(((moved - corners) ** 2).sum(axis=1).mean())))
    assert len(errors[True]) > 250
    assert np.mean(errors[True]) < 0.92 * np.mean(errors[False])
    assert np.mean(errors[True]) < 7.5


# --- what is refused ---


def upright(scale: float = 2.0) -> np.ndarray:
    return faces.keypoints(faces.place(scale, 0, (300, 200)))


def test_too_few_pixels() -> None:
    assert align(upright(MIN_SIDE / 112 * 0.98)) == "too_small"
    assert not isinstance(align(upright(MIN_SIDE / 112 * 1.02)), str)


@pytest.mark.parametrize("point", [0, 1, 2])
def test_an_eye_or_the_nose_unsure(point: int) -> None:
    keypoints = upright()
    keypoints[point, 2] = 0.4
    assert align(keypoints) == "unsure"
    keypoints[point] = np.nan
    assert align(keypoints) == "unsure"


def test_ears_unsure_are_left_out() -> None:
    keypoints = upright()
    wanted = align(keypoints)
    keypoints[3] = 0, 0, 0.1
    np.testing.assert_allclose(np.asarray(align(keypoints)), np.asarray(wanted), atol=1e-6)


@pytest.mark.parametrize("move", [(16, 0, 0), (-16, 0, 0), (0, 24, 0), (0, -16, 0)])
def test_a_head_turned_away(move: tuple[float, float, float]) -> None:
    keypoints = upright()
    keypoints[0] += np.multiply(move, 2)
    assert align(keypoints) == "turned"


def test_seen_from_behind_or_edge_on() -> None:
    keypoints = upright()
    keypoints[[1, 2]] = keypoints[[2, 1]]  # her left eye is on the left: she looks the other way
    assert align(keypoints) == "turned"
    keypoints[1, :2] = keypoints[2, :2]
    assert align(keypoints) == "turned"


# --- the model's tensors ---


def spec(
    shape: tuple[int, ...] = (-1, 3, 112, 112), length: int = 512, dtype: str = "FP32", **parameters: str
) -> ModelSpec:
    given, gives = TensorSpec("data", dtype, shape), TensorSpec("embedding", "FP32", (-1, length))
    return ModelSpec("arcface", "1", (given,), (gives,), 16, parameters)


def filled(model: ModelSpec, crops: np.ndarray) -> np.ndarray:
    reader = face_reader(model)
    tensor = reader.empty(len(crops))
    reader.fill(crops, tensor)
    return tensor


@pytest.mark.parametrize(
    ("parameters", "mean", "std"),
    [({}, 127.5, 127.5), ({"input_mean": "0", "input_std": "1"}, 0, 1), ({"input_std": "128"}, 127.5, 128)],
)
def test_pixels_are_scaled_as_the_model_says(parameters: dict[str, str], mean: float, std: float) -> None:
    crops = np.stack([faces.chart(1), faces.chart(2)])
    tensor = filled(spec(**parameters), crops)
    assert tensor.shape == (2, 3, 112, 112)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[1, 2, 30, 40], (crops[1, 30, 40, 2] - mean) / std, rtol=1e-6)


def test_halves_are_sent_as_halves() -> None:
    whole, half = (filled(spec(dtype=kind), faces.chart(1)[None]) for kind in ("FP32", "FP16"))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, whole, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (spec((-1, 3, 160, 160)), r"data FP32 \[-1, 3, 160, 160\].*112, 112"),
        (spec(length=128), r"embedding FP32 \[-1, 128\]"),
        (spec(dtype="UINT8"), "data UINT8"),
        (spec(input_std="0"), "input_std='0'"),
        (spec(input_mean="grey"), "input_mean='grey'"),
    ],
)
def test_other_models_are_refused_by_their_shapes(model: ModelSpec, words: str) -> None:
    with pytest.raises(ModelRejected, match=words):
        face_reader(model)


def test_embeddings_have_length_1_and_come_back_from_the_wire() -> None:
    rows = np.random.default_rng(1).normal(0, 5, (3, 512)).astype(np.float32)
    rows[1] = 0
    unit = face_reader(spec()).read(rows)
    np.testing.assert_allclose(np.linalg.norm(unit[[0, 2]], axis=1), 1, rtol=1e-6)
    assert np.isnan(unit[1]).all()
    assert len(encode_embedding(unit[0])) == 2732
    np.testing.assert_array_equal(decode_embedding(encode_embedding(unit[0])), unit[0])
