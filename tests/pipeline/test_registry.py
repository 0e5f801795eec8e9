"""The registry of stages: what may be chosen, and what a stage that fails costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.inference.fake import FakeClient
from app.pipeline import registry
from app.pipeline.multimodal import Pipeline
from app.pipeline.stage import PipelineStage
from app.pipeline.stages.tracking import TrackStage
from app.pipeline.types import Batch, FrameState
from app.protocol.result import FrameResult
from app.settings import FleetSettings, Settings
from tests.conftest import photograph
from tests.pipeline.test_multimodal import job, served


def test_cameras_run_the_stages_that_are_made_for_them_unless_told() -> None:
    assert registry.fleet_stages(FleetSettings()) == {"detect", "pose", "face"}
    assert registry.fleet_stages(FleetSettings(fleet_stages=("motion",))) == {"motion"}


def test_an_unknown_stage_is_refused_by_setting_value_and_remedy() -> None:
    with pytest.raises(
        ConfigurationError, match=r"FLEET_STAGES='detect,posse': should be out of detect, pose, .*posse$"
    ):
        registry.fleet_stages(FleetSettings(fleet_stages=("detect", "posse")))


def test_two_stages_cannot_have_one_name() -> None:
    class Other(PipelineStage):
        name = "detect"
        title = "Another"
        description = "Another stage of that name."

    with pytest.raises(ConfigurationError, match="'detect'"):
        registry.register(Other)


@pytest.mark.parametrize("hook", ["finish", "write"])
def test_what_a_stage_raises_costs_its_own_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    def fail(stage: PipelineStage, state: FrameState, batch: Batch) -> None:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr(TrackStage, hook, fail)

    async def run() -> FrameResult:
        pipeline = Pipeline(FakeClient(served("yolo", "yolo_pose")), Settings(ocr="off", state_dir=tmp_path))
        try:
            (result,) = await pipeline.analyze([job(photograph())])
        finally:
            pipeline.close()
        assert isinstance(result, FrameResult)
        return result

    result = asyncio.run(run())
    assert (result.stages["track"].status, result.stages["track"].reason) == ("error", "RuntimeError: out of ideas")
    assert (result.stages["detect"].status, len(result.objects), len(result.poses)) == ("ok", 1, 1)
