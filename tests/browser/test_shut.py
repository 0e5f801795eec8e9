"""The page loads nothing from elsewhere and runs only its own scripts."""

from __future__ import annotations

import httpx
import pytest

from tests.browser.conftest import Look
from tests.support.service import Service


@pytest.mark.parametrize("path", ["/", "/web/main.js", "/web/encoder.worker.js", "/web/style.css"])
def test_every_file_carries_the_policy(service: Service, path: str) -> None:
    headers = httpx.get(service.url + path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["worker-src"] == "'self'"
    assert policy["connect-src"] == f"'self' ws://127.0.0.1:{service.port} wss://127.0.0.1:{service.port}"
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=(self)" in headers["permissions-policy"]


ACT = """([tag, properties]) => new Promise((done) => {
    addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
    if (tag === "fetch") fetch(properties.src).catch(() => {});
    else if (tag === "style") document.body.setAttribute("style", "color: red");
    else document.body.append(Object.assign(document.createElement(tag), properties));
})"""
ELSEWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("directive", "tag", "properties"),
    [
        ("connect-src", "fetch", {"src": ELSEWHERE}),
        ("img-src", "img", {"src": f"{ELSEWHERE}/a.png"}),
        ("frame-src", "iframe", {"src": ELSEWHERE}),
        ("script-src-elem", "script", {"src": f"{ELSEWHERE}/a.js"}),
        ("script-src-elem", "script", {"text": "globalThis.ran = 1"}),
        ("style-src-attr", "style", {}),
    ],
)
def test_what_is_not_the_pages_own_is_blocked(
    service: Service, look: Look, directive: str, tag: str, properties: dict[str, str]
) -> None:
    sight = look(service)
    sight.expected.append("Content Security Policy")
    sight.permitted.add(ELSEWHERE)  # asked for, and never called
    assert sight.page.evaluate(ACT, [tag, properties]) == directive
    assert sight.ask("globalThis.ran") is None
