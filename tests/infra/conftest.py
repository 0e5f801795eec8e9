"""AWS for the functions of `infra/lambda`, which load as in Lambda: top-level modules, set by variables."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from botocore.retries.standard import ExponentialBackoff

from app.settings import ROOT
from tests.infra.ec2 import Ec2, fronted
from tests.infra.health import Health, health_served
from tests.support.aws import Aws, running_aws

sys.path.insert(0, str(ROOT / "infra" / "lambda"))

ORIGIN = "https://sight.example"
TOKEN = "a-token-for-the-start"


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """moto's server, shared by all tests."""
    with running_aws(tmp_path_factory.mktemp("aws")) as running:
        yield running


@pytest.fixture(scope="session")
def front(aws: Aws) -> Iterator[Ec2]:
    with fronted(aws) as proxy:
        yield proxy


@pytest.fixture
def ec2(front: Ec2, monkeypatch: pytest.MonkeyPatch) -> Ec2:
    """EC2 with one instance, stopped; the functions' variables lead to it."""
    import machine

    front.renew()
    variables = {
        **front.aws.environment,
        "AWS_ENDPOINT_URL": front.url,
        "INSTANCE_ID": front.instance_id,
        "ALLOWED_ORIGINS": ORIGIN,
        "START_TOKENS": TOKEN,
        "SERVICE_URL": ORIGIN,
        "IDLE_MINUTES": "15",
        "GRACE_MINUTES": "10",
        "RECHECK_SECONDS": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in ("ALLOW_ANONYMOUS", "HEALTH_URL", "DRY_RUN", "ACTIVITY_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    # What AWS refuses is tried again as often as ever, without the seconds in between.
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)
    machine.client("ec2")  # made here: two threads that make the first one race, which Lambda never does
    return front


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> Iterator[Health]:
    """The health endpoint that `start-server` polls; it reports an unready service at first."""
    with health_served() as health_server:
        monkeypatch.setenv("HEALTH_URL", health_server.url)
        yield health_server
