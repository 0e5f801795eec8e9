"""Every Prometheus object of the service; no other module creates one.

No session or frame id is ever a label. For every entry point and at every moment,
frames_received = processed + dropped + failed + in flight.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import Counter as Counted
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.values import MultiProcessValue, ValueClass

T = TypeVar("T")

disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BUFFERED = 100
"""Observations that a buffer holds before it updates its histogram: each update takes two locks and a lookup."""
_BUFFERS: list[Callable[[], None]] = []
_BATCHES = (1, 2, 4, 8, 16, 32)

SESSIONS_ACTIVE = Gauge("sightline_sessions_active", "Live sessions being served", multiprocess_mode="livesum")
SESSIONS_WAITING = Gauge("sightline_sessions_waiting", "Sessions that wait for a slot", multiprocess_mode="livesum")
SESSIONS = Counter("sightline_sessions_total", "Live sessions that ended, by outcome", ["outcome"])

FRAMES_RECEIVED = Counter("sightline_frames_received_total", "Frames received", ["entry"])
FRAMES_PROCESSED = Counter("sightline_frames_processed_total", "Frames that were answered with a result", ["entry"])
FRAMES_DROPPED = Counter("sightline_frames_dropped_total", "Frames dropped on purpose", ["entry", "reason"])
FRAMES_FAILED = Counter("sightline_frames_failed_total", "Frames that ended in an error", ["entry", "stage"])
STAGE_FRAMES_WITHOUT = Counter(
    "sightline_stage_frames_without_total",
    "Frames that went on without a stage that runs in a thread: `late`, it took too long; `busy`, it still ran",
    ["stage", "reason"],
)
STAGE_MOVED = Counter(
    "sightline_stage_moved_total", "Stages moved from the event loop to a thread, because they blocked it", ["stage"]
)
STAGE_ERRORS = Counter("sightline_stage_errors_total", "Stages whose status on a frame was `error`", ["stage"])

DECODE_GIVEN_UP = Gauge(
    "sightline_decode_given_up",
    "Threads that still work on a frame which failed as too expensive",
    multiprocess_mode="livesum",
)

MODEL_FRAMES = Counter("sightline_model_frames_total", "Frames that a model answered", ["model"])
MODEL_BATCH = Histogram("sightline_model_batch_size", "Frames in one request to a model", ["model"], buckets=_BATCHES)
MASKS = Counter(
    "sightline_masks_total",
    "Masks of segmented instances: written, of which simplified (an outline of too many points) and without_rle (run "
    "lengths over their bound); empty (dropped: no pixel)",
    ["outcome"],
)
CLASSIFY_CROPS = Counter(
    "sightline_classify_crops_total",
    "Detected objects of the classes in CLASSIFY_CROPS: classified, error; unfit (too small or too long), too_many",
    ["outcome"],
)
FACES = Counter("sightline_faces_total", "Faces of detected people, by outcome", ["outcome"])
STAGE_SECONDS = Histogram("sightline_stage_seconds", "Duration of a stage", ["entry", "stage"], buckets=_SECONDS)
FRAME_AGE = Histogram("sightline_frame_age_seconds", "Time from a frame to its result", ["entry"], buckets=_SECONDS)
PIPELINE_FPS = Gauge(
    "sightline_pipeline_fps", "Results per second over the last 5 seconds", ["entry"], multiprocess_mode="livesum"
)

IN_FLIGHT = Gauge("sightline_inference_in_flight", "Requests at the inference server", multiprocess_mode="livesum")
INFERENCE_UP = Gauge("sightline_inference_up", "1 while the inference server answers", multiprocess_mode="livemin")
TRITON_RESTARTS = Counter(
    "sightline_triton_restarts_total",
    "Restarts of the embedded Triton, by reason: ended, process_lost (a process of a model), hung",
    ["reason"],
)
INFERENCE_UNSHARED = Counter(
    "sightline_inference_unshared_total",
    "Requests that sent their tensors over gRPC, although memory is shared with the inference server",
)
INFERENCE_ERRORS = Counter("sightline_inference_errors_total", "Requests to a model that failed", ["reason"])

OCR_RUNS = Counter("sightline_ocr_runs_total", "OCR runs, by outcome", ["outcome"])
OCR_SECONDS = Histogram("sightline_ocr_run_seconds", "Duration of an OCR run", buckets=_SECONDS[5:])
OCR_RSS = Gauge("sightline_ocr_process_rss_bytes", "Resident memory of the OCR process", multiprocess_mode="livesum")

SUMMARY_BACKLOG_ITEMS = Gauge(
    "sightline_summary_backlog_items", "Observations that wait for a summary", ["where"], multiprocess_mode="livesum"
)
SUMMARY_BACKLOG_BYTES = Gauge(
    "sightline_summary_backlog_bytes",
    "Bytes of the observations that wait for a summary",
    ["where"],
    multiprocess_mode="livesum",
)
SUMMARY_OBSERVATIONS = Counter(
    "sightline_summary_observations_total",
    "Observations: offered + adopted (from a process that ended) = taken + merged + dropped + kept (for the next "
    "start) + those that wait; spilled: written to disk meanwhile",
    ["outcome"],
)
SUMMARY_DISK_ERRORS = Counter(
    "sightline_summary_disk_errors_total", "Errors of the backlog's file, by reason", ["reason"]
)
SUMMARY_INTERVAL = Gauge(
    "sightline_summary_interval_seconds", "Mean interval of summaries over sessions", multiprocess_mode="livemax"
)
SUMMARIES = Counter(
    "sightline_summaries_total", "Summaries, by source (llm, digest) and outcome", ["source", "outcome"]
)
LLM_REQUESTS = Counter("sightline_llm_requests_total", "Requests to the language model, by outcome", ["outcome"])
LLM_SECONDS = Histogram(
    "sightline_llm_seconds",
    "Duration of a request to the language model",
    buckets=(*_SECONDS[5:], 20.0, 30.0, 60.0, 120.0),
)
LLM_TOKENS = Counter("sightline_llm_tokens_total", "Tokens sent to and received from the language model", ["direction"])
LLM_BREAKER_OPEN = Gauge(
    "sightline_llm_breaker_open", "1 while the language model's circuit breaker is open", multiprocess_mode="livemax"
)

FLEET_CAMERAS = Gauge("sightline_fleet_cameras", "Cameras that a worker reads", multiprocess_mode="livesum")
FLEET_LAG = Gauge(
    "sightline_fleet_lag_frames", "Frames of its cameras in Redis that no worker has read", multiprocess_mode="livesum"
)
FLEET_BATCH_FILL = Gauge(
    "sightline_fleet_batch_fill_ratio", "Frames in recent batches over the largest batch", multiprocess_mode="livemax"
)
FLEET_SKIPPED = Counter(
    "sightline_fleet_skipped_total",
    "Frames of cameras that lag, skipped unread for newer ones; also counted as received, and as dropped (stale)",
)
FLEET_FENCED = Counter(
    "sightline_fleet_fenced_total",
    "Frames in flight whose camera another worker took over, by what was refused: answer, acknowledgement",
    ["refused"],
)
FLEET_RECLAIMED = Counter("sightline_fleet_pending_reclaimed_total", "Frames claimed from workers that died")
FLEET_DEAD_LETTERS = Counter("sightline_fleet_dead_letters_total", "Frames dead-lettered after FLEET_MAX_DELIVERIES")
KAFKA_ERRORS = Counter("sightline_kafka_publish_errors_total", "Results that Kafka did not accept", ["reason"])
SINK_MESSAGES = Counter(
    "sightline_sink_messages_total",
    "Results for a sink: offered = delivered + rejected (it will never take them) + given_up (a failure policy allows "
    "it) + dropped (live only: newer ones took their place) + left (the process ended) + those that wait",
    ["sink", "entry", "outcome"],
)
SINK_WAITING = Gauge(
    "sightline_sink_waiting",
    "Results that a sink does not have yet",
    ["sink", "entry"],
    multiprocess_mode="livesum",
)
SINK_ERRORS = Counter(
    "sightline_sink_errors_total",
    "Attempts to deliver results that failed: unavailable, rejected, internal (an error of the sink's own program)",
    ["sink", "reason"],
)
SINK_DELETED = Counter(
    "sightline_sink_deleted_lines_total", "Results that the sink `jsonl` deleted with its oldest file (JSONL_FILES)"
)
INGEST_FRAMES = Counter("sightline_ingest_frames_total", "Frames read from sources, by outcome", ["outcome"])
INGEST_RECONNECTS = Counter("sightline_ingest_reconnects_total", "Times that a lost source was opened again")
INGEST_SOURCES = Gauge("sightline_ingest_sources", "Sources by state", ["state"], multiprocess_mode="livesum")

SEGMENTS = Counter("sightline_segments_total", "Segments, by backend and outcome", ["backend", "outcome"])
SEGMENTS_IN_FLIGHT = Gauge(
    "sightline_segments_in_flight", "Segments at the backend", ["backend"], multiprocess_mode="livesum"
)
SEGMENT_SECONDS = Histogram(
    "sightline_segment_seconds",
    "Time from a segment's invocation to its completion",
    ["backend"],
    buckets=(1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000),
)
SEGMENT_MESSAGES = Counter(
    "sightline_segment_messages_total", "Queue messages, by queue and outcome", ["queue", "outcome"]
)

ACTIVITY_ERRORS = Counter("sightline_activity_publish_errors_total", "Session counts that CloudWatch did not accept")

CONNECTIONS = Gauge(
    "sightline_connections",
    "TCP connections: handshake (before their first complete request), http (after it; also idle between two), "
    "websocket, closing (answered, but not closed yet)",
    ["state"],
    multiprocess_mode="livesum",
)
CONNECTIONS_REFUSED = Counter(
    "sightline_connections_refused_total", "TCP connections that the service ended, by reason", ["reason"]
)

AUTH_FAILURES = Counter("sightline_auth_failures_total", "Sessions and requests refused access", ["reason"])
LAST_ACTIVITY = Gauge(
    "sightline_last_activity_timestamp_seconds",
    "When the last frame was received, epoch seconds",
    multiprocess_mode="max",
)


class RateGauge:
    """PIPELINE_FPS of one entry point: its results per second over the last 5 seconds."""

    _WINDOW_S = 5.0

    def __init__(self, entry: str) -> None:
        self._gauge = PIPELINE_FPS.labels(entry)
        self._count = 0
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def add(self, results: int = 1) -> None:
        """Counts results."""
        self._count += results

    def publish(self) -> None:
        """Sets the gauge. Call it about once a second, so that it falls to 0 when no more results follow."""
        now = time.monotonic()
        self._marks.append((now, self._count))
        while len(self._marks) > 2 and now - self._marks[0][0] > self._WINDOW_S:
            self._marks.popleft()
        since, before = self._marks[0]
        self._gauge.set((self._count - before) / max(now - since, 1e-9))


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """Calls for `histogram.observe` of each value, but takes a lock per bucket instead of two per value.

    The library has no such call; this is its `observe` over a list (prometheus_client/metrics.py).
    """
    bounds = histogram._upper_bounds
    counts = Counted(bisect_left(bounds, value) for value in values)
    for index, count in counts.items():
        histogram._buckets[index].inc(count)
    if counts:
        histogram._sum.inc(sum(values))


def observe_stages(entry: str, frames: Sequence[Mapping[str, float]]) -> None:
    """Adds to STAGE_SECONDS: `frames` has, for each frame, the seconds of each of its stages by name."""
    stages: dict[str, list[float]] = {}
    for times in frames:
        for name, seconds in times.items():
            stages.setdefault(name, []).append(seconds)
    for name, durations in stages.items():
        observe_all(STAGE_SECONDS.labels(entry, name), durations)


class HistogramBuffer(Generic[T]):
    """Buffers observations, so that many update a histogram together. `exposition` flushes every buffer first.

    Thread-safe. A buffer lives as long as the process.

    Args:
        write: updates the histogram with a list of observations.
    """

    def __init__(self, write: Callable[[list[T]], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._waiting: list[T] = []
        _BUFFERS.append(self.flush)

    def add(self, observed: T) -> None:
        """Adds an observation, and flushes the buffer if it is full. The observation must not change any more."""
        with self._lock:
            self._waiting.append(observed)
            full = len(self._waiting) >= _BUFFERED
        if full:
            self.flush()

    def flush(self) -> None:
        """Updates the histogram with all observations in the buffer."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        self._write(waiting)


def ages(entry: str) -> HistogramBuffer[float]:
    """Buffers FRAME_AGE of one entry point, seconds."""
    return HistogramBuffer(lambda seconds: observe_all(FRAME_AGE.labels(entry), seconds))


def stage_times(entry: str) -> HistogramBuffer[Mapping[str, float]]:
    """Buffers STAGE_SECONDS of one entry point: for each frame, the seconds of each stage by name."""
    return HistogramBuffer(lambda frames: observe_stages(entry, frames))


def flush_buffers() -> None:
    """Flushes every buffer. Call it about once a second, because any of several workers may answer for all of them."""
    for flush in _BUFFERS:
        flush()


def registry() -> CollectorRegistry:
    """The process's registry; with several workers, one that adds up all of theirs."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    _remove_dead_workers(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    merged = CollectorRegistry()
    MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
    return merged


def _remove_dead_workers(folder: Path) -> None:
    """Removes the live gauges of workers that were killed. Their counters stay."""
    for gauge in folder.glob("gauge_live*_*.db"):
        pid = int(gauge.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def exposition() -> bytes:
    """The body of `GET /metrics`, in Prometheus's text format."""
    flush_buffers()
    return generate_latest(registry())


def triton_restarted(reason: str) -> None:
    """Counts a restart of the embedded Triton.

    With several workers their parent supervises Triton. No endpoint exposes the parent's registry, so the parent also
    writes the count into the folder that the workers share.
    """
    TRITON_RESTARTS.labels(reason).inc()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ and not ValueClass._multiprocess:
        _shared_restarts(reason).inc(1)


@cache
def _shared_restarts(reason: str) -> Any:
    name = "sightline_triton_restarts"
    written = MultiProcessValue()  # type: ignore[no-untyped-call]
    return written("counter", name, f"{name}_total", ("reason",), (reason,), TRITON_RESTARTS._documentation)


def share_between_workers(folder: Path) -> None:
    """Makes the exposition the sum over all processes started from here. Call it before they import this module."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.db"):
        stale.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
