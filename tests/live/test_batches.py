"""Frames of several sessions that come in the same turn of the loop: together, and each answered as if alone."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import FrameError, InferenceError, UndecodableFrame
from app.inference.client import ModelSpec, Reply
from app.inference.fake import FakeClient
from app.inference.shared_memory import Buffer
from app.logging import SESSION_ID
from app.pipeline.batching import LARGE, LiveBatcher, PendingFrame
from app.pipeline.multimodal import Pipeline
from app.pipeline.preprocess import Piece, Preprocessor
from app.pipeline.types import Batch, Frame, FrameJob, StreamMemory
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from app.settings import Settings
from tests.conftest import photograph
from tests.pipeline.test_multimodal import job, served, white
from tests.support.clip import encode
from tests.support.seeing import Sight, place, square


class Counted(FakeClient):
    """Notes how many images were in each request; refuses more than `most` at once."""

    def __init__(self, *, batched: bool = True, most: int = 16, max_batch: int = 16, max_in_flight: int = 8) -> None:
        about = {"batched": batched, "max_batch": max_batch}
        models = served("yolo", "yolo_pose", "vision")
        models = {name: (dataclasses.replace(spec, **about), run) for name, (spec, run) in models.items()}
        super().__init__(models, max_in_flight=max_in_flight)
        self.sizes: list[int] = []
        self.most = most

    async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str) -> Reply:
        self.sizes.append(len(buffer.array))
        if len(buffer.array) > self.most:
            raise InferenceError("out of memory")
        return await super().infer(model, buffer, stream=stream)


class Asked(LiveBatcher):
    """Asked one frame at a time, as a session asks that waits for each answer."""

    async def analyze(self, job: FrameJob) -> FrameResult | FrameError:
        pending = self.submit(job)
        try:
            return await pending.answer
        finally:
            pending.cancel()


@asynccontextmanager
async def opened(client: FakeClient, state: Path) -> AsyncIterator[Asked]:
    pipeline = Pipeline(client, Settings(ocr="off", state_dir=state))
    await pipeline.load()
    try:
        yield Asked(pipeline)
    finally:
        pipeline.close()


def run(client: FakeClient, state: Path, use: Callable[[Asked], Awaitable[None]]) -> None:
    async def go() -> None:
        async with opened(client, state) as batches:
            await use(batches)

    asyncio.run(go())


def jobs(count: int) -> list[FrameJob]:
    """The last one's box is another."""
    return [job(photograph() if i < count - 1 else white(), str(i)) for i in range(count)]


def places(found: list[object]) -> list[float]:
    return [result.objects[0].box.y1 for result in found if isinstance(result, FrameResult)]


def test_what_comes_in_one_turn_is_one_request_and_each_gets_its_own(tmp_path: Path) -> None:
    client = Counted()

    async def use(batches: Asked) -> None:
        assert places(await asyncio.gather(*map(batches.analyze, jobs(5)))) == [40, 40, 40, 40, 160]
        assert places([await batches.analyze(job(white()))]) == [160]

    run(client, tmp_path, use)
    assert client.sizes == [5, 1]


def test_log_lines_of_a_batch_carry_no_sessions_id(tmp_path: Path) -> None:
    """It belongs to several sessions, and would carry the id of the one that submitted first."""
    ids: list[str | None] = []

    class Noted(Counted):
        async def infer(self, model: ModelSpec, buffer: Buffer, *, stream: str) -> Reply:
            ids.append(SESSION_ID.get())
            return await super().infer(model, buffer, stream=stream)

    async def use(batches: Asked) -> None:
        SESSION_ID.set("the first")
        await asyncio.gather(*map(batches.analyze, jobs(2)))

    run(Noted(), tmp_path, use)
    assert ids == [None]


def test_no_more_than_eight_go_together_and_a_large_one_goes_alone(tmp_path: Path) -> None:
    client = Counted()
    large = job(photograph() + bytes(LARGE), "large")

    async def use(batches: Asked) -> None:
        await asyncio.gather(*map(batches.analyze, [large, *jobs(11)]))

    run(client, tmp_path, use)
    assert sorted(client.sizes) == [1, 3, 8]


def test_no_more_go_together_than_the_models_take_and_these_go_side_by_side(tmp_path: Path) -> None:
    client = Counted(max_batch=2)
    client.latency_s = 0.1

    async def use(batches: Asked) -> None:
        asked = asyncio.gather(*map(batches.analyze, jobs(4)))
        while len(client.calls) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not asked.done()
        assert places(await asked) == [40, 40, 40, 160]

    run(client, tmp_path, use)
    assert client.sizes == [2, 2]


def test_models_that_the_server_does_not_batch_get_one_frame_at_a_time(tmp_path: Path) -> None:
    client = Counted(batched=False)

    async def use(batches: Asked) -> None:
        assert places(await asyncio.gather(*map(batches.analyze, jobs(3)))) == [40, 40, 160]

    run(client, tmp_path, use)
    assert client.sizes == [1, 1, 1]


def test_a_damaged_frame_is_its_own_sessions_alone(tmp_path: Path) -> None:
    async def use(batches: Asked) -> None:
        good, bad, other = await asyncio.gather(*map(batches.analyze, [*jobs(1), job(b"\xff\xd8no", "b"), *jobs(1)]))
        assert isinstance(bad, UndecodableFrame)
        assert places([good, other]) == [160, 160]

    run(Counted(), tmp_path, use)


@pytest.mark.parametrize("when", ["before it started", "under way"])
def test_a_session_that_ends_takes_no_other_with_it(tmp_path: Path, when: str) -> None:
    client = Counted()
    client.latency_s = 0.2

    async def use(batches: Asked) -> None:
        stays, leaves = (asyncio.ensure_future(batches.analyze(frame_job)) for frame_job in jobs(2))
        while len(client.sizes) < (when == "under way"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        leaves.cancel()
        assert places([await stays]) == [40]
        with pytest.raises(asyncio.CancelledError):
            await leaves

    run(client, tmp_path, use)
    assert client.sizes == ([1] if when == "before it started" else [2])


def test_what_nobody_waits_for_any_more_never_reaches_the_server(tmp_path: Path) -> None:
    client = Counted(max_in_flight=1)
    client.latency_s = 5.0  # the others, photographs, have to be prepared meanwhile
    asked, *others_asked = jobs(1) + jobs(3)

    async def use(batches: Asked) -> None:
        first = asyncio.ensure_future(batches.analyze(asked))
        while not client.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        client.latency_s = 0.0
        others = [asyncio.ensure_future(batches.analyze(frame_job)) for frame_job in others_asked]
        while len(client.sizes) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert places([await first, await batches.analyze(job(white(), "last"))]) == [160, 160]

    run(client, tmp_path, use)
    assert client.sizes == [1, 3, 1]
    assert [stream for _, stream in client.calls] == ["0", "last"]


def test_a_batch_that_the_server_refuses_is_not_tried_as_large_again(tmp_path: Path) -> None:
    client = Counted(most=2)

    async def use(batches: Asked) -> None:
        for _ in range(3):
            found = await asyncio.gather(*map(batches.analyze, jobs(8)))
        assert len(places(found)) == 8

    run(client, tmp_path, use)
    assert client.sizes == [8, 4, 4, 2, 2, 2, 2]


def test_what_breaks_on_one_frame_is_that_frames_alone(tmp_path: Path) -> None:
    one, two, three = jobs(3)
    two.settings = dataclasses.replace(two.settings, stages=None)  # type: ignore[arg-type]

    async def use(batches: Asked) -> None:
        found = await asyncio.gather(*map(batches.analyze, (one, two, three)), return_exceptions=True)
        assert places(found) == [40, 160]
        assert isinstance(found[1], AttributeError)

    run(Counted(), tmp_path, use)


def test_a_bug_in_one_batch_is_told_to_every_frame_of_it(tmp_path: Path) -> None:
    client = Counted()

    async def use(batches: Asked) -> None:
        client.buffer = None  # type: ignore[method-assign, assignment]
        found = await asyncio.gather(*map(batches.analyze, jobs(3)), return_exceptions=True)
        assert [type(result) for result in found] == [TypeError] * 3

    run(client, tmp_path, use)


def test_a_crowd_is_read_and_tracked_off_the_loop_and_answered_alike(tmp_path: Path) -> None:
    """As many boxes as a head has, all apart: the loop goes on meanwhile."""
    from app.pipeline import postprocess

    rows = np.zeros((300, 6), np.float32)
    rows[:, 0], rows[:, 1] = np.arange(300) % 30 * 20, 90 + np.arange(300) // 30 * 40
    rows[:, 2], rows[:, 3], rows[:, 4] = rows[:, 0] + 15, rows[:, 1] + 30, 0.9
    client = Counted()
    client._models["yolo"] = (client._models["yolo"][0], lambda images: {"detections": np.stack([rows] * len(images))})
    del client._models["vision"]
    threads: set[str] = set()

    async def use(batches: Asked) -> None:
        import threading

        real = postprocess.read

        def noted(*arguments: object) -> None:
            threads.add(threading.current_thread().name)
            real(*arguments)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("app.pipeline.multimodal.read", noted)
            found = await batches.analyze(job(photograph(), pose=False))
        assert isinstance(found, FrameResult)
        assert len(found.objects) == 300
        assert found.stages["track"].status == "ok"

    run(client, tmp_path, use)
    assert all(name.startswith("decode") for name in threads)
    assert threads


def test_frames_of_one_stream_overlap_at_the_server_and_keep_their_order(tmp_path: Path) -> None:
    """Three streams, each with four frames in the pipeline: the square is where it was, and tracked all along."""
    client = Sight(batched=True, together=2)
    frames = 40

    async def stream(batches: Asked, name: str) -> list[FrameResult]:
        memory, found = StreamMemory(), []
        settings = StreamSettings(stages=Stages(ocr=False))
        begun: deque[PendingFrame] = deque()
        for number in range(frames + 4):
            if number < frames:
                jpeg = encode(square(number), quality=95)
                frame = Frame(name, jpeg, time.perf_counter(), 0.0, number, at_s=number / 25)
                begun.append(batches.submit(FrameJob(frame, memory, settings)))
            if number >= 3 and begun:
                one = await begun.popleft().answer
                assert isinstance(one, FrameResult)
                found.append(one)
        return found

    async def use(batches: Asked) -> None:
        for found in await asyncio.gather(*(stream(batches, name) for name in "abc")):
            assert len(found) == frames
            assert {result.objects[0].track_id for result in found[2:]} == {1}
            for number, result in enumerate(found):
                x, y = place(number)
                assert (result.objects[0].box.x1, result.objects[0].box.y1) == pytest.approx((x, y), abs=2.0)
                assert result.stages["motion"].status == ("ok" if number else "skipped")

    run(client, tmp_path, use)
    assert client.most > 1


def test_frames_are_gathered_while_every_core_has_one_to_prepare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = Preprocessor._prepare

    def held(*arguments: Any) -> None:
        gate.wait(10)
        real(*arguments)

    monkeypatch.setattr(Preprocessor, "_prepare", held)
    client = Counted()

    async def use(batches: Asked) -> None:
        batches._pipeline._cores = 1
        asked = [asyncio.ensure_future(batches.analyze(jobs(1)[0]))]
        for _ in range(6):
            await asyncio.sleep(0.01)
            asked.append(asyncio.ensure_future(batches.analyze(jobs(1)[0])))
        await asyncio.sleep(0.01)
        gate.set()
        assert places(await asyncio.gather(*asked)) == [160] * 7

    run(client, tmp_path, use)
    assert client.sizes == [1, 6]


def test_a_live_frame_stands_in_line_with_other_doors_work_and_not_behind_all_of_it(tmp_path: Path) -> None:
    async def use(batches: Asked) -> None:
        pipeline, ended = batches._pipeline, asyncio.Event()

        async def other() -> None:
            while not ended.is_set():
                await pipeline._threads.run(lambda: time.sleep(0.005))

        others = [asyncio.create_task(other()) for _ in range(4 * pipeline._cores)]
        await asyncio.sleep(0.05)
        assert pipeline.busy
        async with asyncio.timeout(5):
            assert places([await batches.analyze(jobs(1)[0])]) == [160]
        ended.set()
        await asyncio.gather(*others)

    run(Counted(), tmp_path, use)


def test_an_answered_frame_is_not_kept_until_the_garbage_collector_comes(tmp_path: Path) -> None:
    async def use(batches: Asked) -> None:
        one = jobs(1)[0]
        gc.disable()
        try:
            await batches.analyze(one)
            await asyncio.sleep(0.05)
            assert one.memory.grey is not None
            kept = weakref.ref(one.memory.grey)
            del one
            assert kept() is None
        finally:
            gc.enable()

    run(Counted(), tmp_path, use)


def test_who_hands_in_several_frames_holds_up_nobody_who_hands_in_one(tmp_path: Path) -> None:
    client = Counted()
    client.latency_s = 0.05

    async def use(batches: Asked) -> None:
        several = [dataclasses.replace(frame_job, memory=(memory := StreamMemory())) for frame_job in jobs(1)]
        several += [dataclasses.replace(job(white(), "several"), memory=memory) for _ in range(3)]
        answered: list[str] = []

        async def ask(one: FrameJob, name: str) -> None:
            await batches.analyze(one)
            answered.append(name)

        asked = [ask(one, f"several {number}") for number, one in enumerate(several)]
        await asyncio.gather(*asked, *(ask(frame_job, "one") for frame_job in jobs(7)))
        assert sorted(answered[:8]) == ["one"] * 7 + ["several 0"]
        assert answered[8:] == ["several 1", "several 2", "several 3"]

    run(client, tmp_path, use)
    assert client.sizes == [8, 3]


@pytest.mark.parametrize("when", ["before it began", "while a thread prepares it"])
def test_a_stream_that_ends_leaves_nobody_waiting_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its frames share batches with others'. The memory of a stream is never used by two threads at a time."""
    now: Counter[int] = Counter()
    most: list[int] = []
    real = Preprocessor._prepare

    def slow(self: Preprocessor, batch: Batch, index: int, piece: Piece) -> None:
        streams = {id(batch.frames[index].job.memory)}
        now.update(streams)
        most.append(max(now.values()))
        time.sleep(0.1)
        real(self, batch, index, piece)
        now.subtract(streams)

    monkeypatch.setattr(Preprocessor, "_prepare", slow)

    async def use(batches: Asked) -> None:
        memory = StreamMemory()
        ends = [dataclasses.replace(frame_job, memory=memory) for frame_job in jobs(2)]
        first = batches.submit(ends[0])
        await asyncio.sleep(0.03 if when == "while a thread prepares it" else 0)
        second, other = batches.submit(ends[1]), batches.submit(jobs(1)[0])
        await asyncio.sleep(0.03 if when == "while a thread prepares it" else 0)
        first.cancel()
        second.cancel()
        async with asyncio.timeout(5):
            assert places([await other.answer]) == [160]

    run(Counted(), tmp_path, use)
    assert max(most) == 1


def test_a_frame_tried_again_keeps_its_track_and_goes_without_the_last_picture(tmp_path: Path) -> None:
    one, two = (job(photograph(), name) for name in "ab")
    settings = StreamSettings(stages=Stages(ocr=False))

    async def use(batches: Asked) -> None:
        for _ in range(3):
            (before,) = await asyncio.gather(batches.analyze(dataclasses.replace(one, settings=settings)))
        assert isinstance(before, FrameResult)
        wrong = dataclasses.replace(settings, stages=None)  # type: ignore[arg-type]
        again, broken = await asyncio.gather(
            batches.analyze(dataclasses.replace(one, settings=settings)),
            batches.analyze(dataclasses.replace(two, settings=wrong)),
            return_exceptions=True,
        )
        assert isinstance(broken, AttributeError)
        assert isinstance(again, FrameResult)
        assert again.objects[0].track_id == before.objects[0].track_id == 1
        assert again.stages["motion"].status == "skipped"
        after = await batches.analyze(dataclasses.replace(one, settings=settings))
        assert isinstance(after, FrameResult)
        assert (after.stages["motion"].status, after.objects[0].track_id) == ("ok", 1)

    run(Counted(), tmp_path, use)
