"""Live sessions of a real service: their results reach the sinks, which never hold a session up."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.conftest import Serve
from tests.sinks.sending import until
from tests.support.live import ready
from tests.support.receiving import Receiver, hangs, receiving
from tests.support.service import Service, process, wait_for_line

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def counted(service: Service, sink: str) -> dict[str, float]:
    prefix = 'sightline_sink_messages_total{entry="live",outcome="'
    return {
        name.removeprefix(prefix).partition('"')[0]: value
        for name, value in service.metrics().items()
        if name.startswith(prefix) and f'sink="{sink}"' in name and value
    }


def health_of(service: Service) -> dict[str, Any]:
    answer = httpx.get(f"{service.url}/health/ready")
    assert answer.status_code == 200, "frames are analysed, whatever the sinks do"
    found: dict[str, Any] = answer.json()
    return found


async def results_of(service: Service, jpeg: bytes, count: int) -> list[dict[str, Any]]:
    found = []
    async with ready(service, mode="lossless") as live:
        for seq in range(1, count + 1):
            await live.frame(jpeg, seq)
            found.append(await live.answer())
        await live.stop()
    return found


def as_sent(result: dict[str, Any]) -> dict[str, Any]:
    """A client's result as the sinks get it."""
    rest = {name: value for name, value in result.items() if name not in ("type", "dropped")}
    return {"schema": "sightline.live.v1", **rest}


async def test_every_result_of_a_client_reaches_all_sinks(
    serve: Serve, receiver: Receiver, tmp_path: Path, jpeg: bytes
) -> None:
    path = tmp_path / "results.jsonl"
    service = serve(
        RESULT_SINKS="jsonl,webhook",
        JSONL_PATH=str(path),
        WEBHOOK_URL=receiver.url,
        WEBHOOK_SECRET=SECRET,
    )
    results = [as_sent(result) for result in await results_of(service, jpeg, 10)]
    assert results[0]["objects"]
    until(lambda: len(receiver.values()) == 10)
    assert receiver.values() == results
    until(lambda: path.read_bytes().count(b"\n") == 10)
    assert [orjson.loads(line) for line in path.read_bytes().splitlines()] == results
    for sink in ("jsonl", "webhook"):
        until(lambda sink=sink: counted(service, sink) == {"offered": 10, "delivered": 10})  # type: ignore[misc]
    assert health_of(service)["sinks"] == {name: {"state": "ok", "reason": None} for name in ("jsonl", "webhook")}
    assert SECRET not in service.log


async def test_a_webhook_that_hangs_holds_up_no_session_and_is_said(
    serve: Serve, receiver: Receiver, jpeg: bytes
) -> None:
    receiver.usual = hangs
    service = serve(RESULT_SINKS="webhook", WEBHOOK_URL=receiver.url, WEBHOOK_TIMEOUT_S="0.3", DRAIN_TIMEOUT_S="2")
    assert len(await results_of(service, jpeg, 10)) == 10

    until(lambda: health_of(service)["sinks"]["webhook"]["reason"] == "no answer within WEBHOOK_TIMEOUT_S=0.3 seconds")
    assert counted(service, "webhook") == {"offered": 10}
    service.process.terminate()
    assert service.process.wait(20) == 0
    assert "sink webhook: 10 messages were not delivered before the end" in service.log


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"RESULT_SINKS": "smoke"}, "RESULT_SINKS='smoke': 'smoke' should be one of kafka, jsonl, webhook"),
        ({"RESULT_SINKS": "jsonl"}, "JSONL_PATH is unset: the sink `jsonl` needs the path of a file"),
    ],
)
def test_a_sink_that_cannot_be_made_stops_the_start(
    canned_triton: str, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    log = tmp_path / "log"
    settings = {"STATE_DIR": str(tmp_path), "PORT": "0", "TRITON_URL": canned_triton, **settings}
    with process(["serve"], settings, log) as child:
        assert child.wait(60) != 0
    assert said in log.read_text()


def test_kafka_takes_live_results_too(serve: Serve) -> None:
    """Where no broker is there, the service starts and says so."""
    service = serve(RESULT_SINKS="kafka", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", DRAIN_TIMEOUT_S="2")
    wait_for_line(service.process, service.log_path, "Kafka: ")
