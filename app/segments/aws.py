"""Recorded video on AWS: objects in S3, queues in SQS, the store in DynamoDB, and boto3's clients.

boto3 and botocore are imported when a client is made or an error is handled: they take a quarter of a second and
20 MiB, and the live service imports this module without using AWS.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import MAX_MESSAGE, ConfigurationError, shortened
from app.segments.backends.http import HttpBackend
from app.segments.backends.sagemaker import SageMakerBackend
from app.segments.backends.stub import StubBackend
from app.segments.keys import SegmentId, SegmentKey, split_s3
from app.segments.ports import (
    Backend,
    Completion,
    Invocation,
    Job,
    JobStatus,
    Message,
    MessageGone,
    ObjectAddressRefused,
    ObjectMissing,
    Objects,
    Outcome,
    Resources,
    Trigger,
    WorkerResources,
)
from app.settings import AwsSettings, SegmentSettings

if TYPE_CHECKING:
    from botocore.config import Config
    from botocore.exceptions import ClientError
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient
    from mypy_boto3_sqs import SQSClient

# --- what the settings name ---

_MADE = "infra/segments.yaml makes it, and names it in its outputs; without AWS: segments --local FOLDER …"


def open_resources(settings: SegmentSettings, aws: AwsSettings) -> Resources:
    """The buckets, the store and the reassembly queue that the settings name.

    Raises:
        ConfigurationError: a setting that is needed is unset.
    """
    return _resources(settings, Clients(aws))


def open_worker_resources(
    settings: SegmentSettings,
    aws: AwsSettings,
    *,
    token: str | None = None,
    make_backend: Callable[[Objects], Backend] | None = None,
) -> WorkerResources:
    """Everything a worker uses, with the backend that INFERENCE_BACKEND names.

    Args:
        token: sent to INFERENCE_HTTP_URL.
        make_backend: makes a backend that needs nothing of AWS but the objects, in place of `stub`, `http` and
            `sagemaker`.

    Raises:
        ConfigurationError: a setting that is needed is unset.
    """
    clients = Clients(aws)
    shared, sqs = _resources(settings, clients), clients.sqs()
    segments_url = required(settings, "video_worker_queue_url", f"the queue of segments; {_MADE}")
    events_url = required(settings, "segment_output_queue_url", f"the queue of answers; {_MADE}")
    return WorkerResources(
        **vars(shared),
        segments=SqsQueue(sqs, segments_url, "segments", visibility_s=settings.segment_visibility_s),
        events=SqsQueue(sqs, events_url, "events"),
        backend=_backend(settings, clients, shared, token) if make_backend is None else make_backend(shared.objects),
    )


def _resources(settings: SegmentSettings, clients: Clients) -> Resources:
    queue_url = required(settings, "reassembly_queue_url", f"the queue of jobs; {_MADE}")
    return Resources(
        input_bucket=required(settings, "input_bucket_name", f"the bucket of segments; {_MADE}"),
        output_bucket=required(settings, "output_bucket_name", f"the bucket of analysed segments; {_MADE}"),
        objects=S3Objects(clients.s3()),
        store=DynamoStore(clients.dynamodb(), settings),
        reassembly=SqsQueue(clients.sqs(), queue_url, "reassembly", visibility_s=settings.segment_visibility_s),
    )


def _backend(settings: SegmentSettings, clients: Clients, resources: Resources, token: str | None) -> Backend:
    timeout_s = settings.sagemaker_invoke_timeout_seconds
    if settings.inference_backend == "http":
        why = "INFERENCE_BACKEND is http; set the address of what answers /invocations, such as http://10.0.1.5:8080"
        url = required(settings, "inference_http_url", why)
        return HttpBackend(url, timeout_s=timeout_s, max_calls=settings.inference_max_in_flight, token=token)
    if settings.inference_backend == "sagemaker":
        why = "INFERENCE_BACKEND is sagemaker; set the name of an asynchronous endpoint"
        return SageMakerBackend(
            clients.sagemaker_runtime(settings),
            required(settings, "sagemaker_endpoint_name", why),
            resources.objects,
            resources.store,
            input_bucket=resources.input_bucket,
            timeout_s=timeout_s,
        )
    if settings.inference_backend != "stub":
        raise ConfigurationError(f"INFERENCE_BACKEND={settings.inference_backend!r}: should be stub, http or sagemaker")
    return StubBackend(resources.objects)


def required(settings: SegmentSettings, field: str, why: str) -> str:
    """The value of a setting.

    Raises:
        ConfigurationError: it is unset.
    """
    value: str | None = getattr(settings, field)
    if not value:
        raise ConfigurationError(f"{field.upper()} is unset: {why}")
    return value


# --- boto3's clients ---

CONNECTIONS = 48
"""Above the threads that may use a client at once: INFERENCE_MAX_IN_FLIGHT segments, their heartbeats, two loops."""


class Clients:
    """Makes boto3's clients as the settings say. Several threads may share a client; one thread makes them.

    Raises:
        ConfigurationError: no region is known.
    """

    def __init__(self, settings: AwsSettings) -> None:
        import boto3

        self._session = boto3.session.Session()
        self._endpoint = settings.aws_endpoint_url
        self._region = settings.aws_region or self._session.region_name
        if not self._region:
            raise ConfigurationError("AWS_REGION is unset, and the AWS SDK knows of none; set it, such as eu-central-1")

    def s3(self) -> S3Client:
        return self._session.client("s3", self._region, endpoint_url=self._endpoint, config=_client_config())

    def sqs(self) -> SQSClient:
        return self._session.client("sqs", self._region, endpoint_url=self._endpoint, config=_client_config())

    def dynamodb(self) -> DynamoDBClient:
        return self._session.client("dynamodb", self._region, endpoint_url=self._endpoint, config=_client_config())

    def sagemaker_runtime(self, settings: SegmentSettings) -> SageMakerRuntimeClient:
        region = settings.sagemaker_region or self._region
        return self._session.client("sagemaker-runtime", region, endpoint_url=self._endpoint, config=_client_config())


def _client_config() -> Config:
    from botocore.config import Config

    return Config(
        connect_timeout=5,
        read_timeout=60,  # above the longest wait for a message, 20 s
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=CONNECTIONS,
    )


def _code(error: ClientError) -> str | None:
    return error.response.get("Error", {}).get("Code")


# --- objects in S3 ---

_CONTENT_TYPES = {".mp4": "video/mp4", ".jsonl": "application/x-ndjson", ".json": "application/json"}
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}


class S3Objects:
    """`Objects` in S3. A put appears whole or not at all; large files are sent in parts."""

    def __init__(self, client: S3Client) -> None:
        self._client = client

    def download(self, uri: str, path: Path) -> None:
        bucket, key = _bucket_and_key(uri)
        with _object_errors(uri):
            self._client.download_file(bucket, key, str(path))

    def upload(self, path: Path, uri: str) -> None:
        bucket, key = _bucket_and_key(uri)
        with _object_errors(uri):
            self._client.upload_file(str(path), bucket, key, ExtraArgs={"ContentType": _content_type(key)})

    def read(self, uri: str) -> bytes:
        bucket, key = _bucket_and_key(uri)
        with _object_errors(uri):
            return self._client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def write(self, uri: str, data: bytes) -> None:
        bucket, key = _bucket_and_key(uri)
        with _object_errors(uri):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=_content_type(key))

    def exists(self, uri: str) -> bool:
        bucket, key = _bucket_and_key(uri)
        try:
            with _object_errors(uri):
                self._client.head_object(Bucket=bucket, Key=key)
        except ObjectMissing:
            return False
        return True


def _bucket_and_key(uri: str) -> tuple[str, str]:
    try:
        return split_s3(uri)
    except ValueError as error:
        raise ObjectAddressRefused(str(error)) from None


def _content_type(key: str) -> str:
    return _CONTENT_TYPES.get(Path(key).suffix, "application/octet-stream")


@contextmanager
def _object_errors(uri: str) -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        with _transfer_errors():
            yield
    except ClientError as error:
        if _code(error) in _MISSING:
            raise ObjectMissing(f"{shortened(uri, MAX_MESSAGE)}: there is no such object, or no such bucket") from None
        raise


@contextmanager
def _transfer_errors() -> Iterator[None]:
    """boto3's transfers wrap errors in their own classes; raises botocore's errors, as every other call does."""
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError
    from botocore.exceptions import ClientError, HTTPClientError

    try:
        yield
    except S3UploadFailedError as error:
        if isinstance(error.__context__, ClientError):
            raise error.__context__ from None
        raise
    except RetriesExceededError as error:  # a download that broke off each time
        raise HTTPClientError(error=error.last_exception) from None  # type: ignore[attr-defined]


# --- queues in SQS ---

_MAX_WAIT_S = 20
"""SQS holds a request no longer."""
_MAX_DELAY_S = 900
"""SQS's own limit."""
_GONE = {
    "ReceiptHandleIsInvalid",
    "InvalidParameterValue",  # of a receipt: the message was deleted, or is visible again
    "MessageNotInflight",
    "AWS.SimpleQueueService.MessageNotInflight",
}


class SqsQueue:
    """`Queue` in SQS, standard or FIFO.

    Args:
        visibility_s: seconds that a received message stays hidden; None: the queue's own setting.
    """

    def __init__(self, client: SQSClient, url: str, name: str, *, visibility_s: int | None = None) -> None:
        self.name = name
        self._client = client
        self._url = url
        self._fifo = url.endswith(".fifo")
        self._visibility: dict[str, Any] = {} if visibility_s is None else {"VisibilityTimeout": visibility_s}

    def receive(self, wait_s: float) -> Message | None:
        answer = self._client.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=1,
            WaitTimeSeconds=min(_MAX_WAIT_S, math.ceil(wait_s)),
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
            **self._visibility,
        )
        for found in answer.get("Messages", ()):
            deliveries = int(found.get("Attributes", {}).get("ApproximateReceiveCount", "1"))
            return Message(found["MessageId"], found["Body"], found["ReceiptHandle"], deliveries)
        return None

    def delete(self, message: Message) -> None:
        with _delivery_errors(message):
            self._client.delete_message(QueueUrl=self._url, ReceiptHandle=message.receipt)

    def extend(self, message: Message, seconds: float) -> None:
        self._hide(message, math.ceil(seconds))

    def release(self, message: Message, delay_s: float = 0.0) -> None:
        self._hide(message, math.ceil(delay_s))

    def _hide(self, message: Message, seconds: int) -> None:
        with _delivery_errors(message):
            self._client.change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=message.receipt, VisibilityTimeout=seconds
            )

    def send(self, body: str, *, once: str | None = None, delay_s: float = 0.0) -> None:
        # A FIFO queue keeps order within a group. Our messages have no order, so each is a group of its own.
        word = once or uuid.uuid4().hex
        order: dict[str, Any] = {"MessageGroupId": word, "MessageDeduplicationId": word} if self._fifo else {}
        delay: dict[str, Any] = {} if self._fifo else {"DelaySeconds": min(_MAX_DELAY_S, math.ceil(delay_s))}
        self._client.send_message(QueueUrl=self._url, MessageBody=body, **order, **delay)


@contextmanager
def _delivery_errors(message: Message) -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if _code(error) in _GONE:
            raise MessageGone(f"message {message.id}: {error}") from None
        raise


# --- the store in DynamoDB ---

Values = Mapping[str, Any]


class Table:
    """A DynamoDB table, addressed in plain values: str, int, float, bool. An attribute that is None is left out.

    Every read is consistent except through an index, where DynamoDB offers only eventual consistency.
    """

    def __init__(self, client: DynamoDBClient, name: str) -> None:
        from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

        self._client = client
        self._name = name
        self._serialize = TypeSerializer().serialize
        self._deserialize = TypeDeserializer().deserialize

    def get(self, key: Values, *only: str) -> dict[str, Any] | None:
        """The item, or only the named attributes of it; None if there is no item."""
        names = {f"#n{place}": name for place, name in enumerate(only)}
        more: dict[str, Any] = (
            {"ProjectionExpression": ", ".join(names), "ExpressionAttributeNames": names} if only else {}
        )
        found = self._client.get_item(TableName=self._name, Key=self._encode(key), ConsistentRead=True, **more)
        return self._decode(found["Item"]) if "Item" in found else None

    def put_new(self, item: Values, attribute: str) -> bool:
        """Adds an item; False if the item of its key already has this attribute."""
        return self._conditional(
            self._client.put_item,
            Item=self._encode(item),
            ConditionExpression="attribute_not_exists(#k)",
            ExpressionAttributeNames={"#k": attribute},
        )

    def update(self, key: Values, expression: str, condition: str | None, names: Values, values: Values) -> bool:
        """Changes an item; False if the condition does not hold.

        Args:
            names: by `#…` of both expressions.
            values: by `:…` of both expressions.
        """
        more: dict[str, Any] = {"ConditionExpression": condition} if condition else {}
        if values:
            more["ExpressionAttributeValues"] = self._encode(values)
        return self._conditional(
            self._client.update_item,
            Key=self._encode(key),
            UpdateExpression=expression,
            ExpressionAttributeNames=dict(names),
            **more,
        )

    def add_word(self, key: Values, attribute: str, word: str) -> int:
        """Adds a word to a set of words, which is created if it is missing; returns the size of the set."""
        answer = self._client.update_item(
            TableName=self._name,
            Key=self._encode(key),
            UpdateExpression="ADD #a :w",
            ExpressionAttributeNames={"#a": attribute},
            ExpressionAttributeValues=self._encode({":w": {word}}),
            ReturnValues="ALL_NEW",
        )
        return len(answer["Attributes"][attribute]["SS"])

    def delete(self, key: Values) -> None:
        self._client.delete_item(TableName=self._name, Key=self._encode(key))

    def query(self, name: str, value: str, *, index: str | None = None) -> Iterator[dict[str, Any]]:
        """All items whose partition key has this value."""
        where: dict[str, Any] = {"IndexName": index} if index else {"ConsistentRead": True}
        pages = self._client.get_paginator("query").paginate(
            TableName=self._name,
            KeyConditionExpression="#k = :v",
            ExpressionAttributeNames={"#k": name},
            ExpressionAttributeValues=self._encode({":v": value}),
            **where,
        )
        for page in pages:
            for item in page["Items"]:
                yield self._decode(item)

    def _conditional(self, call: Any, **request: Any) -> bool:
        from botocore.exceptions import ClientError

        try:
            call(TableName=self._name, **request)
        except ClientError as error:
            if _code(error) == "ConditionalCheckFailedException":
                return False
            raise
        return True

    def _encode(self, values: Values) -> dict[str, Any]:
        # boto3 takes no floats, because not every float is a DynamoDB number. Ours are epoch seconds.
        return {
            name: self._serialize(Decimal(repr(value)) if isinstance(value, float) else value)
            for name, value in values.items()
            if value is not None
        }

    def _decode(self, item: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: self._deserialize(value) for name, value in item.items()}
        return {name: float(value) if isinstance(value, Decimal) else value for name, value in values.items()}


BY_STATUS = "by-status"
BY_OPEN = "by-open"
_KEEP_S = 90 * 86_400
_OPEN = "open"
"""Value of the attribute `open`, which only invocations that are not settled have; the index holds only those."""
_MAX_REASON = 1000
"""Characters of a reason that are stored."""
_MAX_NAMES = 100
"""Attributes that one expression names. As many as segments failed may have to go, and an expression holds 4 KiB."""


class DynamoStore:
    """`Store` in DynamoDB: four tables, every write conditional or repeatable.

        JOBS_TABLE_NAME                   job_id (S); index `by-status`: status (S), keys only
        SEGMENT_COMPLETIONS_TABLE_NAME    job_id (S), segment_index (N)
        REASSEMBLY_TRIGGERED_TABLE_NAME   job_id (S)
        INVOCATIONS_TABLE_NAME            invocation_id (S); index `by-open`: open (S), all attributes

    All have `expires_at` (N, epoch seconds) for DynamoDB's time to live.

    Raises:
        ConfigurationError: a table's name is unset.
    """

    def __init__(self, client: DynamoDBClient, settings: SegmentSettings) -> None:
        def table(field: str) -> Table:
            why = "the name of the DynamoDB table (infra/segments.yaml makes it)"
            return Table(client, required(settings, field, why))

        self._jobs = table("jobs_table_name")
        self._completions = table("segment_completions_table_name")
        self._triggers = table("reassembly_triggered_table_name")
        self._invocations = table("invocations_table_name")

    # --- jobs ---

    def put_job(self, job: Job) -> None:
        item = {
            "job_id": job.job_id,
            "mode": job.mode,
            "source": job.source,
            "created_at": job.created_at,
            "status": job.status,
            "total": job.total,
            "reason": job.reason,
            "round": job.round,
        }
        if self.job(job.job_id) is None:
            self._triggers.delete({"job_id": job.job_id})  # of an earlier job that has expired before its trigger
        self._jobs.put_new(item | _expiry(), "status")

    def job(self, job_id: str) -> Job | None:
        item = self._jobs.get({"job_id": job_id})
        if item is None or "status" not in item:  # a failure may be recorded for a job that was not
            return None
        total = item.get("total")
        return Job(
            job_id=item["job_id"],
            mode=item["mode"],
            source=item["source"],
            created_at=item["created_at"],
            status=item["status"],
            total=None if total is None else int(total),
            reason=item.get("reason"),
            round=int(item["round"]),
        )

    def chunking_complete(self, job_id: str, total: int) -> None:
        key, names = {"job_id": job_id}, {"#s": "status", "#t": "total"}
        values = {":total": total, ":from": "chunking", ":to": "chunking_complete"}
        if not self._jobs.update(key, "SET #t = :total, #s = :to", "#s = :from", names, values):
            self._jobs.update(key, "SET #t = :total", "attribute_exists(#s)", names, {":total": total})

    def mark(self, job_id: str, status: JobStatus, reason: str | None = None) -> None:
        names, values = {"#s": "status", "#r": "reason"}, {":s": str(status), ":done": "done"}
        expression = "SET #s = :s REMOVE #r"
        if reason is not None:
            expression = "SET #s = :s, #r = :r"
            values[":r"] = reason[:_MAX_REASON]
        self._jobs.update({"job_id": job_id}, expression, "attribute_exists(#s) AND #s <> :done", names, values)

    def reopen(self, job_id: str) -> None:
        item = self._jobs.get({"job_id": job_id})
        if item is None or item.get("status") in (None, "done"):
            return
        self._triggers.delete({"job_id": job_id})
        # The status comes last, so that a crash in between leaves a failed job, which can be reopened again.
        gone = [name for name in item if name.startswith("failures_")]
        for start in range(0, len(gone), _MAX_NAMES):
            some = {f"#g{place}": name for place, name in enumerate(gone[start : start + _MAX_NAMES])}
            self._jobs.update({"job_id": job_id}, f"REMOVE {', '.join(some)}", None, some, {})
        names = {"#s": "status", "#o": "round", "#r": "reason"}
        values = {":s": "chunking", ":o": int(item["round"]) + 1, ":done": "done"}
        condition = "attribute_exists(#s) AND #s <> :done"
        self._jobs.update({"job_id": job_id}, "SET #s = :s, #o = :o REMOVE #r", condition, names, values)

    def waiting_jobs(self) -> list[str]:
        return [item["job_id"] for item in self._jobs.query("status", "chunking_complete", index=BY_STATUS)]

    # --- segments ---

    def complete(self, completion: Completion) -> bool:
        item = _segment_key(completion.segment) | {
            "output_s3_uri": completion.output_uri,
            "completed_at": completion.completed_at,
        }
        return self._completions.put_new(item | _expiry(), "job_id")

    def completion(self, segment: SegmentId) -> Completion | None:
        item = self._completions.get(_segment_key(segment))
        return _read_completion(item) if item else None

    def completions(self, job_id: str) -> list[Completion]:
        return [_read_completion(item) for item in self._completions.query("job_id", job_id)]

    def fail(self, segment: SegmentId, attempt: str, reason: str) -> int:
        return self._jobs.add_word({"job_id": segment.job_id}, f"failures_{segment.index:05d}", attempt)

    def failures(self, segment: SegmentId) -> int:
        return self._count(segment, f"failures_{segment.index:05d}")

    def refuse(self, segment: SegmentId, attempt: str) -> int:
        return self._jobs.add_word({"job_id": segment.job_id}, f"failures_refused_{segment.index:05d}", attempt)

    def refusals(self, segment: SegmentId) -> int:
        return self._count(segment, f"failures_refused_{segment.index:05d}")

    def _count(self, segment: SegmentId, name: str) -> int:
        item = self._jobs.get({"job_id": segment.job_id}, name)
        return len(item.get(name, ())) if item else 0

    # --- triggers ---

    def trigger_once(self, job_id: str, lease_s: float) -> Trigger:
        now, key = time.time(), {"job_id": job_id}
        taken = self._triggers.update(
            key,
            "SET #sent = :no, #taken = :now, #expires = :expires",
            "attribute_not_exists(#sent) OR (#sent = :no AND #taken < :before)",
            {"#sent": "sent", "#taken": "taken_at", "#expires": "expires_at"},
            {":no": False, ":now": now, ":before": now - lease_s, ":expires": int(now + _KEEP_S)},
        )
        if taken:
            return "taken"
        item = self._triggers.get(key)
        return "sent" if item and item["sent"] else "held"

    def trigger_sent(self, job_id: str) -> None:
        names = {"#sent": "sent"}
        self._triggers.update({"job_id": job_id}, "SET #sent = :yes", "attribute_exists(#sent)", names, {":yes": True})

    # --- invocations ---

    def record(self, invocation: Invocation) -> bool:
        segment = invocation.segment
        item = {
            "invocation_id": invocation.id,
            "job_id": segment.job_id,
            "segment_index": segment.index,
            "mode": segment.mode,
            "input_s3_uri": invocation.input_uri,
            "output_s3_uri": invocation.output_uri,
            "called_at": invocation.called_at,
            "state": invocation.state,
            "reason": invocation.reason,
            "answer_uri": invocation.answer_uri,
            "failure_uri": invocation.failure_uri,
            "open": None if invocation.settled else _OPEN,
        }
        return self._invocations.put_new(item | _expiry(), "invocation_id")

    def accepted(self, invocation_id: str, answer_uri: str, failure_uri: str | None, at: float) -> None:
        changes = {"answer_uri": answer_uri, "failure_uri": failure_uri, "called_at": at}
        given = {name: value for name, value in changes.items() if value is not None}
        sets = ", ".join(f"#{name} = :{name}" for name in given)
        names = {f"#{name}": name for name in given} | {"#state": "state"}
        values = {f":{name}": value for name, value in given.items()}
        self._change(invocation_id, f"SET {sets}", "attribute_exists(#state)", names, values)

    def invocation(self, invocation_id: str) -> Invocation | None:
        item = self._invocations.get({"invocation_id": invocation_id})
        return _read_invocation(item) if item else None

    def finish(self, invocation_id: str, outcome: Outcome, reason: str | None = None) -> bool:
        names, values = {"#state": "state"}, {":open": "open", ":outcome": outcome}
        expression = "SET #state = :outcome"
        if reason is not None:
            names["#reason"], values[":reason"] = "reason", reason[:_MAX_REASON]
            expression += ", #reason = :reason"
        return self._change(invocation_id, expression, "#state = :open", names, values)

    def settle(self, invocation_id: str) -> None:
        self._change(
            invocation_id, "REMOVE #open", "attribute_exists(#state)", {"#open": "open", "#state": "state"}, {}
        )

    def open_invocations(self) -> list[Invocation]:
        return [_read_invocation(item) for item in self._invocations.query("open", _OPEN, index=BY_OPEN)]

    def _change(
        self, invocation_id: str, expression: str, condition: str, names: dict[str, str], values: dict[str, Any]
    ) -> bool:
        return self._invocations.update({"invocation_id": invocation_id}, expression, condition, names, values)


def _expiry() -> dict[str, int]:
    return {"expires_at": int(time.time() + _KEEP_S)}


def _segment_key(segment: SegmentId) -> dict[str, Any]:
    return {"job_id": segment.job_id, "segment_index": segment.index}


def _read_completion(item: dict[str, Any]) -> Completion:
    segment = SegmentId(item["job_id"], int(item["segment_index"]))
    return Completion(segment, item["output_s3_uri"], item["completed_at"])


def _read_invocation(item: dict[str, Any]) -> Invocation:
    return Invocation(
        id=item["invocation_id"],
        segment=SegmentKey(item["job_id"], int(item["segment_index"]), item["mode"]),
        input_uri=item["input_s3_uri"],
        output_uri=item["output_s3_uri"],
        called_at=item["called_at"],
        state=item["state"],
        reason=item.get("reason"),
        answer_uri=item.get("answer_uri"),
        failure_uri=item.get("failure_uri"),
        settled="open" not in item,
    )
