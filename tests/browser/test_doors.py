"""Before a session: the waiting room, a token, a service that is switched off."""

from __future__ import annotations

from pathlib import Path

from tests.browser.conftest import Look
from tests.browser.sight import SOCKET_FAILED
from tests.browser.wire import free_port, start_server
from tests.conftest import Serve
from tests.support.service import serving


def test_the_waiting_room_shows_the_place_and_opens_by_itself(serve: Serve, look: Look) -> None:
    service = serve(MAX_SESSIONS="1")
    first = look(service).start("#sample", results=2)
    second, third = look(service), look(service)
    second.page.click("#sample")
    assert "All sessions are in use" in second.shows("#card", "You are next")
    third.page.click("#camera")
    third.shows("#card", "Number 2 in the queue")
    assert third.text("#status") == "Waiting room, number 2"
    third.screenshot("waiting")
    first.page.click("#stop")
    second.live(results=2)
    third.shows("#card", "You are next")
    third.press("Leave")
    third.shows("#card", "The session has ended")
    second.page.click("#stop")
    second.shows("#card", "The session has ended")


def test_a_token_is_asked_for_and_kept_in_the_tab(serve: Serve, look: Look) -> None:
    service = serve(AUTH_TOKENS="open-sesame,another")
    sight = look(service)
    sight.page.click("#sample")
    sight.shows("#card", "A token is needed")
    assert sight.page.evaluate("document.activeElement.id") == "token"
    sight.screenshot("token")
    sight.page.keyboard.type("open-barley")
    sight.press("Start again")
    sight.until("seen.said.filter(({ type }) => type === 'bye').length === 2")
    assert {event["reason"] for event in sight.events("bye")} == {"unauthorized"}
    sight.shows("#card", "A token is needed")
    sight.page.fill("#token", "open-sesame")
    sight.press("Start again")
    sight.live(results=2)
    sight.page.reload()
    sight.until("'loaded' in document.body.dataset")
    sight.start("#sample")  # the tab has it still
    assert not sight.ask("localStorage.length")
    elsewhere = look(service)
    assert elsewhere.page.input_value("#token") == ""


def test_a_service_that_is_off_is_started_and_waited_for(
    serve: Serve, look: Look, canned_triton: str, tmp_path: Path
) -> None:
    port = free_port()
    with start_server(state="starting", eta_s=40, message="Waking the machine.") as starter:
        # One service hosts the page; another, off for now, is where frames go.
        pages = serve(SERVICE_URL=f"http://127.0.0.1:{port}", START_SERVER_URL=starter.url)
        sight = look(pages)
        sight.permitted |= {f"http://127.0.0.1:{port}", starter.url}
        sight.expected.append(SOCKET_FAILED)
        sight.page.click("#access summary")
        sight.page.fill("#start-token", "wake-up")
        sight.page.click("#sample")
        text = sight.shows("#card", "to go")
        assert "The service is starting" in text
        assert "Waking the machine." in text
        assert sight.text("#status") == "Starting the service …"
        assert starter.asked[0] == ("POST", "Bearer wake-up")
        sight.until("document.querySelector('#card progress').value > 1")
        sight.screenshot("starting")
        settings = {"TRITON_URL": canned_triton, "OCR": "off", "PORT": str(port), "ALLOWED_ORIGINS": pages.url}
        with serving(tmp_path, settings):
            starter.answer = {"state": "running", "eta_s": 0}
            sight.live(results=3)
            assert [method for method, _ in starter.asked].count("POST") == 1
            sight.page.click("#stop")
            sight.shows("#card", "The session has ended")


def test_a_service_that_is_not_there_is_not_called_lost(serve: Serve, look: Look) -> None:
    port = free_port()
    sight = look(serve(SERVICE_URL=f"http://127.0.0.1:{port}"))
    sight.permitted.add(f"http://127.0.0.1:{port}")
    sight.expected.append(SOCKET_FAILED)
    sight.page.click("#sample")
    sight.shows("#banner", "The service cannot be reached. Connecting again in")
    sight.until("sightline.client.state === 'waiting'")
    assert sight.text("#status") == "Not connected"
    sight.screenshot("unreachable")
    sight.page.click("#stop")
    sight.shows("#card", "The session was stopped")


def test_b3_the_services_own_page_is_served_whatever_origins_are_named(serve: Serve, look: Look) -> None:
    look(serve(ALLOWED_ORIGINS="http://other.example")).start("#sample", results=2)


def test_b3_a_page_that_is_refused_says_why(serve: Serve, look: Look) -> None:
    service = serve()
    sight = look(serve(SERVICE_URL=service.url))
    sight.permitted.add(service.url)
    sight.expected.append(SOCKET_FAILED)
    sight.page.click("#sample")
    said = sight.shows("#banner", "ALLOWED_ORIGINS")
    assert "The service refuses the connection" in said
    assert sight.origin in said
    sight.screenshot("refused")
    lines = [line for line in service.log.splitlines() if "turned away" in line]
    assert len(lines) == 1
    assert sight.origin in lines[0]
    assert "ALLOWED_ORIGINS is unset" in lines[0]
    assert "ASGI callable" not in service.log
    sight.page.click("#stop")


def test_a_start_that_is_refused_says_so(serve: Serve, look: Look) -> None:
    port = free_port()
    with start_server(message=None) as starter:
        starter.status = 403
        pages = serve(SERVICE_URL=f"http://127.0.0.1:{port}", START_SERVER_URL=starter.url)
        sight = look(pages)
        sight.permitted |= {f"http://127.0.0.1:{port}", starter.url}
        sight.expected += [SOCKET_FAILED, "responded with a status of 403"]
        sight.page.click("#sample")
        sight.shows("#card", "start-server needs a valid start token")
        assert len(starter.asked) == 1
