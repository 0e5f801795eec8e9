"""No camera, no permission, no offer: each card says what is wrong and what to do, and offers the sample."""

from __future__ import annotations

import pytest

from tests.browser.conftest import FAKE_CAMERA, Launch, Look
from tests.conftest import Serve
from tests.support.service import Service

# A camera that exists and fails cannot be had from flags: the browser's answer is put in its place.
BUSY = """() => {
    const busy = () => Promise.reject(new DOMException("Could not start video source", "NotReadableError"));
    navigator.mediaDevices.getUserMedia = busy;
}"""


def test_permission_refused(service: Service, look: Look, launch: Launch) -> None:
    browser = launch("--use-fake-device-for-media-stream", "--deny-permission-prompts")
    sight = look(service, within=browser)
    sight.page.click("#camera")
    assert "choose Allow" in sight.shows("#card", "The camera was refused")
    assert sight.text("#status") == "Not connected"
    sight.screenshot("refused")
    sight.press("Try again")
    sight.shows("#card", "The camera was refused")
    sight.press("Use the sample")
    sight.live()
    # What runs goes on when another source is refused.
    sight.page.click("#camera")
    sight.shows("#banner", "The camera was refused")
    sight.live(results=2)


def test_no_camera(service: Service, look: Look, launch: Launch) -> None:
    browser = launch(FAKE_CAMERA[0], "--use-fake-device-for-media-stream=device-count=0")
    sight = look(service, within=browser)
    sight.page.click("#camera")
    assert "Plug one in" in sight.shows("#card", "No camera was found")
    sight.press("Use the sample")
    sight.live()


def test_a_busy_camera(service: Service, look: Look) -> None:
    sight = look(service)
    sight.page.evaluate(BUSY)
    sight.page.click("#camera")
    assert "Could not start video source" in sight.shows("#card", "The camera is busy")


def test_plain_http_from_elsewhere(serve: Serve, look: Look) -> None:
    service = serve(ALLOWED_HOSTS="sight.test")
    sight = look(f"http://sight.test:{service.port}")
    assert not sight.ask("isSecureContext")
    sight.page.click("#camera")
    text = sight.shows("#card", "Browsers offer the camera to secure pages only")
    assert "sight.test" in text
    assert f"http://localhost:{service.port}" in text
    sight.screenshot("insecure")
    sight.press("Use the sample")
    sight.live()
    sight.page.click("#screen")
    sight.shows("#banner", "Browsers offer the screen to secure pages only")


@pytest.mark.parametrize("button", ["#still", "#record", "#stop", "#results"])
def test_nothing_to_keep_before_there_is_a_picture(service: Service, look: Look, button: str) -> None:
    assert look(service).page.is_disabled(button)
