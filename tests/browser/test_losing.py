"""The connection goes and comes back: cut, refused, shut down, restarted."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import httpx

from tests.browser.conftest import Look
from tests.browser.sight import PATIENCE_S, SOCKET_FAILED
from tests.browser.wire import free_port, wired
from tests.conftest import Serve
from tests.support.service import Service, assert_adds_up, serving


def test_a_cut_network_comes_back_with_what_was_chosen(service: Service, look: Look) -> None:
    with wired(service) as wire:
        sight = look(wire.url).start("#sample", results=3)
        sight.expected.append(SOCKET_FAILED)
        sight.page.click("label:has(#stage-pose)")
        sight.until("!sightline.overlay.model.parts.poses.length")
        first = sight.ask("seen.last.session_id")
        sight.ask("void (Math.random = () => 0.999)")  # the dice of the pauses: each as long as it may be
        wire.cut()
        sight.shows("#banner", "Connecting again in")
        assert sight.text("#status") == "Connection lost"
        drawn = sight.ask("sightline.hud.drawn.total")
        sight.until("!sightline.overlay.model.parts.objects.length")  # what is not known any more is not shown
        assert sight.page.is_visible("#view canvas")
        assert sight.ask("sightline.hud.drawn.total") > drawn  # the video goes on
        sight.screenshot("lost")
        # Until a pause is so long that the button comes first.
        sight.until("seen.said.findLast(({ type }) => type === 'state')?.retryAt > performance.now() + 6000")
        wire.mend()
        sight.page.click("#banner button")
        sight.live(results=3)
        assert sight.ask("seen.last.session_id") != first
        assert not sight.page.is_visible("#banner")
        assert sight.ask("seen.last.stages.pose.status") == "disabled"
        assert not sight.page.is_checked("#stage-pose")
        assert sight.ask("sightline.overlay.model.parts.objects.length") == 2


def test_a_service_that_is_shut_down_and_started_again(canned_triton: str, look: Look, tmp_path: Path) -> None:
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "PORT": str(free_port())}
    (tmp_path / "again").mkdir()
    with serving(tmp_path, settings) as service:
        sight = look(service).start("#sample", results=5)
        sight.expected.append(SOCKET_FAILED)
        service.process.send_signal(signal.SIGTERM)
        sight.shows("#banner", "shutting down")
        (bye,) = sight.events("bye")
        assert (bye["reason"], bye["again"]) == ("shutdown", True)
        assert bye["report"]["processed"] >= 5
        service.process.wait(30)
    with serving(tmp_path / "again", settings):
        sight.live(results=5)  # by itself
        assert sight.text("#status") == "Live"
        sight.page.click("#stop")
        sight.shows("#card", "The session has ended")


def test_a_killed_service_is_waited_for(canned_triton: str, look: Look, tmp_path: Path) -> None:
    with serving(tmp_path, {"TRITON_URL": canned_triton, "OCR": "off"}) as service:
        sight = look(service).start("#sample", results=2)
        sight.expected.append(SOCKET_FAILED)
        service.process.kill()
        service.process.wait()
        sight.shows("#banner", "Connecting again in")
        # Three failed attempts, each after a longer wait on average; then the user stops.
        sight.until("seen.said.filter(({ type, state }) => type === 'state' && state === 'connecting').length >= 4")
        sight.page.click("#stop")
        sight.shows("#card", "The session was stopped")
        assert sight.ask("sightline.client.state") == "ended"


def test_stop_shows_the_report(serve: Serve, look: Look) -> None:
    service = serve()
    sight = look(service).start("#sample", results=10)
    sight.page.click("#stop")
    text = sight.shows("#card", "The session has ended")
    sight.screenshot("ended")
    (bye,) = sight.events("bye")
    report = bye["report"]
    assert (bye["reason"], bye["again"]) == ("stopped", False)
    assert f"Frames {report['received']}, " in text
    assert f"Analysed {report['processed']}" in text
    assert f"A frame took {report['stages']['total']['p50_ms']:.0f} ms" in text
    counts = assert_adds_up(service)
    assert {key: counts[key] for key in ("received", "processed")} == {
        key: report[key] for key in ("received", "processed")
    }
    assert sight.page.is_disabled("#stop")
    for figure in ("camera-fps", "drawn-fps", "result-fps", "age-p50", "age-p95"):
        sight.shows(f"#{figure}", "–")  # what was is in the report
    assert set(sight.page.locator("#legend b").all_inner_texts()) == {"–"}
    sight.press("Start again")
    sight.live(results=3)
    assert sight.text("#status") == "Live"


def test_closing_the_page_ends_the_session(service: Service, look: Look) -> None:
    sight = look(service).start("#sample", results=2)
    assert httpx.get(f"{service.url}/status").json()["sessions_active"] == 1
    sight.page.goto("about:blank")
    deadline = time.monotonic() + PATIENCE_S
    while httpx.get(f"{service.url}/status").json()["sessions_active"]:
        assert time.monotonic() < deadline
        sight.page.wait_for_timeout(50)


def test_frames_that_are_refused_are_counted_by_reason(serve: Serve, look: Look) -> None:
    service = serve(MAX_PIXELS="1000")
    sight = look(service)
    sight.page.click("#sample")
    sight.until("sightline.sender.counts.sent >= 5")  # every refusal gives its credit back
    sight.until("seen.said.filter(({ type }) => type === 'refused').length >= 5")
    assert {event["code"] for event in sight.events("refused")} == {"too_large"}
    assert "too large" in sight.shows("#session", "Dropped by the service too large")


def test_a_machine_that_was_offline_connects_at_once_when_it_is_back(service: Service, look: Look) -> None:
    with wired(service) as wire:
        sight = look(wire.url).start("#sample", results=2)
        sight.expected.append(SOCKET_FAILED)
        wire.cut()
        sight.shows("#banner", "Connecting again in")
        sight.page.context.set_offline(True)
        # A few failed attempts, so that the next wait would be long.
        sight.until("seen.said.filter(({ state }) => state === 'connecting').length >= 4")
        wire.mend()
        sight.page.context.set_offline(False)
        sight.live(results=2)


def test_a_network_that_swallows_everything_is_noticed(service: Service, look: Look) -> None:
    with wired(service) as wire:
        sight = look(wire.url, opening=False)
        sight.page.clock.install()
        sight.open().start("#sample", results=2)
        wire.hush()
        sight.until("!sightline.overlay.model.parts.objects.length")  # what is not known any more is not shown
        assert sight.ask("sightline.client.state") in ("live", "stalled")
        sight.page.clock.fast_forward(21_000)
        sight.shows("#banner", "The service does not answer any more. Connecting again in")
        wire.mend()
        sight.live(results=2)


# The announcements of a screen reader about the status: all changes but those hidden from it.
WATCH_STATUS = """() => {
    globalThis.announced = [];
    const status = document.getElementById("status");
    const heard = (node) => !(node.parentElement ?? node).closest("[aria-hidden=true]") && !node.ariaHidden;
    new MutationObserver((changes) => {
        if (changes.some(({ target }) => heard(target))) announced.push(status.innerText);
    }).observe(status, { subtree: true, childList: true, characterData: true });
}"""
WORD = "document.getElementById('status').innerText"


def test_e4_a_network_that_stalls_is_said_and_over_when_it_flows_again(service: Service, look: Look) -> None:
    with wired(service) as wire:
        sight = look(wire.url).start("#sample", results=5)
        assert sight.text("#status") == "Live"
        sight.page.evaluate(WATCH_STATUS)
        wire.hold()
        sight.until(f"{WORD} === 'No answer for 3 s'")
        assert sight.ask("document.getElementById('status').dataset.tone") == "wait"
        assert sight.ask("sightline.client.state") == "stalled"
        sight.screenshot("stalled")
        sight.until(f"{WORD} === 'No answer for 5 s'")
        assert sight.ask("sightline.overlay.model.parts.objects") == []  # what is not known any more is not shown
        assert sight.text("#seen") == "nothing yet"
        wire.mend()
        sight.live(results=3)
        sight.until(f"{WORD} === 'Live'")
        assert sight.ask("sightline.client.lastSeq") > 0
        announced = sight.ask("announced")
        assert len(announced) == 2, announced  # one that it stalls, one that it is live, none of the seconds
        assert announced[0].startswith("No answer")
        assert announced[1] == "Live"


def test_e4_a_session_that_nobody_waits_for_does_not_stall(service: Service, look: Look) -> None:
    with wired(service) as wire:
        sight = look(wire.url).start("#sample", results=3)
        sight.ask("sightline.client.pause()")  # as a hidden tab does
        sight.page.wait_for_timeout(300)
        wire.hold()
        sight.page.wait_for_timeout(4000)
        assert sight.text("#status") == "Live"
        assert not re.search("No answer", sight.text("body"))
        wire.mend()
        sight.ask("sightline.client.resume()")
        sight.live(results=3)
        assert [event for event in sight.events("state") if event["state"] == "stalled"] == []


def test_e4_a_stall_ends_in_a_lost_connection_or_in_stop(service: Service, look: Look) -> None:
    with wired(service) as wire:
        sight = look(wire.url).start("#sample", results=3)
        wire.hold()
        sight.until(f"{WORD} === 'No answer for 3 s'")
        sight.expected.append(SOCKET_FAILED)
        wire.cut()
        sight.shows("#banner", "Connecting again in")
        assert sight.text("#status") == "Connection lost"
        wire.mend()
        sight.live(results=2)
        assert sight.text("#status") == "Live"
        wire.hold()
        sight.until(f"{WORD} === 'No answer for 3 s'")
        sight.page.click("#stop")
        sight.shows("#card", "The session has ended" if sight.events("bye") else "stopped")
        assert "No answer" not in sight.text("#status")
