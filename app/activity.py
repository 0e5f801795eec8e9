"""How many sessions there are, told to CloudWatch, so that a machine that nobody uses can be stopped.

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

from app.metrics import ACTIVITY_ERRORS
from app.settings import ActivitySettings, AwsSettings

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient

log = logging.getLogger(__name__)

METRIC = "ActiveSessions"
_SAMPLE_S = 1.0


@dataclass
class Figure:
    """What was counted since the last figure."""

    samples: int = 0
    total: int = 0
    least: int = 0
    most: int = 0

    def add(self, sessions: int) -> None:
        """One more look at the count."""
        self.least = min(self.least, sessions) if self.samples else sessions
        self.most = max(self.most, sessions)
        self.samples += 1
        self.total += sessions

    def absorb(self, earlier: Figure) -> None:
        """Takes in a figure that could not be told."""
        if not earlier.samples:
            return
        self.least = min(self.least, earlier.least) if self.samples else earlier.least
        self.most = max(self.most, earlier.most)
        self.samples += earlier.samples
        self.total += earlier.total


class ActivityPublisher:
    """Publishes `ActiveSessions` every ACTIVITY_INTERVAL_S, and at once when a first session comes.

    The count is looked at every second, and a figure holds all looks since the last one as a statistic set: its
    `Maximum` keeps a session that came and went in between. With several workers, each publishes its own under the
    same name: the `Maximum` over all is above 0 as long as any of them has a session, and none has to be elected to
    speak for the others. It is the most sessions in one worker, not their sum.
    """

    def __init__(self, settings: ActivitySettings, aws: AwsSettings, count: Callable[[], int]) -> None:
        self._settings = settings
        self._aws = aws
        self._count = count
        self._figure = Figure()
        self._came = asyncio.Event()
        self._most_told = 0
        self._trouble: str | None = None

    async def run(self) -> None:
        """Runs until it is cancelled; returns at once where ACTIVITY_METRIC is `off`.

        What CloudWatch does not take is counted, logged once, and told with the next figure.
        """
        if self._settings.activity_metric == "off":
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._publish())

    async def _watch(self) -> None:
        while True:
            sessions = self._count()
            self._figure.add(sessions)
            if sessions and not self._most_told:
                self._came.set()  # an idle stop that is about to happen must hear of it now
            await asyncio.sleep(_SAMPLE_S)

    async def _publish(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.activity_interval_s):
                    await self._came.wait()
            self._came.clear()
            figure, self._figure = self._figure, Figure()
            self._most_told = figure.most  # tried to, at least: what fails waits for the next turn
            try:
                await asyncio.to_thread(self._put, figure)
            except Exception as error:  # whatever AWS, its SDK or the metadata service has against this figure
                self._figure.absorb(figure)
                self._failed(error)
            else:
                self._went_well()

    def _failed(self, error: Exception) -> None:
        ACTIVITY_ERRORS.inc()
        text = f"{type(error).__name__}: {error}"
        if text != self._trouble:
            log.error("no activity figure for CloudWatch; an idle stop may stop this machine in use: %s", text)
        self._trouble = text

    def _went_well(self) -> None:
        if self._trouble is not None:
            log.info("CloudWatch takes activity figures again")
        self._trouble = None

    def _put(self, figure: Figure) -> None:
        self._cloudwatch.put_metric_data(
            Namespace=self._settings.activity_namespace,
            MetricData=[
                {
                    "MetricName": METRIC,
                    "Dimensions": [{"Name": "InstanceId", "Value": self._machine.instance_id}],
                    "StatisticValues": {
                        "SampleCount": figure.samples,
                        "Sum": figure.total,
                        "Minimum": figure.least,
                        "Maximum": figure.most,
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
        # Half a second and 20 MiB, for those who use it.
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
    """An EC2 instance and the region that it is in, where that is known."""

    instance_id: str
    region: str | None


class NotOnEc2(Exception):
    """The metadata service of EC2 does not answer."""


_METADATA_TIMEOUT_S = 1.0
_LINK_LOCAL = "http://169.254.169.254"


def this_machine() -> Machine:
    """Asks EC2's metadata service, version 2, whose address botocore knows.

    Raises:
        NotOnEc2: nobody answers; the message says what to set.
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
    # No proxy: the address is link-local, and means this machine alone.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_METADATA_TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text
