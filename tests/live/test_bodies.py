"""Bodies of requests: bounded in bytes and seconds on every route; a image may come as a form."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import orjson
import pytest

from tests.conftest import Serve
from tests.support.live import ended, opened, plain_socket, ready, send_until_cut_off
from tests.support.service import Service, assert_adds_up

pytestmark = pytest.mark.anyio
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def brisk(serve: Serve) -> Service:
    """One that waits for nobody longer than a second."""
    return serve(INIT_TIMEOUT_S="1", SEND_TIMEOUT_S="1")


# --- A5 ---

ROUTES = [
    ("POST", "/invocations"),
    ("POST", "/v1/frames"),
    ("POST", "/ping"),
    ("PUT", "/v1/frames"),
    ("GET", "/health/live"),
    ("GET", "/v1/models"),
    ("GET", "/web/main.js"),
    ("POST", "/nothing"),
    ("OPTIONS", "/invocations"),
]


@pytest.mark.parametrize("body", ["Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{"])
def test_a5_one_byte_of_a_body_and_silence_is_not_waited_for(brisk: Service, body: str) -> None:
    with ExitStack() as stack:
        open_ = {route: stack.enter_context(plain_socket(brisk)) for route in ROUTES}
        begun = time.monotonic()
        for (method, path), sock in open_.items():
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{body}".encode())
        for route, sock in open_.items():
            said = until_closed(sock)
            if route in (("POST", "/invocations"), ("POST", "/v1/frames")):
                assert said.startswith(b"HTTP/1.1 408 "), said
                assert b'"code":"timeout"' in said
        assert time.monotonic() - begun < 8
    assert "Traceback" not in brisk.log


def until_closed(sock: socket.socket) -> bytes:
    heard = b""
    with suppress(ConnectionError):
        while piece := sock.recv(1 << 16):
            heard += piece
    return heard


def test_a5_slow_bodies_are_counted(brisk: Service) -> None:
    name = 'sightline_connections_refused_total{reason="slow_body"}'
    before = brisk.metrics().get(name, 0)
    with plain_socket(brisk) as sock:
        sock.sendall(b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        assert ended(sock)
    assert brisk.metrics()[name] == before + 1


def test_a5_an_invocation_is_small(brisk: Service) -> None:
    answer = httpx.post(f"{brisk.url}/invocations", content=b" " * (64 * 1024 + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    with plain_socket(brisk) as sock:  # by its own word, before it is here
        sock.sendall(b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999999999999999\r\n\r\n")
        assert sock.recv(1 << 16).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    with plain_socket(brisk) as sock:
        sock.sendall(b"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        send_until_cut_off(sock, b"10000\r\n" + bytes(0x10000) + b"\r\n")


# --- forms ---


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    """A form of these parts: the rest of their Content-Disposition, and what is in them."""
    pieces = [
        b"--b\r\nContent-Disposition: form-data; %s\r\nContent-Type: image/jpeg\r\n\r\n%s\r\n" % (head.encode(), body)
        for head, body in parts
    ]
    return b"".join(pieces) + end


def post(service: Service, body: bytes, kind: str = FORM) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/frames", content=body, headers={"Content-Type": kind}, timeout=20)


def test_e7_curl_sends_a_picture_as_a_form(service: Service, jpeg: bytes, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "image.jpg").write_bytes(jpeg)
    command = [curl, "-sS", "-F", f"file=@{tmp_path}/image.jpg", f"{service.url}/v1/frames", "--noproxy", "*"]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert [detection["class_name"] for detection in orjson.loads(done.stdout)["objects"]] == ["person", "dog"]


@pytest.mark.parametrize("head", ['name="file"; filename="a b;.jpg"', "name=file", 'name="file"; filename*=x'])
def test_e7_a_form_of_one_file_is_a_picture(service: Service, jpeg: bytes, head: str) -> None:
    before = service.frames("http")["processed"]
    answer = post(service, form((head, jpeg)))
    assert answer.status_code == 200, answer.text
    assert [detection["class_name"] for detection in answer.json()["objects"]] == ["person", "dog"]
    assert post(service, b"preamble\r\n" + form((head, jpeg)) + b"epilogue").status_code in (200, 422)
    assert service.frames("http")["processed"] >= before + 1


def test_e7_a_picture_that_looks_like_a_boundary_comes_whole(service: Service, jpeg: bytes) -> None:
    tail = b"\r\n--", b"\r\n--a", b"\r\n", b"--b--"  # what may stand behind a JPEG's end
    for more in tail:
        assert post(service, form(('name="file"', jpeg + more))).status_code == 200


PART = b"--b\r\nContent-Disposition: form-data; name=file\r\n"
WRONG_FORMS = {
    "another name": form(('name="image"; filename="a.jpg"', b"x")),
    "two files": form(('name="file"', b"x"), ('name="file"', b"y")),
    "a field beside it": form(('name="file"', b"x"), ('name="conf"', b"1")),
    "no name": form(("filename=x", b"x")),
    "no part": b"--b--\r\n",
    "no disposition": b"--b\r\nContent-Type: image/jpeg\r\n\r\nx\r\n--b--\r\n",
    "another disposition": b"--b\r\nContent-Disposition: attachment; name=file\r\n\r\nx\r\n--b--\r\n",
    "no end": form(('name="file"', b"x"), end=b""),
    "another boundary": form(('name="file"', b"x")).replace(b"--b", b"--c"),
    "nothing": b"",
    "a image": b"\xff\xd8\xff\xe0" + bytes(100),
    "base64": PART + b"Content-Transfer-Encoding: base64\r\n\r\neA==\r\n--b--",
    "many headers": PART + b"A: b\r\n" * 100 + b"\r\nx\r\n--b--\r\n",
    "a long header": b"--b\r\nContent-Disposition: form-data; name=" + b"f" * 5000 + b"\r\n\r\nx\r\n--b--\r\n",
    "its boundary all over": form(('name="file"', b"\r\n--by" * 200)),
    "a header that is none": b"--b\r\nCont\x00ent\r\n\r\nx\r\n--b--\r\n",
}


@pytest.mark.parametrize("kind", WRONG_FORMS)
def test_e7_what_is_no_form_of_one_file_is_said_to_be_none(service: Service, kind: str) -> None:
    answer = post(service, WRONG_FORMS[kind])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_form"), answer.text
    assert answer.json()["error"]["field"] == "file"
    assert "`file`" in answer.json()["error"]["message"]
    assert len(answer.content) < 600
    assert_adds_up(service, "http")


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary=""', "; boundary=" + "b" * 300])
def test_e7_a_form_without_a_boundary_is_none(service: Service, boundary: str) -> None:
    answer = post(service, form(('name="file"', b"x")), "multipart/form-data" + boundary)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_form")


def test_e7_a_form_may_be_as_large_as_its_picture(service: Service, jpeg: bytes) -> None:
    most = 2 * 1024 * 1024
    assert post(service, form(('name="file"', jpeg + bytes(most - len(jpeg))))).status_code == 200
    for body in (
        form(('name="file"', jpeg + bytes(most + 1 - len(jpeg)))),
        form(('name="file"', jpeg)) + bytes(most),
        b"\r\n" * 10_000 + form(('name="file"', jpeg)),
    ):
        answer = post(service, body)
        assert answer.status_code in (413, 422), answer.text
    assert_adds_up(service, "http")


# --- A8: what a client said is repeated only so far that its mistake can be seen ---

HUGE = "x" * 3_000_000
SAYINGS = {
    "class": {"type": "update", "classes": [HUGE]},
    "classes": {"type": "update", "classes": ["y" * 900 for _ in range(1000)]},
    "type": {"type": HUGE},
    "type of another kind": {"type": [HUGE]},
    "mode": {"type": "init", "mode": HUGE},
    "stage": {"type": "update", "stages": {"detect": HUGE}},
    "stages": {"type": "update", "stages": HUGE},
    "unknown stages": {"type": "update", "stages": {f"{number}{'z' * 100}": 1 for number in range(10_000)}},
    "confidence": {"type": "update", "confidence": HUGE},
    "prompt": {"type": "update", "summary": {"prompt": HUGE}},
    "pong": {"type": "pong", "t": HUGE},
    "token": {"type": "init", "token": HUGE},
    "wrong classes": {"type": "update", "classes": [[HUGE[:2000]] for _ in range(1000)]},
    "large number": {"type": "update", "classes": [2**63]},
    "controls": {"type": "\x1b[2J\x00\u202e" * 1000},
}


@pytest.mark.parametrize("what", SAYINGS)
async def test_a8_an_error_repeats_little_of_what_was_said(service: Service, what: str) -> None:
    async with opened(service) as live:
        if SAYINGS[what]["type"] != "init":
            await live.say("init")
            await live.until("ready")
        await live.text(orjson.dumps(SAYINGS[what]).decode())
        if what == "unknown stages":  # fields that are not known are passed over
            assert (await live.until("settings"))["type"] == "settings"
            return
        error = await live.until("error")
        assert len(orjson.dumps(error)) < 2500, what
        assert error["message"].isprintable()
    assert HUGE[:400] not in service.log


@pytest.mark.parametrize("text", ["[" * 3_000_000, '"' + HUGE, HUGE, '{"type":"' + HUGE, "{" + '"a":1,' * 300_000])
async def test_a8_what_is_no_json_is_not_repeated(service: Service, text: str) -> None:
    async with ready(service) as live:
        await live.text(text)
        assert len(orjson.dumps(await live.until("error"))) < 1000


@pytest.mark.parametrize(
    "query",
    ["classes=" + "x" * 6000, "classes=" + "a," * 3000, "confidence=" + "9" * 6000, "iou=" + "x" * 6000],
    ids=lambda query: query[:12],
)
def test_a8_a_query_is_not_repeated(service: Service, jpeg: bytes, query: str) -> None:
    answer = httpx.post(f"{service.url}/v1/frames?{query}", content=jpeg)
    assert answer.status_code == 422
    assert len(answer.content) < 2500
    assert len(httpx.get(f"{service.url}/v1/sessions/{'f' * 7000}/summaries").content) < 1000
    assert len(httpx.get(f"{service.url}/{'f' * 7000}").content) < 1000


@pytest.mark.parametrize(
    "body",
    [
        {"k" * 60_000: 1},
        {"s3_input_uri": "x" * 60_000},
        {"s3_input_uri": "x" * 2048, "s3_output_uri": "y.mp4"},
        {"s3_input_uri": "file:///" + "x" * 2000, "s3_output_uri": "file:///y.mp4"},
        {"mode": "m" * 60_000},
        ["x" * 60_000],
        "x" * 60_000,
        {str(number): number for number in range(5000)},
    ],
    ids=range(8),
)
def test_a8_an_invocation_is_not_repeated(service: Service, body: object) -> None:
    answer = httpx.post(f"{service.url}/invocations", json=body)
    assert answer.status_code in (403, 404, 422), answer.text
    assert len(answer.content) < 2500


async def test_a8_a_token_is_not_repeated(serve: Serve) -> None:
    service = serve(AUTH_TOKENS="right")
    async with opened(service) as live:
        await live.say("init", token="wrong" * 100)
        assert "wrong" not in str(await live.bye())
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{service.url}/v1/models", headers={"Authorization": "Bearer " + "wrong" * 1000})
    assert answer.status_code == 401
    assert "wrongwrong" not in answer.text + service.log
