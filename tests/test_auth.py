"""Hosts, origins, tokens and the limit of wrong tokens, decided without a server."""

from __future__ import annotations

import logging
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from app import auth, metrics
from app.addresses import read_host, read_origin
from app.auth import Auth, GuessThrottle, Hosts, Refusal
from app.errors import ConfigurationError
from app.settings import SECTIONS, Settings

HERE = "127.0.0.1:8000"
WORLD = "203.0.113.9"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for section in SECTIONS:
        for name in section.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def asked(
    path: str = "/v1/models",
    *,
    method: str = "GET",
    host: str | None = HERE,
    client: str = "127.0.0.1",
    scheme: str = "http",
    **headers: str | list[str],
) -> dict[str, Any]:
    """An ASGI scope. Headers may be given several times, as a list."""
    pairs = [] if host is None else [(b"host", host.encode("latin-1"))]
    for name, values in headers.items():
        several = [values] if isinstance(values, str) else values
        pairs += [(name.replace("_", "-").encode(), value.encode("latin-1")) for value in several]
    kind = "websocket" if scheme.startswith("ws") else "http"
    scope = {"type": kind, "path": path, "headers": pairs, "client": (client, 5), "scheme": scheme}
    return scope if kind == "websocket" else {**scope, "method": method}


def status(refusal: Refusal | None) -> int | None:
    return None if refusal is None else refusal.status


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# --- hosts ---

NAMES_OF_NOBODY = [
    "evil.com",
    "evil.com:8000",
    "EVIL.COM",
    "127.0.0.1.evil.com",
    "localhost.evil.com",
    "127.0.0.1@evil.com",
    "evil.com@127.0.0.1",
    "evil.com#@127.0.0.1",
    "evil.com\\127.0.0.1",
    "127.0.0.1/evil",
    "127.0.0.1, evil.com",
    "127.0.0.1 evil.com",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.0.0.1%00",
    "%31%32%37.0.0.1",
    "localhost..",
    ".localhost",
    "[::1%25lo]",
    "[::1%lo]",
    "[::1",
    "::1",
    "[::1]evil.com",
    "[evil.com]",
    "[127.0.0.1]",
    "localhost:",
    "localhost:0",
    "localhost:65536",
    "localhost:8000:8000",
    "localhost:80a",
    "localhost:+80",
    "lоcalhost",
    "",
    " ",
    "0.0.0.0",
    "10.0.0.5",
    "[fd00::5]",
    "x" * 300,
]


@pytest.mark.parametrize("host", NAMES_OF_NOBODY)
def test_b1_without_tokens_no_other_name_is_answered(host: str) -> None:
    raw = host.encode("utf-8").decode("latin-1")
    for path in ("/", "/v1/models", "/metrics", "/nowhere"):
        refusal = Auth(Settings()).refusal(asked(path, host=raw))
        assert (status(refusal), refusal and refusal.code) == (421, "host")
        assert refusal is not None
        assert refusal.message.isascii()
        assert "ALLOWED_HOSTS" in refusal.message
    assert status(Auth(Settings()).refusal(asked("/ws/inference", host=raw, scheme="ws"))) == 421


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.9.9.9:1",
        "localhost",
        "LocalHost:3000",
        "localhost.",
        "127.0.0.1.",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
    ],
)
def test_b1_loopback_is_answered_whatever_is_set(host: str) -> None:
    for settings in ({}, {"allowed_hosts": "sight.example"}, {"auth_tokens": "secret"}):
        assert Auth(Settings(**settings)).refusal(asked("/", host=host)) is None


def test_b1_several_hosts_or_none_are_refused() -> None:
    for scope in (asked(host=None), asked(host=HERE, Host=HERE), asked(host=HERE, Host="evil.com")):
        assert status(Auth(Settings()).refusal(scope)) == 421


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_b1_probes_ask_by_address_or_say_no_host(path: str) -> None:
    for settings in ({}, {"auth_tokens": "secret"}, {"allowed_hosts": "sight.example", "auth_tokens": "secret"}):
        hosts = Hosts(Settings(**settings))
        for given in ([], ["10.1.2.3:8000"], ["[fd00::5]:8000"]):
            assert hosts.refusal(given, path) is None
    for given in (["evil.com"], ["10.1.2.3", "10.1.2.3"], ["10.1.2.3@evil.com"]):
        assert status(Hosts(Settings()).refusal(given, path)) == 421


@pytest.mark.parametrize(
    ("target", "answered"),
    [
        ("http://127.0.0.1:8000/v1/models", True),
        ("http://evil.com/v1/models", False),
        ("http://127.0.0.1@evil.com/", False),
        ("http:///v1/models", False),
        ("evil.com:443", False),
        ("*", False),
        ("", False),
    ],
)
def test_b1_the_host_in_a_whole_url_counts_too(target: str, answered: bool) -> None:
    assert (Hosts(Settings()).refusal([HERE], target) is None) is answered
    assert status(Hosts(Settings()).refusal(["evil.com"], "http://127.0.0.1:8000/")) == 421


def test_b1_service_url_and_allowed_hosts_name_others() -> None:
    for settings, answered, refused in (
        ({"service_url": "https://sight.example/below"}, ["sight.example", "SIGHT.example.:8443"], ["a.sight.example"]),
        ({"allowed_hosts": "sight.example,10.0.0.5"}, ["sight.example:1", "10.0.0.5"], ["evil.com", "10.0.0.6"]),
        ({"allowed_hosts": "sight.example:8443"}, ["sight.example:8443"], ["sight.example", "sight.example:1"]),
        (
            {"allowed_hosts": "*.sight.example"},
            ["a.sight.example", "b.a.sight.example"],
            ["sight.example", "xsight.example"],
        ),
        ({"allowed_hosts": "[fd00::5]"}, ["[fd00:0::5]:8000"], ["[fd00::6]"]),
        ({"allowed_hosts": "Sight.Example."}, ["sight.example"], []),
        ({"allowed_hosts": "*"}, ["evil.com", "what ever"], []),
    ):
        for tokens in ((), ("secret",)):
            hosts = Hosts(Settings(**settings, auth_tokens=tokens))
            for host in answered:
                assert hosts.refusal([host], "/v1/models") is None, host
            for host in refused if not tokens or "allowed_hosts" in settings else ():
                assert status(hosts.refusal([host], "/v1/models")) == 421, host


def test_b1_with_tokens_any_host_is_answered_unless_some_are_named() -> None:
    hosts = Hosts(Settings(auth_tokens="secret"))
    for given in (["evil.com"], [], ["10.1.2.3"], ["my_service:8000"]):
        assert hosts.refusal(given, "/v1/models") is None


def test_b1_a_service_that_is_open_on_purpose_is_asked_by_its_addresses() -> None:
    for settings in ({"allow_anonymous": True}, {"host": "0.0.0.0", "allow_anonymous": True}, {"host": "::"}):
        hosts = Hosts(Settings(**settings))
        for given in ("192.168.1.5:8000", "[fd00::5]:8000", "localhost"):
            assert hosts.refusal([given], "/invocations") is None
        assert status(hosts.refusal(["evil.com"], "/invocations")) == 421
    assert Hosts(Settings(host="box.lan", allow_anonymous=True)).refusal(["box.lan:8000"], "/") is None


@pytest.mark.parametrize("value", ["https://sight.example", "a b", "sight.example/", "*.*.example", "a@b", "fd00::5"])
def test_b1_a_host_that_is_none_stops_the_start(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ALLOWED_HOSTS=.*names or addresses of hosts"):
        Settings(allowed_hosts=value)


@hypothesis.given(st.text(max_size=40))
def test_b1_whatever_is_sent_is_answered(text: str) -> None:
    for name in (text, f"127.0.0.1{text}", f"{text}localhost"):
        host = read_host(name)
        assert host is None or host.name.isascii()
        refusal = Hosts(Settings()).refusal([name], "/")
        loopback = host is not None and (host.name == "localhost" or str(host.address).startswith(("127.", "::1")))
        assert (refusal is None) <= (loopback or (host is not None and ":" in host.name))
        read_origin(name)


# --- origins ---


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.com",
        "https://127.0.0.1:8000",
        "http://127.0.0.1",
        "http://127.0.0.1:8001",
        "http://localhost:8000",
        "http://127.0.0.1:8000/",
        "http://127.0.0.1:8000.evil.com",
        "http://evil.com@127.0.0.1:8000",
        "http://127.0.0.1:8000?evil.com",
        "http://127.0.0.1%3a8000",
        "//127.0.0.1:8000",
        "127.0.0.1:8000",
        "null",
        "",
        "http://",
    ],
)
def test_b2_pages_of_elsewhere_may_use_nothing(origin: str) -> None:
    authorizer = Auth(Settings())
    for path, method in (
        ("/v1/frames", "POST"),
        ("/v1/models", "GET"),
        ("/invocations", "POST"),
        ("/ws/inference", "POST"),
        ("/metrics", "GET"),
        ("/status", "GET"),
        ("/ping", "GET"),
        ("/", "POST"),
        ("/web/main.js", "DELETE"),
        ("/nowhere", "GET"),
    ):
        refusal = authorizer.refusal(asked(path, method=method, origin=origin))
        assert (status(refusal), refusal and refusal.code) == (403, "origin"), (path, method)
    assert status(authorizer.refusal(asked("/ws/inference", scheme="ws", origin=origin))) == 403
    assert status(authorizer.refusal(asked(origin=["http://127.0.0.1:8000", origin]))) == 403
    for path in ("/", "/web/main.js", "/config.json", "/schema.json", "/health/live"):
        assert authorizer.refusal(asked(path, origin=origin)) is None


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "http"),
        ("HTTP://LocalHost:8000", "localhost.:8000", "ws"),
        ("http://localhost", "localhost:80", "http"),
        ("http://localhost:80", "localhost", "ws"),
        ("https://localhost", "localhost:443", "wss"),
        ("https://localhost:443", "localhost", "https"),
        ("http://[::1]:8000", "[0::1]:8000", "ws"),
    ],
)
@pytest.mark.parametrize("allowed", ["", "http://other", "null"])
def test_b3_the_same_origin_may_whatever_is_set(origin: str, host: str, scheme: str, allowed: str) -> None:
    authorizer = Auth(Settings(allowed_origins=allowed))
    assert authorizer.refusal(asked("/ws/inference", host=host, scheme=scheme, origin=origin)) is None
    assert status(authorizer.refusal(asked("/ws/inference", host=host, scheme=scheme, origin="http://evil.com"))) == 403


def test_b3_those_named_may() -> None:
    authorizer = Auth(Settings(allowed_origins="https://Shop.example:443/, http://localhost:3000, null"))
    for origin in ("https://shop.example", "https://SHOP.example.", "http://localhost:3000", "null"):
        assert authorizer.refusal(asked(origin=origin)) is None
    for origin in ("http://shop.example", "https://shop.example:8443", "https://a.shop.example", "http://localhost"):
        assert status(authorizer.refusal(asked(origin=origin))) == 403
    assert Auth(Settings(allowed_origins="*")).refusal(asked(origin="what ever")) is None
    own = Auth(Settings(service_url="https://sight.example"))  # behind a proxy that does not say that it speaks TLS
    assert own.refusal(asked(host="sight.example", origin="https://sight.example")) is None


@pytest.mark.parametrize("value", ["shop.example", "https://shop.example/page", "https://*.example", "http://a b"])
def test_b3_an_origin_that_is_none_stops_the_start(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ALLOWED_ORIGINS=.*web origins"):
        Settings(allowed_origins=value)


def test_b3_a_refused_origin_is_explained_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    authorizer = Auth(Settings(allowed_origins="http://other"), clock)

    def explained() -> int:
        return sum("ALLOWED_ORIGINS='http://other'" in line and "http://evil.com" in line for line in caplog.messages)

    for _ in range(5):
        authorizer.refusal(asked(origin="http://evil.com"))
    assert explained() == 1
    clock.now += 59
    authorizer.refusal(asked(origin="http://evil.com"))
    assert explained() == 1
    clock.now += 1.1
    authorizer.refusal(asked(origin="http://evil.com"))
    assert explained() == 2
    before = len(caplog.messages)
    for number in range(500):
        authorizer.refusal(asked(origin=f"http://evil-{number}.com"))
    assert len(caplog.messages) - before < 500 + 25


def test_b3_a_proxy_that_keeps_the_scheme_to_itself_is_named() -> None:
    refusal = Auth(Settings(auth_tokens="secret")).refusal(
        asked("/ws/inference", host="sight.example", scheme="ws", origin="https://sight.example")
    )
    assert refusal is not None
    assert "X-Forwarded-Proto" in refusal.message
    assert "http://sight.example" in refusal.message


# --- tokens and the brake ---


def test_tokens_are_asked_for_wherever_something_is_used() -> None:
    authorizer = Auth(Settings(auth_tokens="red,blüe"))
    for path in ("/v1/models", "/v1/frames", "/invocations", "/v1/sessions/0/summaries", "/nowhere", "/docs"):
        assert status(authorizer.refusal(asked(path))) == 401
        assert authorizer.refusal(asked(path, **bearer("red"))) is None
    for path in ("/", "/web/main.js", "/metrics", "/status", "/ping", "/health/live", "/schema.json", "/ws/inference"):
        assert authorizer.refusal(asked(path)) is None
    assert authorizer.refusal(asked(**bearer("blüe"))) is None
    assert authorizer.refusal(asked(**bearer("blüe".encode().decode("latin-1")))) is None
    for given in ("Bearer", "Bearer ", "Basic red", "red", "bearer  red "):
        assert (authorizer.refusal(asked(authorization=given)) is None) == ("bearer" in given)
    assert status(authorizer.refusal(asked(authorization=["Bearer red", "Bearer blue"]))) == 401
    assert status(authorizer.token("\ud800", WORLD, "init")) == 401


def wrong(authorizer: Auth, times: int, client: str = WORLD) -> list[int | None]:
    return [status(authorizer.refusal(asked(client=client, **bearer("wrong")))) for _ in range(times)]


def test_a10_after_a_few_wrong_tokens_an_address_has_to_wait() -> None:
    clock = Clock()
    authorizer = Auth(Settings(auth_tokens="right"), clock)
    assert wrong(authorizer, 1000) == [401] * 10 + [429] * 990
    refusal = authorizer.refusal(asked(client=WORLD, **bearer("wrong")))
    assert refusal is not None
    assert refusal.retry_after_s == 5
    assert refusal.response().headers["retry-after"] == "5"
    # Not even the right one is looked at: a brake that a right guess gets past would be none.
    assert status(authorizer.refusal(asked(client=WORLD, **bearer("right")))) == 429
    assert status(authorizer.refusal(asked(client=WORLD))) == 401, "who sends none guesses nothing"
    assert authorizer.refusal(asked("/", client=WORLD, **bearer("wrong"))) is None
    assert authorizer.refusal(asked(client="203.0.113.10", **bearer("right"))) is None
    clock.now += 5
    assert wrong(authorizer, 2) == [401, 429]
    clock.now += 9
    assert wrong(authorizer, 1) == [429]
    clock.now += 1
    assert authorizer.refusal(asked(client=WORLD, **bearer("right"))) is None
    assert wrong(authorizer, 11) == [401] * 10 + [429], "a right token makes good what was mistyped before"


def test_a10_waits_grow_and_are_forgotten() -> None:
    clock = Clock()
    brake = GuessThrottle(clock)
    waits = []
    for _ in range(40):
        brake.wrong("there")
        waits.append(brake.wait_s("there"))
        clock.now += waits[-1]
    assert waits[9:15] == [5, 10, 20, 40, 60, 60]
    assert set(waits[15:]) == {60}
    clock.now += 901
    assert brake.wait_s("there") == 0
    brake.wrong("there")
    assert brake.wait_s("there") == 0


def test_a10_a_token_that_was_right_from_there_is_not_refused_for_others_failures() -> None:
    clock = Clock()
    authorizer = Auth(Settings(auth_tokens="ours,theirs"), clock)
    assert authorizer.refusal(asked(client=WORLD, **bearer("ours"))) is None
    assert wrong(authorizer, 11)[-1] == 429
    for _ in range(3):
        assert authorizer.refusal(asked(client=WORLD, **bearer("ours"))) is None
        assert authorizer.token("ours", WORLD, "init") is None
        assert authorizer.refusal(asked("/ws/inference", scheme="ws", client=WORLD, **bearer("ours"))) is None
    assert wrong(authorizer, 1) == [429], "which makes nothing good for others"
    assert status(authorizer.refusal(asked(client=WORLD, **bearer("theirs")))) == 429
    clock.now += 5
    assert authorizer.refusal(asked(client=WORLD, **bearer("theirs"))) is None


def test_a10_sockets_and_http_share_the_brake() -> None:
    authorizer = Auth(Settings(auth_tokens="right"))
    assert [status(authorizer.token("wrong", WORLD, "WEBSOCKET /ws/inference")) for _ in range(5)] == [401] * 5
    assert wrong(authorizer, 6) == [401] * 5 + [429]
    refusal = authorizer.token("right", WORLD, "WEBSOCKET /ws/inference")
    assert (status(refusal), refusal and refusal.retry_after_s) == (429, 5)
    assert status(authorizer.refusal(asked("/ws/inference", scheme="ws", client=WORLD, **bearer("right")))) == 429
    assert authorizer.refusal(asked("/ws/inference", scheme="ws", client=WORLD)) is None, (
        "its token may be one of those"
    )


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("203.0.113.9", "203.0.113.8", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unknown", "unknown", True),
    ],
)
def test_a10_an_address_is_a_whole_network_of_ipv6(first: str, second: str, same: bool) -> None:
    authorizer = Auth(Settings(auth_tokens="right"))
    assert wrong(authorizer, 11, first)[-1] == 429
    assert (wrong(authorizer, 1, second) == [429]) is same


def test_a10_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MAX_ADDRESSES", 50)
    brake = GuessThrottle(Clock())
    for number in range(1000):
        brake.wrong(f"a{number}")
        brake.right(f"b{number}", 0)
    assert len(brake) == 100
    for _ in range(11):
        brake.wrong("a999")
    assert brake.wait_s("a999") > 0


def test_a10_each_refusal_is_a_line_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    authorizer = Auth(Settings(auth_tokens="right-secret"))
    before = {
        reason: metrics.AUTH_FAILURES.labels(reason)._value.get() for reason in ("bad_token", "too_many_failures")
    }
    assert len(wrong(authorizer, 12)) == 12
    lines = [line for line in caplog.messages if line.startswith("refused: ")]
    assert lines[0] == f"refused: address={WORLD} route=GET /v1/models reason=bad_token"
    assert lines[-1] == f"refused: address={WORLD} route=GET /v1/models reason=too_many_failures"
    assert len(lines) == 12
    after = {reason: metrics.AUTH_FAILURES.labels(reason)._value.get() for reason in before}
    assert {reason: after[reason] - before[reason] for reason in before} == {"bad_token": 10, "too_many_failures": 2}
    authorizer.refusal(asked("/v1/\r\nforged: line\x1b[2J\u2028" + "x" * 5000, client="a\nb", **bearer("right-secre")))
    assert "wrong" not in caplog.text.replace("wrong tokens", "")
    assert "right-secre" not in caplog.text
    assert all(line.isascii() for line in caplog.messages)
    assert not any(set(line) & set("\r\n\x1b\u2028") or len(line) > 600 for line in caplog.messages)


def test_a10_lines_do_not_fill_the_disk(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    authorizer = Auth(Settings(auth_tokens="right"), clock)
    wrong(authorizer, 5000)
    assert len(caplog.messages) == 2000
    clock.now += 1
    wrong(authorizer, 1)
    assert caplog.messages[-2] == "refused: 3000 more that were not logged separately"


# --- this machine only ---


@pytest.mark.parametrize(
    "client", ["203.0.113.9", "localhost", "unknown", "::ffff:203.0.113.9", "10.0.0.1", "fe80::1%lo"]
)
def test_without_tokens_only_this_machine_is_served(client: str) -> None:
    authorizer = Auth(Settings())
    for path in ("/v1/models", "/invocations", "/nowhere"):
        assert status(authorizer.refusal(asked(path, client=client))) == 403
    assert status(authorizer.refusal(asked("/ws/inference", scheme="ws", client=client))) == 403
    for path in ("/", "/metrics", "/health/live"):
        assert authorizer.refusal(asked(path, client=client)) is None
    assert Auth(Settings(allow_anonymous=True)).refusal(asked(client=client)) is None
    for here in ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"):
        assert authorizer.refusal(asked(client=here)) is None
    for nobody in ("", "127.0.0.1, ", " , "):
        assert status(authorizer.refusal(asked(x_forwarded_for=nobody))) == 403
