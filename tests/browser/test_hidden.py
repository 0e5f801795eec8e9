"""A tab that another tab hides. Playwright keeps its pages visible; this browser is started without that emulation."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Playwright

from tests.browser.conftest import ARGUMENTS
from tests.browser.sight import PATIENCE_S, Sight
from tests.conftest import Serve


@pytest.fixture
def tabs(chromium: Path, playwright: Playwright, tmp_path: Path) -> Iterator[BrowserContext]:
    """A window whose tabs hide each other, as a user's do."""
    profile = tmp_path / "profile"
    arguments = [chromium, *ARGUMENTS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        said = profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE_S
        while not (said.exists() and said.read_text()):
            assert time.monotonic() < deadline, "the browser does not start"
            time.sleep(0.05)
        port = said.read_text().split()[0]
        browser = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}", no_defaults=True)
        yield browser.contexts[0]
        browser.close()
    finally:
        process.terminate()
        process.wait(10)


def test_a_hidden_tab_pauses_and_keeps_its_session(serve: Serve, tabs: BrowserContext) -> None:
    service = serve(IDLE_TIMEOUT_S="1")
    sight = Sight(tabs.pages[0], service.url).open().start("#sample", results=2)
    session = sight.ask("seen.last.session_id")
    other = tabs.new_page()
    sight.until("document.hidden")
    sight.page.wait_for_timeout(300)  # what was in flight is answered
    received = service.frames()["received"]
    # Twice as long as a session may be idle; a paused session may be idle longer.
    sight.page.wait_for_timeout(2000)
    assert service.frames()["received"] == received
    other.close()
    sight.page.bring_to_front()
    sight.until("!document.hidden")
    sight.live(results=3)
    assert sight.ask("seen.last.session_id") == session
    assert sight.events("bye") == []
    sight.check()


def test_hidden_for_too_long_it_comes_back_when_it_is_looked_at(serve: Serve, tabs: BrowserContext) -> None:
    service = serve(MAX_PAUSE_S="0.5")
    sight = Sight(tabs.pages[0], service.url).open().start("#sample", results=2)
    session = sight.ask("seen.last.session_id")
    other = tabs.new_page()
    sight.until("sightline.client.state === 'waiting'")
    sight.page.wait_for_timeout(1500)
    assert sight.ask("sightline.client.state") == "waiting"  # a hidden page leaves its slot to others
    other.close()
    sight.page.bring_to_front()
    sight.until(f"seen.last.session_id !== '{session}'")
    sight.live(results=2)
    sight.check()
