"""Clients that mean harm, or are broken: the service goes on, others are served, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import SLOW, Serve, photograph
from tests.support.live import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PATIENCE_S,
    PING,
    TEXT,
    ended,
    opened,
    plain_socket,
    ready,
    reset,
    send_until_cut_off,
    settle,
    upgrade,
    ws_frame,
)
from tests.support.service import Service, assert_adds_up

pytestmark = pytest.mark.anyio
MANY = 500
MORE = 96
"""Sessions that come after all of it."""


@pytest.fixture(scope="module")
def target(serve: Serve) -> Service:
    """One that waits for nobody longer than a second."""
    return serve(INIT_TIMEOUT_S="1", SEND_TIMEOUT_S="1", MAX_MESSAGES_PER_S="10000", MAX_SESSIONS="8")


@pytest.fixture(scope="module")
def slow(serve: Serve) -> Service:
    return serve(**SLOW, MAX_SESSIONS="2", TRITON_MAX_IN_FLIGHT="1")


@pytest.fixture(scope="module")
def before(target: Service, jpeg: bytes) -> int:
    """The service's own memory before any of this, when all of its slots had served."""
    asyncio.run(rounds(target, jpeg, 16))
    return anonymous(target)


@pytest.fixture(autouse=True)
def unharmed(target: Service, before: int) -> Iterator[None]:
    """After each of these tests others are served as before and no slot is taken."""
    yield
    asyncio.run(served(target))
    settle(target)


async def served(service: Service) -> None:
    async with ready(service) as live:
        await live.frame(photograph(64, 48))
        assert (await live.answer())["type"] == "result"
        await live.stop()


async def rounds(service: Service, jpeg: bytes, count: int) -> None:
    """So many sessions of five frames each, eight at a time; every other one leaves without a word."""

    async def session(number: int) -> None:
        async with ready(service, motion_grid=True) as live:
            for _ in range(5):
                await live.frame(jpeg)
                await live.answer()
            if number % 2:
                await live.stop()

    for start in range(0, count, 8):
        await asyncio.gather(*(session(start + number) for number in range(8)))
        settle(service)


def resident(service: Service) -> int:
    return psutil.Process(service.process.pid).memory_info().rss


def anonymous(service: Service) -> int:
    """Resident bytes that are the service's alone: without libraries, and without what it shares with Triton."""
    kept = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text(), re.MULTILINE)
    assert kept is not None
    return int(kept[1]) * 1024


def until_let_go(service: Service, *sockets: socket.socket) -> None:
    """Waits until the service holds none of these connections any more."""
    until_none_from(service, {sock.getsockname()[1] for sock in sockets})


def until_none_from(service: Service, ports: set[int]) -> None:
    process, deadline = psutil.Process(service.process.pid), time.monotonic() + PATIENCE_S
    while held := ports & {connection.raddr.port for connection in process.net_connections("tcp") if connection.raddr}:
        assert time.monotonic() < deadline, f"{len(held)} connections are still open"
        time.sleep(0.1)


def waiting_to_be_sent(service: Service, sock: socket.socket) -> int | None:
    """Bytes in the kernel that the service wrote and this connection did not take yet; None without a connection."""
    ours = sock.getsockname()[1]
    with open("/proc/net/tcp") as table:
        for line in [*table][1:]:
            _, local, remote, state, queues, *_ = line.split()
            ports = [int(address.rpartition(":")[2], 16) for address in (local, remote)]
            if ports == [service.port, ours] and state == "01":
                return int(queues.partition(":")[0], 16)
    return None


# --- many that say nothing ---


async def test_500_sockets_that_say_nothing_are_all_closed_while_others_are_served(target: Service) -> None:
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(opened(target)) for _ in range(MANY)]
        await served(target)
        byes = await asyncio.gather(*(live.bye() for live in silent))
    assert {bye["reason"] for bye in byes} == {"idle"}
    assert target.metrics()['sightline_sessions_total{outcome="idle"}'] >= MANY


def test_500_connections_that_say_nothing_or_half_a_request_are_all_closed(target: Service) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(plain_socket(target)) for _ in range(MANY)]
        for sock in silent[::2]:
            sock.sendall(b"GET /ws/inference HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: webso")
        asyncio.run(served(target))
        assert all(ended(sock) for sock in silent)


def test_500_connections_that_vanish_leave_nothing(target: Service) -> None:
    ports = set()
    for number in range(MANY):
        sock = plain_socket(target)
        ports.add(sock.getsockname()[1])
        if number % 3:
            sock.sendall(
                b"GET /ws/inference HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            )
        if number % 3 == 2:
            sock.sendall(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        reset(sock)
    until_none_from(target, ports)
    assert "Traceback" not in target.log


# --- readers that do not read ---


def test_a_reader_that_never_reads_loses_its_session_and_its_socket(target: Service, jpeg: bytes) -> None:
    with plain_socket(target, receive_buffer=4096) as sock:
        upgrade(sock)
        sock.sendall(ws_frame(jpeg, BINARY))
        update = ws_frame(b'{"type":"update"}', TEXT) * 100
        send_until_cut_off(sock, update)  # and never read the answers
        settle(target)
        until_let_go(target, sock)
    assert target.metrics()['sightline_sessions_total{outcome="slow_reader"}'] >= 1


def test_what_a_reader_does_not_read_is_little(target: Service) -> None:
    """Results must not grow old in a buffer: what the kernel keeps to be sent is bounded as well."""
    with plain_socket(target, receive_buffer=4096) as sock:
        upgrade(sock)
        sock.sendall(ws_frame(b'{"type":"init"}', TEXT))
        sock.setblocking(False)
        update, most = ws_frame(b'{"type":"update"}', TEXT) * 100, 0
        deadline = time.monotonic() + PATIENCE_S
        while (unsent := waiting_to_be_sent(target, sock)) is not None:
            assert time.monotonic() < deadline
            most = max(most, unsent)
            with suppress(BlockingIOError, ConnectionError):
                sock.send(update)
    assert 0 < most < 64 * 1024


def test_a_slow_reader_that_reads_keeps_its_session(target: Service) -> None:
    """What it has not read yet takes longer than SEND_TIMEOUT_S; that it reads at all is what counts."""
    with plain_socket(target, receive_buffer=4096) as sock:
        upgrade(sock)
        sock.sendall(ws_frame(b'{"type":"init","mode":"lossless"}', TEXT))
        sock.sendall(ws_frame(b'{"type":"update"}', TEXT) * 600 + ws_frame(b'{"type":"stop"}', TEXT))
        heard = b""
        while piece := sock.recv(4096):
            heard += piece
            time.sleep(4096 / 24_000)  # 24 kB a second
    assert heard.count(b'"settings"') >= 600
    assert b'"reason":"stopped"' in heard


def test_a_reader_by_http_that_never_reads_is_cut_off(target: Service) -> None:
    with plain_socket(target, receive_buffer=4096) as sock:
        ask = b"GET /schema.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with suppress(TimeoutError, ConnectionError):
            sock.settimeout(0.5)
            while True:
                sock.sendall(ask * 100)
        until_let_go(target, sock)


def test_a_peer_that_does_not_answer_the_close_frame_is_cut_off(target: Service) -> None:
    with plain_socket(target) as sock:
        upgrade(sock)
        sock.sendall(ws_frame(b'{"type":"stop"}', TEXT))
        assert ended(sock)  # after SEND_TIMEOUT_S


def test_pongs_to_a_peer_that_reads_nothing_neither_pile_up_nor_hold_its_socket(target: Service) -> None:
    before = resident(target)
    with plain_socket(target, receive_buffer=4096) as sock:
        upgrade(sock)
        sock.sendall(ws_frame(b'{"type":"init"}', TEXT))
        while b'"ready"' not in sock.recv(1 << 16):
            pass
        flood = ws_frame(bytes(125), PING) * 1000
        for _ in range(400):  # 52 MB, which as pongs would be as much
            sock.sendall(flood)
        assert resident(target) - before < 25e6
        sock.sendall(ws_frame(b"", CLOSE))
        until_let_go(target, sock)  # though what it was sent can never be flushed


def test_fragments_without_end_are_refused(target: Service) -> None:
    with plain_socket(target) as sock:
        upgrade(sock)
        sock.sendall(ws_frame(b'{"type":"init"}', TEXT) + ws_frame(b"", BINARY, fin=False))
        with suppress(ConnectionError):
            sock.sendall(ws_frame(b"", CONTINUATION, fin=False) * 100_000)
        assert ended(sock)


# --- those who break the protocol below ours ---


@pytest.mark.parametrize(
    "garbage",
    [
        ws_frame(b"x", 3),
        ws_frame(b"x", CONTINUATION),
        ws_frame(bytes(126), PING),
        ws_frame(b"x", CLOSE),
        ws_frame(b"\x03\xe8\xff", CLOSE),
        b"\x82\x05hello",
        b"\xff" * 1000,
        b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
    ids=["opcode", "continuation", "long ping", "short close", "close text", "unmasked", "ones", "endless length"],
)
def test_frames_that_break_rfc_6455_end_the_connection(target: Service, garbage: bytes) -> None:
    with plain_socket(target) as sock:
        upgrade(sock)
        sock.sendall(garbage)
        assert ended(sock)
    assert "Exception in ASGI" not in target.log


def test_random_bytes_end_the_connection(target: Service) -> None:
    for _ in range(20):
        with plain_socket(target) as sock:
            upgrade(sock)
            with suppress(ConnectionError):
                sock.sendall(os.urandom(2000))
            assert ended(sock)


# --- those who leave at the worst moment ---


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("mode", ["realtime", "lossless"])
async def test_leaving_in_the_middle_of_inference_frees_the_slot(
    slow: Service, jpeg: bytes, how: str, mode: str
) -> None:
    received = slow.frames()["received"]
    async with AsyncExitStack() as stack:
        lives = [await stack.enter_async_context(ready(slow, mode=mode)) for _ in range(2)]
        for live in lives:
            await live.frame(jpeg)
        await asyncio.sleep(0.1)  # now one is at the model, and one waits for the concurrency limit
        for live in lives:
            if how == "close":
                await live.connection.close()
            else:
                wire = live.connection.transport.get_extra_info("socket")
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
                live.connection.transport.abort()
    settle(slow)
    settle(slow, "sightline_inference_in_flight")
    counts = assert_adds_up(slow)
    assert counts["received"] == received + 2
    await served(slow)
    assert "Traceback" not in slow.log


async def test_one_who_leaves_between_two_words_is_no_fault(target: Service, jpeg: bytes) -> None:
    for number in range(20):
        sock = plain_socket(target)
        upgrade(sock)
        whole = ws_frame(b'{"type":"init"}', TEXT) + ws_frame(jpeg, BINARY)
        sock.sendall(whole[: len(whole) * number // 19])
        reset(sock)
    settle(target)
    assert "Traceback" not in target.log


# --- after all of it ---


def test_memory_returns_to_where_it_was(target: Service, before: int, jpeg: bytes) -> None:
    """Not to the byte: what sessions leave in circles, some 65 kB each, waits for the collector.

    A leak shows in every round of sessions; ten megabytes that a thread's allocator takes once, in one of them.
    """
    sizes = [anonymous(target)]
    while len(sizes) < 4:
        asyncio.run(rounds(target, jpeg, MORE))
        sizes.append(anonymous(target))
        if sizes[-1] - sizes[-2] < MORE * 150e3:
            break
    assert sizes[-1] - sizes[-2] < MORE * 150e3, (before, sizes)
    assert sizes[-1] - before < 50e6, (before, sizes)


def test_everything_is_accounted_for_and_nobody_is_left(target: Service, slow: Service) -> None:
    for server in (target, slow):
        assert_adds_up(server)
        settle(server)
        status = httpx.get(f"{server.url}/status").json()
        assert (status["sessions_active"], status["sessions_waiting"]) == (0, 0)
