"""Video files: paused, sought in, recorded by a browser, long and narrow; and files that are no video."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import Look
from tests.browser.films import write_webm
from tests.browser.sight import Sight
from tests.support.clip import Pixels
from tests.support.service import Service

FILM = "document.querySelector('#view video')"
RESULTS = "sightline.hud.results.total"
# What a browser's own recorder writes: WebM that says nowhere how long it is.
RECORD = """async () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 160, height: 120 });
    const context = canvas.getContext("2d");
    const recorder = new MediaRecorder(canvas.captureStream(10), { mimeType: "video/webm;codecs=vp8" });
    const pieces = [];
    recorder.ondataavailable = ({ data }) => pieces.push(data);
    recorder.start(500);
    for (let turn = 0; turn < 30; turn += 1) {
        context.fillStyle = `rgb(${turn * 8} 90 90)`;
        context.fillRect(0, 0, 160, 120);
        await new Promise((done) => setTimeout(done, 100));
    }
    await new Promise((done) => { recorder.onstop = done; recorder.stop(); });
    const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of six seconds that gets lighter: its grey value gives the time."""
    frames: list[Pixels] = [np.full((120, 160, 3), 20 + 3 * number, np.uint8) for number in range(60)]
    return write_webm(tmp_path_factory.mktemp("ramp") / "ramp.webm", frames)


def opened(service: Service, look: Look, video: Path) -> Sight:
    sight = look(service)
    sight.page.set_input_files("#file", video)
    return sight.live(results=2)


def seek(sight: Sight, s: float) -> None:
    sight.page.fill("#player input", str(s))
    sight.until(f"!{FILM}.seeking && Math.abs({FILM}.currentTime - {s}) < 0.3")


def test_e6_a_video_is_paused_sought_in_and_played_on(service: Service, look: Look, ramp: Path) -> None:
    sight = opened(service, look, ramp)
    assert sight.page.is_visible("#player")
    sight.press("Pause")
    sight.until(f"{FILM}.paused")
    sight.shows("#player button", "Play")  # the page hears of it by an event, a moment later; so with all that follows
    seek(sight, 4)
    sight.shows("#player output", "0:04 / 0:06")
    assert sight.page.get_attribute("#player input", "aria-valuetext") == "0:04 of 0:06"
    # The page sends a paused video like an image, so that changed settings take effect.
    count = sight.ask(RESULTS)
    sight.until(f"{RESULTS} >= {count + 4}")
    sight.until("sightline.overlay.model.parts.objects.length === 2")
    assert sight.moment().shown[60, 80, 0] == pytest.approx(20 + 3 * 40, abs=9)
    assert sight.text("#status") == "Live"
    sight.screenshot("video-paused")
    sight.press("Play")
    sight.until(f"!{FILM}.paused && {FILM}.currentTime > 4.2")
    sight.shows("#player button", "Pause")
    # Without a video there is nothing to pause.
    sight.start("#sample", results=2)
    assert not sight.page.is_visible("#player")


def test_e6_a_video_by_keyboard(service: Service, look: Look, ramp: Path) -> None:
    sight = opened(service, look, ramp)
    sight.ask("document.activeElement.blur()")
    sight.page.keyboard.press("k")
    sight.until(f"{FILM}.paused")
    sight.page.focus("#player input")
    before = sight.ask(f"{FILM}.currentTime")
    sight.page.keyboard.press("Home")
    sight.until(f"{FILM}.currentTime === 0 && !{FILM}.seeking")
    for _ in range(20):
        sight.page.keyboard.press("ArrowRight")
    sight.until(f"Math.abs({FILM}.currentTime - 2) < 0.15")
    assert before != sight.ask(f"{FILM}.currentTime")
    sight.page.focus("#player button")
    sight.page.keyboard.press("Enter")
    sight.until(f"!{FILM}.paused")


def test_e6_a_video_by_touch(service: Service, look: Look, ramp: Path) -> None:
    sight = look(service, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    sight.page.set_input_files("#file", ramp)
    sight.live(results=2)
    sight.page.tap("#player button")
    sight.until(f"{FILM}.paused")
    box = sight.page.locator("#player input").bounding_box()
    assert box is not None
    assert box["height"] >= 36
    sight.page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    sight.until(f"Math.abs({FILM}.currentTime - 3) < 0.5")
    assert sight.ask("document.documentElement.scrollWidth") <= 360
    sight.screenshot("video-phone")


def test_e6_what_was_seen_before_a_jump_is_not_drawn_after_it(service: Service, look: Look, ramp: Path) -> None:
    sight = opened(service, look, ramp)
    sight.press("Pause")
    sight.until("sightline.overlay.model.parts.objects.length === 2")
    sight.ask("""void (globalThis.after = null,
        document.querySelector("#view video").addEventListener("seeking", () => requestAnimationFrame(() => {
            after = [sightline.overlay.model.parts.objects.length, sightline.client.lastSeq];
        })))""")
    sight.page.fill("#player input", "5")
    drawn, last = sight.until("after")
    assert drawn == 0
    sight.until("sightline.overlay.model.parts.objects.length === 2")
    assert sight.ask("seen.last.seq") > last - 1


def test_e6_a_recording_without_a_duration(service: Service, look: Look, tmp_path: Path) -> None:
    sight = look(service)
    (tmp_path / "recorded.webm").write_bytes(base64.b64decode(sight.page.evaluate(RECORD)))
    sight.page.set_input_files("#file", tmp_path / "recorded.webm")
    sight.live(results=2)
    sight.until("!document.querySelector('#player input').disabled")
    length = sight.ask(f"{FILM}.duration")
    assert 2 < length < 8  # three seconds and what the machine took
    sight.press("Pause")
    seek(sight, round(length / 2, 1))
    seek(sight, 0.2)
    sight.press("Play")
    sight.until(f"{FILM}.currentTime > 0.5")
    sight.until(f"{FILM}.currentTime < 0.5")  # and it begins again


def test_e6_a_notice_about_a_video_goes_with_the_next_one(
    service: Service, look: Look, ramp: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.webm").write_text("no video")
    (tmp_path / "notes.txt").write_text("a shopping list")
    sight = look(service).start("#sample", results=2)
    sight.page.set_input_files("#file", tmp_path / "broken.webm")
    sight.shows("#banner", "This video cannot be shown")
    sight.page.set_input_files("#file", ramp)
    sight.until(f"{FILM}?.currentTime > 0")
    assert not sight.page.is_visible("#banner")
    sight.page.set_input_files("#file", tmp_path / "notes.txt")
    sight.shows("#banner", "This file cannot be opened. “notes.txt” is neither a video nor an image.")
    sight.start("#sample", results=2)
    assert not sight.page.is_visible("#banner")
    # The same holds for a card in place of the image.
    sight.page.click("#stop")
    sight.shows("#card", "The session has ended")
    sight.page.set_input_files("#file", tmp_path / "notes.txt")
    assert "video.webm" not in sight.shows("#card", "This file cannot be opened")
    sight.page.set_input_files("#file", ramp)
    sight.live(results=2)
    assert not sight.page.is_visible("#card")


@pytest.mark.parametrize(("width", "height"), [(1920, 400), (400, 1920)])
def test_e5_a_long_strip_is_sent_by_its_area(
    service: Service, look: Look, tmp_path: Path, width: int, height: int
) -> None:
    sight = look(service)
    Image.new("RGB", (width, height), (90, 120, 60)).save(tmp_path / "strip.png")
    sight.page.set_input_files("#file", tmp_path / "strip.png")
    sight.live(results=2)
    sent = sight.ask("seen.last.image")
    assert min(sent.values()) >= 126
    assert 320 * 240 * 0.99 <= sent["width"] * sent["height"] <= 640 * 480 * 1.01
    assert sent["width"] / sent["height"] == pytest.approx(width / height, rel=0.02)
    # Another size in the same session.
    Image.new("RGB", (64, 48), (90, 120, 60)).save(tmp_path / "small.png")
    sight.page.set_input_files("#file", tmp_path / "small.png")
    sight.until("seen.last.image.width === 64 && seen.last.image.height === 48")


def test_e6_a_misspelt_query_is_said(service: Service, look: Look) -> None:
    sight = look(service, opening=False)
    sight.page.goto(f"{service.url}/?conf=0.9&iou=7")
    sight.until("'loaded' in document.body.dataset")
    words = sight.shows("#card", "Did you mean “confidence”?")
    assert "“conf”" in words
    assert "“iou” expects a number from 0 to 1, as in iou=0.7, not “7”." in words
    sight.screenshot("query")
    sight.page.goto(f"{service.url}/?confidence=0.85&classes=person,16")
    sight.until("'loaded' in document.body.dataset")
    assert "Did you mean" not in sight.text("#card")
    assert sight.text("#stages output") == "85%"
    sight.start("#sample", results=2)
    sight.until("sightline.overlay.model.parts.objects.map(({ class_name }) => class_name).join() === 'person'")
