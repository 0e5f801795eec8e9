"""Frames that come decoded, and several calls for one stream at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from app.errors import FrameTooLarge
from app.pipeline.boxes import letterbox
from app.pipeline.decode import BORDER, lay_into
from app.pipeline.ordering import Sequencer
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from tests.support.clip import Pan, decode, encode
from tests.support.seeing import SIDE, Sight, pipeline_of, place, square

SETTINGS = StreamSettings(stages=Stages(ocr=False))


def frame(picture: np.ndarray | None, jpeg: bytes = b"", number: int = 0) -> Frame:
    return Frame("a", jpeg, time.perf_counter(), 0.0, number, pixels=picture, at_s=number / 25)


def test_pixels_give_what_their_jpeg_gives(tmp_path: Path) -> None:
    async def run() -> list[list[FrameResult]]:
        found = []
        async with pipeline_of(Sight(), tmp_path) as (pipeline, _):
            for pixels in (False, True):
                memory, results = StreamMemory(), []
                for number in range(5):
                    jpeg = encode(square(number), quality=95)
                    one = frame(decode(jpeg), number=number) if pixels else frame(None, jpeg, number)
                    (answer,) = await pipeline.analyze([FrameJob(one, memory, SETTINGS)])
                    assert isinstance(answer, FrameResult)
                    results.append(answer)
                found.append(results)
        return found

    for jpeg, pixels in zip(*asyncio.run(run()), strict=True):
        assert jpeg.image == pixels.image
        assert [found.track_id for found in jpeg.objects] == [found.track_id for found in pixels.objects]
        for side in ("x1", "y1", "x2", "y2"):
            assert getattr(pixels.objects[0].box, side) == pytest.approx(getattr(jpeg.objects[0].box, side), abs=1.0)
        assert (jpeg.motion is None) == (pixels.motion is None)
        if jpeg.motion is not None and pixels.motion is not None:
            assert pixels.motion.score == pytest.approx(jpeg.motion.score, abs=0.01)


@pytest.mark.parametrize("size", [(640, 480), (641, 479), (1300, 700), (2600, 1900), (100, 50), (30, 900)])
def test_pixels_lie_in_the_canvas_as_a_jpeg_would(size: tuple[int, int]) -> None:
    width, height = size
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width)).astype(np.uint8)
    picture = np.stack([ramp, ramp // 2, 240 - ramp], axis=2)
    box, canvas = letterbox(width, height, 640, 640), np.zeros((640, 640, 3), np.uint8)
    lay_into(picture, box, canvas)
    inside = canvas[box.pad_y : box.pad_y + box.height, box.pad_x : box.pad_x + box.width].astype(int)
    wanted = np.add.outer(np.linspace(0, 120, box.height), np.linspace(0, 120, box.width))
    assert np.abs(inside[..., 0] - wanted).max() <= 6
    assert (canvas[: box.pad_y] == BORDER).all()
    assert (canvas[:, box.pad_x + box.width :] == BORDER).all()


def test_without_models_pixels_still_have_motion_and_a_size(tmp_path: Path) -> None:
    async def run() -> list[FrameResult]:
        memory = StreamMemory()
        off = dataclasses.replace(SETTINGS, stages=Stages(ocr=False, detect=False, pose=False, track=False))
        async with pipeline_of(Sight(), tmp_path) as (pipeline, _):
            pictures = Pan(step=(6, 0), count=4).pictures()
            jobs = [FrameJob(frame(one, number=i), memory, off) for i, one in enumerate(pictures)]
            return [answer for answer in await pipeline.analyze(jobs) if isinstance(answer, FrameResult)]

    found = asyncio.run(run())
    assert [result.image.width for result in found] == [640] * 4
    assert all(
        result.motion is not None and result.motion.camera.dx == pytest.approx(-6, abs=1) for result in found[1:]
    )


def test_too_many_pixels_are_refused(tmp_path: Path) -> None:
    async def run() -> object:
        async with pipeline_of(Sight(), tmp_path) as (pipeline, settings):
            side = int(settings.live.max_pixels**0.5) + 1
            huge = np.broadcast_to(np.uint8(0), (side, side, 3))
            return (await pipeline.analyze([FrameJob(frame(huge), StreamMemory(), SETTINGS)]))[0]

    assert isinstance(asyncio.run(run()), FrameTooLarge)


def test_turns_keep_a_stream_in_order_while_its_calls_overlap(tmp_path: Path) -> None:
    client = Sight(together=3)

    async def run() -> list[FrameResult]:
        memory, turns = StreamMemory(), Sequencer()
        finished: list[int] = []
        async with pipeline_of(client, tmp_path) as (pipeline, _):

            async def call(number: int) -> list[FrameResult]:
                with turns.take() as turn:
                    jobs = [FrameJob(frame(square(n), number=n), memory, SETTINGS) for n in (number, number + 1)]
                    answers = await pipeline.analyze(jobs, ticket=turn)
                    finished.append(number)
                    return [answer for answer in answers if isinstance(answer, FrameResult)]

            groups = await asyncio.gather(*(call(number) for number in range(0, 40, 2)))
        assert finished == list(range(0, 40, 2))
        return [result for group in groups for result in group]

    found = asyncio.run(run())
    assert client.most > 2
    assert {result.objects[0].track_id for result in found[2:]} == {1}
    for number, one in enumerate(found):
        x, y = place(number)
        assert (one.objects[0].box.x1, one.objects[0].box.x2) == pytest.approx((x, x + SIDE), abs=2.0)
        assert one.objects[0].box.y1 == pytest.approx(y, abs=2.0)
        assert one.stages["motion"].status == ("ok" if number else "skipped")


def test_a_call_that_fails_holds_up_none_after_it_and_lets_none_pass() -> None:
    async def run() -> None:
        turns = Sequencer()
        first, second, third = turns.take(), turns.take(), turns.take()

        async def waits() -> None:
            with third:
                await third.prepare()
                await third.finish()

        waiting = asyncio.create_task(waits())
        with pytest.raises(ValueError, match="no"), second:
            raise ValueError("no")
        await asyncio.sleep(0.01)
        assert not waiting.done(), "the first is still at work"
        with first:
            pass
        await asyncio.wait_for(waiting, 5)

    asyncio.run(run())
