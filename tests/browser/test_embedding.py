"""`client.js` in another page on another origin, with the README's own lines and files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage

from app.settings import ROOT
from tests.browser.conftest import Look
from tests.browser.wire import folder_served
from tests.conftest import Serve

PAGE = '<!doctype html><title>Embedding</title><link rel="icon" href="data:,"><video id="video" muted></video>'
START_VIDEO = """
video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
await video.play();
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files that the README says to copy, and a page of the README's lines."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"\*\*In your own page\.\*\*(.*?)```js\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    prose, lines = found.groups()
    named = re.findall(r"`([\w.-]+\.js)`", prose)
    assert "client.js" in named
    for name in named:
        shutil.copy(ROOT / "app" / "web" / name, tmp_path)
    (tmp_path / "page.js").write_text(START_VIDEO + lines)
    (tmp_path / "index.html").write_text(f'{PAGE}<script type="module" src="page.js"></script>')
    return tmp_path


def test_the_readmes_lines_in_a_page_of_ones_own(files: Path, serve: Serve, look: Look) -> None:
    with folder_served(files) as origin:
        service = serve(ALLOWED_ORIGINS=origin)
        page = files / "page.js"
        lines = page.read_text()
        assert lines.count("https://sight.example") == 1
        page.write_text(lines.replace("https://sight.example", service.url))
        sight = look(origin, opening=False)
        sight.permitted.add(service.url)
        logged: list[ConsoleMessage] = []
        sight.page.on("console", lambda message: logged.append(message))
        sight.page.goto(origin)
        for _ in range(200):
            if len(logged) >= 5:
                break
            sight.page.wait_for_timeout(50)
        age, objects = (argument.json_value() for argument in logged[4].args)
        assert 0 < age < 5000
        assert [found["class_name"] for found in objects] == ["person", "dog"]


def test_a_page_that_was_not_named_gets_nothing(files: Path, serve: Serve, look: Look) -> None:
    with folder_served(files) as origin:
        service = serve(ALLOWED_ORIGINS="https://another.example")
        page = files / "page.js"
        page.write_text(page.read_text().replace("https://sight.example", service.url))
        sight = look(origin, opening=False)
        sight.permitted.add(service.url)
        sight.expected += [r"WebSocket connection to .* failed: .* 403", r"status of 403 .*/ws/inference"]
        sight.page.goto(origin)
        for _ in range(200):
            if sight.said:
                break
            sight.page.wait_for_timeout(50)
        assert "403" in sight.said[0]
        assert service.frames()["received"] == 0
