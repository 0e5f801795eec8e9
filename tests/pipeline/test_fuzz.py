"""Mutants of JPEGs, made of their own parts: none crashes, none costs more than a frame may, and the books are exact.

A few hundred in every run. All of them, some minutes:

    SIGHTLINE_FUZZ=6000 .venv/bin/pytest tests/pipeline/test_fuzz.py

SIGHTLINE_FUZZ_SEED chooses others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from app.errors import FrameError
from app.pipeline.decode import inspect
from app.pipeline.multimodal import Pipeline
from app.pipeline.types import Frame, FrameJob, StreamMemory
from app.protocol.result import FrameResult
from app.protocol.stream import Stages, StreamSettings
from app.settings import Settings
from tests.support.jpegs import DHT, DQT, EOI, SOI, encode, photo, scans, segment, sof, sos
from tests.support.seeing import Sight

COUNT = int(os.environ.get("SIGHTLINE_FUZZ", "400"))
SEED = int(os.environ.get("SIGHTLINE_FUZZ_SEED", "0"))
MAX_PIXELS = 2048 * 2048
BUDGET_MS = 1500.0
"""Of a frame of `MAX_PIXELS`; the costliest that may pass takes a third of it on a slow machine."""
SETTINGS = StreamSettings(stages=Stages(ocr=False))
Parts = list[bytes]


@cache
def seeds() -> tuple[bytes, ...]:
    small, large = photo(160, 120), photo(640, 480)
    grey = encode(small, "L")
    return (
        encode(large),
        encode(small, subsampling=0, quality=95),
        encode(small, subsampling=1, restart_marker_rows=1),
        encode(large, progressive=True),
        encode(small, progressive=True, subsampling=0),
        grey,
        encode(small, "CMYK"),
        encode(small, "L", progressive=True),
        scans(3, side=256),
        scans(9, marker=0xC2, side=256),
        SOI
        + DQT
        + sof(0xC9, 200, 100)
        + sos([1, 2, 3])
        + random.Random(1).randbytes(900).replace(b"\xff", b"\0")
        + EOI,
        SOI + DQT + sof(0xCA, 200, 100) + sos([1, 2, 3], 0, 0) + bytes(range(200)) + EOI,
    )


def parts(jpeg: bytes) -> Parts:
    """A JPEG cut before each marker outside of its payloads, and where coded data begins."""
    found, at = [jpeg[:2]], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        if jpeg[at + 1] == 0xD9:
            break
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        found.append(jpeg[at:end])
        if jpeg[at + 1] == 0xDA:
            at = end
            while at + 1 < len(jpeg) and not (jpeg[at] == 0xFF and jpeg[at + 1] not in (0, *range(0xD0, 0xD8))):
                at += 1
            found.append(jpeg[end:at])
        else:
            at = end
    return [*found, jpeg[at:]]


def _resized(p: Parts, dice: random.Random) -> Parts:
    sides = (0, 1, 7, 8, 17, 500, 2048, 4096, 16_000, 65_500, 65_535)
    return _header(p, lambda head: head[:5] + _two(dice.choice(sides)) + _two(dice.choice(sides)) + head[9:])


def _sampled(p: Parts, dice: random.Random) -> Parts:
    def change(head: bytes) -> bytes:
        new = bytearray(head)
        for at in range(11, len(new), 3):
            if dice.random() < 0.6:
                new[at] = dice.choice((0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x44, 0x33, 0x00, 0x5F))
            if dice.random() < 0.1:
                new[at - 1] = dice.choice((1, 2, 3, 0, 255))
        return bytes(new)

    return _header(p, change)


def _other_process(p: Parts, dice: random.Random) -> Parts:
    return _header(p, lambda head: head[:1] + bytes([dice.randrange(0xC0, 0xD0)]) + head[2:])


def _other_precision(p: Parts, dice: random.Random) -> Parts:
    return _header(p, lambda head: head[:4] + bytes([dice.choice((1, 2, 12, 16, 0))]) + head[5:])


def _header(p: Parts, change: Callable[[bytes], bytes]) -> Parts:
    return [
        change(part) if len(part) > 10 and part[0] == 0xFF and part[1] in (*range(0xC0, 0xC4), 0xC9, 0xCA) else part
        for part in p
    ]


def _two(value: int) -> bytes:
    return value.to_bytes(2)


def _repeated(p: Parts, dice: random.Random) -> Parts:
    at = dice.randrange(1, len(p))
    return p[:at] + p[at : at + dice.choice((1, 2))] * dice.choice((2, 5, 30, 300)) + p[at:]


def _dropped(p: Parts, dice: random.Random) -> Parts:
    at = dice.randrange(1, len(p))
    return p[:at] + p[at + 1 :]


def _swapped(p: Parts, dice: random.Random) -> Parts:
    a, b = dice.randrange(1, len(p)), dice.randrange(1, len(p))
    new = [*p]
    new[a], new[b] = new[b], new[a]
    return new


def _put_in(p: Parts, dice: random.Random) -> Parts:
    things = (
        b"\xff" * dice.choice((1, 9, 5000)),
        b"\xff\x01" * dice.choice((1, 3000)),
        bytes([0xFF, dice.randrange(0xD0, 0xD8)]) * dice.choice((1, 3000)),
        bytes([0xFF, dice.randrange(0x02, 0xC0)]),
        segment(0xDD, _two(dice.choice((0, 1, 2, 65_535)))),
        segment(0xDC, _two(dice.choice((0, 1, 4096)))) * dice.choice((1, 900)),
        segment(0xE1, b"Exif\0\0" + dice.randbytes(60)),
        segment(0xFE, sos([1]) * 40),
        bytes([0xFF, dice.choice((0xFE, 0xE0, 0xE5, 0xCC)), 0, dice.choice((0, 1, 2, 3))]),
        segment(0xCC, bytes([dice.randrange(4) << 4, dice.randrange(256)])),
        segment(0xC4, dice.randbytes(30)),
        DHT,
        DQT,
        sos([dice.choice((1, 2, 3))], 0, dice.choice((0, 63))) + b"?\0",
        sos([1, 2, 3], dice.randrange(64), dice.randrange(64), dice.randrange(256)) + dice.randbytes(30),
        EOI,
        SOI,
        b"\0" * 100,
    )
    at = dice.randrange(1, len(p))
    return [*p[:at], dice.choice(things), *p[at:]]


def _restarts_changed(p: Parts, dice: random.Random) -> Parts:
    """A restart interval where there was none, and restart markers of any number within coded data."""
    new = [p[0], segment(0xDD, _two(dice.choice((1, 2, 7, 100)))), *p[1:]]
    longest = max(range(len(new)), key=lambda at: len(new[at]))
    data = bytearray(new[longest])
    for _ in range(dice.choice((1, 20, 400))):
        at = dice.randrange(len(data) + 1)
        data[at:at] = bytes([0xFF, dice.randrange(0xD0, 0xD8)])
    new[longest] = bytes(data)
    return new


def _damaged(p: Parts, dice: random.Random) -> Parts:
    at = dice.randrange(1, len(p))
    data = bytearray(p[at])
    for _ in range(dice.choice((1, 3, 30))):
        if data:
            data[dice.randrange(len(data))] = dice.choice((0, 0xFF, 0x7F, dice.randrange(256)))
    return [*p[:at], bytes(data), *p[at + 1 :]]


def _cut(p: Parts, dice: random.Random) -> Parts:
    whole = b"".join(p)
    return [whole[: dice.randrange(2, len(whole))], dice.choice((b"", EOI))]


def _coded_anew(p: Parts, dice: random.Random) -> Parts:
    """Coded data of nothing, or of noise."""
    new = dice.choice((b"", b"\0", b"?\0", bytes(2000), dice.randbytes(3000).replace(b"\xff", b"\xff\0")))
    return [new if at > 1 and p[at - 1][:2] == b"\xff\xda" else one for at, one in enumerate(p)]


MUTATIONS: tuple[Callable[[Parts, random.Random], Parts], ...] = (
    _resized, _sampled, _other_process, _other_precision, _repeated, _dropped, _swapped, _put_in, _put_in,
    _restarts_changed, _damaged, _damaged, _cut, _coded_anew,
)  # fmt: skip


def mutant(number: int) -> bytes:
    dice = random.Random(f"{SEED}/{number}")
    found = parts(dice.choice(seeds()))
    for _ in range(dice.choice((1, 1, 2, 3, 5))):
        found = dice.choice(MUTATIONS)(found, dice)
        if len(found) < 3:
            break
    return b"".join(found)[: 1 << 21]


def test_the_parts_of_a_jpeg_are_all_of_it() -> None:
    for jpeg in seeds():
        assert b"".join(parts(jpeg)) == jpeg
        assert inspect(jpeg, max_bytes=1 << 21, max_pixels=MAX_PIXELS).scans == sum(
            part[:2] == b"\xff\xda" for part in parts(jpeg)
        )


def test_a3_mutants_crash_nothing_stall_nothing_and_the_books_are_exact(tmp_path: Path) -> None:
    became: Counter[str] = Counter()
    worst: list[tuple[float, int]] = []

    async def run() -> None:
        client = Sight()
        every = Settings(ocr="off", state_dir=tmp_path, decode_budget_ms=BUDGET_MS, max_pixels=MAX_PIXELS)
        pipeline = Pipeline(client, every)
        good, memory = seeds()[0], StreamMemory()
        try:
            for first in range(0, COUNT, 4):
                numbers = range(first, min(COUNT, first + 4))
                jobs = [_job(mutant(number), StreamMemory()) for number in numbers]
                began = time.process_time()
                # With a camera's frame among them, which must come through whatever the others are.
                answers = await asyncio.wait_for(pipeline.analyze([*jobs, _job(good, memory)]), 120)
                worst.append((time.process_time() - began, first))
                for answer in answers[:-1]:
                    became[answer.code if isinstance(answer, FrameError) else "ok"] += 1
                assert isinstance(answers[-1], FrameResult), (first, answers[-1])
            assert pipeline._threads.given_up == pipeline._slow.given_up == 0
        finally:
            await asyncio.to_thread(pipeline.close)

    asyncio.run(run())
    assert sum(became.values()) == COUNT
    assert set(became) <= {"ok", "undecodable", "too_large", "too_expensive"}
    assert became["ok"] > COUNT // 20, became
    assert became["undecodable"] > COUNT // 5, became
    took_s, first = max(worst)
    assert took_s < 4 * BUDGET_MS / 1000, f"mutants {first} to {first + 3} took {took_s:.1f} s of CPU time"


def _job(jpeg: bytes, memory: StreamMemory) -> FrameJob:
    return FrameJob(Frame("a", jpeg, time.perf_counter(), 0.0, 1), memory, SETTINGS)


@pytest.mark.parametrize("number", range(min(COUNT, 40)))
def test_a1_looking_a_mutant_over_raises_nothing_but_frame_errors(number: int) -> None:
    for at in range(number, COUNT, 40):
        jpeg = mutant(at)
        began = time.thread_time()
        with contextlib.suppress(FrameError):
            inspect(jpeg, max_bytes=1 << 21, max_pixels=MAX_PIXELS)
        assert time.thread_time() - began < 0.3, at
