"""Plain HTTP through nginx: TLS, public and private paths, limits, headers, the cached page."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.settings import ROOT
from tests.conftest import Serve
from tests.support.nginx import NAME, Proxy, can_bind, require, running_nginx
from tests.support.service import Service

LONE = ("content-security-policy", "x-content-type-options", "referrer-policy", "strict-transport-security")


# --- the files and TLS ---


def test_nginx_finds_no_fault_with_the_files(proxy: Proxy) -> None:
    arguments = [require("nginx"), "-t", "-p", str(proxy.folder), "-c", str(proxy.folder / "nginx.conf")]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stderr
    assert [line.rpartition(" ")[2] for line in said.splitlines()] == ["ok", "successful"]
    for level in ("[warn]", "[error]", "[crit]", "[alert]", "[emerg]"):
        assert level not in said


def s_client(proxy: Proxy, *options: str) -> str:
    command = [require("openssl"), "s_client", "-connect", f"127.0.0.1:{proxy.https}", *options]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_current_tls_is_spoken_and_http_2(proxy: Proxy, version: str) -> None:
    flag = "-" + version.lower().replace("v", "").replace(".", "_")
    trusted = str(proxy.folder / "certificate.pem")
    said = s_client(proxy, flag, "-servername", NAME, "-alpn", "h2,http/1.1", "-CAfile", trusted)
    assert f"New, {version}, Cipher is" in said
    assert "ALPN protocol: h2" in said
    assert "Verification: OK" in said


@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
def test_old_tls_is_refused(proxy: Proxy, flag: str) -> None:
    said = s_client(proxy, flag, "-servername", NAME, "-cipher", "ALL:@SECLEVEL=0")
    assert "alert protocol version" in said
    assert "Cipher is (NONE)" in said


@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA"])
def test_ciphers_without_forward_secrecy_or_authentication_are_refused(proxy: Proxy, cipher: str) -> None:
    said = s_client(proxy, "-tls1_2", "-servername", NAME, "-cipher", f"{cipher}:@SECLEVEL=0")
    assert "alert handshake failure" in said


def test_another_name_gets_no_certificate(proxy: Proxy) -> None:
    for options in (["-servername", "other.example"], ["-noservername"]):
        said = s_client(proxy, *options)
        assert "no peer certificate available" in said
        assert "unrecognized name" in said


def test_our_name_in_the_handshake_and_another_in_the_request_gets_no_answer(proxy: Proxy) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for host, answers in ((NAME, True), ("other.example", False), ("", False)):
        with (
            socket.create_connection(("127.0.0.1", proxy.https), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as tls,
        ):
            tls.sendall(f"GET /health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            said = tls.recv(65536)
            assert (b"HTTP/1.1 200" in said) is answers, said
            assert answers or b"nginx/" not in said


def test_plain_http_is_sent_to_https(proxy: Proxy) -> None:
    for method, path in (("GET", "/?a=b"), ("POST", "/v1/frames"), ("GET", "/metrics")):
        answer = httpx.request(method, f"http://127.0.0.1:{proxy.http}{path}", headers={"Host": NAME})
        assert (answer.status_code, answer.headers["location"]) == (308, f"https://{NAME}{path}")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://127.0.0.1:{proxy.http}/", headers={"Host": "other.example"})


def test_certificates_can_be_renewed_over_plain_http(proxy: Proxy) -> None:
    (proxy.folder / "acme/.well-known/acme-challenge/word").write_text("proof")
    url = f"http://127.0.0.1:{proxy.http}/.well-known/acme-challenge/word"
    assert httpx.get(url, headers={"Host": NAME}).text == "proof"


# --- what is open, what is closed ---


@pytest.mark.parametrize("path", ["/", "/config.json", "/web/main.js", "/health/live", "/health/ready", "/schema.json"])
def test_public_paths_are_served(proxy: Proxy, service: Service, path: str) -> None:
    answer = proxy.ask("GET", path)
    assert answer.status_code == 200
    if path != "/health/ready":  # it says how much room is on the disk
        assert answer.content == httpx.get(service.url + path).content


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("GET", "/metrics?x"),
        ("GET", "//metrics"),
        ("GET", "/web/../metrics"),
        ("GET", "/%6detrics"),
        ("GET", "/status"),
        ("GET", "/ping"),
        ("POST", "/invocations"),
    ],
)
def test_private_paths_are_refused(proxy: Proxy, method: str, path: str) -> None:
    answer = proxy.ask(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/metrics/", "/STATUS", "/health", "/v2/health/ready"])
def test_what_is_not_named_is_not_there(proxy: Proxy, path: str) -> None:
    assert proxy.ask("GET", path).status_code == 404


def test_every_closed_path_is_open_to_those_beside_the_service(service: Service) -> None:
    for path in ("/metrics", "/status"):
        assert httpx.get(service.url + path).status_code == 200


# --- one picture ---


def test_a_picture_is_analysed(proxy: Proxy, jpeg: bytes) -> None:
    answer = proxy.ask("POST", "/v1/frames", content=jpeg)
    assert answer.status_code == 200
    assert "person" in [detection["class_name"] for detection in answer.json()["objects"]]


def test_bodies_are_bounded_and_never_written_to_disk(proxy: Proxy, jpeg: bytes) -> None:
    largest = jpeg + bytes(2 * 1024 * 1024 - len(jpeg))
    assert proxy.ask("POST", "/v1/frames", content=largest).status_code == 200
    by_the_service = proxy.ask("POST", "/v1/frames", content=largest + b"\0")
    assert by_the_service.status_code == 413
    assert "MAX_FRAME_BYTES" in by_the_service.json()["error"]["message"]
    by_nginx = proxy.ask("POST", "/v1/frames", content=largest + bytes(1024 + 1))
    assert (by_nginx.status_code, by_nginx.json()["error"]["code"]) == (413, "too_large")
    assert "temporary file" not in proxy.error_log


# --- rates ---


def many_pictures(proxy: Proxy, **how: str) -> list[httpx.Response]:
    """Responses to more requests than nginx admits, sent at once, because a busy machine would send them too slowly."""

    def ask(_: int) -> httpx.Response:
        return proxy.ask("POST", "/v1/frames", content=b"no JPEG", **how)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, range(120)))


def test_too_many_pictures_are_turned_away_by_address(proxy: Proxy) -> None:
    answers = many_pictures(proxy, source="127.0.0.6")
    assert {answer.status_code for answer in answers} == {415, 429}
    late = next(answer for answer in answers if answer.status_code == 429)
    assert late.headers["retry-after"] == "1"
    assert late.json()["error"]["code"] == "rate_limited"
    assert proxy.ask("GET", "/v1/models", source="127.0.0.6").status_code == 200  # reading has a measure of its own
    assert proxy.ask("POST", "/v1/frames", content=b"no JPEG", source="127.0.0.7").status_code == 415


@pytest.mark.skipif(not can_bind("::1"), reason="this machine has no IPv6")
def test_ipv6_is_served_and_measured_too(proxy: Proxy) -> None:
    answers = many_pictures(proxy, host="[::1]", source="::1")
    assert {answer.status_code for answer in answers} == {415, 429}


# --- headers ---


@pytest.mark.parametrize("path", ["/", "/web/main.js", "/health/live", "/metrics", "/nowhere"])
def test_each_security_header_is_there_once(proxy: Proxy, path: str) -> None:
    headers = proxy.ask("GET", path).headers
    for name in LONE:
        assert len(headers.get_list(name)) == 1, name
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert "retry-after" not in headers


def test_the_pages_own_policy_wins(proxy: Proxy) -> None:
    for path in ("/", "/web/main.js"):
        assert f"wss://{NAME}" in proxy.ask("GET", path).headers["content-security-policy"]
    assert proxy.ask("GET", "/health/live").headers["content-security-policy"] == (
        "default-src 'none'; frame-ancestors 'none'"
    )


def test_versions_are_not_told(proxy: Proxy) -> None:
    assert proxy.ask("GET", "/metrics").headers["server"] == "nginx"


# --- the page's files ---


def test_files_are_kept_compressed_on_the_way_and_asked_for_by_etag(proxy: Proxy, service: Service) -> None:
    first = proxy.ask("GET", "/web/client.js", headers={"Accept-Encoding": "gzip"})
    assert (first.status_code, first.headers["content-encoding"]) == (200, "gzip")
    assert first.content == (ROOT / "app/web/client.js").read_bytes()
    assert first.headers["cache-control"] == "no-cache"
    again = proxy.ask("GET", "/web/client.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers


def test_while_the_service_is_away_files_come_from_here_and_the_rest_says_so(serve: Serve, tmp_path: Path) -> None:
    service = serve(ALLOWED_HOSTS=NAME)
    with running_nginx(tmp_path, service.port, {"200 10s;": "200 1s;"}) as proxy:
        assert proxy.ask("GET", "/web/main.js").status_code == 200
        service.process.terminate()
        service.process.wait(30)
        time.sleep(1.1)  # what is kept is out of date now
        assert proxy.ask("GET", "/web/main.js").content == (ROOT / "app/web/main.js").read_bytes()
        for method, path in (("GET", "/"), ("GET", "/health/ready"), ("POST", "/v1/frames")):
            away = proxy.ask(method, path)
            assert (away.status_code, away.json()["error"]["code"]) == (502, "unavailable"), path
            assert away.headers["retry-after"] == "5"


def test_nothing_of_a_client_reaches_the_log_but_its_requests(proxy: Proxy) -> None:
    proxy.ask("GET", "/v1/models", headers={"Authorization": "Bearer very-secret"})
    written = (proxy.folder / "access.log").read_text() + proxy.error_log
    assert "/v1/models" in written
    assert "very-secret" not in written
