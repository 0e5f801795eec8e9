"""What the page is served with. What it does is tested in a browser."""

from __future__ import annotations

import asyncio
import re
from unittest.mock import ANY

import httpx
import orjson
import pytest

from app.errors import ConfigurationError
from app.main import create_app
from app.protocol.messages import stage_descriptions
from app.settings import ROOT, Settings


def get(
    path: str, *, host: str = "127.0.0.1:8000", headers: dict[str, str] | None = None, **settings: str
) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Settings(**settings)))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def policy(answer: httpx.Response) -> dict[str, list[str]]:
    parts = answer.headers["content-security-policy"].split("; ")
    return {name: sources.split(" ") for name, _, sources in (part.partition(" ") for part in parts)}


@pytest.mark.parametrize("path", ["/", "/web/main.js", "/web/encoder.worker.js", "/web/style.css", "/web/scene.jpg"])
def test_nothing_is_loaded_from_elsewhere_and_nothing_runs_inline(path: str) -> None:
    answer = get(path)
    assert answer.status_code == 200
    rules = policy(answer)
    assert rules.pop("connect-src") == ["'self'", "ws://127.0.0.1:8000", "wss://127.0.0.1:8000"]
    assert rules.pop("img-src") == ["'self'", "blob:", "data:"]
    assert rules.pop("media-src") == ["'self'", "blob:"]
    assert {name for name, sources in rules.items() if sources == ["'self'"]} == {
        "script-src",
        "style-src",
        "worker-src",
    }
    assert {name for name, sources in rules.items() if sources == ["'none'"]} == {
        "default-src",
        "base-uri",
        "form-action",
        "frame-ancestors",
    }
    assert answer.headers["permissions-policy"].startswith("camera=(self), display-capture=(self)")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


def test_a_file_that_the_browser_still_has_is_not_sent_again_but_its_rules_are() -> None:
    tag = get("/web/main.js").headers["etag"]
    answer = get("/web/main.js", headers={"if-none-match": tag})
    assert answer.status_code == 304
    assert policy(answer)["script-src"] == ["'self'"]


def test_the_page_may_talk_to_the_addresses_that_are_set() -> None:
    addresses = {"service_url": "https://sight.example", "start_server_url": "https://start.example/go"}
    assert get("/config.json", **addresses).json() == {**addresses, "stages": ANY}
    assert policy(get("/", **addresses))["connect-src"][3:] == [
        "https://sight.example",
        "wss://sight.example",
        "https://start.example",
    ]
    assert get("/config.json").json() == {"service_url": None, "start_server_url": None, "stages": ANY}


def test_the_page_knows_the_stages_before_there_is_a_session() -> None:
    described = get("/config.json").json()["stages"]
    assert described == orjson.loads(orjson.dumps(stage_descriptions()))
    # The page's own tests have the same descriptions of those that it has always shown; their prose may differ.
    tested = orjson.loads((ROOT / "tests" / "web" / "ready-stages.json").read_bytes())
    for known in tested:
        (there,) = [stage for stage in described if stage["name"] == known["name"]]
        assert {**there, "description": ""} == {**known, "description": ""}


@pytest.mark.parametrize("host", ["evil;script-src *", "a b", "x'y"])
def test_a_host_that_is_none_stays_out_of_the_policy(host: str) -> None:
    answer = get("/", headers={"host": host}, allowed_hosts="*")
    assert policy(answer)["connect-src"] == ["'self'"]
    assert policy(answer)["script-src"] == ["'self'"]


@pytest.mark.parametrize("value", ["sight.example", "ftp://sight.example", "https://a.example; script-src *"])
def test_an_address_that_is_none_stops_the_start(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"SERVICE_URL=.*web address"):
        Settings(service_url=value)


def test_the_page_holds_no_inline_script_and_no_inline_style() -> None:
    html = (ROOT / "app" / "web" / "index.html").read_text()
    assert "style=" not in html
    assert "<style" not in html
    assert not re.search(r"\son\w+=", html)
    assert html.count("<script") == html.count('<script type="module" src=')
