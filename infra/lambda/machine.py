"""The EC2 instance: its state, the values kept in its tags, and the meaning of EC2's errors."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

WANTED = "sightline:wanted-at"
"""Tag: the time of the last requested start that could not be made at once, epoch seconds."""
COLD_STARTS = "sightline:cold-starts"
"""Tag: the durations of the last starts, in the format of `cold_starts`."""
WANTED_FOR_S = 600.0
"""A requested start older than this is not made any more, because its visitor has probably left."""

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
    """One client for each service and process. Short timeouts let all calls end within the function's own timeout."""
    retries: Any = {"mode": "standard", "total_max_attempts": 3}
    make: Any = boto3.client  # typed for literal names alone
    return make(service, config=Config(retries=retries, connect_timeout=1, read_timeout=4))


@dataclass(frozen=True)
class Machine:
    """The state of an EC2 instance when it was last read. Times are epoch seconds."""

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
        """Whether the instance is terminated, or is being terminated."""
        return self.state in ("shutting-down", "terminated")

    def up_for(self, now: float) -> float:
        """Seconds since the last start was requested."""
        return now - self.launched_at

    def wanted(self, now: float) -> bool:
        """Whether a start was requested in the last `WANTED_FOR_S` seconds and was not made yet."""
        at = self.tags.get(WANTED, "")
        return at.isdecimal() and float(at) > self.launched_at and now - float(at) < WANTED_FOR_S

    def address(self, template: str) -> str | None:
        """`template` with `{ip}` and `{dns}` filled in; None if it is empty, or the machine has no such address yet."""
        needed = [value for name, value in (("{ip}", self.ip), ("{dns}", self.dns)) if name in template]
        if not template or not all(needed):
            return None
        return template.replace("{ip}", self.ip).replace("{dns}", self.dns)


def look(ec2: Any, instance_id: str) -> Machine:
    """Reads the instance's state.

    Raises:
        ClientError: EC2 refused; `InvalidInstanceID.NotFound` if the instance does not exist (any more).
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
    """Writes one tag, unless it has this value already."""
    if machine.tags.get(tag) != value:
        ec2.create_tags(Resources=[machine.id], Tags=[{"Key": tag, "Value": value}])


def wish(ec2: Any, machine: Machine) -> None:
    """Records a requested start in a tag, so that the next call that can make it does, even a `GET`."""
    now = time.time()
    # At most one write a minute, because many visitors at once must not use up the account's API calls.
    if not machine.wanted(now) or now - float(machine.tags[WANTED]) > 60:
        remember(ec2, machine, WANTED, str(int(now)))


def code(error: ClientError | BotoCoreError) -> str:
    """EC2's name of an error; empty if EC2 did not answer."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else ""


def busy(error: ClientError | BotoCoreError) -> bool:
    """Whether AWS was overloaded or unreachable, so that another try may succeed soon."""
    if isinstance(error, ClientError):
        return code(error) in _THROTTLED or error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
    return isinstance(error, (HTTPClientError, ConnectionError))


def full(error: ClientError | BotoCoreError) -> bool:
    """Whether AWS has no capacity for this type of machine at the moment."""
    return code(error) in _FULL
