"""`infra/segments.yaml`, read, and deployed into moto's server as far as that goes."""

from __future__ import annotations

import re
import uuid
from typing import Any

import yaml

from app.settings import ROOT, SegmentSettings
from tests.support.aws import REGION, Aws
from tests.support.segments import Estate

TEMPLATE = ROOT / "infra" / "segments.yaml"
ACCOUNT = "123456789012"


class _Loader(yaml.SafeLoader):
    """Reads `!Ref X` as `{"Ref": X}`, `!Sub X` as `{"Fn::Sub": X}`, and so on."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {name: value}


_Loader.add_multi_constructor("!", _tagged)


def template() -> dict[str, Any]:
    read: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)
    return read


def variable(output: str) -> str:
    """`JobsTableName` as `JOBS_TABLE_NAME`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", output).upper()


def deploy(aws: Aws, **parameters: str) -> tuple[Estate, dict[str, str]]:
    """A stack under a name of its own, and its outputs.

    moto makes the buckets without their notifications and life cycles: they are put in place from the same template.
    """
    name = f"t{uuid.uuid4().hex[:10]}"
    cloud = aws.client("cloudformation")
    given = [
        {"ParameterKey": key, "ParameterValue": value} for key, value in {"NamePrefix": name, **parameters}.items()
    ]
    cloud.create_stack(
        StackName=name, TemplateBody=TEMPLATE.read_text(), Parameters=given, Capabilities=["CAPABILITY_IAM"]
    )
    (stack,) = cloud.describe_stacks(StackName=name)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    _wire(aws, name)
    fields = {variable(key).lower(): value for key, value in outputs.items()}
    known = {field: value for field, value in fields.items() if field in SegmentSettings.model_fields}
    return Estate(aws, SegmentSettings(**known)), outputs


def _wire(aws: Aws, name: str) -> None:
    resources = template()["Resources"]
    s3 = aws.client("s3")
    for resource in resources.values():
        if resource["Type"] != "AWS::S3::Bucket":
            continue
        properties = resource["Properties"]
        bucket = properties["BucketName"]["Fn::Sub"]
        for word, value in (("NamePrefix", name), ("AWS::AccountId", ACCOUNT), ("AWS::Region", REGION)):
            bucket = bucket.replace(f"${{{word}}}", value)
        told = []
        for rule in properties["NotificationConfiguration"]["QueueConfigurations"]:
            queue = resources[rule["Queue"]["Fn::GetAtt"].split(".")[0]]["Properties"]["QueueName"]["Fn::Sub"]
            arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue.replace('${NamePrefix}', name)}"
            rules = rule["Filter"]["S3Key"]["Rules"]
            told.append({"QueueArn": arn, "Events": [rule["Event"]], "Filter": {"Key": {"FilterRules": rules}}})
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={"QueueConfigurations": told})
