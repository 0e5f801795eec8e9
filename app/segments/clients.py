"""boto3's clients, made as the settings say. A client may be used by several threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import ConfigurationError
from app.settings import AwsSettings, SegmentSettings

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient
    from mypy_boto3_sqs import SQSClient

CONNECTIONS = 48
"""Above the threads that may use a client at once: INFERENCE_MAX_IN_FLIGHT segments, their heartbeats, two loops."""


class Clients:
    """One client a service, made when it is first asked for, in the thread that opens the door.

    Raises:
        ConfigurationError: no region is known.
    """

    def __init__(self, settings: AwsSettings) -> None:
        # A quarter of a second and 20 MiB, for those who use it.
        import boto3

        self._session = boto3.session.Session()
        self._endpoint = settings.aws_endpoint_url
        self._region = settings.aws_region or self._session.region_name
        if not self._region:
            raise ConfigurationError("AWS_REGION is unset, and the AWS SDK knows of none; set it, such as eu-central-1")

    def s3(self) -> S3Client:
        return self._session.client("s3", self._region, endpoint_url=self._endpoint, config=_config())

    def sqs(self) -> SQSClient:
        return self._session.client("sqs", self._region, endpoint_url=self._endpoint, config=_config())

    def dynamodb(self) -> DynamoDBClient:
        return self._session.client("dynamodb", self._region, endpoint_url=self._endpoint, config=_config())

    def sagemaker_runtime(self, settings: SegmentSettings) -> SageMakerRuntimeClient:
        region = settings.sagemaker_region or self._region
        return self._session.client("sagemaker-runtime", region, endpoint_url=self._endpoint, config=_config())


def _config() -> Config:
    from botocore.config import Config

    return Config(
        connect_timeout=5,
        read_timeout=60,  # above the longest wait for a message, 20 s
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=CONNECTIONS,
    )


def required(value: str | None, name: str, why: str) -> str:
    """The setting's value.

    Raises:
        ConfigurationError: it is unset.
    """
    if not value:
        raise ConfigurationError(f"{name} is unset: {why}")
    return value
