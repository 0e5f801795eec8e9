"""A queue in SQS, standard or FIFO."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from app.segments.ports import Message, MessageGone

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

MOST_WAIT_S = 20
"""SQS holds a request no longer."""
_MOST_DELAY_S = 900
"""SQS' own limit."""
_GONE = {
    "ReceiptHandleIsInvalid",
    "InvalidParameterValue",  # of a receipt: the message was deleted, or is visible again
    "MessageNotInflight",
    "AWS.SimpleQueueService.MessageNotInflight",
}


class SqsQueue:
    """See `Queue`.

    Args:
        visibility_s: how long a received message stays hidden; None: as the queue itself says.
    """

    def __init__(self, client: SQSClient, url: str, name: str, *, visibility_s: int | None = None) -> None:
        self.name = name
        self._client = client
        self._url = url
        self._fifo = url.endswith(".fifo")
        self._hiding: dict[str, Any] = {} if visibility_s is None else {"VisibilityTimeout": visibility_s}

    def receive(self, wait_s: float) -> Message | None:
        answer = self._client.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=1,
            WaitTimeSeconds=min(MOST_WAIT_S, math.ceil(wait_s)),
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
            **self._hiding,
        )
        for found in answer.get("Messages", ()):
            deliveries = int(found.get("Attributes", {}).get("ApproximateReceiveCount", "1"))
            return Message(found["MessageId"], found["Body"], found["ReceiptHandle"], deliveries)
        return None

    def delete(self, message: Message) -> None:
        with _still_ours(message):
            self._client.delete_message(QueueUrl=self._url, ReceiptHandle=message.receipt)

    def extend(self, message: Message, seconds: float) -> None:
        self._hide(message, math.ceil(seconds))

    def release(self, message: Message, delay_s: float = 0.0) -> None:
        self._hide(message, math.ceil(delay_s))

    def _hide(self, message: Message, seconds: int) -> None:
        with _still_ours(message):
            self._client.change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=message.receipt, VisibilityTimeout=seconds
            )

    def send(self, body: str, *, once: str | None = None, delay_s: float = 0.0) -> None:
        # A FIFO queue keeps order within a group; ours have none, so each message is a group of its own.
        word = once or uuid.uuid4().hex
        order: dict[str, Any] = {"MessageGroupId": word, "MessageDeduplicationId": word} if self._fifo else {}
        wait: dict[str, Any] = {"DelaySeconds": min(_MOST_DELAY_S, math.ceil(delay_s))} if not self._fifo else {}
        self._client.send_message(QueueUrl=self._url, MessageBody=body, **order, **wait)


@contextmanager
def _still_ours(message: Message) -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _GONE:
            raise MessageGone(f"message {message.id}: {error}") from None
        raise
