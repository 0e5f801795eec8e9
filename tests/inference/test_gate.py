"""The inference concurrency limit: never exceeded, fair between streams, and nothing is lost by a cancelled wait."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.triton import FairSemaphore

pytestmark = pytest.mark.anyio
STREAMS = "abcd"


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_no_more_are_let_through_than_its_size() -> None:
    semaphore = FairSemaphore(2)
    inside, most = 0, 0

    async def pass_through(stream: str) -> None:
        nonlocal inside, most
        await semaphore.acquire(stream)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        semaphore.release()

    await asyncio.gather(*(pass_through(stream) for stream in STREAMS * 5))
    assert (most, inside, semaphore.waiting) == (2, 0, 0)


async def test_a_stream_with_many_waiting_does_not_hold_up_one_with_a_single() -> None:
    order = await served(["greedy"] * 5 + ["modest"])
    assert order == ["greedy", "modest", "greedy", "greedy", "greedy", "greedy"]


async def test_within_a_stream_the_first_is_first() -> None:
    semaphore = FairSemaphore(1)
    await semaphore.acquire("a")
    done: list[int] = []

    async def one(number: int) -> None:
        await semaphore.acquire("a")
        done.append(number)
        semaphore.release()

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await settled()
    semaphore.release()
    await asyncio.gather(*tasks)
    assert done == [0, 1, 2, 3, 4]


async def test_a_turn_given_up_costs_its_stream_nothing() -> None:
    semaphore = FairSemaphore(1)
    await semaphore.acquire("first")
    order: list[str] = []
    quitters = [asyncio.create_task(semaphore.acquire("a")) for _ in range(3)]
    await settled()
    tasks = [asyncio.create_task(log_turn(semaphore, stream, order)) for stream in ("a", "b", "b", "b", "b")]
    await settled()
    for quitter in quitters:
        quitter.cancel()
    await settled()
    assert semaphore.waiting == 5
    semaphore.release()
    await asyncio.gather(*tasks)
    assert order[0] == "a"


async def test_a_place_that_comes_together_with_the_cancellation_is_passed_on() -> None:
    semaphore = FairSemaphore(1)
    await semaphore.acquire("a")
    quitter = asyncio.create_task(semaphore.acquire("b"))
    await settled()
    semaphore.release()  # the place is now the quitter's
    quitter.cancel()
    await settled()
    assert quitter.cancelled()
    async with asyncio.timeout(1):
        await semaphore.acquire("c")


async def log_turn(semaphore: FairSemaphore, stream: str, order: list[str]) -> None:
    await semaphore.acquire(stream)
    order.append(stream)
    await asyncio.sleep(0)
    semaphore.release()


async def served(streams: list[str]) -> list[str]:
    """The order in which those who wait are served, one at a time."""
    semaphore = FairSemaphore(1)
    await semaphore.acquire("before all")
    order: list[str] = []
    tasks = [asyncio.create_task(log_turn(semaphore, stream, order)) for stream in streams]
    await settled()
    semaphore.release()
    await asyncio.gather(*tasks)
    return order


@given(st.lists(st.sampled_from(STREAMS), max_size=40))
@settings(max_examples=100)
def test_none_waits_more_than_a_round(streams: list[str]) -> None:
    """Between two turns of a stream that still waits, every other is served once at most."""
    order = asyncio.run(served(streams))
    assert Counter(order) == Counter(streams)
    left = Counter(streams)
    for stream in set(streams):
        at = [index for index, one in enumerate(order) if one == stream]
        for before, after in zip([-1, *at], at, strict=False):
            assert max(Counter(order[before + 1 : after]).values(), default=0) <= 1, (stream, order)
    assert not left - Counter(order)


@given(
    size=st.integers(1, 3),
    steps=st.lists(st.tuples(st.sampled_from(["come", "go", "cancel", "turn"]), st.integers(0, 50)), max_size=80),
)
@settings(max_examples=150)
def test_whoever_comes_goes_or_gives_up_no_place_is_lost(size: int, steps: list[tuple[str, int]]) -> None:
    asyncio.run(walk(size, steps))


async def walk(size: int, steps: list[tuple[str, int]]) -> None:
    semaphore = FairSemaphore(size)
    tasks: list[asyncio.Task[None]] = []

    def inside() -> list[asyncio.Task[None]]:
        return [task for task in tasks if task.done() and not task.cancelled()]

    for action, number in steps:
        if action == "come":
            tasks.append(asyncio.create_task(semaphore.acquire(STREAMS[number % 4])))
        elif action == "turn":
            await asyncio.sleep(0)
        elif action == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        elif action == "go" and inside():
            tasks.remove(inside()[number % len(inside())])
            semaphore.release()
        assert len(inside()) <= size
    await settled()
    while held := inside():
        assert len(held) == min(size, len(held) + semaphore.waiting)  # a place stands empty only when nobody waits
        tasks.remove(held[0])
        semaphore.release()
        await settled()
    assert semaphore.waiting == 0
    async with asyncio.timeout(1):
        for _ in range(size):
            await semaphore.acquire("after all")
