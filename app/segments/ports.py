"""What recorded video asks of the world: objects, queues, a store and an inference backend.

Objects, queues and the store have a form on AWS (`aws`) and one in a folder (`local`); the backends are in `backends`,
or come as plug-ins.
All calls block; every implementation may be used by several threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from app.errors import SightlineError
from app.segments.keys import Mode, SegmentId, SegmentKey
from app.settings import Settings

# --- objects ---


class ObjectMissing(SightlineError):
    """No object exists at this address."""


class ObjectAddressRefused(SightlineError):
    """This process may not use the address: its scheme is unknown, or it is outside the allowed bucket or folder."""


class Objects(Protocol):
    """Files by address. A written object appears whole or not at all.

    Raises (all methods):
        ObjectAddressRefused: the address has another scheme, or is outside the folder.
        ObjectMissing: the object to read does not exist.
    """

    def download(self, uri: str, path: Path) -> None: ...
    def upload(self, path: Path, uri: str) -> None: ...
    def read(self, uri: str) -> bytes: ...
    def write(self, uri: str, data: bytes) -> None: ...
    def exists(self, uri: str) -> bool: ...


# --- queues ---


class MessageGone(SightlineError):
    """The delivery no longer belongs to its receiver: the message was deleted, or is visible again."""


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery of a message."""

    id: str
    body: str
    receipt: str
    """Identifies this delivery; the next delivery of the message has another receipt."""
    deliveries: int
    """Deliveries of the message so far, this one included."""


class Queue(Protocol):
    """Delivers at least once, in no order. A received message is hidden a while, and comes back unless it is deleted.

    Raises (delete, extend, release):
        MessageGone: the delivery has expired; the message may be delivered again. SQS does not always report this.
    """

    name: str
    """`segments`, `events` or `reassembly`: the metrics' label."""

    def receive(self, wait_s: float) -> Message | None:
        """Waits up to `wait_s` for a message; None if none came."""
        ...

    def delete(self, message: Message) -> None: ...

    def extend(self, message: Message, seconds: float) -> None:
        """Hides the message for so many seconds from now on."""
        ...

    def release(self, message: Message, delay_s: float = 0.0) -> None:
        """Makes the message visible again after the delay."""
        ...

    def send(self, body: str, *, once: str | None = None, delay_s: float = 0.0) -> None:
        """Adds a message.

        Args:
            once: of messages with the same word one is delivered, as far as the queue can (SQS: FIFO queues, 5 min).
            delay_s: the message becomes visible after it, as far as the queue can (SQS: not FIFO, 15 min at most).
        """
        ...


# --- the store ---

JobStatus = Literal["chunking", "chunking_complete", "done", "failed"]
"""`chunking`: segments are still being uploaded; `chunking_complete`: all are uploaded, and the total is known."""


@dataclass(frozen=True, slots=True)
class Job:
    """One video. Times are epoch seconds."""

    job_id: str
    mode: Mode
    source: str
    """The name of the video's file, as the user calls it."""
    created_at: float
    status: JobStatus = "chunking"
    total: int | None = None
    """The number of segments, once it is known."""
    reason: str | None = None
    """Why the job failed; for any other job, what its result lacks."""
    round: int = 0
    """How often the job was reopened."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A segment that is done."""

    segment: SegmentId
    output_uri: str
    completed_at: float


Outcome = Literal["succeeded", "failed", "timed_out"]
InvocationState = Literal["open", "succeeded", "failed", "timed_out"]


@dataclass(frozen=True, slots=True)
class Invocation:
    """One asynchronous request to the backend, under an id that is chosen before the call."""

    id: str
    segment: SegmentKey
    input_uri: str
    output_uri: str
    called_at: float
    """When it was recorded, just before the call; after the call returned, the time of the return."""
    state: InvocationState = "open"
    reason: str | None = None
    answer_uri: str | None = None
    """Where the backend will write its answer, from the call's response; None until the call returned."""
    failure_uri: str | None = None
    settled: bool = False
    """Nothing is left to do for it: its segment is complete, was sent to the queue again, or was given up."""


Trigger = Literal["taken", "sent", "held"]


class Store(Protocol):
    """State that survives a crash. Every write may be repeated, and writes may come in any order."""

    # jobs

    def put_job(self, job: Job) -> None:
        """Adds the job, without a trigger; a job of that id which exists stays as it is."""
        ...

    def job(self, job_id: str) -> Job | None: ...

    def chunking_complete(self, job_id: str, total: int) -> None:
        """Records that all segments are uploaded. A job that is done or failed keeps its status."""
        ...

    def mark(self, job_id: str, status: JobStatus, reason: str | None = None) -> None:
        """Sets the status. A job that is done stays so; for a job that does not exist nothing happens."""
        ...

    def reopen(self, job_id: str) -> None:
        """Begins another round: removes failures and the trigger, and keeps completions.

        The status becomes `chunking` again, until `chunking_complete` records that all missing segments were uploaded.
        A job that is done stays so.
        """
        ...

    def waiting_jobs(self) -> list[str]:
        """Ids of the jobs in `chunking_complete`. A job may appear here a moment after its status changed."""
        ...

    # segments

    def complete(self, completion: Completion) -> bool:
        """True the first time; a segment that is complete stays as it is."""
        ...

    def completion(self, segment: SegmentId) -> Completion | None: ...

    def completions(self, job_id: str) -> list[Completion]:
        """In the order of the video."""
        ...

    def fail(self, segment: SegmentId, attempt: str, reason: str) -> int:
        """Records a failed attempt; the same `attempt` counts once. Returns the number of failed attempts."""
        ...

    def failures(self, segment: SegmentId) -> int:
        """Failed attempts since the job was last reopened."""
        ...

    def refuse(self, segment: SegmentId, attempt: str) -> int:
        """Like `fail`, for an attempt that the backend did not begin. Counted separately."""
        ...

    def refusals(self, segment: SegmentId) -> int:
        """Refused attempts since the job was last reopened."""
        ...

    # the trigger of a job's reassembly

    def trigger_once(self, job_id: str, lease_s: float) -> Trigger:
        """Claims the trigger.

        `taken`: the caller has it, sends the job to the reassembly queue, then calls `trigger_sent`.
        `sent`: the job was sent already. `held`: another process took the trigger less than `lease_s` ago and has not
        recorded yet that it sent the job.
        """
        ...

    def trigger_sent(self, job_id: str) -> None: ...

    # asynchronous invocations

    def record(self, invocation: Invocation) -> bool:
        """True if the invocation is new; one that exists stays as it is."""
        ...

    def accepted(self, invocation_id: str, answer_uri: str, failure_uri: str | None, at: float) -> None:
        """Records that the call returned at this moment, epoch seconds: the backend has the invocation."""
        ...

    def invocation(self, invocation_id: str) -> Invocation | None:
        """The current record, never a stale copy."""
        ...

    def finish(self, invocation_id: str, outcome: Outcome, reason: str | None = None) -> bool:
        """Records how the invocation ended. True the first time only."""
        ...

    def settle(self, invocation_id: str) -> None:
        """Sets `Invocation.settled`."""
        ...

    def open_invocations(self) -> list[Invocation]:
        """Invocations that are not settled. The list may lag a moment behind `record` and `settle`."""
        ...


# --- the inference backend ---


@dataclass(frozen=True, slots=True)
class Done:
    """The segment is analysed, and its output is at its address."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The backend has the segment. An event reports how it ended."""

    invocation: Invocation


class SegmentFailed(SightlineError):
    """The backend tried this segment and could not analyse it. It counts as one of SEGMENT_ATTEMPTS."""


class BackendUnavailable(SightlineError):
    """The backend did not try: it cannot be reached, or has no capacity. The segment waits; no attempt is counted."""


class BackendLost(BackendUnavailable):
    """The backend went away during this segment, perhaps because of it. Repeated often, the segment has failed."""


Progress = Callable[[SegmentKey, int | None, int], None]
"""Called with a segment, the number of its analysed frames (None: its analysis ended), and the number of all."""


def no_progress(segment: SegmentKey, frames: int | None, total: int) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True, kw_only=True)
class BackendContext:
    """What a backend may use."""

    settings: Settings
    objects: Objects
    """Reads the segments and writes their output."""
    progress: Progress = no_progress


class Backend(ABC):
    """Analyses segments. Any thread may call it; up to INFERENCE_MAX_IN_FLIGHT threads do at once.

    A plug-in is a subclass that is made with a `BackendContext`. INFERENCE_BACKEND chooses it by its name.
    """

    name: ClassVar[str]
    """The metrics' label, and the value of INFERENCE_BACKEND."""

    def open(self) -> None:  # noqa: B027 - has nothing to do by default
        """Makes it ready, for example by loading models. Blocks; called once, before the first segment.

        Raises:
            SightlineError: it cannot be opened: the message says why, and the start stops.
            CancelledError: `stop` was called before it was open.
        """

    @abstractmethod
    def ready(self) -> bool:
        """Whether it would take a segment now. Called while it is unavailable; may take some seconds."""

    @abstractmethod
    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done | Accepted:
        """Has a segment analysed. It may be called again for the same segment, without harm.

        Raises:
            SegmentFailed: the segment could not be analysed.
            BackendUnavailable: the segment was not tried.
            BackendLost: the backend went away meanwhile.
        """

    def stop(self) -> None:  # noqa: B027
        """Ends what it is doing soon, because the process stops. From any thread, or a signal handler."""

    def close(self) -> None:  # noqa: B027
        """Frees what it holds. Called last, perhaps twice, and also if `open` failed."""


# --- all of them together ---


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What submitting and reassembling use. A bucket is one of S3, or a folder's absolute path."""

    input_bucket: str
    output_bucket: str
    objects: Objects
    store: Store
    reassembly: Queue
    announce: Callable[[SegmentKey], None] | None = None
    """Sends the event of an uploaded segment to the workers' queue; None: the bucket sends it."""
    tidy: Callable[[str], None] | None = None
    """Removes the segments of a job that is done; None: the buckets' lifecycle rules remove them."""


@dataclass(frozen=True, kw_only=True)
class WorkerResources(Resources):
    """What a worker uses."""

    segments: Queue
    events: Queue
    backend: Backend
