"""DropQueue: never waits, never grows, and hands back what gave way."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.live.receiver import DropQueue

pytestmark = pytest.mark.anyio
T = TypeVar("T")


async def get(queue: DropQueue[T]) -> T | None:
    """The next item; None once there will be none."""
    while (item := queue.take()) is None and not queue.closed:
        await queue.changed()
    return item if item is not None else queue.take()


async def test_the_newest_replaces_the_oldest_which_is_handed_back() -> None:
    queue: DropQueue[int] = DropQueue(2)
    assert [queue.put(number) for number in range(5)] == [None, None, 0, 1, 2]
    assert [await get(queue), await get(queue)] == [3, 4]


async def test_a_consumer_waits_for_the_first_item() -> None:
    queue: DropQueue[str] = DropQueue()
    waiting = asyncio.create_task(get(queue))
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.put("here")
    assert await waiting == "here"


async def test_after_close_nothing_gets_in_and_what_is_in_gets_out() -> None:
    queue: DropQueue[int] = DropQueue(3)
    queue.put(1)
    queue.close()
    assert queue.put(2) == 2
    assert [await get(queue), await get(queue), await get(queue)] == [1, None, None]


async def test_close_wakes_a_consumer_and_a_producer() -> None:
    queue: DropQueue[int] = DropQueue()
    consumer = asyncio.create_task(get(queue))
    await asyncio.sleep(0)
    queue.close()
    assert await consumer is None
    full: DropQueue[int] = DropQueue()
    full.put(1)
    producer = asyncio.create_task(full.space())
    await asyncio.sleep(0)
    assert not producer.done()
    full.close()
    await producer


async def test_room_waits_until_an_item_was_taken() -> None:
    queue: DropQueue[int] = DropQueue(1)
    await queue.space()
    queue.put(1)
    producer = asyncio.create_task(queue.space())
    await asyncio.sleep(0)
    assert not producer.done()
    await get(queue)
    await producer


async def test_a_cancelled_consumer_takes_nothing_with_it() -> None:
    queue: DropQueue[int] = DropQueue()
    consumer = asyncio.create_task(get(queue))
    await asyncio.sleep(0)
    queue.put(1)
    consumer.cancel()
    await asyncio.gather(consumer, return_exceptions=True)
    assert len(queue) == 1
    assert await get(queue) == 1


@pytest.mark.parametrize("size", [0, -1])
def test_a_queue_without_room_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"maxsize is {size}"):
        DropQueue(size)


@given(st.integers(1, 5), st.lists(st.sampled_from(["put", "get", "drain", "close"]), max_size=60))
@settings(max_examples=200)
def test_whatever_happens_nothing_is_lost_from_sight(size: int, steps: list[str]) -> None:
    asyncio.run(walk(size, steps))


async def walk(size: int, steps: list[str]) -> None:
    """put = got + dropped + left, in order, and never more than `size` inside."""
    queue: DropQueue[int] = DropQueue(size)
    sent, seen, dropped = 0, [], []
    for step in steps:
        if step == "put":
            gone = queue.put(sent)
            sent += 1
            dropped += [] if gone is None else [gone]
        elif step == "get" and len(queue):
            seen.append(await get(queue))
        elif step == "drain":
            seen += queue.drain()
        elif step == "close":
            queue.close()
        assert len(queue) <= size
    assert seen == sorted(seen)
    assert dropped == sorted(dropped)
    assert sorted([*seen, *dropped, *queue.drain()]) == [*range(sent)]


async def test_a_nudge_wakes_the_consumer_though_nothing_came() -> None:
    queue: DropQueue[int] = DropQueue()
    waiting = asyncio.create_task(queue.changed())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.wake()
    await waiting
    assert queue.take() is None
