"""Which videos `/invocations` accepts, by the models that are served and by the addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.errors import InferenceError, InferenceUnavailable
from app.inference.fake import FakeClient
from app.segments.http import SegmentService
from app.segments.keys import uri
from app.segments.ports import ObjectAddressRefused
from app.settings import SegmentSettings
from tests.segments.test_analyze import Half, unreadable
from tests.support.seeing import Sight, pipeline_of, squares


@asynccontextmanager
async def service_of(client: FakeClient, folder: Path, segments: SegmentSettings) -> AsyncIterator[SegmentService]:
    async with pipeline_of(client, folder / "state") as (pipeline, settings):
        yield SegmentService(
            pipeline,
            segments,
            settings.aws,
            pipeline_settings=settings.pipeline,
            limits=settings.live,
        )


@pytest.mark.parametrize("client", [Half(), unreadable()], ids=["nothing", "unreadable"])
def test_nothing_is_taken_while_nothing_is_served(tmp_path: Path, client: Half) -> None:
    squares(tmp_path / "in.mp4", 6)

    async def run() -> None:
        async with service_of(client, tmp_path, SegmentSettings(segment_folder=tmp_path)) as service:
            assert not await service.ready()
            with pytest.raises(InferenceUnavailable):
                await service.invoke(uri(str(tmp_path), "in.mp4"), uri(str(tmp_path), "out.mp4"), "blur_faces")
            client._models, client.generation = Sight()._models, 2  # it is back, with its models
            assert await service.ready()
            await service.invoke(uri(str(tmp_path), "in.mp4"), uri(str(tmp_path), "out.mp4"), "blur_faces")

    asyncio.run(run())
    assert (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [
        ("s3://elsewhere/a.mp4", "s3://films-out/a.mp4", "INPUT_BUCKET_NAME"),
        ("s3://films-in/a.mp4", "s3://films-in/a.mp4", "OUTPUT_BUCKET_NAME"),
        ("s3://films-in-too/a.mp4", "s3://films-out/a.mp4", "INPUT_BUCKET_NAME"),
    ],
)
def test_other_buckets_than_those_that_are_named_are_refused(
    tmp_path: Path, source: str, target: str, name: str
) -> None:
    settings = SegmentSettings(input_bucket_name="films-in", output_bucket_name="films-out")

    async def run() -> None:
        async with service_of(Sight(), tmp_path, settings) as service:
            with pytest.raises(ObjectAddressRefused, match=name):
                await service.invoke(source, target, "annotate")

    asyncio.run(run())


def test_faces_that_nobody_looks_for_are_refused_though_the_service_is_ready(tmp_path: Path) -> None:
    squares(tmp_path / "in.mp4", 6)

    async def run() -> None:
        async with service_of(Half("yolo"), tmp_path, SegmentSettings(segment_folder=tmp_path)) as service:
            assert await service.ready()
            with pytest.raises(InferenceError, match="faces cannot be hidden"):
                await service.invoke(uri(str(tmp_path), "in.mp4"), uri(str(tmp_path), "out.mp4"), "blur_faces")

    asyncio.run(run())
    assert [path.name for path in tmp_path.glob("*.*")] == ["in.mp4"]
