"""Source and session depend on each other: one is changed, lost, refused or stopped while the other goes on."""

from __future__ import annotations

import wave
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.browser.conftest import FAKE_CAMERA, Launch, Look
from tests.browser.sight import Sight
from tests.conftest import SLOW, Serve
from tests.support.service import Service

UNPLUG = """document.querySelector("#view video").srcObject.getVideoTracks()[0].dispatchEvent(new Event("ended"))"""
LATE_CAMERA = """() => {
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        await new Promise((done) => (globalThis.allow = done));
        return ask(wanted);
    };
}"""
BUSY = """() => {
    const busy = () => Promise.reject(new DOMException("Could not start video source", "NotReadableError"));
    navigator.mediaDevices.getUserMedia = busy;
}"""
# A camera whose frames the test draws, so that it can be turned.
DRAWN_CAMERA = """() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 480 });
    const context = canvas.getContext("2d");
    const draw = () => { context.fillRect(0, 0, 50, 50); requestAnimationFrame(draw); };
    draw();
    globalThis.turn = (width, height) => Object.assign(canvas, { width, height });
    navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(30);
}"""
WATCH_OLD = """() => {
    globalThis.old = { answers: 0, drawn: 0, after: Infinity, fresh: true };
    const view = document.getElementById("view");
    new MutationObserver(() => {
        if (view.children.length) Object.assign(old, { after: sightline.client.lastSeq, fresh: false });
    }).observe(view, { childList: true });
    sightline.client.on("result", ({ result }) => {
        if (old.fresh) return;
        if (result.seq > old.after) old.fresh = true;
        else old.answers += 1;
    });
    const look = () => {
        if (!old.fresh && sightline.overlay.model.parts.objects.length) old.drawn += 1;
        requestAnimationFrame(look);
    };
    look();
}"""


def source_is_visible(sight: Sight) -> None:
    """The session is live, and no card covers the image."""
    sight.until("document.getElementById('card').hidden")
    assert sight.text("#status") == "Live"
    assert sight.page.locator("#view > *").count() == 1


def sessions(service: Service) -> int:
    count: int = httpx.get(f"{service.url}/status").json()["sessions_active"]
    return count


def test_an_unplugged_camera_ends_the_session_and_says_so(serve: Serve, look: Look) -> None:
    service = serve(IDLE_TIMEOUT_S="1")
    sight = look(service).start("#camera", results=2)
    sight.page.focus("#stop")
    sight.ask(UNPLUG)
    sight.until("sightline.client.state === 'ended'")
    assert "The camera was disconnected" in sight.shows("#card", "The source has ended")
    assert sight.text("#status") == "Not connected"
    assert sight.page.is_disabled("#stop")
    assert sight.ask("document.activeElement.textContent") == "Try again"
    sight.screenshot("unplugged")
    assert sessions(service) == 0
    sight.page.wait_for_timeout(2500)  # more than a session without frames lasts
    assert sight.ask("sightline.client.state") == "ended"
    assert len([event for event in sight.events("state") if event["state"] == "connecting"]) == 1
    assert "The source has ended" in sight.text("#card")
    sight.press("Use the sample")
    sight.live(results=2)
    source_is_visible(sight)


def test_a_source_that_is_shown_in_a_session_takes_its_card_away(service: Service, look: Look) -> None:
    """As when the camera was unplugged and the user started again before `bye` came."""
    sight = look(service).start("#camera", results=2)
    sight.ask(f"{UNPLUG}; document.querySelector('#card button:last-child').click()")
    sight.until("document.querySelector('#view canvas')")
    sight.live(results=2)
    source_is_visible(sight)


def test_a_camera_that_takes_its_time_is_seen_once_it_is_there(service: Service, look: Look) -> None:
    sight = look(service).start("#camera", results=2)
    session = sight.ask("seen.last.session_id")
    sight.page.evaluate(LATE_CAMERA)
    sight.page.click("#camera")
    sight.shows("#card", "The browser asks whether")
    assert sight.text("#status") == "Live"
    sight.screenshot("asking")
    sight.ask("allow()")
    sight.until("document.querySelector('#view video')")
    sight.live(results=2)
    source_is_visible(sight)
    assert sight.ask("seen.last.session_id") == session


def test_a_session_waits_for_a_source_without_being_idle(serve: Serve, look: Look) -> None:
    service = serve(IDLE_TIMEOUT_S="1", MAX_PAUSE_S="3")
    sight = look(service).start("#camera", results=2)
    sight.page.evaluate(LATE_CAMERA)
    sight.page.click("#camera")
    sight.page.wait_for_timeout(2000)
    assert sight.events("bye") == []
    # The browser's prompt stays open so long that another session gets the slot.
    # The page connects again once there is a source.
    sight.until("sightline.client.state === 'waiting'")
    sight.page.wait_for_timeout(1500)
    assert sight.ask("sightline.client.state") == "waiting"
    assert "The browser asks whether" in sight.text("#card")
    sight.ask("allow()")
    sight.live(results=2)
    source_is_visible(sight)


def test_asking_may_be_given_up(service: Service, look: Look) -> None:
    sight = look(service)
    sight.page.evaluate(LATE_CAMERA)
    sight.page.click("#camera")
    sight.shows("#card", "The browser asks whether")
    sight.page.click("#stop")
    sight.shows("#card", "See what the service sees")
    sight.ask("allow()")
    sight.page.wait_for_timeout(500)
    assert sight.page.locator("#view > *").count() == 0
    assert sight.ask("sightline.client.state") == "idle"


def test_a_camera_that_cannot_be_opened_again_ends_the_session(service: Service, look: Look) -> None:
    sight = look(service).start("#camera", results=2)
    sight.page.evaluate(BUSY)
    sight.page.click("#camera")
    sight.shows("#card", "The camera is busy")
    sight.until("sightline.client.state === 'ended'")
    assert "The camera is busy" in sight.text("#card")
    assert sessions(service) == 0


@pytest.mark.parametrize("keys", [False, True])
def test_stop_and_start_at_once(serve: Serve, look: Look, keys: bool) -> None:
    service = serve(**SLOW)  # what is in flight takes a while to be answered: `bye` comes late
    sight = look(service).start("#sample", results=2)
    first = sight.ask("seen.last.session_id")
    if keys:
        sight.page.keyboard.press("x")
        sight.page.keyboard.press("s")
    else:
        sight.ask("document.getElementById('stop').click(); document.getElementById('sample').click()")
    sight.until(f"seen.last.session_id !== '{first}'")
    sight.live(results=3)
    source_is_visible(sight)
    assert not sight.page.is_disabled("#stop")


def test_what_was_seen_in_the_last_source_is_not_drawn_on_the_next(serve: Serve, look: Look, tmp_path: Path) -> None:
    service = serve(**SLOW)
    sight = look(service).start("#sample", results=2)
    sight.page.evaluate(WATCH_OLD)
    for number in range(6):
        Image.new("RGB", (640, 480), (40, 90, 40 * number)).save(tmp_path / f"{number}.png")
        sight.until("sightline.overlay.model.parts.objects.length")
        sight.page.set_input_files("#file", tmp_path / f"{number}.png")
        sight.until("!old.fresh")
        sight.until("old.fresh")
        sight.until("sightline.overlay.model.parts.objects.length")
    assert sight.ask("old.answers") > 0  # there was something to be left out
    assert sight.ask("old.drawn") == 0


def test_a_recording_of_sound_is_none_to_look_at(service: Service, look: Look, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "tone.wav"), "wb") as tone:
        tone.setnchannels(1)
        tone.setsampwidth(2)
        tone.setframerate(8000)
        tone.writeframes(b"\0\0" * 8000)
    sight = look(service)
    sight.page.set_input_files("#file", tmp_path / "tone.wav")
    sight.shows("#card", "This file has no video")
    assert sight.ask("sightline.client.state") == "idle"
    sight.press("Use the sample")
    sight.live()
    sight.page.set_input_files("#file", tmp_path / "tone.wav")
    sight.shows("#banner", "This file has no video")
    sight.live(results=2)  # what runs goes on
    source_is_visible(sight)


LABEL = "document.querySelector('#view video')?.srcObject.getVideoTracks()[0].label"


def test_the_camera_that_was_chosen_is_chosen_again(service: Service, look: Look, launch: Launch) -> None:
    browser = launch(FAKE_CAMERA[0], "--use-fake-device-for-media-stream=device-count=3")
    sight = look(service, within=browser).start("#camera", results=2)
    sight.until("document.querySelectorAll('#cameras option').length === 3")
    sight.page.select_option("#cameras select", index=2)
    sight.until(f"{LABEL} === 'fake_device_2'")
    sight.until("document.querySelector('#cameras select').selectedIndex === 2")
    sight.page.click("#stop")
    sight.shows("#card", "The session has ended")
    sight.press("Start again")
    sight.until(f"{LABEL} === 'fake_device_2'")
    sight.page.click("#stop")
    sight.shows("#card", "The session has ended")
    # It is unplugged meanwhile, so that the page takes any other camera.
    sight.page.evaluate("""() => {
        const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async ({ video, audio }) =>
            ask({ video: video.deviceId ? { ...video, deviceId: { exact: "gone" } } : video, audio });
    }""")
    sight.page.click("#camera")
    sight.until(f"{LABEL} === 'fake_device_0'")
    sight.live(results=2)


def test_a_turned_phone_turns_the_stage(service: Service, look: Look) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    sight = look(service, **phone)
    sight.page.evaluate(DRAWN_CAMERA)
    sight.start("#camera", results=2)
    size = "(({ width, height }) => width / height)(document.getElementById('stage').getBoundingClientRect())"
    assert sight.ask(size) == pytest.approx(640 / 480, abs=0.02)
    sight.ask("turn(480, 640)")
    sight.until("document.querySelector('#view video').videoWidth === 480")
    sight.until(f"{size} < 0.85")
    sight.live(results=2)
    sight.until("sightline.overlay.model.parts.objects.length === 2")
    assert sight.ask("sightline.overlay.model.height") == 640
    sight.screenshot("turned")
