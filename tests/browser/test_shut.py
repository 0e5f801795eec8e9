"""The page keeps to itself: nothing loaded from elsewhere, nothing run that is not its own."""

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


@pytest.mark.parametrize(
    ("directive", "act"),
    [
        ("connect-src", "fetch('http://127.0.0.1:9/').catch(() => {})"),
        ("img-src", "document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/a.png' }))"),
        (
            "script-src-elem",
            "document.body.append(Object.assign(document.createElement('script'), { text: 'ran = 1' }))",
        ),
        ("style-src-attr", "document.body.setAttribute('style', 'color: red')"),
        (
            "frame-src",
            "document.body.append(Object.assign(document.createElement('iframe'), { src: 'http://127.0.0.1:9/' }))",
        ),
    ],
)
def test_what_is_not_the_pages_own_is_blocked(service: Service, look: Look, directive: str, act: str) -> None:
    sight = look(service)
    sight.expected.append("Content Security Policy")
    sight.permitted.add("http://127.0.0.1:9")  # asked for, and never called
    blocked = sight.page.evaluate(f"""() => new Promise((done) => {{
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), {{ once: true }});
        {act};
    }})""")
    assert blocked == directive
    assert sight.ask("globalThis.ran") is None
