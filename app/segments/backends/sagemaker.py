"""An asynchronous endpoint of SageMaker: the call returns at once, the answer is an object in S3.

The answer may come before the call returns. So an invocation's id is fixed and recorded before the call, and goes with
it twice: as InferenceId and as the name of the answer's file. The id follows from the segment and the attempt: who
calls again after a crash uses the same id, and both answers find the same record.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import orjson

from app.segments.backends.backend import Accepted, BackendUnavailable
from app.segments.keys import SegmentKey, request_uri
from app.segments.ports import Invocation, Objects, Store

if TYPE_CHECKING:
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

_IDS = uuid.UUID("5e9a6d0c-6b0f-5d5e-9b0d-2f3c7c0a4e11")
_LEAST_WAIT_S = 60
_MOST_RUN_S = 3600
"""SageMaker's own limits."""


class SageMaker:
    """See `Backend`.

    Args:
        input_bucket: where the bodies of requests are put.
        timeout_s: seconds after which we give an invocation up. SageMaker is asked not to begin it later than that.
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
        wanted = Invocation(self._id(segment), segment, input_uri, output_uri, called_at=time.time())
        if not self._store.record(wanted):
            there = self._store.invocation(wanted.id)
            if there is not None and (there.state != "open" or there.answer_uri is not None):
                return Accepted(there)  # the message came twice; this invocation will see to the segment
        asked = {"s3_input_uri": input_uri, "s3_output_uri": output_uri, "mode": segment.mode}
        body = request_uri(self._input_bucket, wanted.id)
        self._objects.write(body, orjson.dumps(asked))
        answer_uri, failure_uri = self._call(wanted.id, body)
        self._store.accepted(wanted.id, answer_uri, failure_uri, time.time())
        return Accepted(wanted)

    def _id(self, segment: SegmentKey) -> str:
        job = self._store.job(segment.job_id)
        attempt = self._store.failures(segment)
        words = f"{segment}.{segment.mode}.{job.round if job else 0}.{attempt}"
        if refused := self._store.refusals(segment):
            words += f".{refused}"
        return uuid.uuid5(_IDS, words).hex

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
                RequestTTLSeconds=max(_LEAST_WAIT_S, self._timeout_s),
                InvocationTimeoutSeconds=min(_MOST_RUN_S, self._timeout_s),
            )
        except (ClientError, BotoCoreError) as error:
            # Too busy, unknown, unreachable, or not allowed: in no case is the segment to blame.
            raise BackendUnavailable(f"SAGEMAKER_ENDPOINT_NAME={self._endpoint}: {error}") from None
        return answer["OutputLocation"], answer.get("FailureLocation")

    def close(self) -> None:
        """boto3 closes its connections itself."""
