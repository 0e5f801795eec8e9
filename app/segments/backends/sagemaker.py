"""An asynchronous endpoint of SageMaker: the call returns at once, and the answer is written to S3 as an object.

The answer may be written before the call returns. So the invocation's id is chosen and recorded before the call, and
is part of the call twice: as InferenceId and as the name of the answer's file. The id is derived from the segment and
the attempt, so that a worker which repeats the call after a crash uses the same id, and both answers find the same
record.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import orjson

from app.segments.keys import SegmentKey, request_uri
from app.segments.ports import Accepted, Backend, BackendUnavailable, Invocation, Objects, Store

if TYPE_CHECKING:
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

_IDS = uuid.UUID("5e9a6d0c-6b0f-5d5e-9b0d-2f3c7c0a4e11")
_MIN_TTL_S = 60
"""SageMaker's lower limit of RequestTTLSeconds."""
_MAX_TIMEOUT_S = 3600
"""SageMaker's upper limit of InvocationTimeoutSeconds."""


class SageMakerBackend(Backend):
    """Calls an endpoint and returns before the segment is analysed.

    Args:
        input_bucket: the bucket for the bodies of requests.
        timeout_s: seconds after which the worker gives an invocation up. SageMaker is asked not to begin it later.
    """

    name = "sagemaker"

    def __init__(
        self,
        client: SageMakerRuntimeClient,
        endpoint: str,
        objects: Objects,
        store: Store,
        *,
        input_bucket: str,
        timeout_s: int,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._objects = objects
        self._store = store
        self._input_bucket = input_bucket
        self._timeout_s = timeout_s

    def ready(self) -> bool:
        return True  # an asynchronous endpoint queues what it cannot do yet

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Accepted:
        invocation = Invocation(self._id(segment), segment, input_uri, output_uri, called_at=time.time())
        if not self._store.record(invocation):
            recorded = self._store.invocation(invocation.id)
            if recorded is not None and (recorded.state != "open" or recorded.answer_uri is not None):
                return Accepted(recorded)  # the message came twice; the recorded invocation completes the segment
        request = {"s3_input_uri": input_uri, "s3_output_uri": output_uri, "mode": segment.mode}
        body = request_uri(self._input_bucket, invocation.id)
        self._objects.write(body, orjson.dumps(request))
        answer_uri, failure_uri = self._call(invocation.id, body)
        self._store.accepted(invocation.id, answer_uri, failure_uri, time.time())
        return Accepted(invocation)

    def _id(self, segment: SegmentKey) -> str:
        job = self._store.job(segment.job_id)
        attempt = self._store.failures(segment)
        name = f"{segment}.{segment.mode}.{job.round if job else 0}.{attempt}"
        if refused := self._store.refusals(segment):
            name += f".{refused}"
        return uuid.uuid5(_IDS, name).hex

    def _call(self, invocation_id: str, body: str) -> tuple[str, str | None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.invoke_endpoint_async(
                EndpointName=self._endpoint,
                ContentType="application/json",
                Accept="application/json",
                InferenceId=invocation_id,
                Filename=f"{invocation_id}.out",
                InputLocation=body,
                RequestTTLSeconds=max(_MIN_TTL_S, self._timeout_s),
                InvocationTimeoutSeconds=min(_MAX_TIMEOUT_S, self._timeout_s),
            )
        except (ClientError, BotoCoreError) as error:
            # Throttled, unknown, unreachable or not allowed: none of these is caused by the segment.
            raise BackendUnavailable(f"SAGEMAKER_ENDPOINT_NAME={self._endpoint}: {error}") from None
        return answer["OutputLocation"], answer.get("FailureLocation")
