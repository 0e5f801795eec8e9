"""The stages that there are, in the order of the wire. A new one is one file and one line here, or a plug-in."""

from __future__ import annotations

from collections.abc import Collection

from app.errors import ConfigurationError
from app.pipeline.stage import PipelineStage
from app.pipeline.stages.classify import ClassifyStage
from app.pipeline.stages.detect import DetectStage
from app.pipeline.stages.faces import FaceStage
from app.pipeline.stages.motion import MotionStage
from app.pipeline.stages.obb import ObbStage
from app.pipeline.stages.ocr import OcrStage
from app.pipeline.stages.pose import PoseStage
from app.pipeline.stages.segment import SegmentStage
from app.pipeline.stages.tracking import TrackStage
from app.plugins import find
from app.protocol.stages import declare
from app.settings import FleetSettings, Settings, starting

BUILT_IN: tuple[type[PipelineStage], ...] = (
    DetectStage,
    PoseStage,
    OcrStage,
    MotionStage,
    TrackStage,
    FaceStage,
    SegmentStage,
    ObbStage,
    ClassifyStage,
)

GROUP = "sightline.stages"
"""Entry points by which packages add stages."""
_classes: list[type[PipelineStage]] = []


def register(stage: type[PipelineStage]) -> None:
    """Adds a stage to all pipelines that are opened from now on.

    Raises:
        ConfigurationError: another stage has its name or its field of a result, or there is no stage that it needs.
    """
    names = {known.name for known in _classes}
    if stage in _classes:
        return
    if stage.name in names:
        raise ConfigurationError(f"there are two stages named {stage.name!r}; should be one")
    if missing := [name for name in stage.needs if name not in names]:
        raise ConfigurationError(f"stage {stage.name!r} needs {', '.join(missing)}; there are {', '.join(names)}")
    declare(stage.info())
    _classes.append(stage)


def load(settings: Settings) -> None:
    """Registers the stages of plug-ins: those of installed packages, and those in the folder PLUGINS.

    Raises:
        ConfigurationError: a plug-in cannot be loaded, or another stage has its name or its field.
    """
    built_in = {stage.name for stage in BUILT_IN}
    waiting = [*find(GROUP, PipelineStage, settings.server.plugins, taken=built_in).values()]
    while waiting:  # a plug-in may need another one that is found after it
        names = {known.name for known in _classes}
        ready = [stage for stage in waiting if names.issuperset(stage.needs)]
        for stage in ready or waiting:
            register(stage)
        waiting = [stage for stage in waiting if stage not in ready] if ready else []


def fleet_stages(settings: FleetSettings) -> frozenset[str]:
    """The stages that run on cameras' frames: FLEET_STAGES, or those made for it.

    Raises:
        ConfigurationError: FLEET_STAGES names a stage that there is not.
    """
    names = [stage.name for stage in _classes]
    if unknown := sorted(set(settings.fleet_stages) - set(names)):
        raise ConfigurationError(
            f"FLEET_STAGES={','.join(settings.fleet_stages)!r}: should be out of {', '.join(names)}, comma-separated; "
            f"not {', '.join(unknown)}"
        )
    return frozenset(settings.fleet_stages or [stage.name for stage in _classes if stage.fleet])


def check(settings: Settings) -> None:
    """Loads the plug-ins and checks the settings of all stages. Raises ConfigurationError."""
    load(settings)
    for stage in _classes:
        with starting(f"stage {stage.name!r}"):
            stage.check(settings)
            if stage not in BUILT_IN:
                stage(settings, used=False)  # may read settings of its own


def create(settings: Settings, used: Collection[str] | None = None) -> list[PipelineStage]:
    """One instance of each stage that an entry point may run, in the order of the wire.

    Args:
        used: names of the stages that run; None: those of live streams. The other stages of live streams are there,
            too, so that every result says that they are off.

    Raises:
        ConfigurationError: a stage cannot be made.
    """
    stages = []
    for stage in _classes:
        if stage.live or stage.name in (used or ()):
            with starting(f"stage {stage.name!r}"):
                stages.append(stage(settings, used=stage.live if used is None else stage.name in used))
    return stages


for _stage in BUILT_IN:
    register(_stage)
