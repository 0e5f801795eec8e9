"""Amazon's interfaces, and the activity figure that lets an idle machine be stopped."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from app.settings.section import Section, fixed, web_address

_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}")


class AwsSettings(Section):
    aws_region: str | None = Field(None, description="region; unset: as the AWS SDK finds it")
    aws_endpoint_url: str | None = Field(
        None, description="address of a stand-in for AWS, such as moto's server; unset: AWS itself"
    )

    @field_validator("aws_region")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        return value or None  # compose passes on an empty one where it is unset

    @field_validator("aws_endpoint_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return web_address(value, "http://127.0.0.1:5000")


class ActivitySettings(Section):
    activity_metric: Literal["off", "cloudwatch"] = Field(
        "off", description="where the number of sessions is published, for the function that stops an idle machine"
    )
    activity_interval_s: float = fixed(
        60.0,
        ge=1,
        le=120,
        description="seconds between two figures; far below the minutes of idling that stop a machine",
    )
    activity_namespace: str = Field("Sightline", min_length=1, description="CloudWatch namespace of the figure")
    activity_instance_id: str | None = Field(
        None, description="EC2 instance the figure is for; unset: this machine, by its metadata service"
    )

    @field_validator("activity_instance_id")
    @classmethod
    def _instance(cls, value: str | None) -> str | None:
        if value and not _INSTANCE.fullmatch(value):
            raise ValueError("an EC2 instance, for example i-0123456789abcdef0")
        return value or None
