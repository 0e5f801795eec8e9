"""Live sessions through nginx: wss, silent connections, reloads, and the client's address."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Serve
from tests.nginx.conftest import Silences
from tests.support.live import adds_up
from tests.support.nginx import NAME, Proxy, running_nginx
from tests.support.service import Service

pytestmark = pytest.mark.anyio


async def test_frames_are_answered_over_wss(proxy: Proxy, service: Service, jpeg: bytes) -> None:
    async with proxy.opened(service) as live:
        await live.say("init", mode="lossless")
        await live.until("ready")
        for seq in range(1, 6):
            await live.frame(jpeg, seq)
        results = [await live.answer() for _ in range(5)]
        bye = await live.stop()
    assert [result["seq"] for result in results] == [1, 2, 3, 4, 5]
    assert results[0]["objects"][0]["class_name"] == "person"
    assert (bye["reason"], bye["report"]["processed"], adds_up(bye["report"])) == ("stopped", 5, True)


async def test_a_frame_of_two_mebibytes_passes(proxy: Proxy, service: Service, jpeg: bytes) -> None:
    async with proxy.opened(service) as live:
        await live.frame(jpeg + bytes(2 * 1024 * 1024 - 16 - len(jpeg)), 1)  # what follows a JPEG's end is no matter
        assert (await live.answer())["seq"] == 1


async def test_the_page_of_this_name_may_connect_and_no_other(proxy: Proxy, service: Service) -> None:
    async with proxy.opened(service, headers={"Origin": f"https://{NAME}"}) as live:
        await live.say("init")
        await live.until("ready")
    with pytest.raises(InvalidStatus) as refused:
        async with proxy.opened(service, headers={"Origin": "https://evil.example"}):
            pass
    assert refused.value.response.status_code == 403
    assert b"ALLOWED_ORIGINS" in refused.value.response.body


async def test_a_reload_drops_no_session(proxy: Proxy, service: Service, jpeg: bytes) -> None:
    async with proxy.opened(service) as old:
        await old.frame(jpeg, 1)
        await old.answer()
        before = proxy.workers()
        await asyncio.to_thread(proxy.reload)
        async with proxy.opened(service) as new:
            for live in (old, new, old):
                await live.frame(jpeg, 2)
                assert (await live.answer())["type"] == "result"
            assert before < proxy.workers()  # the old worker stays for the old session
        assert (await old.stop())["reason"] == "stopped"


async def test_sessions_are_counted_by_the_clients_own_address(serve: Serve, tmp_path: Path) -> None:
    service = serve(ALLOWED_HOSTS=NAME, MAX_SESSIONS_PER_ADDRESS="1")
    with running_nginx(tmp_path, service.port) as proxy:
        async with (
            proxy.opened(service, source="127.0.0.2") as first,
            proxy.opened(service, source="127.0.0.3") as other,
            proxy.opened(service, source="127.0.0.2", headers={"X-Forwarded-For": "203.0.113.9"}) as again,
        ):
            for live in (first, other):
                await live.say("init")
                await live.until("ready")
            await again.say("init")
            bye = await again.bye()
    assert bye["reason"] == "rejected"
    assert "this address" in bye["message"]


async def test_a_proxy_that_is_not_named_is_not_believed(serve: Serve, tmp_path: Path) -> None:
    service = serve(ALLOWED_HOSTS=NAME, MAX_SESSIONS_PER_ADDRESS="1", FORWARDED_ALLOW_IPS="192.0.2.1")
    with running_nginx(tmp_path, service.port) as proxy:
        async with (
            proxy.opened(service, source="127.0.0.2") as first,
            proxy.opened(service, source="127.0.0.3") as other,
        ):
            await first.say("init")
            await first.until("ready")
            await other.say("init")
            assert (await other.bye())["reason"] == "rejected"  # both are nginx to it


async def test_connections_of_one_address_are_bounded(service: Service, tmp_path: Path) -> None:
    replace = {"sightline_connections 128;": "sightline_connections 2;"}
    with running_nginx(tmp_path, service.port, replace) as proxy:
        async with proxy.opened(service), proxy.opened(service):
            with pytest.raises(InvalidStatus) as refused:
                async with proxy.opened(service):
                    pass
            assert refused.value.response.status_code == 429
            async with proxy.opened(service, source="127.0.0.2"):
                pass


async def test_too_many_upgrades_are_turned_away(proxy: Proxy, service: Service) -> None:
    statuses, waits = [], set()
    for _ in range(24):
        try:
            async with proxy.opened(service, source="127.0.0.4"):
                statuses.append(101)
        except InvalidStatus as refused:
            statuses.append(refused.response.status_code)
            waits.add(refused.response.headers["retry-after"])
    assert set(statuses) == {101, 429}
    assert waits == {"1"}
    async with proxy.opened(service, source="127.0.0.5"):
        pass  # another address has a measure of its own


def test_a_short_read_timeout_would_end_a_silent_session(tmp_path: Path, mute_upstream: int) -> None:
    # The silence of the last test, in small: it is this line that keeps a session.
    replace = {"proxy_read_timeout    1h;": "proxy_read_timeout    1s;"}
    with (
        running_nginx(tmp_path, mute_upstream, replace) as proxy,
        proxy.opened_plainly() as connection,
        pytest.raises(ConnectionClosed),
    ):
        connection.recv(10)


@pytest.mark.parametrize(("upstream", "answer"), [("nothing", "still there?"), ("service", "bye: stopped")])
def test_a_session_that_waits_70_seconds_goes_on(silences: Silences, upstream: str, answer: str) -> None:
    assert silences[upstream].result(timeout=120) == answer
