"""Behind a proxy: what is on this machine is talked to directly."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from app.addresses import is_loopback, leads_to_loopback
from app.client import SessionEnded, connect
from app.settings import ROOT
from tests.conftest import Serve
from tests.support.proxy import BEHIND_A_PROXY
from tests.support.service import Service


@pytest.fixture(scope="module")
def behind(serve: Serve) -> Service:
    return serve(**BEHIND_A_PROXY)  # which is ready only once it has talked to Triton


def test_the_service_and_its_client_find_who_is_beside_them(behind: Service, jpeg: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(jpeg)
    sent = subprocess.run(
        [sys.executable, "-m", "app", "send", str(tmp_path / "one.jpg"), "--url", behind.url],
        env={**os.environ, **BEHIND_A_PROXY},
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    result = orjson.loads(sent.stdout.splitlines()[0])
    assert result["stages"]["detect"]["status"] == "ok"
    assert [detection["class_name"] for detection in result["objects"]] == ["person", "dog"]


@pytest.mark.parametrize("proxy", [BEHIND_A_PROXY["http_proxy"], "socks5://127.0.0.1:9", "nonsense"])
def test_elsewhere_is_reached_as_the_environment_says(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in BEHIND_A_PROXY:
        monkeypatch.setenv(name, "" if name.lower() == "no_proxy" else proxy)

    async def run() -> None:
        async with connect("http://192.0.2.1:8000"):  # nobody's (RFC 5737)
            pass

    with pytest.raises(SessionEnded, match=r"http://192\.0\.2\.1:8000"):
        asyncio.run(run())


def test_what_loopback_is() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "192.168.0.1", "localhost.example", "sight.example")))
    for url, expected in (
        ("ws://127.0.0.1:8000/ws/inference", True),
        ("ws://[::1]:8000/", True),
        ("wss://localhost", True),
        ("wss://sight.example/ws/inference", False),
        ("ws://[half", False),
    ):
        assert leads_to_loopback(url) is expected
