"""Faces: how they are laid upright, which are refused, and what the stage does to a frame."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from app import metrics
from app.errors import FrameError, InferenceError, ModelRejected
from app.inference.client import ModelSpec, TensorSpec
from app.inference.fake import FakeClient, Model
from app.pipeline.arcface import decode, encode, face_reader
from app.pipeline.face import MIN_SIDE, TEMPLATE, align, crop
from app.pipeline.frames import Frame, Job, StreamMemory
from app.pipeline.multimodal import Pipeline
from app.pipeline.ocr import Ocr
from app.protocol.messages import Stages, StreamSettings
from app.protocol.result import STAGES, FaceDetection, FrameResult
from app.settings import Settings
from benchmarks import canned
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


@pytest.mark.parametrize("move", [(0, 16, 0), (0, -16, 0), (0, 0, 24), (0, 0, -16)])
def test_a_head_turned_away(move: tuple[float, float, float]) -> None:
    keypoints = upright()
    keypoints[0] += np.multiply(move[1:] + (0,), 2)
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


@pytest.mark.parametrize(
    ("parameters", "mean", "std"),
    [({}, 127.5, 127.5), ({"input_mean": "0", "input_std": "1"}, 0, 1), ({"input_std": "128"}, 127.5, 128)],
)
def test_pixels_are_scaled_as_the_model_says(parameters: dict[str, str], mean: float, std: float) -> None:
    crops = np.stack([faces.chart(1), faces.chart(2)])
    tensor = face_reader(spec(**parameters)).tensor(crops)
    assert tensor.shape == (2, 3, 112, 112)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[1, 2, 30, 40], (crops[1, 30, 40, 2] - mean) / std, rtol=1e-6)


def test_halves_are_sent_as_halves() -> None:
    assert face_reader(spec(dtype="FP16")).tensor(faces.chart(1)[None]).dtype == np.float16


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
    assert len(encode(unit[0])) == 2732
    np.testing.assert_array_equal(decode(encode(unit[0])), unit[0])


# --- the stage ---

SIZE = 640
INPUT = (TensorSpec("images", "UINT8", (-1, SIZE, SIZE, 3)),)
NAMES = {"class_names": json.dumps(["person", *(f"class_{i}" for i in range(1, 80))])}
FRAME = (480, 640)
SLOTS = [(40.0 + 150 * column, 20.0 + 150 * row) for row in range(3) for column in range(4)]
"""Where faces of 112 pixels fit side by side."""


def scene(people: list[list[np.ndarray]], *, scale: float = 1.0) -> dict[str, tuple[ModelSpec, Model]]:
    """Detection and pose models that see these poses (frame pixels), a list for each frame of a batch."""
    box = np.array([40, 0, 40, 0, 0, 0]) * 0  # keypoints are moved below, one by one

    def rows(frames: list[list[np.ndarray]], pose: bool) -> np.ndarray:
        out = []
        for persons in frames:
            found = []
            for keypoints in persons:
                points = keypoints.copy()
                points[:, :2] = points[:, :2] * scale + (0, 80)  # a 4:3 frame lies 80 rows down the square canvas
                low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
                row = [*low, *high, 0.9, 0]
                found.append([*row, *points.ravel()] if pose else row)
            found.append([0, 80, 30, 110, 0.8, 16, *([0] * 51)][: 57 if pose else 6]) if not pose else None
            out.append(canned.poses(found) if pose else canned.detections(found))
        return np.stack(out)

    del box
    outputs = {"yolo": ("detections", 6), "yolo_pose": ("poses", 57)}
    return {
        name: (
            ModelSpec(name, "1", INPUT, (TensorSpec(output, "FP32", (-1, 300, columns)),), 16, NAMES),
            lambda images, name=name, output=output: {output: rows(people[: len(images)], name == "yolo_pose")},
        )
        for name, (output, columns) in outputs.items()
    }


def arcface(batches: list[int] | None = None, fail: Callable[[int], bool] = lambda _: False) -> tuple[ModelSpec, Model]:
    """The model of `tests.support.faces`; notes the sizes of requests, and refuses those told."""
    sizes = batches if batches is not None else []

    def run(tensor: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(tensor))
        if fail(len(sizes)):
            raise InferenceError("arcface: out of memory")
        return {"embedding": faces.run(tensor)}

    return spec(), run


def analyze(
    client: FakeClient, jpegs: list[bytes], state: Path, *, wanted: bool = True, on: bool = True, **stages: bool
) -> list[FrameResult]:
    async def go() -> list[FrameResult | FrameError]:
        settings = Settings(ocr="off")
        pipeline = Pipeline(
            client,
            Ocr(settings.ocr, state_dir=state),
            settings.pipeline,
            settings.triton,
            settings.live,
            faces=settings.fleet if on else None,
        )
        chosen = StreamSettings(stages=Stages(**stages))
        jobs = [
            Job(Frame(str(i), jpeg, time.perf_counter(), 0.0, i), StreamMemory(), chosen, faces=wanted)
            for i, jpeg in enumerate(jpegs)
        ]
        try:
            return await pipeline.analyze(jobs, door="fleet")
        finally:
            pipeline.close()

    answers = asyncio.run(go())
    assert all(isinstance(one, FrameResult) for one in answers)
    return answers  # type: ignore[return-value]


def frame_of(seeds: list[int], size: tuple[int, int] = FRAME, zoom: float = 1.0) -> tuple[bytes, list[np.ndarray]]:
    """A JPEG with a chart in each slot, and the poses of those faces."""
    frame = np.full((*size, 3), 90, np.uint8)
    poses = []
    for seed, (x, y) in zip(seeds, SLOTS, strict=False):
        to_frame = faces.place(1.1 * zoom, 8, (x * zoom + 10, y * zoom))
        faces.paint(frame, faces.chart(seed), to_frame)
        poses.append(faces.keypoints(to_frame))
    jpeg: bytes = simplejpeg.encode_jpeg(frame, quality=97, colorsubsampling="444")
    return jpeg, poses


def likeness(result: FrameResult, seed: int) -> float:
    """The best of a frame's embeddings against the chart's own."""
    found = [decode(one.embedding) for one in result.objects if isinstance(one, FaceDetection)]
    return max((float(vector @ faces.embedding(faces.chart(seed))) for vector in found), default=-1.0)


def faces_counted(outcome: str) -> float:
    return metrics.FACES.labels(outcome)._value.get()


def test_each_person_carries_the_embedding_of_its_own_face(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1, 2, 3])
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": arcface()}), [jpeg], tmp_path)
    people = [one for one in result.objects if one.class_id == 0]
    assert len(people) == 3
    for one in people:
        assert isinstance(one, FaceDetection)
        seed = 1 + round((one.box.x1 - people[0].box.x1 + 0.1) / 150) if one.box.x1 >= people[0].box.x1 else 0
        assert seed in (0, 1, 2, 3)
    by_place = sorted(people, key=lambda one: one.box.x1)
    for seed, one in zip((1, 2, 3), by_place, strict=True):
        assert isinstance(one, FaceDetection)
        vector = decode(one.embedding)
        alike = [float(vector @ faces.embedding(faces.chart(other))) for other in (1, 2, 3)]
        assert np.argmax(alike) + 1 == seed
        assert alike[seed - 1] > 0.999
    assert result.stages["face"].status == "ok"
    assert "face" in result.timings_ms


def test_only_such_a_person_has_the_field(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1])
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": arcface()}), [jpeg], tmp_path)
    written = {one["class_id"]: "embedding" in one for one in orjson.loads(orjson.dumps(result))["objects"]}
    assert written == {0: True, 16: False}


@pytest.mark.parametrize(("on", "wanted"), [(True, False), (False, False)])
def test_a_door_that_does_not_ask_sees_nothing_of_it(tmp_path: Path, on: bool, wanted: bool) -> None:
    jpeg, poses = frame_of([1])
    client = FakeClient({**scene([poses]), "arcface": arcface()})
    (result,) = analyze(client, [jpeg], tmp_path, wanted=wanted, on=on)
    assert set(result.stages) == set(STAGES)
    assert "arcface" not in {name for name, _ in client.calls}
    assert b"embedding" not in orjson.dumps(result)


def test_at_most_16_crops_a_request_over_all_frames_of_a_batch(tmp_path: Path) -> None:
    batches: list[int] = []
    frames = [frame_of(list(range(12))), frame_of(list(range(12, 24)))]
    client = FakeClient({**scene([poses for _, poses in frames]), "arcface": arcface(batches)})
    first, second = analyze(client, [jpeg for jpeg, _ in frames], tmp_path)
    assert sorted(batches) == [8, 16]
    assert min(likeness(first, seed) for seed in range(12)) > 0.999
    assert min(likeness(second, seed) for seed in range(12, 24)) > 0.999


def test_a_request_that_fails_costs_its_frames_this_stage_alone(tmp_path: Path) -> None:
    frames = [frame_of(list(range(12))), frame_of(list(range(12, 24)))]
    client = FakeClient({**scene([poses for _, poses in frames]), "arcface": arcface(fail=lambda call: call == 2)})
    before = faces_counted("error")
    first, second = analyze(client, [jpeg for jpeg, _ in frames], tmp_path)
    assert first.stages["face"].status == "ok"
    assert sum(isinstance(one, FaceDetection) for one in first.objects) == 12
    assert (second.stages["face"].status, second.stages["face"].reason) == ("error", "arcface: out of memory")
    # Four of its faces went with the first request.
    assert sum(isinstance(one, FaceDetection) for one in second.objects) == 4
    assert len(second.objects) == 13
    assert (second.stages["detect"].status, second.stages["pose"].status) == ("ok", "ok")
    assert faces_counted("error") - before == 8


def test_a_large_frame_is_cut_at_its_full_size(tmp_path: Path) -> None:
    """On the canvas this face is 37 pixels wide: what is cut from there has lost its fine lines."""
    lines = np.repeat((np.arange(112) // 2 % 2 * 255)[:, None], 112, axis=1).astype(np.uint8)
    fine = np.stack([lines, lines.T, lines], axis=2)
    fine[:56] = faces.chart(5)[:56]
    frame = np.full((1440, 1920, 3), 90, np.uint8)
    frame[200:312, 300:412] = fine
    to_frame = faces.place(1.0, 0, (300, 200))
    seen: list[np.ndarray] = []

    def keep(tensor: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(tensor.copy())
        return {"embedding": faces.run(tensor)}

    client = FakeClient({**scene([[faces.keypoints(to_frame)]], scale=1 / 3), "arcface": (spec(), keep)})
    jpeg: bytes = simplejpeg.encode_jpeg(frame, quality=97, colorsubsampling="444")
    (result,) = analyze(client, [jpeg], tmp_path)
    assert result.stages["face"].status == "ok"
    contrast = seen[0][0, 0, 60:100, 20:90].std()
    assert contrast > 0.7


def test_without_such_a_model_the_stage_is_disabled_for_that_reason(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1])
    (result,) = analyze(FakeClient(scene([poses])), [jpeg], tmp_path)
    assert (result.stages["face"].status, result.stages["face"].reason) == ("disabled", "not_served")
    wrong = FakeClient({**scene([poses]), "arcface": (spec(length=128), arcface()[1])})
    (result,) = analyze(wrong, [jpeg], tmp_path)
    assert result.stages["face"].status == "disabled"
    assert "[-1, 128]" in str(result.stages["face"].reason)
    assert result.stages["detect"].status == "ok"


def test_without_a_server_it_is_an_error(tmp_path: Path) -> None:
    client = FakeClient({})
    client.up = False
    (result,) = analyze(client, [frame_of([])[0]], tmp_path)
    assert (result.stages["face"].status, result.stages["face"].reason) == ("error", "inference_unavailable")


def test_faces_refused_are_counted_and_said(tmp_path: Path) -> None:
    small, turned = upright(0.3), upright()
    turned[0, 0] += 60
    jpeg, _ = frame_of([])
    before = {why: faces_counted(why) for why in ("too_small", "turned")}
    client = FakeClient({**scene([[small], [small, turned, turned], []]), "arcface": arcface()})
    first, second, third = analyze(client, [jpeg] * 3, tmp_path)
    assert (first.stages["face"].status, first.stages["face"].reason) == ("skipped", "too_small")
    assert (second.stages["face"].status, second.stages["face"].reason) == ("skipped", "turned")
    assert third.stages["face"].status == "ok"  # nobody there
    assert faces_counted("too_small") - before["too_small"] == 2
    assert "arcface" not in {name for name, _ in client.calls}


@pytest.mark.parametrize(("off", "reason"), [("pose", "no_poses"), ("detect", "no_detections")])
def test_it_needs_detection_and_pose(tmp_path: Path, off: str, reason: str) -> None:
    jpeg, poses = frame_of([1])
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": arcface()}), [jpeg], tmp_path, **{off: False})
    assert (result.stages["face"].status, result.stages["face"].reason) == ("skipped", reason)


def test_an_answer_without_length_is_an_error(tmp_path: Path) -> None:
    jpeg, poses = frame_of([1])
    model = (spec(), lambda tensor: {"embedding": np.zeros((len(tensor), 512), np.float32)})
    (result,) = analyze(FakeClient({**scene([poses]), "arcface": model}), [jpeg], tmp_path)
    assert result.stages["face"].status == "error"
    assert not any(isinstance(one, FaceDetection) for one in result.objects)
