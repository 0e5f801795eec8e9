"""A failing batch is tried again in halves, so that only the frames that fail by themselves get no result."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from app.errors import InferenceError
from app.fleet.analysis import Analysis, stream_settings
from app.fleet.in_flight import MetricsBuffer
from app.fleet.streams import CameraFrame, FrameOrigin
from app.inference.client import ModelSpec, TensorSpec
from app.inference.fake import FakeClient
from app.pipeline.multimodal import Pipeline
from app.pipeline.registry import create, fleet_stages
from app.settings import Settings
from benchmarks import canned

pytestmark = pytest.mark.anyio

Array = NDArray[Any]
Opened = Callable[..., tuple[Analysis, FakeClient, list[int]]]
CAMERAS = 8


def spec(name: str) -> ModelSpec:
    picture = TensorSpec("images", "UINT8", (-1, 640, 640, 3))
    found = TensorSpec("detections", "FP32", (-1, 300, 6))
    return ModelSpec(name, "1", (picture,), (found,), 16, {"class_names": json.dumps(["person", "dog"])})


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    """Yields the real pipeline on the fake client, which calls `fails` for each batch, and the list of batch sizes."""
    pipelines = []

    def make(fails: Callable[[Array], bool], **overrides: object) -> tuple[Analysis, FakeClient, list[int]]:
        sizes: list[int] = []

        def model(batch: Array) -> Mapping[str, Array]:
            sizes.append(len(batch))
            if fails(batch):
                raise InferenceError("CUDA out of memory")
            return {"detections": np.repeat(canned.detections([canned.PERSON])[None], len(batch), 0)}

        given = {"ocr": "off", "state_dir": tmp_path, "fleet_stages": ("detect", "motion"), **overrides}
        settings = Settings(**given)
        client = FakeClient({"yolo": (spec("yolo"), model)})
        pipelines.append(Pipeline(client, settings, create(settings, fleet_stages(settings.fleet))))
        chosen = stream_settings(settings.fleet, settings.pipeline)
        analysis = Analysis(pipelines[-1], settings.fleet, chosen, MetricsBuffer().timed)
        return analysis, client, sizes

    yield make
    for pipeline in pipelines:
        pipeline.close()


def picture(level: int) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.full((480, 640, 3), level, np.uint8), quality=80)
    return encoded


def frames(jpegs: list[bytes], *, age_s: float = 0.0) -> list[CameraFrame]:
    captured = (time.time() - age_s) * 1000
    origins = [
        FrameOrigin(f"frames:{number}", f"{number}-0", str(number), None, captured) for number in range(len(jpegs))
    ]
    return [CameraFrame(origin, jpeg, time.perf_counter()) for origin, jpeg in zip(origins, jpegs, strict=True)]


async def test_a_batch_too_large_for_the_models_memory_is_answered_in_halves(opened: Opened, jpeg: bytes) -> None:
    analysis, _, sizes = opened(lambda batch: len(batch) > 2)
    outcomes = await analysis.analyze(frames([jpeg] * CAMERAS))
    assert [outcome.failure for outcome in outcomes] == [None] * CAMERAS
    assert all(outcome.result is not None and len(outcome.result.objects) == 1 for outcome in outcomes)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


async def test_the_one_frame_that_fails_is_named_and_the_others_are_answered(opened: Opened, jpeg: bytes) -> None:
    analysis, _, sizes = opened(lambda batch: bool((batch[:, 320, 320] == 0).all(axis=-1).any()))
    given = frames([jpeg] * 5 + [picture(0)] + [jpeg] * 2)
    outcomes = await analysis.analyze(given)
    assert [outcome.frame for outcome in outcomes] == given
    assert [number for number, outcome in enumerate(outcomes) if outcome.failure] == [5]
    failure = outcomes[5].failure
    assert failure is not None
    assert (failure.code, failure.message) == ("inference", "detect: CUDA out of memory")
    assert outcomes[5].result is not None, "what there is of it goes along"
    assert min(sizes) == 1


async def test_an_error_of_our_own_costs_one_frame(opened: Opened, jpeg: bytes) -> None:
    def breaks(batch: Array) -> bool:
        if (batch[:, 320, 320] == 0).all(axis=-1).any():
            raise RuntimeError("a bug")
        return False

    analysis, _, _ = opened(breaks)
    outcomes = await analysis.analyze(frames([jpeg, picture(0), jpeg]))
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [None, "internal", None]


async def test_bad_and_stale_frames_are_told_apart_and_do_not_stop_a_batch(opened: Opened, jpeg: bytes) -> None:
    analysis, _, _ = opened(lambda batch: False, frame_staleness_ms=500)
    given = [*frames([jpeg, b"junk"]), *frames([jpeg], age_s=1)]
    outcomes = await analysis.analyze(given)
    assert [outcome.dropped for outcome in outcomes] == [None, "undecodable", "stale"]


async def test_while_the_server_is_away_frames_are_kept_until_they_are_stale(opened: Opened, jpeg: bytes) -> None:
    analysis, client, sizes = opened(lambda batch: False, frame_staleness_ms=400)
    client.up = False
    outcomes = await analysis.analyze(frames([jpeg] * 3))
    assert [outcome.dropped for outcome in outcomes] == ["stale"] * 3
    assert sizes == []


async def test_a_worker_that_stops_does_not_wait_for_a_server_that_is_away(opened: Opened, jpeg: bytes) -> None:
    analysis, client, _ = opened(lambda batch: False, frame_staleness_ms=3_600_000)
    client.up, analysis.stopping = False, True
    (outcome,) = await analysis.analyze(frames([jpeg]))
    assert outcome.failure is not None
    assert outcome.failure.code == "inference_unavailable"


async def test_a_frame_that_is_tried_again_does_not_meet_itself_in_the_flow(opened: Opened) -> None:
    failing = iter([False, True, False])
    analysis, _, _ = opened(lambda batch: next(failing, False))
    rng = np.random.default_rng(7)
    texture = np.kron(rng.integers(0, 255, (60, 80, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    first, second = texture, np.roll(texture, 16, axis=1)
    jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=90) for image in (first, second)]
    await analysis.analyze(frames(jpegs[:1]))
    twice = frames([jpegs[1], jpegs[1]])  # two cameras, so that there are halves
    outcomes = await analysis.analyze(twice)
    assert outcomes[0].result is not None
    assert outcomes[0].result.motion is not None
    assert outcomes[0].result.motion.camera.dx == pytest.approx(16, abs=4)


async def test_what_was_claimed_is_fresh_from_its_claim_and_no_part_of_its_cameras_stream(
    opened: Opened, jpeg: bytes
) -> None:
    analysis, _, _ = opened(lambda batch: False, frame_staleness_ms=10_000)
    await analysis.analyze(frames([jpeg]))
    (old,) = frames([jpeg], age_s=60)
    claimed = replace(old, claimed=True)
    long_claimed = replace(claimed, arrived=claimed.arrived - 11)
    outcomes = [(await analysis.analyze([frame]))[0] for frame in (old, claimed, long_claimed, *frames([jpeg]))]
    assert [outcome.dropped for outcome in outcomes] == ["stale", None, "stale", None]
    motion = [outcome.result.stages["motion"].status for outcome in outcomes if outcome.result is not None]
    assert motion == ["skipped", "ok"]


async def test_a_frame_that_waited_while_its_camera_went_away_leaves_no_memory(opened: Opened, jpeg: bytes) -> None:
    analysis, _, _ = opened(lambda batch: False)
    here = frames([jpeg, jpeg])
    analysis.keep_only(frozenset({"frames:0", "frames:1"}))
    await analysis.analyze(here)
    analysis.keep_only(frozenset({"frames:0"}))
    await analysis.analyze(here)  # they waited
    analysis.keep_only(frozenset({"frames:0", "frames:1"}))  # and it is back
    again = await analysis.analyze(here)
    motion = [outcome.result.stages["motion"].status for outcome in again if outcome.result is not None]
    assert motion == ["ok", "skipped"]


async def test_a_fault_of_ours_in_every_frame_is_told_once(
    opened: Opened, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(batch: Array) -> bool:
        raise RuntimeError("a bug")

    analysis, _, _ = opened(breaks)
    for _ in range(3):
        outcomes = await analysis.analyze(frames([jpeg] * 4))
        assert [outcome.failure and outcome.failure.message for outcome in outcomes] == ["RuntimeError: a bug"] * 4
    assert caplog.text.count("could not be analysed") == 1


async def test_cameras_that_went_away_are_forgotten(opened: Opened, jpeg: bytes) -> None:
    analysis, _, _ = opened(lambda batch: False)
    await analysis.analyze(frames([jpeg, jpeg]))
    analysis.keep_only(frozenset({"frames:0"}))
    again = await analysis.analyze(frames([jpeg, jpeg]))
    motion = [outcome.result.stages["motion"].status for outcome in again if outcome.result is not None]
    assert motion == ["ok", "skipped"]
