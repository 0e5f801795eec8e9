"""The one EC2 instance: how it stands, what its tags remember, and what EC2's refusals mean."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

WANTED = "sightline:wanted-at"
"""Tag: when somebody last asked for a start that could not be made at once, epoch seconds."""
COLD_STARTS = "sightline:cold-starts"
"""Tag: how long the last starts took; see `cold_starts`."""
WANTED_FOR_S = 600.0
"""A wish older than this is forgotten: whoever had it has left."""

_THROTTLED = {
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "Throttling",
    "ThrottledException",
    "ThrottlingException",
    "TooManyRequestsException",
}
_FULL = {
    "InsufficientAddressCapacity",
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "InsufficientReservedInstanceCapacity",
}


@functools.cache
def client(service: str) -> Any:
    """A client that gives up before the function's own time is over, all calls together. One a service and process."""
    retries: Any = {"mode": "standard", "total_max_attempts": 3}
    make: Any = boto3.client  # typed for literal names alone
    return make(service, config=Config(retries=retries, connect_timeout=1, read_timeout=4))


@dataclass(frozen=True)
class Machine:
    """An EC2 instance as it was a moment ago. Times are epoch seconds."""

    id: str
    state: str
    """`pending`, `running`, `shutting-down`, `terminated`, `stopping` or `stopped`."""
    launched_at: float
    """When it was last started; EC2 renews it with every start."""
    ip: str
    """Public address; empty while there is none."""
    dns: str
    tags: dict[str, str]

    @property
    def gone(self) -> bool:
        """Deleted for good."""
        return self.state in ("shutting-down", "terminated")

    def up_for(self, now: float) -> float:
        """Seconds since the last start was asked for."""
        return now - self.launched_at

    def wanted(self, now: float) -> bool:
        """Whether somebody asked for a start lately, and has not got one yet."""
        at = self.tags.get(WANTED, "")
        return at.isdecimal() and float(at) > self.launched_at and now - float(at) < WANTED_FOR_S

    def address(self, template: str) -> str | None:
        """`{ip}` and `{dns}` filled in; None when there is no address to tell yet."""
        needed = [value for name, value in (("{ip}", self.ip), ("{dns}", self.dns)) if name in template]
        if not template or not all(needed):
            return None
        return template.replace("{ip}", self.ip).replace("{dns}", self.dns)


def look(ec2: Any, instance_id: str) -> Machine:
    """How the instance stands now.

    Raises:
        ClientError: EC2 refused; `InvalidInstanceID.NotFound` when there is no such instance (any more).
    """
    found = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
    return Machine(
        id=instance_id,
        state=found["State"]["Name"],
        launched_at=found["LaunchTime"].timestamp(),
        ip=found.get("PublicIpAddress") or "",
        dns=found.get("PublicDnsName") or "",
        tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", [])},
    )


def remember(ec2: Any, machine: Machine, tag: str, value: str) -> None:
    """Writes one tag, unless it says so already."""
    if machine.tags.get(tag) != value:
        ec2.create_tags(Resources=[machine.id], Tags=[{"Key": tag, "Value": value}])


def wish(ec2: Any, machine: Machine) -> None:
    """Notes that a start is wanted, so that whoever asks next, even by `GET`, makes it."""
    now = time.time()
    # One note a minute does: a crowd of visitors must not use up the account's calls.
    if not machine.wanted(now) or now - float(machine.tags[WANTED]) > 60:
        remember(ec2, machine, WANTED, str(int(now)))


def code(error: ClientError | BotoCoreError) -> str:
    """EC2's name of an error; empty where it never answered."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else ""


def busy(error: ClientError | BotoCoreError) -> bool:
    """Whether AWS was too busy, or out of reach: worth another try soon."""
    if isinstance(error, ClientError):
        return code(error) in _THROTTLED or error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
    return isinstance(error, (HTTPClientError, ConnectionError))


def full(error: ClientError | BotoCoreError) -> bool:
    """Whether AWS has no such machine free just now."""
    return code(error) in _FULL
