"""Recorded film without AWS: one folder stands for buckets, queues and tables, and all of it runs in one process.

FOLDER/segments/{job}/…    what is to be analysed; removed when the job is done
FOLDER/jobs/{job}/…        final.mp4 and final.jsonl
FOLDER/.sightline.db       jobs, queues; whole after a kill at any moment
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

from app.errors import ConfigurationError, SightlineError
from app.segments import events
from app.segments.backends.backend import Backend
from app.segments.backends.http import Http
from app.segments.backends.pipeline import InProcess, Watch
from app.segments.backends.stub import Stub
from app.segments.clients import required
from app.segments.depot import Depot
from app.segments.keys import SegmentKey, input_key
from app.segments.local_database import LocalDatabase
from app.segments.objects_folder import PARTIAL, FolderObjects
from app.segments.pace import Pace
from app.segments.parts import Parts
from app.segments.queue_local import LocalQueue
from app.segments.reassemble import Reassembler
from app.segments.store_local import LocalStore
from app.segments.worker import Worker
from app.settings import SegmentSettings, Settings

log = logging.getLogger(__name__)

VISIBILITY_S = 10
"""Who goes on after a kill waits so long for what was in hand. A heartbeat costs nothing here."""
IN_FLIGHT = 2
"""One segment's film is coded while another's is looked at."""
PACE = Pace(poll_s=1.0, again_s=1.0, early_s=1.0)


class LocalFolder:
    """The parts of a worker and of the two ends, in a folder. Other processes may have it open as well.

    Raises:
        ConfigurationError: the folder cannot be used.
    """

    def __init__(self, folder: Path, settings: SegmentSettings) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.database = LocalDatabase(folder / ".sightline.db")
        except OSError as error:
            raise ConfigurationError(f"--local {folder}: should be a folder to write to ({error.strerror})") from None
        self.bucket = str(folder.resolve())
        said = settings.model_fields_set
        ours = {"segment_visibility_s": VISIBILITY_S, "inference_max_in_flight": IN_FLIGHT}
        self.settings = settings.model_copy(update={name: value for name, value in ours.items() if name not in said})
        self.objects = FolderObjects(folder)
        self.store = LocalStore(self.database)
        self.segments, self.events, self.reassembly = (
            LocalQueue(self.database, name, visibility_s=self.settings.segment_visibility_s)
            for name in ("segments", "events", "reassembly")
        )

    @property
    def depot(self) -> Depot:
        """For cutting and putting together."""
        return Depot(self.bucket, self.bucket, self.objects, self.store, self.reassembly, self._announce, self._tidy)

    def parts(self, backend: Backend) -> Parts:
        """For a worker."""
        return Parts(
            input_bucket=self.bucket,
            output_bucket=self.bucket,
            objects=self.objects,
            segments=self.segments,
            events=self.events,
            reassembly=self.reassembly,
            store=self.store,
            backend=backend,
        )

    def _announce(self, segment: SegmentKey) -> None:
        """Says what S3 would say; not twice of one that still waits, since who goes on says it again."""
        body = events.body_of(events.Created(self.bucket, input_key(segment)))
        query = "SELECT 1 FROM messages WHERE queue = ? AND body = ?"
        if not self.database.rows(query, self.segments.name, body):
            self.segments.send(body)

    def _tidy(self, job_id: str) -> None:
        """The film's parts are in the final one. What somebody was about to write when he was killed is nobody's."""
        shutil.rmtree(Path(self.bucket, "segments", job_id), ignore_errors=True)
        shutil.rmtree(Path(self.bucket, "jobs", job_id, "segments"), ignore_errors=True)
        for left in Path(self.bucket, "jobs", job_id).glob(f".*{PARTIAL}"):
            left.unlink(missing_ok=True)

    def close(self) -> None:
        self.database.close()


def backend(local: LocalFolder, settings: Settings, watch: Watch) -> Backend:
    """Who analyses: the pipeline in this process, unless INFERENCE_BACKEND says otherwise.

    Raises:
        ConfigurationError: it says something that needs AWS, or does not say where.
    """
    asked = settings.segments
    if "inference_backend" not in asked.model_fields_set:
        return InProcess(settings, local.objects, watch)
    if asked.inference_backend == "stub":
        return Stub(local.objects)
    if asked.inference_backend == "http":
        why = "INFERENCE_BACKEND is http; the service there needs SEGMENT_FOLDER, the same folder as --local"
        url = required(asked.inference_http_url, "INFERENCE_HTTP_URL", why)
        tokens = settings.access.auth_tokens
        return Http(
            url,
            timeout_s=asked.sagemaker_invoke_timeout_seconds,
            most=local.settings.inference_max_in_flight,
            token=tokens[0].get_secret_value() if tokens else None,
        )
    raise ConfigurationError(
        f"INFERENCE_BACKEND={asked.inference_backend!r}: with --local should be stub or http, or unset for the "
        "pipeline in this process"
    )


def unseen(segment: SegmentKey, frames: int | None, of: int) -> None:
    """Nobody looks on."""


class Crew:
    """A worker, and the reassembly beside it, in threads of this process.

    Args:
        ended: set when the work has ended, or could not begin.
    """

    def __init__(
        self, local: LocalFolder, settings: Settings, watch: Watch = unseen, *, ended: threading.Event | None = None
    ) -> None:
        self._backend = backend(local, settings, watch)
        self._ended = ended
        self._drain_s = settings.server.drain_timeout_s
        self.worker = Worker(local.parts(self._backend), local.settings, pace=PACE)
        self._reassembler = Reassembler(
            local.depot, visibility_s=local.settings.segment_visibility_s, poll_s=PACE.poll_s
        )
        self._broken: SightlineError | None = None

    @property
    def loads(self) -> bool:
        """Whether it takes a while until it can work."""
        return isinstance(self._backend, InProcess)

    def stop(self) -> None:
        """Asks both to end. What is in hand is given back, so that whoever goes on need not wait for it."""
        self.worker.stop()
        self._reassembler.stop()
        if isinstance(self._backend, InProcess):
            self._backend.stop()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Both work while the block lasts.

        Raises:
            SightlineError: the work ended before the block did; the reason.
        """
        threads = [
            threading.Thread(target=self._work, name="worker", daemon=True),
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
            if self._broken is not None:
                raise self._broken

    def _work(self) -> None:
        try:
            self.work()
        except SightlineError as error:
            self._broken = error
        finally:
            if self._ended is not None:
                self._ended.set()

    def work(self) -> None:
        """Opens the backend and works until `stop`.

        Raises:
            SightlineError: the backend cannot be opened, or it could not go on.
        """
        try:
            if isinstance(self._backend, InProcess):
                self._backend.open()
                self._backend.wait()
            self.worker.run(self._drain_s)
        except CancelledError:
            log.info("stopped before the pipeline was open")
        finally:
            self._backend.close()
