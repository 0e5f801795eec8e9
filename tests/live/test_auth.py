"""Who may, through the real server: DNS rebinding, pages of elsewhere, guessed tokens (rules: tests/test_auth.py)."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

import httpx
import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.conftest import Serve
from tests.support.service import Service

REFUSALS_OF_UVICORN = "ASGI callable returned without completing handshake"


@pytest.fixture(scope="module")
def locked(serve: Serve) -> Service:
    return serve(AUTH_TOKENS="right,other")


@pytest.fixture(scope="module")
def listed(serve: Serve) -> Service:
    return serve(ALLOWED_ORIGINS="http://other.example")


def opened(service: Service, headers: dict[str, str]) -> ClientConnection:
    return connect(service.socket_url, additional_headers=headers, proxy=None, compression=None, open_timeout=30)


def init(service: Service, headers: dict[str, str], token: str | None = None) -> tuple[dict[str, Any], int | None]:
    """The first answer to `init`, `ready` or `bye`; with the code of the end that follows a `bye`."""
    with opened(service, headers) as live:
        live.send(orjson.dumps({"type": "init", "token": token}).decode())
        first = orjson.loads(live.recv(30))
        if first["type"] == "bye":
            with pytest.raises(ConnectionClosed):
                live.recv(30)
        return first, live.protocol.close_code if first["type"] == "bye" else None


def denied(service: Service, headers: dict[str, str]) -> tuple[int, dict[str, str], str | None]:
    """Status, error and Retry-After of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused, opened(service, headers):
        pass
    response = refused.value.response
    return response.status_code, orjson.loads(bytes(response.body))["error"], response.headers.get("retry-after")


def said(service: Service, request: str) -> str:
    """The first line of the answer to a request written by hand."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sock:
        sock.sendall(request.encode("latin-1"))
        return sock.recv(1 << 16).split(b"\r\n")[0].decode()


def test_b1_a_name_that_was_made_to_lead_here_gets_nothing(service: Service, jpeg: bytes) -> None:
    evil = f"evil.com:{service.port}"
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    routes = [
        (method.upper(), path.replace("{session_id}", "0" * 32)) for path, found in paths.items() for method in found
    ]
    routes += [("GET", path) for path in ("/web/main.js", "/openapi.json", "/nowhere", "/ws/inference")]
    for method, path in routes:
        for headers in ({}, {"Origin": f"http://{evil}"}, {"X-Forwarded-Host": "localhost"}):
            answer = httpx.request(method, service.url + path, headers={"Host": evil, **headers})
            assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host"), (method, path)
    handshake = (
        f"GET /ws/inference HTTP/1.1\r\nHost: {evil}\r\nOrigin: http://{evil}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert said(service, handshake).split(" ")[1] == "421"
    assert said(service, handshake.replace(evil, f"localhost:{service.port}")).split(" ")[1] == "101"
    message = answer.json()["error"]["message"]
    assert "evil.com" in message
    assert "ALLOWED_HOSTS" in message
    assert REFUSALS_OF_UVICORN not in service.log
    assert service.metrics()['sightline_auth_failures_total{reason="host"}'] >= len(routes)


def test_b1_hosts_that_are_sent_by_hand(service: Service) -> None:
    here = f"127.0.0.1:{service.port}"
    for request, status in (
        (f"GET http://evil.com/ HTTP/1.1\r\nHost: {here}\r\n\r\n", "421"),
        (f"GET http://{here}/v1/models HTTP/1.1\r\nHost: evil.com\r\n\r\n", "421"),
        ("GET / HTTP/1.0\r\n\r\n", "421"),
        ("GET /v1/models HTTP/1.0\r\nHost: evil.com\r\n\r\n", "421"),
        ("GET /health/live HTTP/1.0\r\n\r\n", "200"),
        ("GET /health/live HTTP/1.1\r\nHost: 10.1.2.3:8000\r\n\r\n", "200"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        (f"GET / HTTP/1.1\r\nHost: {here}\r\nHost: evil.com\r\n\r\n", "400"),
        (f"GET / HTTP/1.1\r\nHost: user@{here}\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: [::1%25lo]:8000\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost:   LOCALHOST.:1  \r\n\r\n", "200"),
        ("GET /%76%31/models HTTP/1.1\r\nHost: evil.com\r\n\r\n", "421"),
    ):
        assert said(service, request).split(" ")[1] == status, request


def test_b2_pages_of_elsewhere_may_not_use_the_service(service: Service, jpeg: bytes) -> None:
    for method, path in (("POST", "/v1/frames"), ("GET", "/v1/models"), ("POST", "/invocations"), ("GET", "/metrics")):
        answer = httpx.request(method, service.url + path, content=jpeg, headers={"Origin": "http://evil.com"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin"), path
    answer = httpx.post(f"{service.url}/v1/frames", content=jpeg, headers={"Origin": service.url.upper()})
    assert answer.status_code == 200
    assert httpx.get(service.url, headers={"Origin": "http://evil.com"}).status_code == 200
    status, error, _ = denied(service, {"Origin": service.url.replace("http", "https")})
    assert (status, error["code"]) == (403, "origin")
    # Behind a proxy that speaks TLS, and is believed, that is the page's own origin.
    behind = {"Origin": service.url.replace("http", "https"), "X-Forwarded-Proto": "https"}
    assert init(service, behind)[0]["type"] == "ready"
    assert httpx.post(f"{service.url}/v1/frames", content=jpeg, headers=behind).status_code == 200


def test_b3_the_services_own_page_may_whatever_origins_are_named(listed: Service) -> None:
    assert init(listed, {"Origin": listed.url})[0]["type"] == "ready"
    assert httpx.post(f"{listed.url}/ws/inference", headers={"Origin": listed.url}).status_code == 204


def test_b3_a_refused_origin_can_be_asked_for_and_is_logged_once_a_minute(listed: Service) -> None:
    for _ in range(3):
        status, error, _ = denied(listed, {"Origin": "http://evil.com"})
        assert (status, error["code"]) == (403, "origin")
    answer = httpx.post(f"{listed.url}/ws/inference", headers={"Origin": "http://evil.com"})
    assert (answer.status_code, answer.json()["error"]) == (403, error)
    assert answer.headers["access-control-allow-origin"] == "*", "or the page could not read it"
    lines = [line for line in listed.log.splitlines() if "http://evil.com" in line]
    assert len(lines) == 1
    assert "ALLOWED_ORIGINS='http://other.example'" in lines[0]
    assert REFUSALS_OF_UVICORN not in listed.log


def waiting(service: Service, number: int) -> tuple[dict[str, str], float, float]:
    """The header of an address that has sent ten wrong tokens, half over sockets; its wait ends between two times."""
    there = {"X-Forwarded-For": f"203.0.113.9, 198.51.100.{number}, 127.0.0.1"}
    for _ in range(5):
        assert init(service, there, "wrong")[0]["reason"] == "unauthorized"
    for _ in range(4):
        answer = httpx.get(f"{service.url}/v1/models", headers=there | {"Authorization": "Bearer wrong"})
        assert answer.status_code == 401
    began = time.monotonic()
    answer = httpx.get(f"{service.url}/v1/models", headers=there | {"Authorization": "Bearer wrong"})
    assert answer.status_code == 401
    return there, began + 5, time.monotonic() + 5


def test_a10_wrong_tokens_have_to_wait_over_http_and_over_sockets(locked: Service) -> None:
    def over_http(there: dict[str, str]) -> None:
        answer = httpx.get(f"{locked.url}/v1/models", headers=there | {"Authorization": "Bearer right"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_failures")
        assert 1 <= int(answer.headers["retry-after"]) <= 5

    def over_a_socket(there: dict[str, str]) -> None:
        bye, code = init(locked, there, "right")
        assert (bye["reason"], code) == ("rejected", 1013)
        assert 1 <= bye["retry_after_s"] <= 5
        assert "wait" in bye["message"]

    def in_the_handshake(there: dict[str, str]) -> None:
        status, error, retry = denied(locked, there | {"Authorization": "Bearer right"})
        assert (status, error["code"]) == (429, "too_many_failures")
        assert retry is not None

    for number, look in enumerate((over_http, over_a_socket, in_the_handshake)):
        for attempt in range(5):
            there, least, most = waiting(locked, 10 * number + attempt)
            try:
                look(there)
                break
            except (AssertionError, KeyError, pytest.fail.Exception):
                if time.monotonic() < least:  # else the machine was so slow that the wait was over
                    raise
        else:
            pytest.skip("the machine is too slow for five seconds")
        # From another address at once, from this one after the wait.
        elsewhere = {"X-Forwarded-For": f"198.51.100.{10 * number}, 203.0.113.9", "Authorization": "Bearer right"}
        assert httpx.get(f"{locked.url}/v1/models", headers=elsewhere).status_code == 200
        time.sleep(max(0.0, most - time.monotonic()) + 0.1)
        assert init(locked, there, "right")[0]["type"] == "ready"


def test_a10_each_refusal_is_one_line(locked: Service) -> None:
    there = {"X-Forwarded-For": "203.0.113.77"}
    httpx.post(f"{locked.url}/v1/frames?token=hush", headers=there | {"Authorization": "Bearer hush-hush"})
    httpx.get(f"{locked.url}/v1/models", headers=there)
    assert init(locked, there, "hush-hush")[0]["type"] == "bye"
    lines = [line for line in locked.log.splitlines() if "203.0.113.77" in line]
    found = [match.groups() for line in lines if (match := re.search(r"route=(\S+ \S+) reason=(\w+)", line))]
    assert found == [
        ("POST /v1/frames", "bad_token"),
        ("GET /v1/models", "missing_token"),
        ("WEBSOCKET /ws/inference", "bad_token"),
    ]
    assert "hush" not in locked.log
    samples = locked.metrics()
    for reason in ("bad_token", "missing_token"):
        assert samples[f'sightline_auth_failures_total{{reason="{reason}"}}'] >= 1
