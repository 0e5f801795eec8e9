"""Publishes the number of sessions to CloudWatch, so that an unused machine can be stopped.

The function that stops it is `infra/lambda/stop_idle.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from app.limits import Latch
from app.metrics import ACTIVITY_ERRORS
from app.settings import ActivitySettings, AwsSettings

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient

log = logging.getLogger(__name__)

METRIC = "ActiveSessions"
_SAMPLE_S = 1.0


@dataclass
class SessionStatistics:
    """A CloudWatch statistic set of the session count since the last publication."""

    samples: int = 0
    total: int = 0
    least: int = 0
    most: int = 0

    def add(self, sessions: int) -> None:
        """Adds a sample."""
        self.least = min(self.least, sessions) if self.samples else sessions
        self.most = max(self.most, sessions)
        self.samples += 1
        self.total += sessions

    def absorb(self, earlier: SessionStatistics) -> None:
        """Adds earlier statistics that were not published."""
        if not earlier.samples:
            return
        self.least = min(self.least, earlier.least) if self.samples else earlier.least
        self.most = max(self.most, earlier.most)
        self.samples += earlier.samples
        self.total += earlier.total


class ActivityPublisher:
    """Publishes `ActiveSessions` every minute, and at once when a first session begins.

    The count is sampled every second and published as a statistic set: its `Maximum` includes a session that began
    and ended in between. Each of several workers publishes under the same name, so that no worker has to collect the
    counts of the others: the `Maximum` over all is above 0 as long as any worker has a session. It is the most sessions
    in one worker, not their sum.
    """

    def __init__(self, settings: ActivitySettings, aws: AwsSettings, count: Callable[[], int]) -> None:
        self._settings = settings
        self._aws = aws
        self._count = count
        self._statistics = SessionStatistics()
        self._first_session = asyncio.Event()
        self._published_most = 0
        self._trouble = Latch()

    async def run(self) -> None:
        """Runs until cancelled; returns at once if ACTIVITY_METRIC is `off`.

        Statistics that CloudWatch does not accept are counted, logged once, and published with the next ones.
        """
        if self._settings.activity_metric == "off":
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._publish())

    async def _watch(self) -> None:
        while True:
            sessions = self._count()
            self._statistics.add(sessions)
            if sessions and not self._published_most:
                self._first_session.set()  # publish now, before an idle stop happens
            await asyncio.sleep(_SAMPLE_S)

    async def _publish(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.activity_interval_s):
                    await self._first_session.wait()
            self._first_session.clear()
            statistics, self._statistics = self._statistics, SessionStatistics()
            self._published_most = statistics.most  # even if it fails: the next publication repeats it
            try:
                await asyncio.to_thread(self._put, statistics)
            except Exception as error:  # of AWS, its SDK or the metadata service
                self._statistics.absorb(statistics)
                self._failed(error)
            else:
                self._recovered()

    def _failed(self, error: Exception) -> None:
        ACTIVITY_ERRORS.inc()
        text = f"{type(error).__name__}: {error}"
        if self._trouble.begins(text):
            log.error(
                "the session count was not published, so an idle stop may stop this machine in use: %s",
                text,
            )

    def _recovered(self) -> None:
        if self._trouble.ends():
            log.info("CloudWatch accepts session counts again")

    def _put(self, statistics: SessionStatistics) -> None:
        self._cloudwatch.put_metric_data(
            Namespace=self._settings.activity_namespace,
            MetricData=[
                {
                    "MetricName": METRIC,
                    "Dimensions": [{"Name": "InstanceId", "Value": self._machine.instance_id}],
                    "StatisticValues": {
                        "SampleCount": statistics.samples,
                        "Sum": statistics.total,
                        "Minimum": statistics.least,
                        "Maximum": statistics.most,
                    },
                    "Unit": "Count",
                }
            ],
        )

    @cached_property
    def _machine(self) -> Machine:
        named = self._settings.activity_instance_id
        return Machine(named, None) if named else this_machine()

    @cached_property
    def _cloudwatch(self) -> CloudWatchClient:
        # Imported here, because it costs half a second and 20 MiB.
        import boto3
        from botocore.config import Config

        session = boto3.session.Session()
        return session.client(
            "cloudwatch",
            region_name=self._aws.aws_region or session.region_name or self._machine.region,
            endpoint_url=self._aws.aws_endpoint_url,
            config=Config(connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 2}),
        )


@dataclass(frozen=True)
class Machine:
    """An EC2 instance and its region, if known."""

    instance_id: str
    region: str | None


class NotOnEc2(Exception):
    """EC2's metadata service does not answer."""


_METADATA_TIMEOUT_S = 1.0
_LINK_LOCAL = "http://169.254.169.254"


def this_machine() -> Machine:
    """Queries EC2's instance metadata service, version 2, at the address that botocore is configured with.

    Raises:
        NotOnEc2: the service does not answer; the message names the variables to set.
    """
    import botocore.session

    address = str(botocore.session.get_session().get_config_variable("ec2_metadata_service_endpoint") or _LINK_LOCAL)
    try:
        token = _ask(f"{address.rstrip('/')}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        document = f"{address.rstrip('/')}/latest/dynamic/instance-identity/document"
        known = json.loads(_ask(document, "GET", {"X-aws-ec2-metadata-token": token}))
        return Machine(known["instanceId"], known["region"])
    except (OSError, ValueError, KeyError) as error:
        raise NotOnEc2(
            f"ACTIVITY_INSTANCE_ID is unset, and EC2's metadata service at {address} does not answer ({error}); set "
            "ACTIVITY_INSTANCE_ID and AWS_REGION, or, in a container, allow a second hop (HttpPutResponseHopLimit=2)"
        ) from None


def _ask(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    # No proxy, because the address is link-local.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_METADATA_TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text
