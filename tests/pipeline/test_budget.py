"""A frame's budget of CPU time: what passes it is given up, and nobody else waits, loses a frame or is written over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from app.errors import FrameError, TooExpensive
from app.inference.shared_memory import Pool, Region
from app.pipeline import preprocess as preparing
from app.pipeline.decode import inspect
from app.pipeline.models import ModelSet
from app.pipeline.multimodal import Pipeline
from app.pipeline.preprocess import HEAVY, MOST_GIVEN_UP, Piece, Preprocessor, Threads, heavy
from app.pipeline.types import Batch, Frame, FrameJob, FrameState, StreamMemory
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from app.settings import PipelineSettings, Settings
from tests.support.jpegs import encode, photo, scans
from tests.support.seeing import Sight, square

SETTINGS = StreamSettings(stages=Stages(ocr=False))
BUDGET_S = 0.1


class Hung:
    """Work that burns CPU time until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.kept: list[bool] = []
        self.given_up = self.ended = self.spoilt = 0

    def piece(self) -> Piece:
        def work(piece: Piece) -> None:
            piece.spoil = lambda: setattr(self, "spoilt", self.spoilt + 1)
            while not self.go.is_set():
                sum(range(1000))
            self.kept.append(piece.keep())

        def given_up() -> None:
            self.given_up += 1

        def ended() -> None:
            self.ended += 1

        return Piece(work, given_up, ended)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def threads(count: int = 1) -> AsyncIterator[tuple[Threads, Hung]]:
    pool, hung = Threads(count, "test", BUDGET_S), Hung()
    try:
        yield pool, hung
    finally:
        hung.go.set()
        await asyncio.to_thread(pool.close)


def piece_of(work: Callable[[], Any]) -> Piece:
    return Piece(lambda _: work(), lambda: None, lambda: None)


def test_a3_a_thread_over_its_budget_is_given_up_and_another_goes_on_with_the_rest() -> None:
    async def run() -> None:
        async with threads() as (pool, hung):
            done: list[int] = []
            await asyncio.wait_for(
                pool.run([hung.piece(), *(piece_of(lambda number=n: done.append(number)) for n in range(3))]), 20
            )
            assert done == [0, 1, 2]
            assert (hung.given_up, hung.spoilt, hung.ended, hung.kept, pool.given_up, pool.busy) == (1, 1, 0, [], 1, 0)
            await asyncio.wait_for(pool.run(lambda: done.append(9)), 20)
            hung.go.set()
            await until(lambda: pool.given_up == 0)
            await until(lambda: hung.ended == 1)
            assert hung.kept == [False]
            assert len(pool._workers) == 1

    asyncio.run(run())


def test_a3_waiting_costs_nothing_of_the_budget_nor_does_what_is_kept() -> None:
    """CPU time, not the clock: a machine that is slow, or busy with others, refuses nobody."""

    async def run() -> None:
        async with threads() as (pool, _):
            said: list[bool] = []

            def sleeps(piece: Piece) -> None:
                time.sleep(4 * BUDGET_S)
                said.append(piece.keep())
                until_s = time.thread_time() + 2 * BUDGET_S
                while time.thread_time() < until_s:
                    sum(range(100))

            failed: list[int] = []
            await pool.run([Piece(sleeps, lambda: failed.append(1), lambda: failed.append(2))])
            assert (said, failed, pool.given_up) == ([True], [], 0)

    asyncio.run(run())


def test_a3_threads_that_were_given_up_are_bounded_and_come_back() -> None:
    async def run() -> None:
        async with threads(2) as (pool, hung):
            for _ in range(MOST_GIVEN_UP + 2):
                await asyncio.wait_for(pool.run([hung.piece()]), 60)
            assert pool.given_up == hung.given_up == MOST_GIVEN_UP + 2
            assert len(pool._workers) == MOST_GIVEN_UP + 2, "all hang, and no more are made"
            later = pool.run([piece_of(lambda: None)])
            await asyncio.sleep(0.1)
            assert not later.done()
            hung.go.set()
            await asyncio.wait_for(later, 20)
            await until(lambda: len(pool._workers) == 2)
            await until(lambda: hung.ended == MOST_GIVEN_UP + 2)

    asyncio.run(run())


def test_a3_closing_does_not_wait_for_what_hangs() -> None:
    pool, hung = Threads(2, "test", 600.0), Hung()

    async def begin() -> None:
        pool.run([hung.piece()])
        await asyncio.sleep(0.05)

    asyncio.run(begin())
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 10
    assert hung.spoilt == 1
    hung.go.set()


class Slots(Sight):
    """Gives out one slot of shared memory."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool((4, 640, 640, 3), np.dtype(np.uint8), 0)
        region = Region(self.pool.slot_bytes, 1)
        region.unlink()
        self.pool.add(region)

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.pool.take(shape[0])


@asynccontextmanager
async def pipeline(client: Sight, folder: Path, **settings: Any) -> AsyncIterator[Pipeline]:
    made = Pipeline(client, Settings(ocr="off", state_dir=folder, **settings))
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)


def job(jpeg: bytes, memory: StreamMemory | None = None, **more: Any) -> FrameJob:
    return FrameJob(Frame("a", jpeg, time.perf_counter(), 0.0, 1), memory or StreamMemory(), SETTINGS, **more)


def ordinary() -> bytes:
    jpeg: bytes = simplejpeg.encode_jpeg(square(3, 640, 480))
    return jpeg


def test_a3_a_frame_given_up_takes_no_other_with_it_and_its_memory_is_lent_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, go, ended = Slots(), threading.Event(), threading.Event()
    real = preparing.decode_into
    canvases: list[NDArray[np.uint8]] = []

    def decode(jpeg: bytes, info: Any, box: Any, canvas: NDArray[np.uint8], **options: Any) -> None:
        if b"hang" in jpeg[:64]:
            canvases.append(canvas)
            while not go.is_set():
                sum(range(1000))
            canvas[:] = 1
            ended.set()
        real(jpeg, info, box, canvas, **options)

    monkeypatch.setattr(preparing, "decode_into", decode)
    good = ordinary()
    hostile = good[:2] + b"\xff\xfe\0\x06hang" + good[2:]

    async def run() -> None:
        async with pipeline(client, tmp_path, decode_budget_ms=BUDGET_S * 1000) as made:
            memory, other = StreamMemory(), StreamMemory()
            await made.analyze([job(good, memory)])
            grey = memory.grey
            assert grey is not None
            assert len(client.pool.free) == 1
            bad, fine = await asyncio.wait_for(made.analyze([job(hostile, memory), job(good, other)]), 30)
            assert isinstance(bad, TooExpensive)
            assert bad.code == "too_expensive"
            assert "DECODE_BUDGET_MS" in str(bad)
            assert isinstance(fine, FrameResult)
            assert len(fine.objects) == 1
            assert memory.grey is grey
            assert not client.pool.free, "the thread that was given up may still write into it"
            (again,) = await asyncio.wait_for(made.analyze([job(good, memory)]), 30)
            assert isinstance(again, FrameResult)
            assert again.stages["motion"].status == "ok"
            grey = memory.grey
            go.set()
            await until(lambda: ended.is_set() and len(client.pool.free) == 1)
            assert memory.grey is grey, "what was given up changes nothing any more"

    try:
        asyncio.run(run())
    finally:
        go.set()


def test_a3_what_is_over_its_budget_is_refused_also_where_it_is_done_by_then(tmp_path: Path) -> None:
    async def run() -> list[FrameResult | FrameError]:
        async with pipeline(Sight(), tmp_path, decode_budget_ms=1) as made:
            pictures = [encode(photo(3000, 2000), progressive=progressive) for progressive in (False, True)]
            return await made.analyze([job(jpeg) for jpeg in pictures])

    assert [answer.code for answer in asyncio.run(run()) if isinstance(answer, FrameError)] == ["too_expensive"] * 2


def test_a3_any_ordinary_frame_up_to_max_pixels_is_within_the_budget(tmp_path: Path) -> None:
    jpegs = [encode(photo(4096, 4096), quality=60, progressive=progressive) for progressive in (False, True)]

    async def run() -> list[FrameResult | FrameError]:
        async with pipeline(Sight(), tmp_path) as made:
            return await made.analyze([job(jpeg) for jpeg in jpegs])

    assert all(isinstance(answer, FrameResult) for answer in asyncio.run(run()))


def test_a3_costly_frames_have_threads_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[bool, set[str]] = {True: set(), False: set()}
    real = preparing.inspect

    def seen(jpeg: bytes, **limits: int) -> Any:
        info = real(jpeg, **limits)
        names[info.work > HEAVY].add(threading.current_thread().name.rpartition("-")[0])
        return info

    monkeypatch.setattr(preparing, "inspect", seen)
    costly, light = job(encode(photo(4000, 3000), progressive=True)), job(ordinary())
    assert (heavy(costly), heavy(light), heavy(job(encode(photo(3840, 2160))))) == (True, False, False)
    assert (heavy(job(b"\x89PNG\r\n\x1a\n")), heavy(job(b"\x89PNG\r\n\x1a\n", photo=True))) == (False, True)

    async def run() -> list[FrameResult | FrameError]:
        async with pipeline(Sight(), tmp_path) as made:
            return await made.analyze([costly, light])

    assert all(isinstance(answer, FrameResult) for answer in asyncio.run(run()))
    assert names == {True: {"decode-heavy"}, False: {"decode"}}


def test_a3_a_jpeg_over_its_budget_is_brought_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt: list[int] = []
    real = preparing._spoil
    monkeypatch.setattr(preparing, "_spoil", lambda coded: (spoilt.append(len(coded)), real(coded)))
    preprocessor = Preprocessor(PipelineSettings(decode_budget_ms=50), Settings().live)
    jpeg = scans(31, marker=0xC2, side=4096)

    async def prepared(image: bytes) -> Batch:
        batch = Batch([FrameState(job(image))], ModelSet(), up=False)
        pool = Threads(1, "budget", preprocessor.budget_s)
        await pool.run([preprocessor.piece(batch, 0)])
        await asyncio.to_thread(pool.close)
        return batch

    for image in (jpeg, ordinary()):
        assert isinstance(asyncio.run(prepared(image)).frames[0].error, TooExpensive) == (image is jpeg)
        assert spoilt[:1] == [len(jpeg)]
        assert set(spoilt) == {len(jpeg)}


def test_a3_a_jpeg_that_is_given_up_is_brought_to_its_end() -> None:
    """The codec reads what was written over its data: most of its scans are left."""
    jpeg = scans(31, marker=0xC2, side=4096)
    info = inspect(jpeg, max_bytes=1 << 21, max_pixels=1 << 24)
    whole, spoilt = _cpu_of(jpeg, info.work, spoil=False), _cpu_of(jpeg, info.work, spoil=True)
    assert spoilt < 0.8 * whole


def _cpu_of(jpeg: bytes, work: int, *, spoil: bool) -> float:
    coded = bytearray(jpeg)
    assert work > HEAVY
    took: list[float] = []

    def decode() -> None:
        began = time.thread_time()
        simplejpeg.decode_jpeg(coded, "GRAY", strict=False)
        took.append(time.thread_time() - began)

    thread = threading.Thread(target=decode)
    thread.start()
    time.sleep(0.03)
    if spoil:
        preparing._spoil(coded)
    thread.join()
    return took[0]
