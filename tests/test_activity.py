"""The activity figure, over boto3 on moto's CloudWatch; the instance's id from a metadata service of the test's own."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from app.activity import ActivityPublisher
from app.errors import ConfigurationError
from app.metrics import ACTIVITY_ERRORS
from app.settings import ROOT, ActivitySettings, AwsSettings, Settings
from tests.infra.ec2 import Ec2, fronted
from tests.support.aws import REGION, Aws, running_aws

WAIT_S = 30.0


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with running_aws(tmp_path_factory.mktemp("aws")) as running:
        yield running


@pytest.fixture
def front(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2]:
    """CloudWatch that can be told to refuse; the SDK's variables for keys and region."""
    for name, value in aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with fronted(aws) as proxy:
        yield proxy


def publisher(front: Ec2, count: Callable[[], int], **settings: Any) -> ActivityPublisher:
    settings = {"activity_metric": "cloudwatch", "activity_interval_s": 1.0, **settings}
    settings.setdefault("activity_instance_id", front.instance_id)
    return ActivityPublisher(ActivitySettings(**settings), AwsSettings(aws_endpoint_url=front.url), count)


def run_until(made: ActivityPublisher, done: Callable[[], bool]) -> None:
    """Runs the publisher until that holds, then cancels it as a stopping service does."""

    async def drive() -> None:
        running = asyncio.create_task(made.run())
        deadline = time.monotonic() + WAIT_S
        while not await asyncio.to_thread(done):
            assert not running.done(), running
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(drive())


def figures(aws: Aws, instance_id: str, namespace: str = "Sightline") -> dict[str, float]:
    """All figures of an instance as CloudWatch adds them up; empty without one."""
    now = datetime.now(UTC)
    answer = aws.client("cloudwatch").get_metric_statistics(
        Namespace=namespace,
        MetricName="ActiveSessions",
        Dimensions=[{"Name": "InstanceId", "Value": instance_id}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=1),
        Period=7200,
        Statistics=["Maximum", "Minimum", "SampleCount", "Sum"],
    )
    return answer["Datapoints"][0] if answer["Datapoints"] else {}


def test_the_number_of_sessions_is_published_again_and_again(front: Ec2) -> None:
    run_until(publisher(front, lambda: 0), lambda: front.asked["PutMetricData"] >= 3)
    found = figures(front.aws, front.instance_id)
    assert (found["Maximum"], found["Sum"], found["Unit"]) == (0, 0, "Count")
    assert found["SampleCount"] >= 3


def test_a_session_between_two_figures_counts(front: Ec2) -> None:
    counts = iter([1, 0, 3])  # the first is told at once, so that it does not hide what the figure after it keeps
    run_until(
        publisher(front, lambda: next(counts, 0), activity_interval_s=4), lambda: front.asked["PutMetricData"] >= 2
    )
    found = figures(front.aws, front.instance_id)
    assert (found["Maximum"], found["Minimum"], found["Sum"]) == (3, 0, 4)


def test_a_first_session_is_told_at_once(front: Ec2) -> None:
    sessions = [0]
    asked = threading.Event()

    def count() -> int:
        if asked.is_set():
            sessions[0] = 2
        asked.set()
        return sessions[0]

    made = publisher(front, count, activity_interval_s=120)
    run_until(made, lambda: figures(front.aws, front.instance_id).get("Maximum") == 2)
    assert front.asked["PutMetricData"] == 1


def test_the_idle_stop_sees_what_the_service_publishes(front: Ec2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "infra" / "lambda")
    import machine
    from stop_idle import handler

    for name, value in {
        "AWS_ENDPOINT_URL": front.url,
        "INSTANCE_ID": front.instance_id,
        "RECHECK_SECONDS": "0",
    }.items():
        monkeypatch.setenv(name, value)
    machine.client.cache_clear()
    front.runs(3600)
    run_until(publisher(front, lambda: 1), lambda: front.asked["PutMetricData"] >= 1)
    try:
        assert handler({}, None)["reason"] == "active"
        monkeypatch.setenv("ACTIVITY_NAMESPACE", "Elsewhere")
        assert handler({"dry_run": True}, None)["reason"] == "no_figures"
    finally:
        machine.client.cache_clear()


def test_what_is_refused_is_counted_said_once_and_told_later(front: Ec2, caplog: pytest.LogCaptureFixture) -> None:
    before = ACTIVITY_ERRORS._value.get()
    front.refuse("PutMetricData", "AccessDenied", 403, times=3)
    counts = iter([5])
    with caplog.at_level(logging.INFO, logger="app.activity"):
        run_until(publisher(front, lambda: next(counts, 0)), lambda: "accepts" in caplog.text)
    assert ACTIVITY_ERRORS._value.get() == before + 3
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["ERROR", "INFO"]
    assert "AccessDenied" in said[0][1]
    assert figures(front.aws, front.instance_id)["Maximum"] == 5  # the high-water mark outlived the refusals


def test_throttling_is_retried_by_the_sdk(front: Ec2) -> None:
    before = ACTIVITY_ERRORS._value.get()
    front.refuse("PutMetricData", "ThrottlingException", 400, times=1)
    run_until(publisher(front, lambda: 1), lambda: bool(figures(front.aws, front.instance_id)))
    assert ACTIVITY_ERRORS._value.get() == before


def test_off_it_does_nothing(front: Ec2) -> None:
    assert ActivitySettings().activity_metric == "off"
    asyncio.run(asyncio.wait_for(publisher(front, lambda: 1, activity_metric="off").run(), 5))
    assert front.asked["PutMetricData"] == 0


@contextmanager
def metadata_served(instance_id: str) -> Iterator[tuple[str, list[str]]]:
    """EC2's metadata service, version 2: a token by PUT, then the document. Yields its address and what was asked."""
    asked: list[str] = []

    class Door(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._say(200 if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") else 400, "a-token")

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
                return self._say(401, "")
            return self._say(200, json.dumps({"instanceId": instance_id, "region": REGION}))

        def _say(self, status: int, text: str) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_the_machine_is_found_by_its_metadata_service(front: Ec2, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    with metadata_served(front.instance_id) as (address, asked):
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        made = publisher(front, lambda: 4, activity_instance_id=None)
        run_until(made, lambda: bool(figures(front.aws, front.instance_id)))
    assert figures(front.aws, front.instance_id)["Maximum"] == 4
    assert asked == ["PUT /latest/api/token", "GET /latest/dynamic/instance-identity/document"]  # once


def test_a_machine_that_is_not_ec2_is_told_what_to_set(
    front: Ec2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = ACTIVITY_ERRORS._value.get()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    made = publisher(front, lambda: 1, activity_instance_id=None)
    run_until(made, lambda: ACTIVITY_ERRORS._value.get() >= before + 2)
    (record,) = caplog.records
    assert "ACTIVITY_INSTANCE_ID is unset" in record.getMessage()
    assert "HttpPutResponseHopLimit=2" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("ACTIVITY_METRIC", "statsd", "'off' or 'cloudwatch'"),
        ("ACTIVITY_INSTANCE_ID", "my-machine", "an EC2 instance, for example i-0123456789abcdef0"),
        ("AWS_ENDPOINT_URL", "localhost:5000", "a web address"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, right: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as error:
        Settings()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{name}='{value}': should be ")
    assert right in line


def test_empty_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACTIVITY_INSTANCE_ID", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert settings.activity.activity_instance_id is None
    assert (settings.aws.aws_region, settings.aws.aws_endpoint_url) == (None, None)
