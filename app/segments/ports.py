"""What the segment door asks of the world: objects, queues and a store. Each has an AWS and a local form.

All calls block; every implementation may be used by several threads at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from app.errors import SightlineError
from app.segments.keys import Mode, SegmentId, SegmentKey


class ObjectMissing(SightlineError):
    """There is no object at this address."""


class AddressRefused(SightlineError):
    """The address is of a kind, or in a place, that this process may not use."""


class MessageGone(SightlineError):
    """A delivery is no longer its receiver's: it was deleted, or is visible again."""


class Objects(Protocol):
    """Files by address. What is written appears whole or not at all.

    Raises (all of them):
        AddressRefused: another kind of address, or outside the folder.
        ObjectMissing: nothing is there to be read.
    """

    def download(self, uri: str, path: Path) -> None: ...
    def upload(self, path: Path, uri: str) -> None: ...
    def read(self, uri: str) -> bytes: ...
    def write(self, uri: str, data: bytes) -> None: ...
    def exists(self, uri: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery of a message. `deliveries` counts this one; `receipt` is good for this one alone."""

    id: str
    body: str
    receipt: str
    deliveries: int


class Queue(Protocol):
    """At least once, in no order; what is received stays hidden for a while and comes back unless it is deleted.

    Raises (delete, extend, release):
        MessageGone: the delivery has run out; the message itself may well come again. SQS may also let it pass.
    """

    name: str
    """`segments`, `events` or `reassembly`: the metrics' label."""

    def receive(self, wait_s: float) -> Message | None:
        """The next message, waited for so long; None when there is none."""
        ...

    def delete(self, message: Message) -> None: ...

    def extend(self, message: Message, seconds: float) -> None:
        """Hides it for so long from now on."""
        ...

    def release(self, message: Message, delay_s: float = 0.0) -> None:
        """Gives it back; it can be received again after so long."""
        ...

    def send(self, body: str, *, once: str | None = None, delay_s: float = 0.0) -> None:
        """Adds a message.

        Args:
            once: messages with the same word are delivered once, as far as the queue can (SQS: FIFO queues, 5 min).
            delay_s: it can be received after so long, as far as the queue can (SQS: not FIFO queues, 15 min at most).
        """
        ...


JobStatus = Literal["chunking", "chunking_complete", "done", "failed"]
"""`chunking`: segments are still being uploaded; `chunking_complete`: all are, and the total is known."""


@dataclass(frozen=True, slots=True)
class Job:
    """One film. Times are epoch seconds."""

    job_id: str
    mode: Mode
    source: str
    """What the user calls it: the file's name."""
    created_at: float
    status: JobStatus = "chunking"
    total: int | None = None
    """Segments, once it is known."""
    reason: str | None = None
    """Why it failed; of any other, what is wanting, if anything."""
    round: int = 0
    """How often it was reopened."""


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
    """One asynchronous request, under an id that is chosen before the call."""

    id: str
    segment: SegmentKey
    input_uri: str
    output_uri: str
    called_at: float
    """When it was recorded, just before the call; once the call returned, when it did."""
    state: InvocationState = "open"
    reason: str | None = None
    answer_uri: str | None = None
    """Where the answer will lie, as the call's own reply says; None until the call returned."""
    failure_uri: str | None = None
    settled: bool = False
    """Nothing is left to be done for it: its segment is complete, or is being repeated, or given up."""


Trigger = Literal["taken", "sent", "held"]


class Store(Protocol):
    """What must survive. Every write may be repeated, and come in any order."""

    # jobs

    def put_job(self, job: Job) -> None:
        """Adds it, without a trigger; one that is there already stays as it is."""
        ...

    def job(self, job_id: str) -> Job | None: ...

    def chunking_complete(self, job_id: str, total: int) -> None:
        """All segments are uploaded. A job that is done or failed stays so."""
        ...

    def mark(self, job_id: str, status: JobStatus, reason: str | None = None) -> None:
        """Sets the status; a job that is done stays so, and one that is not there is left alone."""
        ...

    def reopen(self, job_id: str) -> None:
        """Begins another round: failures and the trigger are forgotten, completions stay.

        The status becomes `chunking` again, until `chunking_complete` says that all that is missing was uploaded anew.
        A job that is done stays so.
        """
        ...

    def waiting_jobs(self) -> list[str]:
        """Ids of jobs in `chunking_complete`, soon after they came to be so."""
        ...

    # segments

    def complete(self, completion: Completion) -> bool:
        """True the first time; a segment that is complete stays as it is."""
        ...

    def completion(self, segment: SegmentId) -> Completion | None: ...

    def completions(self, job_id: str) -> list[Completion]:
        """In the film's order."""
        ...

    def fail(self, segment: SegmentId, attempt: str, reason: str) -> int:
        """Notes a failed attempt; the same `attempt` counts once. Returns how many there are."""
        ...

    def failures(self, segment: SegmentId) -> int:
        """Failed attempts since the job was last reopened."""
        ...

    def refuse(self, segment: SegmentId, attempt: str) -> int:
        """As `fail`, of an attempt that the backend did not even begin. Counted apart."""
        ...

    def refusals(self, segment: SegmentId) -> int:
        """Such attempts since the job was last reopened."""
        ...

    # the trigger of a job's reassembly

    def trigger_once(self, job_id: str, lease_s: float) -> Trigger:
        """`taken`: the caller sends the job to the reassembly queue, then calls `trigger_sent`.

        `sent`: somebody has. `held`: somebody took it less than `lease_s` ago and has not said that it is sent.
        """
        ...

    def trigger_sent(self, job_id: str) -> None: ...

    # asynchronous invocations

    def record(self, invocation: Invocation) -> bool:
        """True when it was not there; one that is there stays as it is."""
        ...

    def accepted(self, invocation_id: str, answer_uri: str, failure_uri: str | None, at: float) -> None:
        """The call returned at that moment, epoch seconds: it is at the backend."""
        ...

    def invocation(self, invocation_id: str) -> Invocation | None:
        """As it stands now: never a stale copy."""
        ...

    def finish(self, invocation_id: str, outcome: Outcome, reason: str | None = None) -> bool:
        """True the first time only."""
        ...

    def settle(self, invocation_id: str) -> None:
        """See `Invocation.settled`."""
        ...

    def open_invocations(self) -> list[Invocation]:
        """Those that are not settled; one recorded or settled this moment may be missing or still be there."""
        ...
