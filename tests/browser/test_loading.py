"""Before the page knows where the service is."""

from __future__ import annotations

from tests.browser.conftest import Look
from tests.browser.sight import WATCH
from tests.support.service import Service

SOURCES = ("#camera", "#sample", "#screen", "#file")
LATE_CONFIG = """{
    const ask = fetch;
    globalThis.fetch = async (url, ...rest) => {
        if (String(url).includes("config.json")) await new Promise((done) => (globalThis.letIn = done));
        return ask(url, ...rest);
    };
}"""


def test_nothing_can_be_pressed_before_the_page_knows_where_to_go(service: Service, look: Look) -> None:
    sight = look(service, opening=False)
    sight.page.add_init_script(LATE_CONFIG)
    sight.page.goto(sight.origin)
    sight.until("Boolean(globalThis.letIn)")
    assert all(sight.page.is_disabled(source) for source in SOURCES)
    sight.page.keyboard.press("s")
    sight.ask("document.getElementById('sample').click()")
    sight.ask("letIn()")
    sight.until("'loaded' in document.body.dataset")
    assert not any(sight.page.is_disabled(source) for source in SOURCES)
    sight.page.evaluate(WATCH)
    assert sight.ask("sightline.client.state") == "idle"
    sight.start("#sample", results=2)


def test_a_page_that_cannot_ask_says_so_and_asks_again(service: Service, look: Look) -> None:
    answers = [503, None]
    sight = look(service, opening=False)
    sight.expected.append("status of 503|ERR_FAILED")
    sight.page.route(
        "**/config.json",
        lambda route: (
            route.continue_()
            if not answers
            else route.fulfill(status=status)
            if (status := answers.pop(0))
            else route.abort()
        ),
    )
    sight.page.goto(sight.origin)
    assert "503" in sight.shows("#card", "The page is not complete")
    assert sight.text("#status") == "Not connected"
    assert all(sight.page.is_disabled(source) for source in SOURCES)
    sight.screenshot("incomplete")
    sight.press("Try again")
    sight.until("!document.getElementById('card').textContent.includes('503')")
    sight.shows("#card", "The page is not complete")
    sight.press("Try again")
    sight.until("'loaded' in document.body.dataset")
    sight.shows("#card", "See what the service sees")
    sight.page.evaluate(WATCH)
    sight.press("Try the sample")
    sight.live(results=2)


def test_a_page_of_mere_files_asks_where_it_came_from(service: Service, look: Look) -> None:
    sight = look(service, opening=False)
    sight.expected.append("status of 404")
    sight.page.route("**/config.json", lambda route: route.fulfill(status=404))
    sight.open().start("#sample")
