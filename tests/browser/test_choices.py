"""The settings chosen on the page take effect in the results, and the page shows those in force."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import WebSocketRoute

from tests.browser.conftest import Look
from tests.browser.sight import Sight
from tests.conftest import Serve
from tests.support import clip
from tests.support.service import Service

NAMES = "sightline.overlay.model.parts.objects.map((object) => object.class_name).sort().join()"


@pytest.fixture
def sight(service: Service, look: Look) -> Sight:
    """Live on models that always see a person (0.9) and a dog (0.8)."""
    sight = look(service).start("#sample", results=2)
    sight.until(f"{NAMES} === 'dog,person'")
    return sight


def press(sight: Sight, stage: str) -> None:
    sight.page.click(f"label:has(#stage-{stage})")


def status_is(sight: Sight, stage: str, *statuses: str) -> None:
    sight.until(f"{list(statuses)}.includes(seen.last.stages.{stage}.status)")


def test_each_stage_goes_and_comes(real: Service, look: Look) -> None:
    sight = look(real).start("#camera", results=2)
    model = "sightline.overlay.model.parts"
    there = {
        "detect": f"{model}.objects.length >= 2",
        "pose": f"{model}.poses.length === 1",
        "ocr": f"{model}.texts.some(({{ text }}) => text === '{clip.WORDS}')",
        "motion": f"{model}.motion.length",
        "track": f"{model}.objects.some((object) => object.track_id !== null)",
    }
    for seen in there.values():
        sight.until(seen, 60)  # a busy machine takes its time to load the text reader
    for stage, seen in there.items():
        press(sight, stage)
        status_is(sight, stage, "disabled")
        sight.until(f"!({seen})")
        assert sight.text(f"#stages li:has(#stage-{stage}) .state") in ("", "off")
    sight.shows("#figure-motion", "–")
    for stage in there:
        press(sight, stage)
        status_is(sight, stage, "ok", "stale", "skipped")
    for seen in there.values():
        sight.until(seen)


def test_summaries_come_as_cards_by_the_prompt_chosen(serve: Serve, look: Look) -> None:
    quick = serve(SUMMARY_MIN_INTERVAL_S="0.5", SUMMARY_MAX_INTERVAL_S="1")
    sight = look(quick).start("#sample", results=2)
    assert not sight.page.is_visible("#prompt")
    press(sight, "summary")
    sight.shows("#summaries", "person")
    assert "digest" in sight.text("#summaries li .mark")
    sight.page.select_option("#prompt select", "security")
    sight.until("seen.said.some((event) => event.type === 'settings' && event.summary_prompt === 'security')")
    sight.screenshot("summaries")
    press(sight, "summary")
    sight.until("document.getElementById('prompt').hidden")  # once the service has said so
    assert not sight.page.is_checked("#stage-summary")


def test_the_confidence_slider(sight: Sight) -> None:
    sight.page.fill("#confidence", "0.85")
    sight.until(f"{NAMES} === 'person'")
    assert sight.text("#stages output") == "85%"
    sight.page.fill("#confidence", "0.95")
    sight.until(f"{NAMES} === ''")
    sight.page.fill("#confidence", "0.5")
    sight.until(f"{NAMES} === 'dog,person'")


def test_the_class_filter(sight: Sight) -> None:
    sight.page.click("#classes summary")
    chips = sight.page.locator("#classes .chip")
    assert chips.count() == 81
    sight.page.fill("#classes input", "do")
    assert chips.filter(visible=True).all_inner_texts() == ["all", "dog"]
    sight.press("dog")
    sight.until(f"{NAMES} === 'dog'")
    assert "dog" in sight.text("#classes summary")
    sight.page.fill("#classes input", "")
    sight.press("class_3")
    sight.shows("#classes summary", "class_3, dog")
    sight.press("dog")
    sight.until(f"{NAMES} === ''")
    sight.press("all")
    sight.until(f"{NAMES} === 'dog,person'")


def test_a_late_answer_does_not_undo_what_was_pressed_since(service: Service, look: Look) -> None:
    held: list[str] = []
    sight = look(service, opening=False)

    def between(socket: WebSocketRoute) -> None:
        def answer(message: str | bytes) -> None:
            if isinstance(message, str) and '"type":"settings"' in message:
                held.append(message)
            else:
                socket.send(message)

        def let_through() -> None:
            socket.send(held.pop(0))

        socket.connect_to_server().on_message(answer)
        answers.append(let_through)

    answers: list[Callable[[], None]] = []
    sight.page.route_web_socket("**/ws/inference", between)
    sight.open().start("#sample", results=2)
    sight.page.click("#classes summary")
    press(sight, "pose")
    sight.press("dog")
    press(sight, "motion")
    checked = "['pose', 'motion'].map((name) => document.getElementById(`stage-${name}`).checked).join()"
    dog = "[...document.querySelectorAll('.chip')].find((chip) => chip.textContent === 'dog').ariaPressed"
    status_is(sight, "motion", "disabled")
    for _ in range(3):
        assert sight.ask(checked) == "false,false"
        assert sight.ask(dog) == "true"
        while not held:
            sight.page.wait_for_timeout(20)
        answers[0]()
        sight.page.wait_for_timeout(100)
    sight.until("sightline.client.settled")
    assert sight.ask(checked) == "false,false"
    # One that is refused is shown as what is in force.
    sight.ask("sightline.client.update({ confidence: 7 }); document.getElementById('stage-pose').checked = true")
    sight.until("!document.getElementById('stage-pose').checked")
    sight.shows("#banner", "confidence")


def test_size_quality_and_rate_by_hand(sight: Sight) -> None:
    sight.page.select_option("#size", "320")
    sight.until("seen.last.image.width === 320 && seen.last.image.height === 240")
    sight.page.wait_for_timeout(500)  # a new size has new tracks: the old ones fade
    # Boxes are drawn on the shown image, whatever size was sent.
    person = sight.moment().box("person")
    sight.page.select_option("#size", "640")
    sight.until("seen.last.image.width === 640")
    sight.page.wait_for_timeout(500)
    assert sight.moment().box("person") == pytest.approx(person, abs=4)
    sight.page.select_option("#quality", "0.9")
    sight.page.wait_for_timeout(400)
    large = sight.ask("sightline.sender.last.bytes")
    sight.page.select_option("#quality", "0.5")
    sight.page.wait_for_timeout(400)
    assert sight.ask("sightline.sender.last.bytes") < 0.7 * large
    sight.page.select_option("#rate", "5")
    sight.page.wait_for_timeout(500)
    sent = sight.ask("sightline.sender.counts.sent")
    sight.page.wait_for_timeout(2000)
    assert sight.ask("sightline.sender.counts.sent") - sent <= 13
    sight.shows("#sent-frame", "up to 5.0 a second")
