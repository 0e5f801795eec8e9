"""Who is let in: tokens, origins, and a start that is refused."""

from __future__ import annotations

import itertools
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import orjson
import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import Serve
from tests.support import forks
from tests.support.live import BINARY, opened, plain_socket, ready, upgrade, ws_frame
from tests.support.service import Service

pytestmark = pytest.mark.anyio
_ADDRESSES = itertools.count(1)


def elsewhere() -> dict[str, str]:
    """A header that gives a request an address of its own: who sends wrong tokens has to wait."""
    return {"X-Forwarded-For": f"198.51.100.{next(_ADDRESSES)}"}


@pytest.fixture(scope="module")
def locked(serve: Serve) -> Service:
    return serve(AUTH_TOKENS="first-secret, zweites-Gehéimnis", INIT_TIMEOUT_S="0.6")


@pytest.fixture(scope="module")
def listed(serve: Serve) -> Service:
    return serve(ALLOWED_ORIGINS="https://shop.example, http://localhost:3000")


# --- tokens ---


@pytest.mark.parametrize("token", ["first-secret", "zweites-Gehéimnis"])
async def test_each_token_opens_the_service_by_init(locked: Service, token: str) -> None:
    async with ready(locked, token=token) as live:
        assert live.welcome["credits"] == 2


async def test_a_bearer_opens_it_without_init(locked: Service, jpeg: bytes) -> None:
    async with opened(locked, {"Authorization": "Bearer first-secret"} | elsewhere()) as live:
        await live.frame(jpeg)
        assert (await live.receive())["type"] == "ready"
        assert (await live.answer())["type"] == "result"


async def test_the_token_in_init_wins_over_the_header(locked: Service) -> None:
    async with opened(locked, {"Authorization": "Bearer first-secret"} | elsewhere()) as live:
        await live.say("init", token="wrong")
        assert (await live.bye())["reason"] == "unauthorized"


@pytest.mark.parametrize("token", ["wrong", "", "first-secret ", "FIRST-SECRET", "first-secre", "ключ"])
async def test_a_wrong_token_is_told_so_and_nothing_else(locked: Service, token: str) -> None:
    async with opened(locked, elsewhere()) as live:
        await live.say("init", token=token)
        messages = await live.rest()
    assert [message["type"] for message in messages] == ["bye"]
    assert (messages[0]["reason"], live.connection.close_code) == ("unauthorized", 4003)
    assert "first-secret" not in messages[0]["message"]


@pytest.mark.parametrize("header", ["Bearer wrong", "Basic first-secret", "Bearer", "first-secret", "Bearer  "])
async def test_a_wrong_header_is_no_token(locked: Service, jpeg: bytes, header: str) -> None:
    async with opened(locked, {"Authorization": header} | elsewhere()) as live:
        await live.frame(jpeg)
        bye = await live.bye()
    assert (bye["reason"], bye["report"]["dropped"]) == ("unauthorized", {"unauthorized": 1})


async def test_a_missing_token_is_asked_for(locked: Service) -> None:
    async with opened(locked, elsewhere()) as live:
        await live.say("init")
        bye = await live.bye()
    assert bye["reason"] == "unauthorized"
    assert "init.token" in bye["message"]
    assert "Bearer" in bye["message"]


async def test_a_late_token_is_too_late(locked: Service) -> None:
    async with opened(locked, elsewhere()) as live:
        await live.say("pong")
        bye = await live.bye()
    assert (bye["reason"], live.connection.close_code) == ("unauthorized", 4003)
    assert "0.6 seconds" in bye["message"]


async def test_without_a_token_nobody_learns_the_classes(locked: Service) -> None:
    async with opened(locked, elsewhere()) as live:
        await live.say("init", classes=["unicorn"])
        messages = await live.rest()
    assert [message["type"] for message in messages] == ["bye"]
    assert "person" not in str(messages)


@pytest.mark.parametrize("patch", [{"classes": ["unicorn"]}, {"summary": {"prompt": "unicorn"}}, {"confidence": 0.5}])
async def test_nothing_is_obeyed_before_the_token_was_looked_at(locked: Service, patch: dict[str, object]) -> None:
    async with opened(locked, elsewhere()) as live:
        wire = live.connection.transport.get_extra_info("socket")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # all in one piece
        await live.say("init", token="wrong")
        await live.say("update", **patch)
        await live.text("no JSON")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        messages = await live.rest()
    assert [message["type"] for message in messages] == ["bye"]
    assert messages[0]["reason"] == "unauthorized"


async def test_a_frame_is_no_way_past_the_token_either(locked: Service) -> None:
    async with opened(locked, {"Authorization": "Bearer wrong"} | elsewhere()) as live:
        wire = live.connection.transport.get_extra_info("socket")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        await live.frame(b"no JPEG")
        await live.say("update", classes=["unicorn"])
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        messages = await live.rest()
    assert [message["type"] for message in messages] == ["bye"]
    assert messages[0]["report"]["dropped"] == {"unauthorized": 1}


def test_without_a_token_not_much_is_kept_of_what_comes(locked: Service) -> None:
    """Half a frame, which would be kept until its other half came."""
    with plain_socket(locked) as sock:
        upgrade(sock)
        half = ws_frame(bytes(1024 * 1024), BINARY)[:-1]
        with suppress(ConnectionError):
            sock.sendall(half)
        answer = b""
        with suppress(ConnectionError):
            while piece := sock.recv(1 << 16):
                answer += piece
    assert b'"bye"' not in answer, "it was taken until INIT_TIMEOUT_S"


async def test_with_a_token_frames_may_be_as_large_as_ever(locked: Service, jpeg: bytes) -> None:
    large = jpeg + bytes(1024 * 1024)
    for headers, fields in (({"Authorization": "Bearer first-secret"}, {}), (None, {"token": "first-secret"})):
        async with opened(locked, (headers or {}) | elsewhere()) as live:
            await live.say("init", **fields)
            await live.frame(large)  # not waiting for `ready`
            assert (await live.answer())["type"] == "result"


async def test_failures_are_counted_by_their_reason(locked: Service) -> None:
    samples = locked.metrics()
    for reason in ("bad_token", "missing_token", "late_token"):
        assert samples[f'sightline_auth_failures_total{{reason="{reason}"}}'] >= 1
    assert samples['sightline_sessions_total{outcome="unauthorized"}'] >= 10
    assert samples["sightline_sessions_active"] == 0
    assert "secret" not in locked.log


@pytest.mark.parametrize("path", ["/v1/frames", "/v1/models"])
def test_plain_http_wants_the_bearer_too(locked: Service, jpeg: bytes, path: str) -> None:
    method = "POST" if path == "/v1/frames" else "GET"
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.request(method, locked.url + path, content=jpeg, headers=headers | elsewhere())
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "unauthorized"
    answer = httpx.request(method, locked.url + path, content=jpeg, headers={"Authorization": "Bearer first-secret"})
    assert answer.status_code == 200


def test_the_page_health_and_schema_are_open(locked: Service) -> None:
    for path in ("/", "/health/live", "/health/ready", "/schema.json", "/metrics", "/status"):
        assert httpx.get(locked.url + path).status_code == 200, path


# --- origins ---


async def refused(service: Service, origin: str) -> dict[str, str]:
    with pytest.raises(InvalidStatus) as status:
        async with opened(service, {"Origin": origin}):
            pass
    response = status.value.response
    assert response.status_code == 403
    error: dict[str, str] = orjson.loads(bytes(response.body))["error"]
    return error


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://[",
        "http://localhost:3000",
        "x",
        "http://127.0.0.1",
    ],
)
async def test_a_page_of_elsewhere_may_not_connect(service: Service, origin: str) -> None:
    error = await refused(service, origin)
    assert error["code"] == "origin"
    assert origin in error["message"]
    assert "ALLOWED_ORIGINS" in error["message"]


async def test_the_services_own_page_may(service: Service) -> None:
    async with ready(service, {"Origin": service.url}):
        pass


async def test_those_listed_may_and_no_others(listed: Service) -> None:
    for origin in ("https://shop.example", "http://localhost:3000"):
        async with ready(listed, {"Origin": origin}):
            pass
    for origin in ("https://shop.example.evil.example", "http://shop.example"):
        await refused(listed, origin)


async def test_a_client_that_is_no_browser_needs_no_origin(listed: Service) -> None:
    async with ready(listed):
        pass


# --- a start that is refused ---


def start(tmp_path: Path, command: str = "serve", **settings: str) -> subprocess.CompletedProcess[str]:
    given = {"STATE_DIR": str(tmp_path), "PORT": "0", "TRITON_URL": "127.0.0.1:9", **settings}
    return forks.run(command, **given)


@pytest.mark.parametrize(("host", "workers"), [("0.0.0.0", "1"), ("::", "2")])
def test_off_loopback_it_wants_tokens_or_to_be_told(tmp_path: Path, host: str, workers: str) -> None:
    ended = start(tmp_path, HOST=host, WORKERS=workers)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"HOST='{host}'" in line
    for way_out in ("AUTH_TOKENS", "ALLOW_ANONYMOUS=true", "HOST=127.0.0.1"):
        assert way_out in line


@pytest.mark.parametrize("permission", [{"AUTH_TOKENS": "secret"}, {"ALLOW_ANONYMOUS": "true"}])
def test_with_either_it_gets_as_far_as_the_address(tmp_path: Path, permission: dict[str, str]) -> None:
    ended = start(tmp_path, HOST="192.0.2.1", **permission)  # TEST-NET-1: no machine has it
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "HOST='192.0.2.1'" in line
    assert "cannot listen there" in line
    assert "secret" not in line


def test_wrong_settings_stop_the_start_with_a_line_each(tmp_path: Path) -> None:
    ended = start(tmp_path, PORT="http", MAX_SESSIONS="0", OCR="maybe")
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = [line.removeprefix("sightline: ") for line in ended.stderr.splitlines()]
    assert [line.partition(": should be ")[0] for line in lines] == ["PORT='http'", "MAX_SESSIONS='0'", "OCR='maybe'"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("triton", ["127.0.0.1:9", ""])
def test_a_state_folder_that_is_none_is_named(tmp_path: Path, workers: str, triton: str) -> None:
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "not a folder"), (tmp_path / "file" / "below", "Not a directory")):
        ended = start(tmp_path, STATE_DIR=str(folder), WORKERS=workers, TRITON_URL=triton)
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"sightline: STATE_DIR='{folder}': ")
        assert reason in line
        assert "want a folder" in line


def test_the_embedded_triton_alone_names_it_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = start(tmp_path, "triton", STATE_DIR=str(tmp_path / "file"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("sightline: STATE_DIR=")


def test_labels_that_cannot_be_read_are_named_though_triton_is_away(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("Fußgänger".encode("latin-1"))
    for path, reason in (
        (tmp_path / "none.txt", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "labels.txt", "is not UTF-8"),
    ):
        ended = start(tmp_path, TRITON_LABELS=str(path))
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"sightline: TRITON_LABELS='{path}': {reason}")
        assert "one class name a line" in line


def test_a_port_that_is_taken_is_named(tmp_path: Path, service: Service) -> None:
    ended = start(tmp_path, PORT=str(service.port))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"PORT={service.port}" in line
    assert "in use" in line
