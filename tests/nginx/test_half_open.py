"""Connections that never become a request: the default servers' timeouts hold, as no name is known yet."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import ExitStack, suppress

import psutil
import pytest

from tests.support.nginx import NAME, Proxy

MANY = 400
PATIENCE_S = 25.0
"""`client_header_timeout` is 10 s; nginx's own, where none is set, is 60 s."""


def half_request(proxy: Proxy, *, name: str | None = NAME) -> socket.socket:
    """TLS, and half a request's header."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", proxy.https), timeout=30)
    tls = context.wrap_socket(plain, server_hostname=name)
    tls.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Slow".encode())
    return tls


def half_handshake(proxy: Proxy) -> socket.socket:
    """Half a ClientHello."""
    plain = socket.create_connection(("127.0.0.1", proxy.https), timeout=30)
    plain.sendall(bytes.fromhex("16030100f6010000f20303"))
    return plain


def silent(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.https), timeout=30)


def half_plain(proxy: Proxy) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", proxy.http), timeout=30)
    plain.sendall(b"GET / HTTP/1.1\r\nHost: other.example\r\nX-Slow")
    return plain


@pytest.mark.parametrize("kind", [half_request, half_handshake, silent, half_plain])
def test_a9_half_open_connections_of_one_address_are_gone_in_time(proxy: Proxy, kind: object) -> None:
    with ExitStack() as stack:
        open_ = [stack.enter_context(kind(proxy)) for _ in range(MANY)]  # type: ignore[operator]
        ports = {connection.getsockname()[1] for connection in open_}
        deadline = time.monotonic() + PATIENCE_S
        while left := held(proxy, ports):
            assert time.monotonic() < deadline, f"{left} of {MANY} are open"
            time.sleep(0.2)
    assert proxy.ask("GET", "/health/live").status_code == 200


def held(proxy: Proxy, ports: set[int]) -> int:
    count = 0
    for pid in proxy.workers():
        with suppress(psutil.NoSuchProcess):
            count += len(
                ports
                & {
                    connection.raddr.port
                    for connection in psutil.Process(pid).net_connections("tcp")
                    if connection.raddr
                }
            )
    return count
