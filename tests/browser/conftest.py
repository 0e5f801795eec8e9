"""Debian's Chromium with a fake camera, and the real service with its own Triton and text reading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.browser.films import write_y4m
from tests.browser.sight import Sight
from tests.support import clip
from tests.support.clip import Pixels
from tests.support.service import Service

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name that is not loopback: browsers trust no plain http from there.
    "--host-resolver-rules=MAP sight.test 127.0.0.1",
)
FAKE_CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
CAMERA_FPS = 15
Look = Callable[..., Sight]
Launch = Callable[..., Browser]


@pytest.fixture(scope="package")
def chromium() -> Path:
    """Path of the browser. Where it is not installed, tests skip at home and fail in CI."""
    if not CHROMIUM.exists():
        message = f"{CHROMIUM} is missing: install what tests/system-packages.txt names"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return CHROMIUM


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    # It keeps an event loop running in this thread: it must end with these tests, others want loops of their own.
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def video_frames() -> list[Pixels]:
    """A window that moves slowly to and fro over a person and a sign; the last frame leads to the first."""
    there = clip.Pan((4, 2), 12).pictures()
    return there + there[-2:0:-1]


@pytest.fixture(scope="package")
def launch(chromium: Path, playwright: Playwright) -> Iterator[Launch]:
    """Starts a browser with these arguments beside the usual ones."""
    started: list[Browser] = []

    def start(*arguments: str) -> Browser:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS, *arguments])
        started.append(browser)
        return browser

    yield start
    for browser in started:
        browser.close()


@pytest.fixture(scope="package")
def browser(launch: Launch, video_frames: list[Pixels], tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A browser whose camera plays the video and needs no permission."""
    camera = write_y4m(tmp_path_factory.mktemp("camera") / "camera.y4m", video_frames, CAMERA_FPS)
    return launch(*FAKE_CAMERA, f"--use-file-for-fake-video-capture={camera}")


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Opens the page of a service in a profile of its own; at the end, `Sight.check` must find nothing unexpected."""
    opened: list[Sight] = []

    def open_page(service: Service | str, *, within: Browser = browser, opening: bool = True, **context: Any) -> Sight:
        origin = service if isinstance(service, str) else service.url
        context = {"viewport": {"width": 1280, "height": 900}, **context}
        sight = Sight(within.new_context(**context).new_page(), origin)
        opened.append(sight)
        return sight.open() if opening else sight

    yield open_page
    for sight in opened:
        sight.page.context.close()
    for sight in opened:
        sight.check()
