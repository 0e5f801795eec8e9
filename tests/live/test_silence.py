"""Who is still there: peers that fall silent are let go, those that only seem to be silent are not."""

from __future__ import annotations

import socket
import time

import pytest

from tests.conftest import SLOW, Serve, photograph
from tests.support.live import BINARY, PATIENCE_S, TEXT, plain_socket, ready, settle, upgrade, ws_frame
from tests.support.service import Service, assert_adds_up

pytestmark = pytest.mark.anyio
PING_S = 0.2


@pytest.fixture(scope="module")
def alert(serve: Serve) -> Service:
    """One that looks often whether its clients are still there."""
    return serve(**SLOW, PING_INTERVAL_S=str(PING_S), CREDITS="4", SEND_TIMEOUT_S="1")


def heard_until_the_end(sock: socket.socket) -> bytes:
    heard, until = b"", time.monotonic() + PATIENCE_S
    while piece := sock.recv(1 << 16):
        heard += piece
        assert time.monotonic() < until, heard[-500:]
    return heard


async def test_a_client_that_is_not_read_is_not_taken_for_gone(alert: Service, jpeg: bytes) -> None:
    """Its pong stands behind megabytes of frames, which wait until their turn at the models."""
    large = jpeg + bytes(1_000_000)
    async with ready(alert, mode="lossless") as live:
        for seq in range(1, 16):  # 4.5 s at the models
            await live.frame(large, seq)
        await live.say("stop")
        rest = await live.rest()
    assert [message["seq"] for message in rest if message["type"] == "result"] == [*range(1, 16)]
    assert rest[-1]["reason"] == "stopped"


@pytest.mark.parametrize("said", [[], ["init"], ["init", "pause"]], ids=["nothing", "init", "pause"])
def test_a_peer_that_answers_nothing_at_all_is_let_go(alert: Service, said: list[str]) -> None:
    with plain_socket(alert) as sock:
        upgrade(sock)
        for word in said:
            sock.sendall(ws_frame(b'{"type":"%s"}' % word.encode(), TEXT))
        # Long before INIT_TIMEOUT_S, IDLE_TIMEOUT_S or MAX_PAUSE_S, all of which would end it in other words.
        assert b"keepalive ping timeout" in heard_until_the_end(sock)
    settle(alert)


def test_a_simple_client_that_answers_no_ping_but_sends_frames_stays(alert: Service) -> None:
    small = ws_frame(photograph(64, 48), BINARY)
    with plain_socket(alert) as sock:
        upgrade(sock)
        until = time.monotonic() + 15 * PING_S
        while time.monotonic() < until:
            sock.sendall(small)
            time.sleep(PING_S / 2)
        sock.sendall(ws_frame(b'{"type":"stop"}', TEXT))
        assert b'"reason":"stopped"' in heard_until_the_end(sock)


async def test_a_client_that_pauses_and_ignores_our_ping_stays(alert: Service, jpeg: bytes) -> None:
    """Its WebSocket answers by itself, also behind a hidden tab."""
    async with ready(alert) as live:
        await live.say("pause")
        for _ in range(15):
            await live.until("ping")
        await live.say("resume")
        await live.frame(jpeg)
        assert (await live.answer())["type"] == "result"


def test_everything_is_accounted_for(alert: Service) -> None:
    assert assert_adds_up(alert)["processed"] > 0
    assert "Traceback" not in alert.log
