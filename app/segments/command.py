"""What the commands of `segments` do, on AWS or in a folder."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from app import metrics_server
from app.addresses import bracketed
from app.auth import Hosts
from app.errors import SightlineError
from app.logging import configure
from app.process import SHUTDOWN_LOG, stopping_on_signals
from app.segments import reassemble as reassembly
from app.segments import work as working
from app.segments.depot import on_aws
from app.segments.local import PACE, Crew, LocalFolder
from app.segments.ports import Job
from app.segments.progress import Board
from app.segments.reassemble import Reassembler, final_address
from app.segments.submit import Interrupted, Wish, follow, record, upload
from app.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 2.0
_LOOK_LOCAL_S = 0.3
_INTERRUPTED = 130
"""What shells take an end by Ctrl-C for."""


def submit(folder: Path | None, wish: Wish, *, wait: bool) -> None:
    """Submits a film, and prints where the new one is; unless it is waited for, where it will be.

    Raises:
        SightlineError: the film, a setting or AWS is not as it should be, or the job failed.
    """
    settings = Settings()
    configure(settings.server)
    stopping = threading.Event()
    try:
        with told_by_signal(stopping), Board() as board:
            if folder is None:
                job, address = _on_aws(settings, wish, board, stopping, wait=wait)
            else:
                job, address = _locally(folder, settings, wish, board, stopping, wait=wait)
    except Interrupted as error:
        sys.stderr.write(f"sightline: {error}\n")
        sys.exit(_INTERRUPTED)
    if job.status != "failed" and job.reason:
        sys.stderr.write(f"sightline: {job.reason}\n")
    print(address)


def _on_aws(settings: Settings, wish: Wish, board: Board, stopping: threading.Event, *, wait: bool) -> tuple[Job, str]:
    from botocore.exceptions import BotoCoreError, ClientError

    depot = on_aws(settings.segments, settings.aws)
    try:
        job = upload(depot, wish, record(depot, wish, board, stopping), board, stopping)
        if wait:
            job = follow(depot, job.job_id, board, stopping, every_s=_LOOK_S)
    except (BotoCoreError, ClientError) as error:
        raise SightlineError(f"AWS: {error}. Submit the film again to go on") from None
    return job, final_address(depot.output_bucket, job)


def _locally(
    folder: Path, settings: Settings, wish: Wish, board: Board, stopping: threading.Event, *, wait: bool
) -> tuple[Job, str]:
    with ExitStack() as stack:
        local = LocalFolder(folder, settings.segments)
        stack.callback(local.close)
        job = record(local.depot, wish, board, stopping)
        if wait and job.status != "done":
            crew = Crew(local, settings, board.watch, ended=stopping)
            if crew.loads:
                board.say("the models are being loaded")
            with crew.at_work():
                job = upload(local.depot, wish, job, board, stopping)
                job = follow(local.depot, job.job_id, board, stopping, every_s=_LOOK_LOCAL_S)
        else:
            job = upload(local.depot, wish, job, board, stopping)
    return job, str(_film(folder, job))


def _film(folder: Path, job: Job) -> Path:
    """Relative, where the folder was."""
    return folder / "jobs" / job.job_id / ("final.jsonl" if job.mode == "results_only" else "final.mp4")


def work(folder: Path | None) -> None:
    """Works on segments until SIGTERM or Ctrl-C. `/metrics` and `/health` are on METRICS_PORT.

    Raises:
        SightlineError: a setting is wrong, or it could not go on.
    """
    settings = Settings()
    if folder is None:
        working.run(settings)
        return
    configure(settings.server)
    with ExitStack() as stack:
        local = LocalFolder(folder, settings.segments)
        stack.callback(local.close)
        crew = Crew(local, settings)
        host = settings.server.host
        port = stack.enter_context(
            metrics_server.serve_metrics(host, settings.fleet.metrics_port, crew.worker.report, Hosts(settings))
        )
        stack.enter_context(stopping_on_signals(crew.stop))
        log.info("working in %s; metrics on http://%s:%d/metrics", folder, bracketed(host), port)
        crew.work()
        SHUTDOWN_LOG.drained()
    SHUTDOWN_LOG.ended()


def reassemble(folder: Path | None) -> None:
    """Puts films together until SIGTERM or Ctrl-C. `/metrics` and `/health` are on METRICS_PORT.

    Raises:
        SightlineError: a setting is wrong.
    """
    settings = Settings()
    configure(settings.server)
    with ExitStack() as stack:
        if folder is None:
            depot, poll_s, visibility_s = on_aws(settings.segments, settings.aws), reassembly.POLL_S, None
        else:
            local = LocalFolder(folder, settings.segments)
            stack.callback(local.close)
            depot, poll_s, visibility_s = local.depot, PACE.poll_s, local.settings.segment_visibility_s
        one = Reassembler(depot, visibility_s=visibility_s or settings.segments.segment_visibility_s, poll_s=poll_s)
        reassembly.serve(one, settings)


@contextmanager
def told_by_signal(event: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets the event; the second ends the process at once. In the main thread only."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def told(*_: object) -> None:
        event.set()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, told) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
