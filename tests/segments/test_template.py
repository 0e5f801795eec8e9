"""`infra/segments.yaml`: clean by cfn-lint's rules, deployed into moto, and in step with the code that uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.segments import keys
from app.segments.aws import BY_OPEN, BY_STATUS
from app.segments.handler import MAX_DELIVERIES
from app.settings import SegmentSettings
from tests.support.aws import Aws
from tests.support.segments import estate
from tests.support.stack import TEMPLATE, deploy, template, variable

SEGMENT = keys.SegmentKey("clip-1", 7, "annotate")


@pytest.fixture(scope="module")
def read() -> dict[str, Any]:
    return template()


def of_type(read: dict[str, Any], kind: str) -> dict[str, Any]:
    """Properties of all resources of a type, by name."""
    return {name: resource["Properties"] for name, resource in read["Resources"].items() if resource["Type"] == kind}


def statements(read: dict[str, Any], policy: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read["Resources"][policy]["Properties"]["PolicyDocument"]["Statement"]
    return found


def actions(statement: dict[str, Any]) -> set[str]:
    named = statement["Action"]
    return {named} if isinstance(named, str) else set(named)


def told(read: dict[str, Any], bucket: str, key: str) -> list[str]:
    """The queues that hear of an object with this key."""
    rules = read["Resources"][bucket]["Properties"]["NotificationConfiguration"]["QueueConfigurations"]
    heard = []
    for rule in rules:
        filters = {filter_rule["Name"]: filter_rule["Value"] for filter_rule in rule["Filter"]["S3Key"]["Rules"]}
        if key.startswith(filters.get("prefix", "")) and key.endswith(filters.get("suffix", "")):
            heard.append(rule["Queue"]["Fn::GetAtt"].split(".")[0])
    return heard


def test_cfn_lint_has_nothing_to_say_not_even_a_hint() -> None:
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:1")
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--include-checks", "I", "W", "--", str(TEMPLATE)]
    done = subprocess.run(command, env=os.environ | unreachable, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_no_anchors_since_cloudformation_does_not_read_them_everywhere() -> None:
    assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(TEMPLATE.read_text()))


def test_the_queues_hear_of_what_the_worker_waits_for_and_of_nothing_else(read: dict[str, Any]) -> None:
    requests = keys.request_uri("b", "0" * 32).removeprefix("s3://b/")
    assert told(read, "InputBucket", keys.input_key(SEGMENT)) == ["VideoWorkerQueue"]
    assert told(read, "InputBucket", requests) == []
    assert told(read, "OutputBucket", keys.output_key(SEGMENT)) == ["SegmentOutputQueue"]
    assert told(read, "OutputBucket", f"async/{'0' * 32}.out") == ["SegmentOutputQueue"]
    assert told(read, "OutputBucket", f"async-failures/{'0' * 32}-error.out") == ["SegmentOutputQueue"]
    assert told(read, "OutputBucket", keys.output_key(SEGMENT).replace(".mp4", ".jsonl")) == []


def test_a_bucket_may_write_to_its_queue_before_it_is_there(read: dict[str, Any]) -> None:
    for bucket, queue in (("InputBucket", "VideoWorkerQueue"), ("OutputBucket", "SegmentOutputQueue")):
        resource = read["Resources"][bucket]
        assert resource["DependsOn"] == f"{queue}Policy"
        allowed, _ = statements(read, f"{queue}Policy")
        source = allowed["Condition"]["ArnEquals"]["aws:SourceArn"]["Fn::Sub"]
        assert source.endswith(f":s3:::{resource['Properties']['BucketName']['Fn::Sub']}")


def test_every_queue_has_a_dead_letter_queue_beyond_the_workers_own_limit(read: dict[str, Any]) -> None:
    queues = of_type(read, "AWS::SQS::Queue")
    living = {name: queue for name, queue in queues.items() if "RedrivePolicy" in queue}
    assert set(living) == {"VideoWorkerQueue", "SegmentOutputQueue", "ReassemblyQueue"}
    for name, queue in living.items():
        dead = queues[f"{name}Dead"]
        assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": f"{name}Dead.Arn"}
        assert queue["RedrivePolicy"]["maxReceiveCount"] > MAX_DELIVERIES + 1
        assert queue.get("FifoQueue") == dead.get("FifoQueue")
        assert dead["MessageRetentionPeriod"] > queue["MessageRetentionPeriod"]
    assert living["ReassemblyQueue"]["FifoQueue"] is True  # a job is sent once
    assert {
        alarm["Dimensions"][0]["Value"]["Fn::GetAtt"] for alarm in of_type(read, "AWS::CloudWatch::Alarm").values()
    } == {f"{name}Dead.QueueName" for name in living}


def test_buckets_and_queues_are_closed_to_the_world_and_to_plain_text(read: dict[str, Any]) -> None:
    for name, bucket in of_type(read, "AWS::S3::Bucket").items():
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert bucket["BucketEncryption"]
        assert statements(read, f"{name}Policy")[0]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert {rule["Status"] for rule in bucket["LifecycleConfiguration"]["Rules"]} == {"Enabled"}
    for name, queue in of_type(read, "AWS::SQS::Queue").items():
        assert queue["SqsManagedSseEnabled"] is True
        if not name.endswith("Dead"):
            assert statements(read, f"{name}Policy")[-1]["Effect"] == "Deny"


def test_rights_name_what_they_are_for(read: dict[str, Any]) -> None:
    for name in of_type(read, "AWS::IAM::ManagedPolicy"):
        for statement in statements(read, name):
            assert not any("*" in action for action in actions(statement))
            assert statement["Resource"] != "*"

    # Who works never reads results, who puts together never sees the input, who analyses touches no queue or table.
    def may(policy: str) -> set[str]:
        return set().union(*map(actions, statements(read, policy)))

    assert not any(action.startswith(("sqs:", "dynamodb:")) for action in may("AnalysePolicy"))
    assert "sqs:ReceiveMessage" not in may("SubmitPolicy")
    assert "InputBucket" not in json.dumps(statements(read, "ReassemblePolicy"))
    assert "dynamodb:DeleteItem" not in may("WorkPolicy") | may("ReassemblePolicy")


def test_the_outputs_are_the_workers_variables(read: dict[str, Any]) -> None:
    named = {variable(key): output for key, output in read["Outputs"].items()}
    variables = {name for name, output in named.items() if output["Description"] == name}
    fields = {name.upper() for name in SegmentSettings.model_fields}
    assert variables <= fields
    chosen = (
        "INFERENCE_BACKEND",
        "INFERENCE_HTTP_URL",
        "SAGEMAKER_REGION",
        "SAGEMAKER_INVOKE",
        "SEGMENT_ATT",
        "SEGMENT_FOL",
    )
    assert {name for name in fields - variables if not name.startswith(chosen)} == set()
    assert read["Parameters"]["VisibilitySeconds"]["Default"] == SegmentSettings().segment_visibility_s


@pytest.mark.parametrize("endpoint", [False, True])
def test_moto_deploys_it(aws: Aws, endpoint: bool) -> None:
    more = {"AlarmEmail": "me@sight.example"}
    if endpoint:
        more["SageMakerImage"] = "123456789012.dkr.ecr.us-east-1.amazonaws.com/sightline-backend-cpu:1"
        more["SageMakerInstances"] = "3"
    made, outputs = deploy(aws, **more)
    settings = made.settings
    sqs, dynamo = aws.client("sqs"), aws.client("dynamodb")
    for url in (settings.video_worker_queue_url, settings.segment_output_queue_url, settings.reassembly_queue_url):
        has = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert has["VisibilityTimeout"] == "120"
        assert json.loads(has["RedrivePolicy"])["maxReceiveCount"] == 25
    assert ("SagemakerEndpointName" in outputs) is endpoint
    if endpoint:
        assert settings.inference_max_in_flight == 3
        assert aws.client("sagemaker").describe_endpoint(EndpointName=settings.sagemaker_endpoint_name)
    # The tables are those that the tests of the store use.
    tested = estate(aws).settings
    for name in ("jobs", "segment_completions", "reassembly_triggered", "invocations"):
        tables = [
            dynamo.describe_table(TableName=getattr(configured, f"{name}_table_name"))["Table"]
            for configured in (settings, tested)
        ]
        assert tables[0]["KeySchema"] == tables[1]["KeySchema"]
        keyed = [
            [(i["IndexName"], i["KeySchema"], i["Projection"]) for i in table.get("GlobalSecondaryIndexes", [])]
            for table in tables
        ]
        assert keyed[0] == keyed[1]
        assert {key[0] for key in keyed[0]} <= {BY_STATUS, BY_OPEN}
