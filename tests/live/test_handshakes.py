"""Every TCP connection is bounded from accept to its first complete request, whatever is wrong with the request."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import resource
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Serve
from tests.support.live import TEXT, ended, plain_socket, ready, ws_frame
from tests.support.service import Service

pytestmark = pytest.mark.anyio
INIT_S = 2.0
MANY = 50
SLACK_S = 4.0
"""A loaded machine's; twice INIT_TIMEOUT_S, and far below what nobody waits for."""
ROOMY = {"MAX_SESSIONS": "500", "MAX_SESSIONS_PER_ADDRESS": "500"}
KEY = base64.b64encode(bytes(16)).decode()


@pytest.fixture(scope="module")
def target(serve: Serve) -> Service:
    return serve(INIT_TIMEOUT_S=str(INIT_S), SEND_TIMEOUT_S="1", MAX_CONNECTIONS_PER_ADDRESS="2000", **ROOMY)


def upgrade_with(*more: str, without: str = "", line: str = "GET /ws/inference HTTP/1.1") -> bytes:
    """An upgrade with further headers, or without one."""
    headers = [
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    kept = [item for item in headers if not (without and item.startswith(without))]
    return "\r\n".join([line, *kept, *more, "", ""]).encode()


WRONG: dict[str, tuple[bytes, set[int]]] = {
    "upgrade with a body": (upgrade_with("Content-Length: 5"), {400}),
    "upgrade with a body that came": (upgrade_with("Content-Length: 5") + b"hello", {400}),
    "upgrade in chunks": (upgrade_with("Transfer-Encoding: chunked"), {400}),
    "upgrade in chunks that came": (upgrade_with("Transfer-Encoding: chunked") + b"0\r\n\r\n", {400}),
    "upgrade with two lengths": (upgrade_with("Content-Length: 5", "Content-Length: 6"), {400}),
    "upgrade with both": (upgrade_with("Content-Length: 5", "Transfer-Encoding: chunked"), {400}),
    "upgrade with 200 headers": (upgrade_with(*(f"X-{n}: {n}" for n in range(200))), {431}),
    "upgrade with 9 KB in a header": (upgrade_with("X-Long: " + "a" * 9000), {431}),
    "upgrade with 60 KB of headers": (upgrade_with(*(f"X-{n}: {'a' * 6000}" for n in range(10))), {431}),
    "upgrade with a path of 9 KB": (upgrade_with(line=f"GET /{'a' * 9000} HTTP/1.1"), {431}),
    "upgrade of another path": (upgrade_with(line="GET /v1/frames HTTP/1.1"), {404}),
    "upgrade by POST": (upgrade_with(line="POST /ws/inference HTTP/1.1"), {405}),
    "upgrade by HTTP 1.0": (upgrade_with(line="GET /ws/inference HTTP/1.0"), {505}),
    "upgrade to another version": (upgrade_with("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"), {400}),
    "upgrade without a version": (upgrade_with(without="Sec-WebSocket-Version"), {400}),
    "upgrade without a key": (upgrade_with(without="Sec-WebSocket-Key"), {400}),
    "upgrade with two keys": (upgrade_with(f"Sec-WebSocket-Key: {KEY}"), {400}),
    "upgrade with a key that is none": (upgrade_with("Sec-WebSocket-Key: x", without="Sec-WebSocket-Key"), {400}),
    "two upgrades": (upgrade_with("Upgrade: websocket"), {426}),
    "upgrade without a host": (upgrade_with(without="Host"), {400}),
    "upgrade with two hosts": (upgrade_with("Host: other"), {400}),
    "upgrade with a folded header": (upgrade_with("X-A: b\r\n c").replace(b" c", b"\x00c"), {400}),
    "HTTP 2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {505}),
    "TLS": (bytes.fromhex("16030100f6010000f20303") + os.urandom(200), {400}),
    "zeros": (bytes(100), {400}),
    "bytes": (b"\xff\xfe\xfd\n\n" * 10, {400}),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", {400, 408}),
    "a socks greeting": (b"\x05\x01\x00", {400}),
    "no version": (b"GET\r\n\r\n", {400}),
    "a head without end": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: " + b"a" * 100_000, {431}),
    "a long head at once": (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + (b"X-A: " + b"a" * 5000 + b"\r\n") * 6 + b"\r\n",
        {431},
    ),
    "300 headers": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: b\r\n" * 300 + b"\r\n", {431}),
    "both kinds of length": (
        b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 6\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET",
        {400, 415},
    ),
    "two lengths": (
        b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 6\r\nContent-Length: 7\r\n\r\n",
        {400},
    ),
    "a length that is none": (b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", {400}),
    "an unknown coding": (
        b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        {400, 501},
    ),
    "a chunk that is none": (
        b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        {400},
    ),
    "a space before the colon": (b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", {400}),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", {400}),
    # Not here whole in time.
    "half a line": (b"GET /ws/infe", {408}),
    "half a head": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow", {408}),
    "half an upgrade": (upgrade_with()[:-2], {408}),
    "half of HTTP 2's preface": (b"PRI * HT", {408}),
    "half a body": (b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nx", {408}),
    "nothing of a body": (b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n", {408}),
    "a promise of a body": (
        b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
        {100},
    ),
    "half a chunk": (
        b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        {408},
    ),
}


def tcp(service: Service, ports: set[int]) -> int:
    """How many connections from these ports the service holds."""
    process = psutil.Process(service.process.pid)
    return len(ports & {connection.raddr.port for connection in process.net_connections("tcp") if connection.raddr})


def refused(service: Service) -> float:
    return sum(value for name, value in service.metrics().items() if "connections_refused_total" in name)


def until_gone(service: Service, ports: set[int], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while left := tcp(service, ports):
        assert time.monotonic() < deadline, f"{left} of {len(ports)} connections are open"
        time.sleep(0.05)


def connections(service: Service) -> dict[str, float]:
    """`sightline_connections` by state."""
    found = {}
    for name, value in service.metrics().items():
        state = re.fullmatch(r'sightline_connections\{state="(\w+)"\}', name)
        if state:
            found[state[1]] = value
    return found


TOGETHER = 10
"""Kinds at a time: 500 connections, and a process may often have no more than 1024 files open."""


@pytest.mark.parametrize("first", range(0, len(WRONG), TOGETHER))
def test_a4_fifty_of_each_kind_of_bad_request_are_gone_in_time_and_counted(target: Service, first: int) -> None:
    kinds = [*WRONG][first : first + TOGETHER]
    before = refused(target)
    with ExitStack() as stack:
        open_ = {kind: [stack.enter_context(plain_socket(target)) for _ in range(MANY)] for kind in kinds}
        for kind, several in open_.items():
            for sock in several:
                with suppress(ConnectionError):
                    sock.sendall(WRONG[kind][0])
        everybody = {sock.getsockname()[1] for several in open_.values() for sock in several}
        until_gone(target, everybody, INIT_S + 1 + SLACK_S)
        answers = {kind: {answered(sock) for sock in several} for kind, several in open_.items()}
    for kind, statuses in answers.items():
        assert statuses <= WRONG[kind][1], kind
    # One of two lengths holds: that request is served, and h11 takes the rest for the next.
    assert refused(target) - before >= MANY * len([kind for kind in kinds if kind != "both kinds of length"])
    assert "Traceback" not in target.log


def answered(sock: socket.socket) -> int:
    """The status of what the service said; 0 where it said nothing."""
    heard = b""
    with suppress(ConnectionError):
        while piece := sock.recv(1 << 16):
            heard += piece
    return int(heard[9:12] or 0) if heard else 0


def slowly(sock: socket.socket, words: bytes, over_s: float) -> None:
    """A byte at a time, for so long or until it is cut off."""
    deadline = time.monotonic() + over_s
    with suppress(ConnectionError):
        for at in range(len(words)):
            sock.sendall(words[at : at + 1])
            time.sleep(0.05)
            if time.monotonic() > deadline:
                return


@pytest.mark.parametrize(
    "words",
    [
        upgrade_with(*(f"X-{n}: {n}" for n in range(60))),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: b\r\n" * 100,
        b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n" + bytes(9999),
        b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n" + bytes(9999),
        b"DELETE /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 9999,
    ],
    ids=["upgrade", "head", "body", "body nobody reads", "chunks to nowhere"],
)
def test_a4_byte_by_byte_is_too_slow(target: Service, words: bytes) -> None:
    with plain_socket(target) as sock:
        slowly(sock, words, INIT_S + 1 + SLACK_S)
        until_gone(target, {sock.getsockname()[1]}, 1)


def test_a4_a_reader_that_does_not_read_what_it_asked_for_is_gone(target: Service) -> None:
    with ExitStack() as stack:
        open_ = [stack.enter_context(plain_socket(target, receive_buffer=2048)) for _ in range(10)]
        for sock in open_:
            sock.sendall(b"GET /schema.json HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        until_gone(target, {sock.getsockname()[1] for sock in open_}, INIT_S + 1 + SLACK_S)


def test_a4_a_peer_that_says_it_is_done_is_gone(target: Service) -> None:
    with ExitStack() as stack:
        open_ = [stack.enter_context(plain_socket(target)) for _ in range(10)]
        for words, sock in zip((b"", b"GET / HT", upgrade_with()[:-9]) * 4, open_, strict=False):
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)
        until_gone(target, {sock.getsockname()[1] for sock in open_}, INIT_S + SLACK_S)


def test_a4_an_idle_connection_between_two_requests_is_closed(target: Service) -> None:
    with plain_socket(target) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " in sock.recv(1 << 16)
        assert ended(sock)


def test_a4_what_came_behind_an_upgrade_is_read_once_it_is_answered(target: Service) -> None:
    """All in one piece, in two, and so that it is no WebSocket's frame: whatever the kernel makes of it."""
    said = ws_frame(b'{"type":"stop"}', TEXT)
    for pieces in ([upgrade_with() + said], [upgrade_with(), said], [upgrade_with()[:-1], b"\n" + said]):
        with plain_socket(target) as sock:
            for piece in pieces:
                sock.sendall(piece)
            heard = until_closed(sock)
        assert heard.startswith(b"HTTP/1.1 101 ")
        assert b'"reason":"stopped"' in heard
    with plain_socket(target) as sock:
        sock.sendall(upgrade_with() + b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        heard = until_closed(sock)
    assert heard.count(b"HTTP/1.1 ") == 1
    assert "Traceback" not in target.log


def until_closed(sock: socket.socket) -> bytes:
    heard = b""
    with suppress(ConnectionError):
        while piece := sock.recv(1 << 16):
            heard += piece
    return heard


def test_a4_an_upgrade_behind_a_request_is_one(target: Service) -> None:
    with plain_socket(target) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + upgrade_with())
        heard = b""
        while b" 101 " not in heard:
            heard += sock.recv(1 << 16)
        sock.sendall(ws_frame(b'{"type":"stop"}', TEXT))
        assert b'"reason":"stopped"' in until_closed(sock)


def test_a4_an_upgrade_may_say_that_it_has_no_body(target: Service) -> None:
    with plain_socket(target) as sock:
        sock.sendall(upgrade_with("Content-Length: 0"))
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 101 ")


# --- the books ---


def test_a4_states_of_connections_are_told(serve: Serve) -> None:
    service = serve(INIT_TIMEOUT_S="60")
    with ExitStack() as stack:
        silent = [stack.enter_context(plain_socket(service)) for _ in range(5)]
        sockets = [stack.enter_context(plain_socket(service)) for _ in range(3)]
        for sock in sockets:
            sock.sendall(upgrade_with())
            assert b" 101 " in sock.recv(1 << 16)
        idle = [stack.enter_context(plain_socket(service)) for _ in range(2)]
        for sock in idle:
            sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b" 200 " in sock.recv(1 << 16)
        assert connections(service) == {"handshake": 5, "websocket": 3, "http": 3, "closing": 0}  # and who asks
        del silent
    deadline = time.monotonic() + 10
    while (now := connections(service)) != {"handshake": 0, "websocket": 0, "http": 1, "closing": 0}:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)


@pytest.mark.parametrize(
    "occupied",
    [b"", b"GET / HT", b"GET /schema.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", upgrade_with()],
    ids=["nothing", "half", "http", "socket"],
)
def test_a4_every_connection_counts_in_max_connections(serve: Serve, occupied: bytes) -> None:
    service = serve(MAX_CONNECTIONS="8", INIT_TIMEOUT_S="60")
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(plain_socket(service))
            sock.sendall(occupied)
            if occupied.endswith(b"\r\n\r\n"):
                assert sock.recv(1 << 16)
        for words in (
            upgrade_with(),
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        ):
            with plain_socket(service) as late:
                late.sendall(words)
                heard = until_closed(late)
            assert heard.startswith(b"HTTP/1.1 503 "), heard
            assert b"MAX_CONNECTIONS" in heard
            assert b"retry-after: 5" in heard.lower()
        # A full service is no dead one: whoever watches it is answered, and goes.
        assert httpx.get(f"{service.url}/health/live").status_code == 200
        assert service.metrics()['sightline_connections_refused_total{reason="full"}'] == 3
    asyncio.run(served(service))


async def served(service: Service) -> None:
    deadline = time.monotonic() + 10
    while True:  # until the service has seen all go
        with suppress(Exception):
            async with ready(service) as live:
                await live.stop()
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def test_a4_connections_of_one_address_are_bounded_whatever_they_say(serve: Serve) -> None:
    service = serve(MAX_CONNECTIONS_PER_ADDRESS="4", INIT_TIMEOUT_S="60")
    with ExitStack() as stack:
        for words in (b"", b"GET / HT", b"GET /schema.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", upgrade_with()):
            stack.enter_context(plain_socket(service)).sendall(words)
        time.sleep(0.3)
        with plain_socket(service) as late:
            late.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            heard = until_closed(late)
        assert heard.startswith(b"HTTP/1.1 429 ")
        assert b"MAX_CONNECTIONS_PER_ADDRESS" in heard
        # Through the proxy that is believed it comes for another address.
        forwarded = httpx.get(f"{service.url}/health/live", headers={"X-Forwarded-For": "127.0.0.9"})
        assert forwarded.status_code == 200


# --- descriptors ---


def with_files(serve: Serve, soft: int, **settings: str) -> Service:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        service = serve(**settings)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    return service


def test_a4_the_soft_limit_of_files_is_raised_to_what_is_needed(serve: Serve) -> None:
    service = with_files(serve, 256, MAX_CONNECTIONS="700")
    limits = Path(f"/proc/{service.process.pid}/limits").read_text()
    soft = int(re.search(r"Max open files\s+(\d+)", limits)[1])  # type: ignore[index]
    assert soft >= 700 + 64
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(plain_socket(service))
        assert httpx.get(f"{service.url}/health/live").status_code == 200
