"""What cutting and putting together work with: buckets, a store and the reassembly queue. On AWS, or in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.segments.clients import Clients, required
from app.segments.keys import SegmentKey
from app.segments.objects_s3 import S3Objects
from app.segments.ports import Objects, Queue, Store
from app.segments.queue_sqs import SqsQueue
from app.segments.store_dynamo import DynamoStore
from app.settings import AwsSettings, SegmentSettings

_MADE = "infra/segments.yaml makes it, and names it in its outputs; without AWS: segments --local FOLDER …"


@dataclass(frozen=True)
class Depot:
    """See above. A bucket is one of S3, or a folder's absolute path."""

    input_bucket: str
    output_bucket: str
    objects: Objects
    store: Store
    reassembly: Queue
    announce: Callable[[SegmentKey], None] | None = None
    """Tells the workers' queue of a segment that was uploaded; None: the bucket does so itself."""
    tidy: Callable[[str], None] | None = None
    """Removes what a job that is done needs no more; None: the buckets' lifecycle rules do."""


def on_aws(settings: SegmentSettings, aws: AwsSettings) -> Depot:
    """The depot that the settings name.

    Raises:
        ConfigurationError: one that is needed is unset.
    """
    input_bucket = required(settings.input_bucket_name, "INPUT_BUCKET_NAME", f"the bucket of segments; {_MADE}")
    output_bucket = required(settings.output_bucket_name, "OUTPUT_BUCKET_NAME", f"the bucket of analysed ones; {_MADE}")
    queue_url = required(settings.reassembly_queue_url, "REASSEMBLY_QUEUE_URL", f"the queue of jobs; {_MADE}")
    clients = Clients(aws)
    return Depot(
        input_bucket,
        output_bucket,
        S3Objects(clients.s3()),
        DynamoStore(clients.dynamodb(), settings),
        SqsQueue(clients.sqs(), queue_url, "reassembly", visibility_s=settings.segment_visibility_s),
    )
