"""The commands `segments submit`, `work` and `reassemble`, on AWS or in a folder. `cli` has their options.

`cli` imports this module only when a command runs, because every `sightline` command imports `cli`.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from app import metrics_server
from app.addresses import bracketed
from app.auth import Hosts
from app.errors import ConfigurationError, SightlineError
from app.logging import configure
from app.process import SHUTDOWN_LOG, handling_signals, stopping_on_signals
from app.segments.aws import open_resources, open_worker_resources, required
from app.segments.backends import chosen_plugin
from app.segments.backends.http import HttpBackend
from app.segments.backends.pipeline import PipelineBackend
from app.segments.backends.stub import StubBackend
from app.segments.handler import Timings
from app.segments.local import LocalFolder
from app.segments.ports import Backend, BackendContext, Job, Progress, no_progress
from app.segments.reassemble import Reassembler, final_address
from app.segments.submit import Interrupted, ProgressDisplay, Submission, follow, record, upload
from app.segments.worker import SegmentWorker
from app.settings import Settings

log = logging.getLogger(__name__)

_POLL_S = 2.0
"""Seconds between two looks at a job on AWS."""
_LOCAL_POLL_S = 0.3
_LOCAL_TIMINGS = Timings(poll_s=1.0, retry_s=1.0, early_s=1.0)
_INTERRUPTED = 130
"""The exit status that shells take for Ctrl-C."""


# --- submit ---


def submit(folder: Path | None, submission: Submission, *, wait: bool) -> None:
    """Submits a video, and prints the address of its output, which exists already if `wait` is set.

    Raises:
        SightlineError: the video, a setting or AWS is not as it should be, or the job failed.
    """
    settings = Settings()
    configure(settings.server)
    stopping = threading.Event()
    try:
        with _set_by_signal(stopping), ProgressDisplay() as display:
            if folder is None:
                job, address = _submit_on_aws(settings, submission, display, stopping, wait=wait)
            else:
                job, address = _submit_locally(folder, settings, submission, display, stopping, wait=wait)
    except Interrupted as error:
        sys.stderr.write(f"sightline: {error}\n")
        sys.exit(_INTERRUPTED)
    if job.status != "failed" and job.reason:
        sys.stderr.write(f"sightline: {job.reason}\n")
    print(address)


def _submit_on_aws(
    settings: Settings, submission: Submission, display: ProgressDisplay, stopping: threading.Event, *, wait: bool
) -> tuple[Job, str]:
    from botocore.exceptions import BotoCoreError, ClientError

    resources = open_resources(settings.segments, settings.aws)
    try:
        job = upload(resources, submission, record(resources, submission, display, stopping), display, stopping)
        if wait:
            job = follow(resources, job.job_id, display, stopping, every_s=_POLL_S)
    except (BotoCoreError, ClientError) as error:
        raise SightlineError(f"AWS: {error}. Submit the video again to go on") from None
    return job, final_address(resources.output_bucket, job)


def _submit_locally(
    folder: Path,
    settings: Settings,
    submission: Submission,
    display: ProgressDisplay,
    stopping: threading.Event,
    *,
    wait: bool,
) -> tuple[Job, str]:
    with ExitStack() as stack:
        local = LocalFolder(folder, settings.segments)
        stack.callback(local.close)
        resources = local.resources
        job = record(resources, submission, display, stopping)
        if wait and job.status != "done":
            runner = LocalRunner(local, settings, display.progress, ended=stopping)
            if runner.loads_models:
                display.status("the models are being loaded")
            with runner.running():
                job = upload(resources, submission, job, display, stopping)
                job = follow(resources, job.job_id, display, stopping, every_s=_LOCAL_POLL_S)
        else:
            job = upload(resources, submission, job, display, stopping)
    # A relative path if FOLDER was one.
    return job, str(folder / "jobs" / job.job_id / ("final.jsonl" if job.mode == "results_only" else "final.mp4"))


@contextmanager
def _set_by_signal(event: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets the event; the second ends the process at once. Main thread only."""

    def handle(*_: object) -> None:
        event.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    with handling_signals(handle):
        yield


# --- work and reassemble ---


def work(folder: Path | None) -> None:
    """Works on segments until SIGTERM or Ctrl-C. `/metrics` and `/health` are on METRICS_PORT.

    Raises:
        SightlineError: a setting is wrong, or the work could not go on.
    """
    settings = Settings()
    configure(settings.server)
    if folder is None:
        tokens = settings.access.auth_tokens
        token = tokens[0].get_secret_value() if tokens else None
        kind = chosen_plugin(settings) or (
            PipelineBackend if settings.segments.inference_backend == "pipeline" else None
        )
        resources = open_worker_resources(
            settings.segments,
            settings.aws,
            token=token,
            make_backend=kind and (lambda objects: kind(BackendContext(settings=settings, objects=objects))),
        )
        worker, backend = SegmentWorker(resources, settings.segments), resources.backend

        def stop() -> None:
            worker.stop()
            backend.stop()

        with _serving(settings, worker.report, stop):
            log.info("working on %s with backend %s", resources.input_bucket, backend.name)
            _run_worker(worker, backend, settings.server.drain_timeout_s)
    else:
        with ExitStack() as stack:
            local = LocalFolder(folder, settings.segments)
            stack.callback(local.close)
            runner = LocalRunner(local, settings)
            stack.enter_context(_serving(settings, runner.worker.report, runner.stop))
            log.info("working in %s", folder)
            runner.work()


def reassemble(folder: Path | None) -> None:
    """Reassembles videos until SIGTERM or Ctrl-C. `/metrics` and `/health` are on METRICS_PORT.

    Raises:
        SightlineError: a setting is wrong.
    """
    settings = Settings()
    configure(settings.server)
    with ExitStack() as stack:
        if folder is None:
            resources = open_resources(settings.segments, settings.aws)
            reassembler = Reassembler(resources, visibility_s=settings.segments.segment_visibility_s)
        else:
            local = LocalFolder(folder, settings.segments)
            stack.callback(local.close)
            reassembler = _local_reassembler(local)
        with _serving(settings, reassembler.report, reassembler.stop):
            log.info("reassembling")
            reassembler.run()


def _run_worker(worker: SegmentWorker, backend: Backend, drain_s: float) -> None:
    """Opens the backend, runs the worker until it is stopped, and closes the backend.

    Raises:
        SightlineError: the backend cannot be opened, or the work could not go on.
    """
    try:
        backend.open()
        worker.run(drain_s)
    except CancelledError:
        log.info("stopped before the backend was open")
    finally:
        backend.close()


@contextmanager
def _serving(settings: Settings, report: Callable[[], dict[str, Any]], stop: Callable[[], None]) -> Iterator[None]:
    """Serves `/metrics` and `/health` while the block lasts; SIGTERM and Ctrl-C call `stop`, which ends the block."""
    host = settings.server.host
    with (
        metrics_server.serve_metrics(host, settings.fleet.metrics_port, report, Hosts(settings)) as port,
        stopping_on_signals(stop),
    ):
        log.info("metrics on http://%s:%d/metrics", bracketed(host), port)
        yield
        SHUTDOWN_LOG.drained()
    SHUTDOWN_LOG.ended()


def _local_reassembler(local: LocalFolder) -> Reassembler:
    return Reassembler(local.resources, visibility_s=local.settings.segment_visibility_s, poll_s=_LOCAL_TIMINGS.poll_s)


# --- without AWS: a worker and a reassembler in this process ---


class LocalRunner:
    """A worker, and a reassembler beside it, in threads of this process.

    Args:
        ended: set when the work has ended, or could not begin.

    Raises:
        ConfigurationError: INFERENCE_BACKEND needs AWS, or its address is unset.
    """

    def __init__(
        self,
        local: LocalFolder,
        settings: Settings,
        progress: Progress = no_progress,
        *,
        ended: threading.Event | None = None,
    ) -> None:
        self._backend = _local_backend(local, settings, progress)
        self._ended = ended
        self._drain_s = settings.server.drain_timeout_s
        self.worker = SegmentWorker(local.worker_resources(self._backend), local.settings, _LOCAL_TIMINGS)
        self._reassembler = _local_reassembler(local)
        self._error: SightlineError | None = None

    @property
    def loads_models(self) -> bool:
        """Whether it loads models first, which takes a while."""
        return isinstance(self._backend, PipelineBackend)

    def stop(self) -> None:
        """Ends both. They give back the messages in hand, so that another process need not wait for them."""
        self.worker.stop()
        self._reassembler.stop()
        self._backend.stop()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both run while the block lasts.

        Raises:
            SightlineError: why the worker ended before the block did.
        """
        threads = [
            threading.Thread(target=self._run_worker, name="worker", daemon=True),
            threading.Thread(target=self._reassembler.run, name="reassembly", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop()
            for thread in threads:
                thread.join()
            if self._error is not None:
                raise self._error

    def _run_worker(self) -> None:
        try:
            self.work()
        except SightlineError as error:
            self._error = error
        finally:
            if self._ended is not None:
                self._ended.set()

    def work(self) -> None:
        """Opens the backend, and runs only the worker until `stop`.

        Raises:
            SightlineError: the backend cannot be opened, or the work could not go on.
        """
        _run_worker(self.worker, self._backend, self._drain_s)


def _local_backend(local: LocalFolder, settings: Settings, progress: Progress) -> Backend:
    """The pipeline in this process, unless INFERENCE_BACKEND is set."""
    asked, context = settings.segments, BackendContext(settings=settings, objects=local.objects, progress=progress)
    if (plugin := chosen_plugin(settings)) is not None:
        return plugin(context)
    if "inference_backend" not in asked.model_fields_set or asked.inference_backend == "pipeline":
        return PipelineBackend(context)
    if asked.inference_backend == "stub":
        return StubBackend(local.objects)
    if asked.inference_backend == "http":
        why = "INFERENCE_BACKEND is http; the service there needs SEGMENT_FOLDER, the same folder as --local"
        tokens = settings.access.auth_tokens
        return HttpBackend(
            required(asked, "inference_http_url", why),
            timeout_s=asked.sagemaker_invoke_timeout_seconds,
            max_calls=local.settings.inference_max_in_flight,
            token=tokens[0].get_secret_value() if tokens else None,
        )
    raise ConfigurationError(
        f"INFERENCE_BACKEND={asked.inference_backend!r}: with --local should be stub, http, a plug-in, or "
        "pipeline, which is the default and analyses in this process"
    )
