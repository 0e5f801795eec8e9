"""Plain HTTP beside the socket."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.client import decode
from app.protocol.messages import Result
from tests.conftest import SLOW, Serve, photograph, pillow_jpeg
from tests.support.live import ended, plain_socket, ready, reset, send_until_cut_off, settle, validators
from tests.support.service import Service, assert_adds_up


@pytest.fixture(scope="module")
def brisk(serve: Serve) -> Service:
    """One that waits for nobody longer than half a second."""
    return serve(INIT_TIMEOUT_S="0.5", **SLOW)


def post(service: Service, content: object, query: str = "", **headers: str) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/frames{query}", content=content, headers=headers, timeout=20)  # type: ignore[arg-type]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# --- POST /v1/frames ---


def test_one_picture_in_one_result_out(service: Service, jpeg: bytes) -> None:
    answer = post(service, jpeg)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    validators(service.url)["result"].validate(answer.json())
    result = decode(answer.content)
    assert isinstance(result, Result)
    assert [detection.class_name for detection in result.frame.objects] == ["person", "dog"]
    assert [detection.track_id for detection in result.frame.objects] == [None, None]
    assert result.frame.stages["track"].status == result.frame.stages["motion"].status == "disabled"


def test_the_body_may_come_in_chunks_of_unknown_number(service: Service, jpeg: bytes) -> None:
    def chunks() -> Iterator[bytes]:
        for at in range(0, len(jpeg), 1000):
            yield jpeg[at : at + 1000]

    assert post(service, chunks()).status_code == 200


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?confidence=0.85", ["person"]),
        ("?classes=dog", ["dog"]),
        ("?classes=PERSON,16", ["person", "dog"]),
        ("?classes=1", []),
        ("?classes=", ["person", "dog"]),
        ("?iou=0.1&confidence=0", ["person", "dog"]),
        ("?mask_rle=true", ["person", "dog"]),
    ],
)
def test_the_query_says_what_to_keep(service: Service, jpeg: bytes, query: str, names: list[str]) -> None:
    answer = post(service, jpeg, query)
    assert [detection["class_name"] for detection in answer.json()["objects"]] == names


@pytest.mark.parametrize(
    "classes", ["unicorn", "80", "-1", "²", "9" * 5000, "1," * 3000, "person,,dog", "%00", "1e3"], ids=lambda c: c[:10]
)
def test_classes_that_are_none_are_named(service: Service, jpeg: bytes, classes: str) -> None:
    answer = post(service, jpeg, f"?classes={classes}")
    assert code(answer) == (422, "invalid_value")
    assert answer.json()["error"]["field"].startswith("classes")


@pytest.mark.parametrize(
    "query", ["confidence=2", "confidence=-0.1", "confidence=much", "iou=nan", "iou=1.01", "mask_rle=2"]
)
def test_numbers_out_of_range_are_refused(service: Service, jpeg: bytes, query: str) -> None:
    answer = post(service, jpeg, f"?{query}")
    assert code(answer) == (422, "invalid_value")
    assert answer.json()["error"]["field"] == query.partition("=")[0]


def test_more_pictures_at_once_than_sessions_are_sent_away(serve: Serve, jpeg: bytes) -> None:
    service = serve(MAX_SESSIONS="1", **SLOW)
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda _: post(service, jpeg), range(6))]
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all(answer.headers["Retry-After"] for answer in answers if answer.status_code == 503)
    counts = assert_adds_up(service, "http")
    assert counts["received"] == 6
    assert post(service, jpeg).status_code == 200


def test_pictures_count_as_sessions_of_their_token_and_their_address(serve: Serve, jpeg: bytes) -> None:
    limits = {"MAX_SESSIONS_PER_TOKEN": "2", "MAX_SESSIONS_PER_ADDRESS": "3"}
    service = serve(AUTH_TOKENS="red,blue", **limits, **SLOW)

    def post_as(token_and_address: str) -> httpx.Response:
        token, address = token_and_address.split()
        headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": f"198.51.100.{address}"}
        return post(service, jpeg, **headers)

    for several in ("red 1", "red 2", "red 3", "red 4"), ("red 5", "blue 5", "red 5", "blue 5", "blue 5"):
        with ThreadPoolExecutor(len(several)) as pool:
            answers = [*pool.map(post_as, several)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert len(refused) >= 2
        for refusal in refused:
            assert refusal.json()["error"]["code"] == "rejected"
            assert int(refusal.headers["Retry-After"]) >= 1
    assert post_as("red 1").status_code == 200
    assert_adds_up(service, "http")
    samples = service.metrics()
    for reason in ("token_limit", "address_limit"):
        assert samples[f'sightline_auth_failures_total{{reason="{reason}"}}'] >= 1


def test_text_that_takes_too_long_is_not_waited_for(serve: Serve, jpeg: bytes, tmp_path: Path) -> None:
    """Each run hangs until it is killed; four of them take longer than anybody should wait for one."""
    mute = tmp_path / "python"
    mute.write_text("#!/bin/sh\necho '{\"rss\": 1}'\nexec sleep 600\n")
    mute.chmod(0o755)
    service = serve(OCR="on", OCR_PYTHON=str(mute), OCR_TIMEOUT_S="0.5")
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda _: post(service, jpeg), range(4))]
    assert {answer.status_code for answer in answers} == {200}
    stages = [answer.json()["stages"]["ocr"] for answer in answers]
    assert {stage["status"] for stage in stages} == {"error"}
    assert sum("twice OCR_TIMEOUT_S" in stage["reason"] for stage in stages) >= 2
    assert [detection["class_name"] for detection in answers[0].json()["objects"]] == ["person", "dog"]


async def a_session_leaves_no_room_for_a_picture(service: Service, jpeg: bytes) -> None:
    async with ready(service), httpx.AsyncClient() as http:
        assert (await http.post(f"{service.url}/v1/frames", content=jpeg)).status_code == 429
    settle(service)
    assert post(service, jpeg).status_code == 200


def test_a_session_counts_against_pictures(serve: Serve, jpeg: bytes) -> None:
    asyncio.run(a_session_leaves_no_room_for_a_picture(serve(MAX_SESSIONS_PER_ADDRESS="1"), jpeg))


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"], ids=["nothing", "text", "cut", "png"]
)
def test_what_is_no_jpeg_is_an_unsupported_medium(service: Service, body: bytes) -> None:
    assert code(post(service, body)) == (415, "undecodable")


def test_a_picture_cut_short_is_one_too(service: Service, jpeg: bytes) -> None:
    assert code(post(service, jpeg[: len(jpeg) // 2])) == (415, "undecodable")


def test_too_many_pixels_or_bytes_are_too_large(service: Service) -> None:
    assert code(post(service, pillow_jpeg(Image.new("RGB", (8000, 8000)), quality=5))) == (413, "too_large")
    assert code(post(service, b"\xff\xd8" + bytes(2 * 1024 * 1024))) == (413, "too_large")


def test_a_body_without_end_is_answered_at_the_limit_and_cut_off(brisk: Service) -> None:
    with plain_socket(brisk) as sock:
        sock.sendall(b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        send_until_cut_off(sock, b"10000\r\n" + bytes(0x10000) + b"\r\n")
    assert brisk.metrics()['sightline_frames_dropped_total{entry="http",reason="too_large"}'] == 1


def test_a_body_that_does_not_come_is_not_waited_for(brisk: Service, jpeg: bytes) -> None:
    with plain_socket(brisk) as sock:
        sock.sendall(b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
        assert b" 408 " in sock.recv(1 << 16)
        assert ended(sock)
    assert post(brisk, jpeg).status_code == 200


def test_a_client_that_leaves_in_the_middle_is_no_fault_of_ours(brisk: Service, jpeg: bytes) -> None:
    head = f"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
    for body in (b"", jpeg[:1000], jpeg):
        sock = plain_socket(brisk)
        sock.sendall(head + body)
        time.sleep(0.1)  # the whole one is then with the slow model
        reset(sock)
    assert post(brisk, jpeg).status_code == 200
    assert "Traceback" not in brisk.log


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_not_allowed(service: Service, method: str) -> None:
    assert httpx.request(method, f"{service.url}/v1/frames").status_code == 405


# --- connections that are slow on purpose ---


def test_half_a_request_is_not_waited_for(brisk: Service) -> None:
    with plain_socket(brisk) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow")
        assert ended(sock)


def test_half_a_later_request_is_not_waited_for_either(brisk: Service) -> None:
    with plain_socket(brisk) as sock:
        for _ in range(3):  # for longer than INIT_TIMEOUT_S in all: what is busy is left alone
            sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b'"}'):
                answer += sock.recv(1 << 16)
            time.sleep(0.25)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow")
        assert ended(sock)


def test_a_connection_that_says_nothing_is_closed(brisk: Service) -> None:
    with plain_socket(brisk) as sock:
        assert ended(sock)


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"\x16\x03\x01\x02\0\x01\0", b"GET\r\n\r\n", b"A" * 100_000])
def test_what_is_no_http_is_sent_away(brisk: Service, garbage: bytes) -> None:
    with plain_socket(brisk) as sock:
        with suppress(ConnectionError):  # sent away before all of it was sent
            sock.sendall(garbage)
        assert ended(sock)


# --- what tells of itself ---


def test_live_and_ready(service: Service) -> None:
    assert httpx.get(f"{service.url}/health/live").json() == {"status": "ok"}
    answer = httpx.get(f"{service.url}/health/ready")
    assert answer.status_code == 200
    parts = answer.json()
    assert parts["status"] == "ready"
    assert parts["inference"]["state"] == parts["disk"]["state"] == "ok"
    assert parts["inference"]["shared_memory"] is True
    assert parts["ocr"]["state"] == "disabled"


def test_status_says_when_something_last_happened(service: Service, jpeg: bytes) -> None:
    before = time.time()
    post(service, jpeg)
    status = httpx.get(f"{service.url}/status").json()
    assert (status["sessions_active"], status["sessions_waiting"]) == (0, 0)
    assert before <= status["last_activity"] <= time.time()
    assert status["idle_s"] >= 0
    assert status["uptime_s"] > 0
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", status["version"])


def test_models_are_those_that_ready_names(service: Service) -> None:
    models = httpx.get(f"{service.url}/v1/models").json()
    assert models["detect"]["name"] == "canned yolo"
    assert len(models["detect"]["classes"]) == 80
    assert len(models["pose"]["keypoints"]) == 17
    assert models["ocr"] is None


def test_metrics_are_prometheus_text_and_count(service: Service, jpeg: bytes) -> None:
    answer = httpx.get(f"{service.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE sightline_frames_received_total counter" in answer.text
    before = service.frames("http")["processed"]
    post(service, jpeg)
    assert service.frames("http")["processed"] == before + 1
    assert service.metrics()["sightline_inference_up"] == 1
    assert "session_id" not in answer.text


def test_the_page_and_what_it_loads(service: Service) -> None:
    page = httpx.get(f"{service.url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "sightline" in page.text.lower()
    for name in re.findall(r'(?:src|href)="(/web/[^"#?]+)', page.text):
        assert httpx.get(service.url + name).status_code == 200, name
    assert httpx.get(f"{service.url}/web/../main.py").status_code == 404


def test_the_openapi_names_every_route_with_a_summary(service: Service) -> None:
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    wanted = {"/v1/frames", "/v1/models", "/schema.json", "/health/live", "/health/ready", "/status", "/metrics", "/"}
    assert wanted <= set(paths)
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path}"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_loads_from_elsewhere(service: Service, path: str) -> None:
    assert httpx.get(service.url + path).status_code == 404


def test_unknown_paths_are_not_found(service: Service) -> None:
    assert httpx.get(f"{service.url}/nothing").status_code == 404
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
        sock.sendall(
            b"GET /ws/other HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 404")


def test_every_picture_of_this_module_is_accounted_for(service: Service, brisk: Service) -> None:
    post(service, photograph(64, 48))
    for server in (service, brisk):
        counts = assert_adds_up(server, "http")
        assert counts["processed"] > 0
        assert counts["dropped"] > 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("/v1/frames", "conf=0.9", "confidence"),
        ("/v1/frames", "Confidence=0.9", "confidence"),
        ("/v1/frames", "confidence=0.5&class=person", "classes"),
        ("/v1/frames", "verbose=1", "confidence, iou, classes, mask_rle"),
        ("/v1/frames", "x" * 3000 + "=1", "confidence, iou, classes, mask_rle"),
    ],
)
def test_e6_a_misspelt_query_is_said(service: Service, jpeg: bytes, path: str, wrong: str, right: str) -> None:
    answer = httpx.post(f"{service.url}{path}?{wrong}", content=jpeg)
    assert answer.status_code == 422
    problem = answer.json()["error"]
    assert problem["code"] == "invalid_value"
    assert right in problem["message"]
    assert wrong.split("&")[-1].partition("=")[0].startswith(problem["field"].removesuffix("..."))
    assert len(answer.content) < 400


def test_e6_a_misspelt_query_of_summaries_is_said(service: Service) -> None:
    answer = httpx.get(f"{service.url}/v1/sessions/{'0' * 32}/summaries?lats=3")
    assert answer.status_code == 422
    assert "last is probably meant" in answer.json()["error"]["message"]
