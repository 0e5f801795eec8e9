"""A real Prometheus scrapes a real service and its Triton under a short load and evaluates every expression."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from app.client import connect
from app.settings import TritonSettings
from benchmarks import canned
from tests.prometheus.expressions import everything, plain, proven, rules
from tests.prometheus.triton_names import ON_ANY_MACHINE
from tests.support.prometheus import Prometheus, require_program, running_prometheus, running_triton
from tests.support.service import Service, require_environment, serving

TOKEN = "a-token-of-the-tests"
SESSIONS, FRAMES = 2, 60


@dataclass(frozen=True)
class Watched:
    """The service that is scraped, and the Prometheus that scrapes it."""

    prometheus: Prometheus
    service: Service
    triton: str
    """`host:port` of its metrics."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, jpeg: bytes) -> Iterator[Watched]:
    """A service that requires a token, and a Prometheus without one."""
    require_program("prometheus")
    require_environment(TritonSettings().triton_python, "make triton-env")
    folder = tmp_path_factory.mktemp("watched")
    repository = canned.write(folder / "repository")
    for name in ("service", "prometheus"):
        (folder / name).mkdir()
    with running_triton(repository, folder / "state") as (grpc, metrics):
        settings = {"TRITON_URL": grpc, "OCR": "off", "AUTH_TOKENS": TOKEN}
        with serving(folder / "service", settings) as service:
            targets = {"backend": [f"127.0.0.1:{service.port}"], "triton": [metrics]}
            with running_prometheus(folder / "prometheus", targets) as prometheus:
                prometheus.wait_for("sum(up) == 2")
                asyncio.run(load(service, jpeg))
                # A counter with labels begins with its first event: only a second one is a rate.
                prometheus.wait_for(f'sightline_sessions_total{{outcome="stopped"}} == {SESSIONS}')
                asyncio.run(load(service, jpeg))
                yield Watched(prometheus, service, metrics)


async def load(service: Service, jpeg: bytes) -> None:
    """Sessions that stream, one of them a damaged frame; a picture by HTTP; a request with a wrong token."""
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as http:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert (await http.post("/v1/frames", content=jpeg, headers=headers)).status_code == 200
        assert (await http.post("/v1/frames", content=jpeg[:2000], headers=headers)).status_code == 415
        assert (await http.post("/v1/frames", content=jpeg, headers={"Authorization": "Bearer no"})).status_code == 401
    await asyncio.gather(*(_stream(service, jpeg) for _ in range(SESSIONS)))


async def _stream(service: Service, jpeg: bytes) -> None:
    async with connect(service.url, token=TOKEN, mode="lossless") as session:
        async for _ in session.stream([jpeg] * FRAMES):
            pass


def test_targets_are_up_without_a_token(watched: Watched) -> None:
    active = watched.prometheus.get("targets")["activeTargets"]
    assert {target["labels"]["job"] for target in active} == {"backend", "triton"}
    assert [target["lastError"] for target in active] == ["", ""]


def test_prometheus_reads_what_the_service_counts(watched: Watched) -> None:
    expected = 2 * SESSIONS * FRAMES
    for word in ("received", "processed"):
        watched.prometheus.wait_for(f'sightline_frames_{word}_total{{entry="live"}} == {expected}')


def test_every_expression_has_a_value_or_a_unit_test(watched: Watched) -> None:
    ended = f'sightline_sessions_total{{outcome="stopped"}} == {2 * SESSIONS}'
    watched.prometheus.wait_for(ended)
    # Two readings of it, and what is recorded of recorded series: three evaluations after the last event.
    watched.prometheus.wait_for(f"count_over_time(({ended})[1m:500ms]) >= 4")
    alerts = {plain(rule["expr"]) for rule in rules("alert")}  # nothing to alert of; `test_files.py` has each firing
    unproven = [
        f"{where}: {expression}"
        for where, expression in everything().items()
        if expression not in alerts | proven() and not watched.prometheus.numbers(expression)
    ]
    assert not unproven, "\n".join(unproven)


def test_rules_are_worked_out_without_errors(watched: Watched) -> None:
    groups = watched.prometheus.get("rules")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(found) == {rule.get("record") or rule["alert"] for kind in ("record", "alert") for rule in rules(kind)}
    assert {name: rule["lastError"] for name, rule in found.items() if rule.get("lastError")} == {}
    assert [name for name, rule in found.items() if rule["health"] == "err"] == []


def test_triton_has_every_metric_that_we_name(watched: Watched) -> None:
    text = httpx.get(f"http://{watched.triton}/metrics", timeout=10).text
    for name, labels in ON_ANY_MACHINE.items():
        found = re.search(rf"^{name}(?:\{{(.*?)\}})? ", text, re.M)
        assert found, name
        assert set(re.findall(r'(\w+)="', found[1] or "")) == set(labels), name


def test_a_service_that_is_gone_is_noticed(watched: Watched) -> None:
    # Last in this file: it ends the service that the others read.
    watched.service.process.terminate()
    watched.service.process.wait(30)
    watched.prometheus.wait_for('ALERTS{alertname="SightlineDown", alertstate="pending"}')
    (alert,) = [alert for alert in watched.prometheus.get("alerts")["alerts"] if alert["labels"]["job"] == "backend"]
    assert (
        alert["annotations"]["summary"]
        == f"The service at 127.0.0.1:{watched.service.port} does not answer, or comes and goes"
    )
