"""The worker of recorded video: the loops of two queues and a periodic reconciliation, each in a thread of its own.

`SegmentWorker.run` starts the threads and drains them. `handler` has what happens to one message.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from app.errors import SightlineError
from app.limits import backoff_s
from app.metrics import SEGMENT_MESSAGES
from app.segments import events
from app.segments.handler import (
    MAX_DELIVERIES,
    Attempts,
    Completions,
    Disposition,
    InvocationResults,
    Lease,
    Limiter,
    MessageHandler,
    Timings,
)
from app.segments.keys import parse_answer, parse_output, uri
from app.segments.ports import Invocation, Message, MessageGone, ObjectMissing, Queue, Store, WorkerResources
from app.settings import SegmentSettings

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
"""Pauses of a loop after turns that failed."""


class SegmentWorker:
    """Works on segments until it is stopped. Killed at any moment, it loses nothing: the next worker goes on."""

    def __init__(self, resources: WorkerResources, settings: SegmentSettings, timings: Timings | None = None) -> None:
        timings = timings or Timings()
        self._backend = resources.backend
        self._reconcile_s = timings.reconcile_s
        self._stopping = threading.Event()
        self._error: str | None = None
        # The loops' names in /health; "rounds" is the reconciliation.
        self._health = {name: LoopHealth() for name in ("inference", "events", "rounds")}
        self.limiter = Limiter(settings.inference_max_in_flight, resources.backend.name)
        completions = Completions(resources, timings)
        attempts = Attempts(resources, settings.segment_attempts)
        results = InvocationResults(resources, self.limiter, completions, attempts, timings)
        handler = MessageHandler(resources, self.limiter, completions, attempts, timings, self._stopping)
        self._segments = SegmentsLoop(
            resources.segments,
            handler,
            self.limiter,
            visibility_s=settings.segment_visibility_s,
            timings=timings,
            stopping=self._stopping,
            health=self._health["inference"],
        )
        self._events = EventsLoop(resources, results, timings, self._health["events"])
        timeout_s = settings.sagemaker_invoke_timeout_seconds
        self._reconciler = Reconciler(resources.store, self.limiter, results, completions, timings, timeout_s=timeout_s)

    def stop(self) -> None:
        """Asks `run` to return; from any thread, or a signal handler."""
        self._stopping.set()

    def report(self) -> dict[str, Any]:
        """The JSON of /health."""
        loops = {name: health.report() for name, health in self._health.items()}
        state = "silent" if self._error else worst_state(loops)
        return {"state": state, "backend": self._backend.name, "in_flight": self.limiter.in_flight, "loops": loops}

    def run(self, drain_s: float = 10.0) -> None:
        """Works until `stop`, then finishes the segments in hand; after `drain_s` it gives back their messages.

        Raises:
            SightlineError: a loop ended that should not.
        """
        threads = [
            self._thread("rounds", self._reconciler.turn, self._reconcile_s),
            self._thread("events", self._events.turn, 0.0),
            self._thread("inference", self._segments_turn, 0.0),
        ]
        for thread in threads:
            thread.start()
        self._stopping.wait()
        for thread in threads:
            thread.join()
        self._segments.drain(drain_s)
        self._backend.close()
        if self._error is not None:
            raise SightlineError(self._error)

    def _segments_turn(self) -> None:
        # The first reconciliation finds how many permits the open invocations need.
        if self._reconciler.limiter_restored.wait(_FIRST_PAUSE_S):
            self._segments.turn()

    def _thread(self, name: str, turn: Callable[[], None], pause_s: float) -> threading.Thread:
        return threading.Thread(target=self._loop, args=(name, turn, pause_s), name=name, daemon=True)

    def _loop(self, name: str, turn: Callable[[], None], pause_s: float) -> None:
        try:
            self._take_turns(name, turn, pause_s)
        except BaseException as error:
            self._error = f"the {name} loop ended: {type(error).__name__}: {error}"
            raise
        finally:
            self._stopping.set()

    def _take_turns(self, name: str, turn: Callable[[], None], pause_s: float) -> None:
        health, failures = self._health[name], 0
        while not self._stopping.is_set():
            try:
                turn()
            except Exception:  # AWS cannot be reached, or refuses: the loop must survive that
                log.exception("the %s loop pauses", name)
                health.failed()
                failures += 1
            else:
                failures = 0
            health.turned()
            self._stopping.wait(backoff_s(failures, _FIRST_PAUSE_S, _MAX_PAUSE_S) or pause_s)


# --- health and heartbeats, which the reassembler uses as well ---

SILENT_S = 300.0
"""Above the longest turn, a long poll with the AWS SDK's own retries. A loop that is silent for so long hangs."""


class LoopHealth:
    """When a loop last turned, and whether that turn failed. Written by the loop's threads, read by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turned_at: float | None = None
        self._ok = True
        self._failed = False

    def turned(self) -> None:
        """A turn has ended."""
        with self._lock:
            self._turned_at = time.monotonic()
            self._ok = not self._failed
            self._failed = False

    def failed(self) -> None:
        """Something in this turn failed."""
        with self._lock:
            self._failed = True
            self._ok = False

    def report(self) -> dict[str, Any]:
        """`state`: ok, degraded (the last turn failed), starting (no turn yet) or silent; `age_s` of the last turn."""
        with self._lock:
            if self._turned_at is None:
                return {"state": "starting" if self._ok else "degraded", "age_s": None}
            age_s = time.monotonic() - self._turned_at
            state = "silent" if age_s > SILENT_S else "ok" if self._ok else "degraded"
            return {"state": state, "age_s": round(age_s, 1)}


def worst_state(reports: dict[str, dict[str, Any]]) -> str:
    """The worst state of several loops."""
    states = [str(report["state"]) for report in reports.values()]
    return max(states, key=("ok", "degraded", "starting", "silent").index)


class VisibilityHeartbeat:
    """Keeps a message hidden while the block lasts: for `visibility_s` from now, again and again.

    A heartbeat that fails is counted, logged and tried again. If all fail, the message is delivered again and its work
    is done twice, without harm.
    """

    def __init__(self, queue: Queue, message: Message, visibility_s: float) -> None:
        self._queue = queue
        self._message = message
        self._visibility_s = visibility_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()  # a beat after the end would hide a message that was given back

    def _beat(self) -> None:
        while not self._ended.wait(self._visibility_s / 3):
            try:
                self._queue.extend(self._message, self._visibility_s)
            except MessageGone as error:
                log.warning("%s; another worker may work on it, too", error)
                SEGMENT_MESSAGES.labels(self._queue.name, "not_prolonged").inc()
                return
            except Exception:  # any error of the queue: the next beat may succeed
                log.exception("message %s could not be kept hidden", self._message.id)
                SEGMENT_MESSAGES.labels(self._queue.name, "not_prolonged").inc()


# --- the video-worker queue ---

_WAIT_S = 0.5
"""Longest wait for the backend, and for a permit, in one turn."""


@dataclass
class _InFlight:
    message: Message
    thread: threading.Thread


class SegmentsLoop:
    """Receives messages of the video-worker queue, and handles each in a thread of its own.

    It acquires a permit before it receives a message, so that every message it receives is worked on at once.
    """

    def __init__(
        self,
        queue: Queue,
        handler: MessageHandler,
        limiter: Limiter,
        *,
        visibility_s: float,
        timings: Timings,
        stopping: threading.Event,
        health: LoopHealth,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._limiter = limiter
        self._visibility_s = visibility_s
        self._timings = timings
        self._stopping = stopping
        self._health = health
        self._lock = threading.Lock()
        self._in_flight: dict[str, _InFlight] = {}

    def turn(self) -> None:
        """Waits a while for the backend, a permit and a message; starts to work on the message."""
        if not self._handler.ready():
            self._health.failed()
            self._stopping.wait(_WAIT_S)
            return
        lease = Lease(self._limiter, self._stopping)
        if not lease.acquire(_WAIT_S):
            return
        try:
            message = self._queue.receive(self._timings.poll_s)
        except BaseException:
            lease.release()
            raise
        if message is None:
            lease.release()
            return
        if self._stopping.is_set():
            lease.release()
            self._finish(message, Disposition.RETURNED)
            return
        thread = threading.Thread(target=self._work, args=(message, lease), name="segment", daemon=True)
        with self._lock:
            self._in_flight[message.receipt] = _InFlight(message, thread)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            self._remove(message)
            lease.release()
            self._finish(message, Disposition.RETRY)
            raise

    def drain(self, timeout_s: float) -> None:
        """Waits for messages in flight; gives back those that take longer, so that another worker has them at once."""
        for work in self._snapshot():
            work.thread.join(timeout_s)
            if work.thread.is_alive():
                timeout_s = 0.0
        for work in self._snapshot():
            log.warning("message %s is given back: its segment took longer than DRAIN_TIMEOUT_S", work.message.id)
            self._finish(work.message, Disposition.RETURNED)

    def _snapshot(self) -> list[_InFlight]:
        with self._lock:
            return list(self._in_flight.values())

    def _work(self, message: Message, lease: Lease) -> None:
        try:
            with VisibilityHeartbeat(self._queue, message, self._visibility_s):
                disposition = self._handler.handle(message, lease)
        except Exception:  # any error of AWS, the store or the backend: the message is delivered again
            log.exception("message %s of the video-worker queue", message.id)
            SEGMENT_MESSAGES.labels(self._queue.name, "error").inc()
            self._health.failed()
            disposition = Disposition.RETRY
        finally:
            lease.release()
        self._finish(message, disposition)
        self._remove(message)

    def _remove(self, message: Message) -> None:
        with self._lock:
            self._in_flight.pop(message.receipt, None)

    def _finish(self, message: Message, disposition: Disposition) -> None:
        try:
            if disposition is Disposition.HANDLED:
                self._queue.delete(message)
            elif disposition is Disposition.UNKNOWN:
                self._queue.release(message, self._timings.unknown_s(message.deliveries))
            else:
                self._queue.release(message, self._timings.retry_s if disposition is Disposition.RETRY else 0.0)
        except MessageGone as error:
            log.warning("%s", error)
        except Exception:  # the message stays hidden for a while and is delivered again
            log.exception("message %s could not be deleted or given back", message.id)
            SEGMENT_MESSAGES.labels(self._queue.name, "error").inc()


# --- the output-events queue ---

_MAX_REASON_BYTES = 500
_NO_REASON = "SageMaker gives no reason"


class EventsLoop:
    """Handles the events of the output bucket one after the other. SageMaker's say how an invocation ended."""

    def __init__(
        self, resources: WorkerResources, results: InvocationResults, timings: Timings, health: LoopHealth
    ) -> None:
        self._queue = resources.events
        self._objects = resources.objects
        self._store = resources.store
        self._output_bucket = resources.output_bucket
        self._results = results
        self._timings = timings
        self._health = health

    def turn(self) -> None:
        """Waits for a message, and handles it."""
        message = self._queue.receive(self._timings.poll_s)
        if message is None:
            return
        try:
            delay_s = self._handle(message)
        except Exception:  # any error of S3 or the store: the message is delivered again
            log.exception("message %s of the output-events queue", message.id)
            self._count("error")
            self._health.failed()
            delay_s = self._timings.early_s
        try:
            if delay_s is not None:
                self._queue.release(message, delay_s)
            else:
                self._queue.delete(message)
        except MessageGone as error:
            log.warning("%s", error)

    def _handle(self, message: Message) -> float | None:
        """Returns the seconds after which the message is to be delivered again; None if it was handled."""
        try:
            created = events.read(message.body)
        except events.InvalidEvent as error:
            log.warning("message %s of the output-events queue is no S3 event (%s); given back", message.id, error)
            self._count("invalid")
            return self._timings.unknown_s(message.deliveries)
        outcomes = [self._handle_event(event, message) for event in created] or ["test"]
        for outcome in outcomes:
            self._count(outcome)
        if "early" in outcomes:
            return self._timings.early_s
        return self._timings.unknown_s(message.deliveries) if "invalid" in outcomes else None

    def _handle_event(self, event: events.Created, message: Message) -> str:
        """Returns the label of the counter."""
        own_bucket = event.bucket == self._output_bucket
        if own_bucket and parse_output(event.bucket, event.key) is not None:
            return "segment_file"  # only acknowledged: the backend's answer completes a segment, not its file
        if own_bucket and event.key.startswith("jobs/"):
            return "other"  # results and final videos, which no invocation waits for
        answer = parse_answer(event.bucket, event.key)
        address = uri(event.bucket, event.key)
        invocation = self._invocation(answer.invocation_id if answer else None, address)
        if invocation is None:
            return self._handle_unmatched(event, message, own_bucket)
        if address == invocation.failure_uri or (answer is not None and answer.failed):
            return "failed" if self._results.failed(invocation, self._read_reason(address)) else "late"
        return "succeeded" if self._results.succeeded(invocation) else "late"

    def _handle_unmatched(self, event: events.Created, message: Message, own_bucket: bool) -> str:
        if not own_bucket:
            log.warning(
                "an event of bucket %s, OUTPUT_BUCKET_NAME is %s; given back", event.bucket, self._output_bucket
            )
            return "invalid"
        if message.deliveries < MAX_DELIVERIES:
            return "early"
        log.warning("%s answers no invocation that we know; deleted", event.key)
        return "unknown"

    def _invocation(self, invocation_id: str | None, address: str) -> Invocation | None:
        """By the id in the object's name; or by its address, which the store has once the call has returned."""
        if invocation_id is not None and (found := self._store.invocation(invocation_id)) is not None:
            return found
        return next(
            (
                invocation
                for invocation in self._store.open_invocations()
                if address in (invocation.answer_uri, invocation.failure_uri)
            ),
            None,
        )

    def _read_reason(self, address: str) -> str:
        try:
            return self._objects.read(address)[:_MAX_REASON_BYTES].decode(errors="replace") or _NO_REASON
        except ObjectMissing:  # removed since, perhaps by a lifecycle rule of the bucket
            return _NO_REASON

    def _count(self, outcome: str) -> None:
        SEGMENT_MESSAGES.labels(self._queue.name, outcome).inc()


# --- reconciliation ---


class Reconciler:
    """Periodic reconciliation: expires unanswered invocations and finishes the work of crashed workers.

    It runs at the start and every few seconds. Any number of workers may run it.
    """

    def __init__(
        self,
        store: Store,
        limiter: Limiter,
        results: InvocationResults,
        completions: Completions,
        timings: Timings,
        *,
        timeout_s: float,
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._results = results
        self._completions = completions
        self._timeout_s = timeout_s
        self._unsettled: set[str] = set()
        self.limiter_restored = threading.Event()
        """Set once the invocations that were open at the start have their permits."""
        self._jobs_due = time.monotonic()
        # A trigger that a worker took just before it died can be taken over when its lease has expired.
        self._jobs_pauses_s = itertools.chain((1.1 * timings.lease_s,), itertools.repeat(timings.jobs_s))

    def turn(self) -> None:
        """One reconciliation."""
        self._reconcile_invocations()
        self.limiter_restored.set()
        if time.monotonic() >= self._jobs_due:
            self._jobs_due = time.monotonic() + next(self._jobs_pauses_s)
            for job_id in self._store.waiting_jobs():
                self._completions.check(job_id)

    def _reconcile_invocations(self) -> None:
        held = self._limiter.invocations()  # before the store is read: invocations made meanwhile are not looked at
        unsettled = self._store.open_invocations()
        waiting = {invocation.id: invocation for invocation in unsettled if invocation.state == "open"}
        # An invocation that is not accepted yet needs nothing: the thread that calls has a permit of its own, however
        # long the endpoint is busy, and if its worker died, the message is delivered again. Neither is a failure.
        accepted = [invocation for invocation in waiting.values() if invocation.answer_uri is not None]
        self._limiter.adopt(invocation.id for invocation in accepted)
        for invocation_id in held - waiting.keys():
            self._release_if_finished(invocation_id)
        for invocation in accepted:
            expired = time.time() - invocation.called_at > self._timeout_s
            if expired and self._results.timed_out(invocation, self._timeout_s):
                log.warning("segment %s: invocation %s was never answered", invocation.segment, invocation.id)
        finished = {invocation.id for invocation in unsettled if invocation.state != "open"}
        # The worker that finished an invocation settles it in a moment. If it is still unsettled the next time, that
        # worker has died.
        for invocation_id in finished & self._unsettled:
            self._results.settle(invocation_id)
        self._unsettled = finished

    def _release_if_finished(self, invocation_id: str) -> None:
        """Another worker may have handled the answer. The list of invocations may be stale, a single record is not."""
        current = self._store.invocation(invocation_id)
        if current is None or current.state != "open":
            self._limiter.release_invocation(invocation_id)
