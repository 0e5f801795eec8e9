"""Stages that misbehave, and models that fail: what it costs, and what it must not cost."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from app.errors import ConfigurationError, InferenceError, ModelRejected
from app.fleet.analysis import outcome_of
from app.inference.client import ModelSpec
from app.inference.fake import FakeClient
from app.pipeline import registry
from app.pipeline.models import ModelSet
from app.pipeline.multimodal import Pipeline
from app.pipeline.postprocess import MOST_BLOCKED
from app.pipeline.stage import OK, Part, PipelineStage, Stage
from app.pipeline.stages.detect import Detected, DetectReader, detect_reader
from app.pipeline.stages.tracking import TrackStage
from app.pipeline.types import Batch, FrameJob, FrameState, StreamMemory
from app.protocol.result import FrameResult, Image
from app.protocol.stages import PARTS, StageInfo, declare
from app.protocol.stream import Stages
from app.segments.video.processor import FrameFailed, _checked
from app.settings import Settings
from tests.conftest import photograph
from tests.fleet.test_analysis import frames
from tests.pipeline.test_multimodal import DETECTIONS, INPUT, job, served


def from_outside(kind: type[PipelineStage]) -> type[PipelineStage]:
    """The class as if a plug-in had defined it."""
    kind.__module__ = "somewhere_else"
    return kind


def run(
    client: FakeClient,
    state: Path,
    jobs: Sequence[FrameJob],
    more: Sequence[type[PipelineStage]] = (),
    use: Callable[[Pipeline], Any] | None = None,
) -> list[FrameResult]:
    """Results of the jobs, from a pipeline that has these stages, too."""

    async def analyze() -> list[FrameResult]:
        settings = Settings(ocr="off", state_dir=state)
        pipeline = Pipeline(client, settings, [*registry.create(settings), *(stage(settings) for stage in more)])
        try:
            if use is not None:
                await use(pipeline)
            found = await pipeline.analyze(jobs)
            assert all(isinstance(result, FrameResult) for result in found)
            return [await pipeline.settle(of, result) for of, result in zip(jobs, found, strict=True)]  # type: ignore[arg-type]
        finally:
            pipeline.close()

    return asyncio.run(analyze())


def outcome(result: FrameResult, stage: str) -> tuple[str, str | None]:
    return result.stages[stage].status, result.stages[stage].reason


# --- models that fail ---


def test_a_stage_that_is_off_stays_off_where_its_model_fails_for_others(tmp_path: Path) -> None:
    def fail(images: np.ndarray) -> dict[str, np.ndarray]:
        raise InferenceError("out of memory")

    models = served("yolo", "yolo_pose")
    client = FakeClient({**models, "yolo_pose": (models["yolo_pose"][0], fail)})
    first, second = run(client, tmp_path, [job(photograph()), job(photograph(), "b", pose=False)])
    assert outcome(first, "pose") == ("error", "out of memory")
    assert outcome(second, "pose") == ("disabled", "off")
    assert [len(result.objects) for result in (first, second)] == [1, 1]


@pytest.mark.parametrize("method", ["scan", "read_all"])
def test_a_reader_that_raises_costs_its_own_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such row")

    monkeypatch.setattr(DetectReader, method, fail)
    (result,) = run(FakeClient(served("yolo", "yolo_pose", "vision")), tmp_path, [job(photograph())])
    assert outcome(result, "detect") == ("error", "ValueError: no such row")
    assert (result.objects, len(result.poses), outcome(result, "pose")) == ([], 1, ("ok", None))


def test_streams_that_differ_in_other_stages_are_still_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    read_all = DetectReader.read_all

    def noted(self: DetectReader, outputs: Any, boxes: Any, **how: Any) -> Any:
        together.append(len(boxes))
        return read_all(self, outputs, boxes, **how)

    monkeypatch.setattr(DetectReader, "read_all", noted)
    jobs = [job(photograph()), job(photograph(), "b", motion=False), job(photograph(), "c", track=False)]
    run(FakeClient(served("yolo")), tmp_path, jobs)
    assert together == [3]


# --- stages from outside ---


def test_a_plug_in_whose_model_cannot_be_read_costs_its_own_part(tmp_path: Path) -> None:
    @from_outside
    class Depth(PipelineStage):
        name = "depth"
        title, description = "Depth", "Depths."
        part = Part("depths", list[float])

        def model(self) -> str:
            return "yolo_pose"

        def reader(self, spec: ModelSpec) -> Any:
            raise ModelRejected(f"model {spec.name!r}: no depths")

    (result,) = run(FakeClient(served("yolo", "yolo_pose")), tmp_path, [job(photograph(), depth=True)], [Depth])
    assert outcome(result, "depth") == ("disabled", "model 'yolo_pose': no depths")
    assert (len(result.objects), len(result.poses)) == (1, 1)


def test_a_plug_in_whose_model_answers_otherwise_costs_its_own_part(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Doubtful(DetectReader):
        def check(self, outputs: Any) -> None:
            raise RuntimeError("what is this?")

    @from_outside
    class Odd(PipelineStage):
        name = "odd"
        title, description = "Odd", "Odd things."
        part = Part("oddities", list[int])

        def model(self) -> str:
            return "yolo"

        def reader(self, spec: ModelSpec) -> Any:
            known = detect_reader(spec)
            fields = {field.name: getattr(known, field.name) for field in dataclasses.fields(known)}
            return Doubtful(**{**fields, "declared": False})

    (result,) = run(FakeClient(served("yolo")), tmp_path, [job(photograph(), odd=True)], [Odd])
    assert outcome(result, "odd") == ("disabled", "RuntimeError: what is this?")
    assert len(result.objects) == 1


def test_what_a_plug_in_raises_beside_the_frames_costs_nothing_else(tmp_path: Path) -> None:
    class Fails(PipelineStage):
        name = "fails"
        title, description = "Fails", "Fails."
        model_type = str
        runs = "anywhere"

        def fail(self, *_: Any) -> Any:
            raise RuntimeError("no idea")

        forget = health = offer = status = fail
        broken = property(fail)

        async def settle(self, job: FrameJob, result: FrameResult) -> FrameResult:
            raise RuntimeError("not settled")

    async def use(pipeline: Pipeline) -> None:
        await pipeline.load()
        pipeline.forget(StreamMemory())
        assert pipeline.models["fails"] is None
        assert "fails" not in pipeline.health()
        assert pipeline.broken == {}

    (result,) = run(FakeClient(served("yolo")), tmp_path, [job(photograph(), fails=True)], [from_outside(Fails)], use)
    assert outcome(result, "fails") == ("error", "RuntimeError: not settled")
    assert len(result.objects) == 1


def test_a_plug_in_that_never_comes_back_is_not_waited_for(tmp_path: Path) -> None:
    @from_outside
    class Hangs(PipelineStage):
        name = "hangs"
        title, description = "Hangs", "Hangs."

        async def run(self, batch: Batch) -> None:
            await asyncio.Event().wait()

    asked = job(photograph(), hangs=True)
    asked.deadline_s = 0.1
    began = time.monotonic()
    (result,) = run(FakeClient(served("yolo")), tmp_path, [asked], [Hangs])
    assert time.monotonic() - began < 10
    assert outcome(result, "hangs") == ("error", "TimeoutError: it took more than 0.2 s")
    assert len(result.objects) == 1


def test_frames_that_a_thread_has_done_in_time_keep_their_part(tmp_path: Path) -> None:
    @from_outside
    class Slow(PipelineStage):
        name = "slow"
        title, description = "Slow", "Slow."
        part = Part("slowly", list[int])

        def write(self, state: FrameState, batch: Batch) -> list[int]:
            time.sleep(0.0 if state.index == 0 else 1.5)
            return [state.index]

    first, second = run(
        FakeClient(served("yolo")), tmp_path, [job(photograph(), slow=True), job(photograph(), "b", slow=True)], [Slow]
    )
    assert (first.slowly, outcome(first, "slow")) == ([0], ("ok", None))
    assert outcome(second, "slow") == ("error", "it took more than 1 s")


def test_a_stage_runs_after_those_that_it_needs_wherever_these_run(tmp_path: Path) -> None:
    def noting(own: str, where: str, *needed: str) -> type[PipelineStage]:
        class Noting(PipelineStage):
            name = own
            title = description = own
            runs = where  # type: ignore[assignment]
            needs = needed
            part = Part(own, list[str])

            def write(self, state: FrameState, batch: Batch) -> list[str]:
                return [name for name in needed if name in state.parts]

        return from_outside(Noting)

    more = [
        noting("first", "loop"),
        noting("second", "anywhere", "first"),
        noting("third", "thread", "first", "second"),
        noting("fourth", "loop", "third"),
    ]
    asked = job(photograph(), first=True, second=True, third=True, fourth=True)
    (result,) = run(FakeClient(served("yolo")), tmp_path, [asked], more)
    assert (result.second, result.third, result.fourth) == (["first"], ["first", "second"], ["third"])


def test_those_that_need_a_stage_move_with_it_into_threads(tmp_path: Path) -> None:
    class Blocks(PipelineStage):
        name = "blocks"
        title = description = "Blocks."
        runs = "anywhere"
        part = Part("blocks", list[int])

        def write(self, state: FrameState, batch: Batch) -> list[int]:
            time.sleep(0.03)
            return [1]

    class Needs(PipelineStage):
        name = "wants"
        title = description = "Needs it."
        runs = "anywhere"
        needs = ("blocks",)
        part = Part("wants", list[int])

        def write(self, state: FrameState, batch: Batch) -> list[int]:
            return [*state.parts["blocks"], 2]

    async def use(pipeline: Pipeline) -> None:
        for _ in range(MOST_BLOCKED):
            await pipeline.analyze([job(photograph(), blocks=True, wants=True)])
        assert [thread.stage.name for thread in pipeline._finisher.threads] == ["blocks", "wants"]  # no others do

    asked = [job(photograph(), blocks=True, wants=True)]
    (result,) = run(FakeClient(served("yolo")), tmp_path, asked, [from_outside(Blocks), from_outside(Needs)], use)
    assert (result.blocks, result.wants) == ([1], [1, 2])


def test_a_plug_ins_own_error_fails_no_frame_of_a_camera_or_a_video_but_a_missing_server_does() -> None:
    own = FrameResult(Image(2, 2), {"mine": Stage("error", "RuntimeError: no idea")})
    away = FrameResult(Image(2, 2), {"mine": Stage("error", "inference_unavailable")})
    (frame,) = frames([b""])
    assert outcome_of(frame, own, ["mine"], {"mine"}).failure is None
    assert outcome_of(frame, own, ["mine"]).failure is not None
    failure = outcome_of(frame, away, ["mine"], {"mine"}).failure
    assert failure is not None
    assert failure.code == "inference_unavailable"
    assert _checked(own, required=["mine"], plug_ins=frozenset({"mine"})) is own
    assert isinstance(_checked(own, required=["mine"], plug_ins=frozenset()), FrameFailed)


@pytest.mark.parametrize("when", ["__init__", "check"])
def test_a_stage_that_cannot_be_started_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("colour")

    monkeypatch.setattr(TrackStage, when, fail)
    settings = Settings(state_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="stage 'track' cannot be started: KeyError: 'colour'"):
        registry.create(settings) if when == "__init__" else registry.check(settings)


# --- names ---


@pytest.mark.parametrize(
    "name",
    ["inference", "summary", "total", "class", "self", "Über", "model_config", "copy", "_x", "a-b", "", "x" * 65],
)
def test_a_stage_needs_a_name_that_is_free_everywhere(name: str) -> None:
    with pytest.raises(ConfigurationError, match="should be"):
        declare(StageInfo(name, "A", "B"))


@pytest.mark.parametrize("field", ["objects", "error", "pts_s", "epoch", "worker", "self", "replace", "class", "Ä", ""])
def test_a_field_needs_a_name_that_no_message_uses(field: str) -> None:
    with pytest.raises(ConfigurationError, match="should be"):
        declare(StageInfo("some_stage", "A", "B", Part(field, list)))


# --- what is read, in which order ---


def test_tracks_follow_the_first_stage_whichever_model_answers_first() -> None:
    boxes = np.array([[0, 0, 10, 10]], np.float32)

    def found(score: float) -> Detected:
        return Detected(boxes, np.array([score], np.float32), np.array([0], np.int32))

    memory = StreamMemory()
    settings = Settings()
    stages = {stage.name: stage for stage in registry.create(settings)}
    stage = stages["track"]
    ids = []
    for answers in (["segment", "detect"], ["detect", "segment"], ["segment", "detect"]):
        asked = dataclasses.replace(job(photograph()), memory=memory)
        state = FrameState(asked, info=Image(64, 64))  # type: ignore[arg-type]
        state.found = {name: found(0.9 if name == "detect" else 0.1) for name in answers}
        stage.finish(state, Batch([state], ModelSet(), True, stages))
        ids.append({name: track_ids.tolist() for name, track_ids in state.track_ids.items()})
        assert state.stages["track"] is OK
    assert ids[2]["detect"] == [1]  # the weak box of the other would start no track


def test_a_result_is_as_good_as_a_dataclass() -> None:
    result = FrameResult(Image(2, 2), {"detect": OK}, {"total": 1.0}, texts=["a"], later=[1])
    assert orjson.loads(orjson.dumps({"frame": result})) == {"frame": orjson.loads(orjson.dumps(result.values()))}
    assert list(dataclasses.asdict(result)) == ["image", *PARTS, "stages", "timings_ms"]
    assert dataclasses.replace(result, texts=[]).texts == []


def test_results_and_settings_can_be_pickled_and_copied() -> None:
    result = FrameResult(Image(2, 2), {"detect": OK}, {"total": 1.0}, later=[1])
    again = pickle.loads(pickle.dumps(result))
    assert (again, again.later, again.objects) == (result, [1], [])
    stages = pickle.loads(pickle.dumps(Stages(pose=False)))
    assert (stages, stages.pose, type(stages)) == (Stages(pose=False), False, Stages)
    assert orjson.loads(orjson.dumps(Stages())) == {**Stages()}


def test_a_models_set_of_requests_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    async def use(pipeline: Pipeline) -> None:
        for turn in range(12):
            chosen = {"pose": turn % 2 == 0, "detect": turn % 3 == 0, "motion": turn % 4 == 0}
            await pipeline.analyze([job(photograph(), str(turn), **chosen)])
        assert len(pipeline.model_set.requests) <= 4

    run(FakeClient(served("yolo", "yolo_pose", "vision")), tmp_path, [job(photograph())], use=use)


def test_a_filter_by_class_compares_names_where_models_number_them_differently(tmp_path: Path) -> None:
    class Other(PipelineStage):
        name = "other"
        title, description = "Other", "Another detector."
        part = Part("others", list[str])
        runs = "anywhere"

        def model(self) -> str:
            return "other"

        def reader(self, spec: ModelSpec) -> Any:
            return detect_reader(spec)

        def write(self, state: FrameState, batch: Batch) -> list[str]:
            names = batch.model_set.readers["other"].class_names
            return [names[number] for number in state.found["other"].class_id.tolist()]

    def two(images: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.zeros((len(images), 300, 6), np.float32)
        rows[:, 0] = [10, 10, 20, 20, 0.9, 0]
        rows[:, 1] = [50, 50, 90, 90, 0.8, 1]
        return {"detections": rows}

    def seen(names: list[str], wanted: tuple[int, ...]) -> list[str]:
        spec = ModelSpec("other", "1", INPUT, (DETECTIONS,), 16, {"class_names": orjson.dumps(names).decode()})
        asked = job(photograph(), other=True)
        asked.settings = dataclasses.replace(asked.settings, classes=wanted)
        (result,) = run(FakeClient({**served("yolo"), "other": (spec, two)}), tmp_path, [asked], [Other])
        others: list[str] = result.others
        return others

    # The first model has: 0 person, 1 class_1, ...
    assert seen(["dog", "Person"], (0,)) == ["Person"]
    assert seen(["dog", "Person"], (1,)) == []
    assert seen(["dog", "cat"], (1,)) == ["dog", "cat"]  # none of the names is known, so none can be chosen
