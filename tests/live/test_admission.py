"""Slots, the waiting room, and limits a token and an address."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import SLOW, Serve
from tests.support.live import PATIENCE_S, Live, Message, opened, plain_socket, ready, reset, settle, upgrade, ws_frame
from tests.support.service import Service, assert_adds_up

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def single(serve: Serve) -> Service:
    """One slot, three places to wait, and an address limit that nobody here meets but on purpose."""
    return serve(MAX_SESSIONS="1", MAX_WAITING="3", MAX_SESSIONS_PER_ADDRESS="5", PING_INTERVAL_S="60")


@pytest.fixture(scope="module")
def shared(serve: Serve) -> Service:
    return serve(AUTH_TOKENS="red,blue", MAX_SESSIONS_PER_TOKEN="2", MAX_SESSIONS_PER_ADDRESS="3")


async def entered(stack: AsyncExitStack, service: Service, address: str = "", **wishes: object) -> tuple[Live, Message]:
    """A socket that said `init`, with the first answer."""
    headers = {"X-Forwarded-For": address} if address else None
    live = await stack.enter_async_context(opened(service, headers))
    await live.say("init", **wishes)
    return live, await live.receive()


async def test_the_second_waits_and_comes_in_when_the_first_leaves(single: Service, jpeg: bytes) -> None:
    async with AsyncExitStack() as stack:
        first, welcome = await entered(stack, single)
        assert welcome["type"] == "ready"
        second, queued = await entered(stack, single)
        assert (queued["type"], queued["position"], queued["ahead"]) == ("queued", 1, 0)
        assert single.metrics()["sightline_sessions_waiting"] == 1
        await first.stop()
        assert (await second.receive())["type"] == "ready"
        await second.frame(jpeg)
        assert (await second.answer())["type"] == "result"
        assert single.metrics()["sightline_sessions_waiting"] == 0
        await second.stop()
    settle(single)


async def test_the_line_moves_up_in_order_and_is_told_so(single: Service) -> None:
    async with AsyncExitStack() as stack:
        first, _ = await entered(stack, single)
        waiting = [await entered(stack, single) for _ in range(3)]
        assert [queued["position"] for _, queued in waiting] == [1, 2, 3]
        await first.stop()
        assert (await waiting[0][0].receive())["type"] == "ready"
        moved = [await live.receive() for live, _ in waiting[1:]]
        assert [(message["type"], message["position"], message["ahead"]) for message in moved] == [
            ("queued", 1, 0),
            ("queued", 2, 1),
        ]
        assert all(message["eta_s"] is not None for message in moved)  # known from the one that left
        for live, _ in waiting:
            await live.stop()
    settle(single)


@pytest.mark.parametrize("how", ["close", "stop", "reset"])
async def test_one_who_leaves_the_line_frees_the_place(single: Service, how: str) -> None:
    async with AsyncExitStack() as stack:
        first, _ = await entered(stack, single)
        if how == "reset":
            leaving = plain_socket(single)
            upgrade(leaving)
            leaving.sendall(ws_frame(b'{"type":"init"}', 1))
            settle(single, "sightline_sessions_waiting", 1)
        else:
            gone, _ = await entered(stack, single)
        last, queued = await entered(stack, single)
        assert queued["position"] == 2
        if how == "reset":
            reset(leaving)
        elif how == "stop":
            bye = await gone.stop()
            assert bye["report"]["duration_s"] < 5  # SEND_TIMEOUT_S: nothing of it is in flight
        else:
            await gone.connection.close()
        assert (await last.receive())["position"] == 1
        await first.stop()
        assert (await last.receive())["type"] == "ready"
        await last.stop()
    settle(single)


async def test_frames_sent_while_waiting_keep_the_newest(single: Service, jpeg: bytes) -> None:
    async with AsyncExitStack() as stack:
        first, _ = await entered(stack, single)
        second, _ = await entered(stack, single)
        for seq in range(1, 6):
            await second.frame(jpeg, seq)
        await second.say("update", confidence=0.85)
        await asyncio.sleep(0.1)
        await first.stop()
        welcome = await second.until("ready")
        assert welcome["settings"]["confidence"] == 0.85
        result = await second.answer()
        assert (result["seq"], result["dropped"]["total"], len(result["objects"])) == (5, 4, 1)
        await second.stop()


async def test_when_the_waiting_room_is_full_the_next_is_sent_away(single: Service) -> None:
    async with AsyncExitStack() as stack:
        lives = [(await entered(stack, single))[0] for _ in range(4)]
        late = await stack.enter_async_context(opened(single))
        await late.say("init")
        bye = await late.bye()
        assert (bye["reason"], late.connection.close_code) == ("rejected", 1013)
        assert bye["retry_after_s"] > 0
        assert "waiting room is full" in bye["message"]
        for live in reversed(lives):
            await live.stop()
    settle(single)
    assert single.metrics()['sightline_sessions_total{outcome="rejected"}'] == 1


async def test_an_address_has_its_limit_and_others_are_let_in(shared: Service) -> None:
    async with AsyncExitStack() as stack:
        lives = [await entered(stack, shared, "198.51.100.7", token=token) for token in ("red", "red", "blue")]
        assert [answer["type"] for _, answer in lives] == ["ready"] * 3
        _, bye = await entered(stack, shared, "198.51.100.7", token="blue")
        assert (bye["type"], bye["reason"]) == ("bye", "rejected")
        assert "address" in bye["message"]
        _, welcome = await entered(stack, shared, "198.51.100.8", token="blue")
        assert welcome["type"] == "ready"
        await lives[0][0].stop()
        _, welcome = await entered(stack, shared, "198.51.100.7", token="red")
        assert welcome["type"] == "ready"  # the place of the one that left


async def test_a_token_has_its_limit_wherever_it_comes_from(shared: Service) -> None:
    settle(shared)
    async with AsyncExitStack() as stack:
        for number in (1, 2):
            _, answer = await entered(stack, shared, f"198.51.100.{number}", token="red")
            assert answer["type"] == "ready"
        third, bye = await entered(stack, shared, "198.51.100.3", token="red")
        assert (bye["type"], bye["reason"]) == ("bye", "rejected")
        assert "token" in bye["message"]
        await third.rest()
        assert third.connection.close_code == 1013
        _, answer = await entered(stack, shared, "198.51.100.3", token="blue")
        assert answer["type"] == "ready"
    samples = shared.metrics()
    assert samples['sightline_auth_failures_total{reason="token_limit"}'] == 1
    assert samples['sightline_auth_failures_total{reason="address_limit"}'] == 1


async def test_one_token_wrong_takes_no_place(shared: Service) -> None:
    settle(shared)
    for _ in range(5):
        async with opened(shared) as live:
            await live.say("init", token="green")
            assert (await live.bye())["reason"] == "unauthorized"
    async with ready(shared, token="red"):
        pass


async def test_sockets_are_bounded_before_they_say_anything(serve: Serve) -> None:
    few = serve(MAX_CONNECTIONS="2")
    async with opened(few), opened(few):
        with pytest.raises(InvalidStatus) as refused:
            async with opened(few):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert b"MAX_CONNECTIONS" in bytes(response.body)
        assert few.metrics()['sightline_sessions_total{outcome="refused"}'] == 1  # and plain HTTP is answered
    async with asyncio.timeout(PATIENCE_S):
        while True:  # until the service has seen both go
            with suppress(InvalidStatus):
                async with ready(few):
                    break
            await asyncio.sleep(0.05)


async def test_sockets_of_one_address_are_bounded_and_others_let_in(serve: Serve) -> None:
    few = serve(MAX_CONNECTIONS_PER_ADDRESS="2", ALLOW_ANONYMOUS="true")
    greedy, modest = {"X-Forwarded-For": "198.51.100.7"}, {"X-Forwarded-For": "198.51.100.8"}
    async with opened(few, greedy), opened(few, greedy):
        with pytest.raises(InvalidStatus) as refused:
            async with opened(few, greedy):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (429, "5")
        assert b"MAX_CONNECTIONS_PER_ADDRESS" in bytes(response.body)
        async with ready(few, modest):
            pass
    samples = few.metrics()
    assert samples['sightline_sessions_total{outcome="refused"}'] == 1
    assert samples['sightline_auth_failures_total{reason="address_limit"}'] == 1
    async with ready(few, greedy):
        pass


async def test_one_who_leaves_the_line_is_noticed_though_it_is_not_read(single: Service, jpeg: bytes) -> None:
    """A lossless client in line: once its inbox is full, its socket is not read, nor is its end."""
    async with AsyncExitStack() as stack:
        first, _ = await entered(stack, single)
        leaving = plain_socket(single)
        upgrade(leaving)
        leaving.sendall(ws_frame(b'{"type":"init","mode":"lossless"}', 1) + ws_frame(jpeg, 2) * 4)
        settle(single, "sightline_sessions_waiting", 1)
        leaving.close()
        settle(single, "sightline_sessions_waiting", 0)  # PING_INTERVAL_S, when a send would fail, is a minute
        await first.stop()
    settle(single)


async def test_greedy_sessions_do_not_starve_a_modest_one(serve: Serve, jpeg: bytes) -> None:
    """Each of three gets a fair share of a model that is busy all the time."""
    busy = serve(**SLOW, TRITON_MAX_IN_FLIGHT="1")
    counts = [0] * 3
    async with AsyncExitStack() as stack:
        lives = [await stack.enter_async_context(ready(busy)) for _ in counts]
        done = asyncio.Event()

        async def stream(index: int, live: Live) -> None:
            await live.frame(jpeg)
            while not done.is_set():
                if index:  # the greedy ones always have one more waiting
                    await live.frame(jpeg)
                await live.answer()
                counts[index] += 1
                if not index:
                    await live.frame(jpeg)
                if sum(counts) >= 9:
                    done.set()

        await asyncio.gather(*(stream(index, live) for index, live in enumerate(lives)))
    assert min(counts) >= max(counts) / 2, counts


async def test_everything_is_accounted_for_and_nobody_is_left(single: Service, shared: Service) -> None:
    for item in (single, shared):
        settle(item)
        assert_adds_up(item)
        assert item.metrics()["sightline_sessions_waiting"] == 0
        assert "Traceback" not in item.log
