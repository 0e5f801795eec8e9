"""`client.js` by itself in a page of someone else's: the README's own lines."""

from __future__ import annotations

import re

from app.settings import ROOT
from tests.browser.conftest import Look
from tests.support.service import Service


def example() -> str:
    """The block of the README that imports the client into a page."""
    blocks = re.findall(r"```html\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if "client.js" in block)
    return str(found)


def test_the_readmes_page_sees_with_the_client_alone(service: Service, look: Look) -> None:
    sight = look(service, opening=False)
    sight.expected.append("favicon.ico")
    sight.page.goto(f"{service.url}/health/live")  # an address of the service that is not its page
    sight.page.set_content("<!doctype html><title>Embedded</title>" + example())
    sight.shows("body", "person")
    assert "dog" in sight.text("body")
    received = service.frames()["received"]
    sight.page.wait_for_timeout(500)
    assert service.frames()["received"] > received + 2  # frame after frame
    modules = {url.rpartition("/")[2] for url in sight.asked if url.endswith(".js")}
    assert "client.js" in modules
    # The reusable part brings nothing of the page's own.
    assert modules.isdisjoint({"main.js", "elements.js", "states.js", "panel.js", "hud.js", "overlay.js", "source.js"})
