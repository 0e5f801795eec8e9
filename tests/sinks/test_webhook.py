"""The sink `webhook` against a real server that fails, hangs, closes, redirects and comes back."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import time
from collections.abc import Iterator
from email.utils import formatdate

import orjson
import pytest

from app.sinks import SinkMessage
from tests.sinks.sending import Counted, message, opened, until
from tests.support.kafka import free_ports
from tests.support.receiving import Behaviour, Receiver, answers, closes, hangs, receiving, trickles

KEYS = [bytes(range(32)), bytes(range(32, 64))]
SECRETS = ",".join(f"whsec_{base64.b64encode(key).decode()}" for key in KEYS)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sinks.sink.PAUSES_S", (0.01, 0.05))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def test_messages_arrive_in_their_order_as_json_arrays(receiver: Receiver) -> None:
    with opened(result_sinks="webhook", webhook_url=receiver.url) as (_, sender):
        sender.send(*map(message, range(500)))
        sender.wait(500)
    assert receiver.values() == [{"n": number} for number in range(500)]
    assert len(receiver.requests) < 100
    assert receiver.connections == 1
    headers, _ = receiver.requests[0]
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("sightline/")
    assert "webhook-signature" not in headers


def test_requests_are_signed_as_standard_webhooks_says_with_every_secret(receiver: Receiver) -> None:
    with opened(result_sinks="webhook", webhook_url=receiver.url, webhook_secret=SECRETS) as (_, sender):
        sender.send(message(1))
        sender.wait(1)
    ((headers, body),) = receiver.requests
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = [f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}" for key in KEYS]
    assert headers["webhook-signature"].split(" ") == expected


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (answers(500), "it answers 500"),
        (answers(429, retry_after="0"), "it answers 429"),
        (answers(404), "it answers 404"),
        (answers(307, location="http://127.0.0.1:1/"), "it answers 307, a redirect"),
        (hangs, "no answer within WEBHOOK_TIMEOUT_S=0.4 seconds"),
        (trickles, "no answer within WEBHOOK_TIMEOUT_S=0.4 seconds"),
        (closes, "RemoteProtocolError"),
    ],
)
def test_whatever_goes_wrong_the_same_request_comes_again(receiver: Receiver, trouble: Behaviour, said: str) -> None:
    counted = Counted("webhook")
    receiver.usual = trouble
    given = {"webhook_url": receiver.url, "webhook_secret": SECRETS, "webhook_timeout_s": 0.4}
    with opened(result_sinks="webhook", **given) as (sinks, sender):
        sender.send(message(1))
        until(lambda: said in sinks.errors().get("webhook", ""))
        until(lambda: len(receiver.requests) > 1)
        assert sinks.blocked
        receiver.usual = answers(200)
        sender.wait(1)
        assert sinks.errors() == {}
    assert sender.of("webhook") == ["delivered"]
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert len({body for _, body in receiver.requests}) == 1
    assert counted.grown() == {"offered": 1, "delivered": 1}


def test_a_server_that_is_not_there_yet_gets_everything_once_it_is() -> None:
    (port,) = free_ports(1)
    with opened(result_sinks="webhook", webhook_url=f"http://127.0.0.1:{port}/results") as (sinks, sender):
        sender.send(*map(message, range(50)))
        until(lambda: "ConnectError" in sinks.errors().get("webhook", ""))
        with receiving(port) as receiver:
            sender.wait(50)
            assert receiver.values() == [{"n": number} for number in range(50)]


@pytest.mark.parametrize("header", ["", "soon", "9" * 400, "Fri, 31 Dec 99999 23:59:59 GMT", "-5"])
def test_a_wait_that_means_nothing_does_no_harm(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, header) -> None:
    monkeypatch.setattr("app.sinks.sink._LONGEST_S", 0.1)
    receiver.next.append(answers(503, retry_after=header))
    with opened(result_sinks="webhook", webhook_url=receiver.url) as (_, sender):
        sender.send(message(1))
        sender.wait(1)
    assert sender.of("webhook") == ["delivered"]


def test_an_answer_of_any_length_is_given_up_soon(receiver: Receiver) -> None:
    def endless(request) -> None:
        request.send_response(200)
        request.send_header("content-length", str(1 << 40))
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(bytes(65536))
        request.close_connection = True

    receiver.usual = endless
    with opened(result_sinks="webhook", webhook_url=receiver.url) as (_, sender):
        sender.send(message(1))
        sender.wait(1)
    assert sender.of("webhook") == ["delivered"]


def test_large_messages_come_in_requests_of_their_own(receiver: Receiver) -> None:
    large = [SinkMessage("gate", f"gate/{number}", b'["' + b"x" * 400_000 + b'"]') for number in range(7)]
    with opened(result_sinks="webhook", webhook_url=receiver.url) as (_, sender):
        sender.send(*large)
        sender.wait(7)
    assert len(receiver.values()) == 7
    assert max(len(body) for _, body in receiver.requests) < 1_100_000


@pytest.mark.parametrize("header", ["2", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_a_server_that_says_when_is_not_asked_before(receiver: Receiver, header) -> None:
    receiver.next.append(answers(503, retry_after=header if isinstance(header, str) else header()))
    with opened(result_sinks="webhook", webhook_url=receiver.url) as (_, sender):
        began = time.monotonic()
        sender.send(message(1))
        sender.wait(1)
        assert time.monotonic() - began > 0.9


def test_a_message_that_the_server_calls_wrong_is_rejected_alone(receiver: Receiver) -> None:
    counted = Counted("webhook")

    def picky(request) -> None:
        _, body = receiver.requests[-1]
        answers(422 if {"n": 3} in orjson.loads(body) else 204)(request)

    receiver.usual = picky
    with opened(result_sinks="webhook", webhook_url=receiver.url) as (_, sender):
        sender.send(*map(message, range(8)))
        sender.wait(8)
    assert sender.outcomes["gate/3"] == {"webhook": "rejected"}
    assert counted.grown() == {"offered": 8, "delivered": 7, "rejected": 1}


def test_with_drop_results_are_given_up_while_the_server_is_away() -> None:
    counted, (port,) = Counted("webhook"), free_ports(1)
    url = f"http://127.0.0.1:{port}/results"
    with opened(result_sinks="webhook", webhook_url=url, sink_failure_policy="drop") as (_, sender):
        sender.send(message(1))
        sender.wait(1)
    assert counted.grown() == {"offered": 1, "given_up": 1}


def test_a_server_that_hangs_does_not_hold_up_the_end(receiver: Receiver) -> None:
    receiver.usual = hangs
    with opened(result_sinks="webhook", webhook_url=receiver.url, webhook_timeout_s=60, close_s=0.2) as (_, sender):
        sender.send(message(1))
        until(lambda: receiver.requests)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert sender.of("webhook") == ["left"]
