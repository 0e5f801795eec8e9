"""The page's own `instance-starter.js` in a real browser, with the real function behind a stand-in for its URL."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Page, sync_playwright

from app.settings import ROOT
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.browser.wire import folder_served
from tests.infra.conftest import TOKEN
from tests.infra.ec2 import Ec2
from tests.infra.test_lambda_start import event

ASK = """async ([url, method, token]) => {
  const { callStartServer } = await import("/instance-starter.js");
  try { return await callStartServer(url, { method, token }); }
  catch (error) { return { refused: error.message, status: error.status, temporary: error.temporary }; }
}"""


@contextmanager
def function_url() -> Iterator[tuple[str, list[str]]]:
    """Turns requests into events and answers into responses, as Lambda does. Yields its address, and the methods."""
    from start_server import handler

    methods: list[str] = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            methods.append(self.command)
            given = event(self.command)
            given["headers"] = {name.lower(): value for name, value in self.headers.items()}
            answer = handler(given, None)
            self.send_response(answer["statusCode"])
            for name, value in answer["headers"].items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer["body"].encode())))
            self.end_headers()
            self.wfile.write(answer["body"].encode())

        do_POST = do_OPTIONS = do_GET

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", methods
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def page() -> Iterator[Page]:
    """An empty page in Debian's Chromium; skips by name at home, fails in CI, when that is not installed."""
    if not CHROMIUM.exists():
        message = f"{CHROMIUM} is missing: install what tests/system-packages.txt names"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        try:
            yield browser.new_page()
        finally:
            browser.close()


def test_the_page_starts_the_machine_across_origins(ec2: Ec2, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    ec2.tag("sightline:cold-starts", "1763000000=48")
    with folder_served(ROOT / "app" / "web") as origin, function_url() as (url, methods):
        monkeypatch.setenv("ALLOWED_ORIGINS", origin)
        page.goto(f"{origin}/icon.svg")

        def ask(method: str, token: str = TOKEN) -> dict[str, object]:
            found: dict[str, object] = page.evaluate(ASK, [url, method, token])
            return found

        started = ask("POST")
        assert (started["state"], started["etaS"], started["url"]) == ("starting", 48, "https://sight.example")
        assert methods == ["OPTIONS", "POST"]  # the browser asked whether it may
        assert ec2.state == "running"
        ec2.shows("running")
        assert ask("GET")["state"] == "running"
        refused = ask("POST", "a wrong token")
        assert (refused["status"], refused["temporary"]) == (401, False)
        assert "token" in str(refused["refused"])
        ec2.refuse("DescribeInstances", "RequestLimitExceeded", 503, times=3)
        busy = ask("GET")
        assert (busy["status"], busy["temporary"]) == (503, True)
        assert "busy" in str(busy["refused"])
        monkeypatch.setenv("ALLOWED_ORIGINS", "https://elsewhere.example")
        assert ask("GET")["status"] == 0  # the browser keeps the answer from a page of another origin
