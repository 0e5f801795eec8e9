"""What a worker works with, put together from AWS; where there is none, whoever has other parts puts those together."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import ConfigurationError
from app.segments.backends.backend import Backend
from app.segments.backends.http import Http
from app.segments.backends.sagemaker import SageMaker
from app.segments.backends.stub import Stub
from app.segments.clients import Clients, required
from app.segments.objects_s3 import S3Objects
from app.segments.ports import Objects, Queue, Store
from app.segments.queue_sqs import SqsQueue
from app.segments.store_dynamo import DynamoStore
from app.settings import AwsSettings, SegmentSettings

_MADE = "infra/segments.yaml makes it, and names it in its outputs"


@dataclass(frozen=True)
class Parts:
    """Buckets, queues, a store, and who analyses."""

    input_bucket: str
    output_bucket: str
    objects: Objects
    segments: Queue
    events: Queue
    reassembly: Queue
    store: Store
    backend: Backend


def on_aws(settings: SegmentSettings, aws: AwsSettings, *, token: str | None = None) -> Parts:
    """The parts that the settings name.

    Args:
        token: for INFERENCE_HTTP_URL, where it asks for one.

    Raises:
        ConfigurationError: one that is needed is unset.
    """
    input_bucket = required(settings.input_bucket_name, "INPUT_BUCKET_NAME", f"the bucket of segments; {_MADE}")
    output_bucket = required(settings.output_bucket_name, "OUTPUT_BUCKET_NAME", f"the bucket of analysed ones; {_MADE}")
    segments_url = required(
        settings.video_worker_queue_url, "VIDEO_WORKER_QUEUE_URL", f"the queue of segments; {_MADE}"
    )
    events_url = required(
        settings.segment_output_queue_url, "SEGMENT_OUTPUT_QUEUE_URL", f"the queue of answers; {_MADE}"
    )
    reassembly_url = required(settings.reassembly_queue_url, "REASSEMBLY_QUEUE_URL", f"the queue of jobs; {_MADE}")
    clients = Clients(aws)
    objects, store, sqs = S3Objects(clients.s3()), DynamoStore(clients.dynamodb(), settings), clients.sqs()
    return Parts(
        input_bucket=input_bucket,
        output_bucket=output_bucket,
        objects=objects,
        segments=SqsQueue(sqs, segments_url, "segments", visibility_s=settings.segment_visibility_s),
        events=SqsQueue(sqs, events_url, "events"),
        reassembly=SqsQueue(sqs, reassembly_url, "reassembly"),
        store=store,
        backend=_backend(settings, clients, objects, store, input_bucket, token),
    )


def _backend(
    settings: SegmentSettings, clients: Clients, objects: Objects, store: Store, input_bucket: str, token: str | None
) -> Backend:
    if settings.inference_backend == "http":
        why = "INFERENCE_BACKEND is http; set the address of what answers /invocations, such as http://10.0.1.5:8080"
        url = required(settings.inference_http_url, "INFERENCE_HTTP_URL", why)
        most = settings.inference_max_in_flight
        return Http(url, timeout_s=settings.sagemaker_invoke_timeout_seconds, most=most, token=token)
    if settings.inference_backend == "sagemaker":
        why = "INFERENCE_BACKEND is sagemaker; set the name of an asynchronous endpoint"
        endpoint = required(settings.sagemaker_endpoint_name, "SAGEMAKER_ENDPOINT_NAME", why)
        return SageMaker(
            clients.sagemaker_runtime(settings),
            endpoint,
            objects,
            store,
            input_bucket=input_bucket,
            timeout_s=settings.sagemaker_invoke_timeout_seconds,
        )
    if settings.inference_backend != "stub":
        raise ConfigurationError(f"INFERENCE_BACKEND={settings.inference_backend!r}: should be stub, http or sagemaker")
    return Stub(objects)
