"""Resources of recorded video on moto's server and in a folder."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.segments.aws import BY_OPEN, BY_STATUS, DynamoStore, S3Objects, SqsQueue
from app.segments.backends.stub import StubBackend
from app.segments.keys import SegmentKey, input_key, input_uri
from app.segments.local import FolderObjects, LocalDatabase, LocalQueue, LocalStore
from app.segments.ports import Backend, WorkerResources
from app.settings import SegmentSettings
from tests.support.aws import REGION, Aws

_ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Estate:
    """Buckets, queues and tables of one test, under names of their own."""

    aws: Aws
    settings: SegmentSettings

    @property
    def environment(self) -> dict[str, str]:
        """The settings as environment variables."""
        given = self.settings.model_dump(exclude_defaults=True)
        return self.aws.environment | {name.upper(): str(value) for name, value in given.items()}

    def resources(self, backend: Backend | None = None) -> WorkerResources:
        sqs, settings = self.aws.client("sqs"), self.settings
        assert settings.input_bucket_name
        assert settings.output_bucket_name
        assert settings.video_worker_queue_url
        assert settings.segment_output_queue_url
        assert settings.reassembly_queue_url
        objects = S3Objects(self.aws.client("s3"))
        return WorkerResources(
            input_bucket=settings.input_bucket_name,
            output_bucket=settings.output_bucket_name,
            objects=objects,
            segments=SqsQueue(
                sqs, settings.video_worker_queue_url, "segments", visibility_s=settings.segment_visibility_s
            ),
            events=SqsQueue(sqs, settings.segment_output_queue_url, "events"),
            reassembly=SqsQueue(sqs, settings.reassembly_queue_url, "reassembly"),
            store=DynamoStore(self.aws.client("dynamodb"), settings),
            backend=backend or StubBackend(objects),
        )


def estate(aws: Aws, **settings: Any) -> Estate:
    """Creates one. S3 sends events for `segments/` of the input bucket, and for all objects of the output bucket."""
    name = f"t{uuid.uuid4().hex[:10]}"
    s3, sqs = aws.client("s3"), aws.client("sqs")
    dead = sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    policy = {"deadLetterTargetArn": _arn(dead), "maxReceiveCount": "25"}
    urls = {}
    for word in ("segments", "events"):
        attributes = {"RedrivePolicy": json.dumps(policy)}
        urls[word] = sqs.create_queue(QueueName=f"{name}-{word}", Attributes=attributes)["QueueUrl"]
    urls["reassembly"] = sqs.create_queue(QueueName=f"{name}-reassembly.fifo", Attributes={"FifoQueue": "true"})[
        "QueueUrl"
    ]
    for bucket, prefix, queue in (("in", "segments/", "segments"), ("out", "", "events")):
        s3.create_bucket(Bucket=f"{name}-{bucket}")
        rule: dict[str, Any] = {"QueueArn": _arn(urls[queue]), "Events": ["s3:ObjectCreated:*"]}
        if prefix:
            rule["Filter"] = {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}
        configuration = {"QueueConfigurations": [rule]}
        s3.put_bucket_notification_configuration(Bucket=f"{name}-{bucket}", NotificationConfiguration=configuration)
    return Estate(
        aws,
        SegmentSettings(
            input_bucket_name=f"{name}-in",
            output_bucket_name=f"{name}-out",
            video_worker_queue_url=urls["segments"],
            segment_output_queue_url=urls["events"],
            reassembly_queue_url=urls["reassembly"],
            **_tables(aws, name),
            **settings,
        ),
    )


def _arn(queue_url: str) -> str:
    return f"arn:aws:sqs:{REGION}:{_ACCOUNT}:{queue_url.rpartition('/')[2]}"


def _tables(aws: Aws, name: str) -> dict[str, str]:
    def made(word: str, keys: dict[str, str], index: tuple[str, str, str] | None = None) -> str:
        attributes = dict(keys)
        more: dict[str, Any] = {}
        if index:
            named, attribute, projection = index
            attributes[attribute] = "S"
            schema = [{"AttributeName": attribute, "KeyType": "HASH"}]
            more["GlobalSecondaryIndexes"] = [
                {"IndexName": named, "KeySchema": schema, "Projection": {"ProjectionType": projection}}
            ]
        aws.client("dynamodb").create_table(
            TableName=f"{name}-{word}",
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind} for key, kind in attributes.items()],
            KeySchema=[
                {"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            BillingMode="PAY_PER_REQUEST",
            **more,
        )
        return f"{name}-{word}"

    return {
        "jobs_table_name": made("jobs", {"job_id": "S"}, (BY_STATUS, "status", "KEYS_ONLY")),
        "segment_completions_table_name": made("completions", {"job_id": "S", "segment_index": "N"}),
        "reassembly_triggered_table_name": made("triggers", {"job_id": "S"}),
        "invocations_table_name": made("invocations", {"invocation_id": "S"}, (BY_OPEN, "open", "ALL")),
    }


def local_resources(folder: Path, settings: SegmentSettings, backend: Backend | None = None) -> WorkerResources:
    """Resources in a folder, which is both buckets."""
    database = LocalDatabase(folder / ".state" / "segments.db")
    objects = FolderObjects(folder)

    def queue(name: str) -> LocalQueue:
        return LocalQueue(database, name, visibility_s=settings.segment_visibility_s)

    return WorkerResources(
        input_bucket=str(folder),
        output_bucket=str(folder),
        objects=objects,
        segments=queue("segments"),
        events=queue("events"),
        reassembly=queue("reassembly"),
        store=LocalStore(database),
        backend=backend or StubBackend(objects),
    )


def uploaded(parts: WorkerResources, segment: SegmentKey, data: bytes = b"film") -> str:
    """Writes a segment to the input bucket; on moto, S3 sends its event. Returns its key."""
    parts.objects.write(input_uri(parts.input_bucket, segment), data)
    return input_key(segment)
