"""Clients that record each result and the time at which it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.client import connect
from app.protocol.messages import Result
from app.protocol.result import Box


def watch(url: str, jpegs: list[bytes], **wishes: Any) -> list[Result]:
    """Sends these frames; returns their results. Each frame must be analysed."""
    return asyncio.run(watching(url, jpegs, **wishes))


async def watching(url: str, jpegs: list[bytes], **wishes: Any) -> list[Result]:
    async with connect(url, mode="lossless", **wishes) as session:
        results = [result async for result in session.stream(jpegs)]
    assert [result.seq for result in results] == list(range(1, len(jpegs) + 1))
    return results


def watch_film(
    url: str, film: Callable[[list[Result]], Iterable[bytes]], *, every_s: float = 0.1, at_most: int = 400
) -> list[Result]:
    """Returns the results of a video made on the fly: `film` gets the results so far and yields the next frames."""
    seen: list[Result] = []

    async def paced() -> AsyncIterator[bytes]:
        for jpeg in islice(film(seen), at_most):
            yield jpeg
            await asyncio.sleep(every_s)

    async def run() -> None:
        async with connect(url, mode="lossless") as session:
            async for result in session.stream(paced()):
                seen.append(result)  # noqa: PERF401 - `film` looks at it meanwhile

    asyncio.run(run())
    return seen


def corners(box: Box) -> NDArray[np.float64]:
    """x1, y1, x2, y2."""
    return np.array([box.x1, box.y1, box.x2, box.y2])


def iou(box: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared))
