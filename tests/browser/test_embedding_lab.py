"""`client.js` by itself in a page of someone else's: the README's own lines."""

from __future__ import annotations

import re
from pathlib import Path

from app.settings import ROOT
from tests.browser.conftest import Look
from tests.support.service import Service


def example() -> str:
    """The block of the README that imports the client into a page."""
    blocks = re.findall(r"```html\n(.*?)```", Path("/tmp/lab/h8/README.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if "client.js" in block)
    return str(found)


def test_the_readmes_page_sees_with_the_client_alone(service: Service, look: Look) -> None:
    sight = look(service, opening=False)
    sight.page.goto(f"{service.url}/health/live")  # an address of the service that is not its page
    sight.page.set_content("<!doctype html><title>Embedded</title>" + example())
    sight.shows("body", "person")
    assert "dog" in sight.text("body")
    received = service.frames()["received"]
    sight.page.wait_for_timeout(500)
    assert service.frames()["received"] > received + 2  # frame after frame
    modules = {url.rpartition("/")[2] for url in sight.asked if url.endswith(".js")}
    # The reusable part brings nothing of the page's own.
    assert modules <= {"client.js", "protocol.js", "flight.js", "backoff.js", "starter.js", "words.js"}
