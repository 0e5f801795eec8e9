"""kill -9 at ten random points: no segment is lost, and a job is sent to reassembly once."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.segments.keys import final_uri, split_s3
from app.settings import Settings
from tests.segments.films import FRAMES_A_SEGMENT, assert_lines, assert_whole, film, run, segments
from tests.support.aws import Aws
from tests.support.invocations import answering
from tests.support.segments import Estate, estate
from tests.support.service import wait_for_line
from tests.support.worker import until

KILLS = 10
SEGMENTS = 30
VISIBILITY_S = "4"
"""Seconds after which a killed worker's messages are delivered again."""
SECONDS = ["--seconds", "0.3"]


@dataclass(frozen=True)
class Place:
    """Where a job is worked on, and how the test inspects it."""

    folder: Path | None
    variables: dict[str, str]
    done: Callable[[], int]
    """Segments that are."""
    sent: Callable[[], list[str]]
    """Bodies of all messages in the reassembly queue."""
    fetch: Callable[[str, Path], Path]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def url(canned_triton: str, aws: Aws, state: Path) -> Iterator[str]:
    """The service's /invocations, on S3 and on the folder below `state`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        settings = Settings(
            ocr="off", triton_url=canned_triton, state_dir=state, segment_folder=state, inference_max_in_flight=8
        )
        with answering(settings) as address:
            yield address


@pytest.fixture(params=["local", "aws"])
def place(request: pytest.FixtureRequest, aws: Aws, url: str, state: Path) -> Place:
    backend = {"INFERENCE_BACKEND": "http", "INFERENCE_HTTP_URL": url, "SEGMENT_VISIBILITY_S": VISIBILITY_S}
    if request.param == "local":
        return _folder(state / "out", backend)
    return _estate(estate(aws, segment_visibility_s=int(VISIBILITY_S)), backend)


def _folder(folder: Path, backend: dict[str, str]) -> Place:
    def rows(query: str) -> list[tuple[str]]:
        with sqlite3.connect(folder / ".sightline.db", timeout=30) as database:
            found: list[tuple[str]] = database.execute(query).fetchall()
        database.close()
        return found

    return Place(
        folder,
        backend,
        lambda: len(rows("SELECT idx FROM completions")),
        lambda: [body for (body,) in rows("SELECT body FROM messages WHERE queue = 'reassembly'")],
        lambda job_id, _: folder / "jobs" / job_id / "final.mp4",
    )


def _estate(made: Estate, backend: dict[str, str]) -> Place:
    def done() -> int:
        table = made.settings.segment_completions_table_name
        return int(made.aws.client("dynamodb").scan(TableName=table, Select="COUNT")["Count"])

    def sent() -> list[str]:
        sqs, queue = made.aws.client("sqs"), made.settings.reassembly_queue_url
        bodies = []
        while found := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=1).get("Messages"):
            bodies += [message["Body"] for message in found]
        time.sleep(1.2)  # until the messages are visible again, for the reassembler
        return bodies

    def fetch(job_id: str, target: Path) -> Path:
        assert made.settings.output_bucket_name
        for path in (target, target.with_suffix(".jsonl")):
            bucket, key = split_s3(final_uri(made.settings.output_bucket_name, job_id))
            made.aws.client("s3").download_file(bucket, key.removesuffix(".mp4") + path.suffix, str(path))
        return target

    return Place(None, made.environment | backend, done, sent, fetch)


def test_a_worker_that_is_killed_loses_nothing(place: Place, tmp_path: Path) -> None:
    source = film(tmp_path / "film.mp4", SEGMENTS)
    log = tmp_path / "submit.log"
    said = run(["submit", str(source), *SECONDS, "--no-wait"], place.variables, log, folder=place.folder)
    job_id = said.split("/")[-2]
    variables = place.variables | {"INFERENCE_MAX_IN_FLIGHT": "2"}
    # Each kill waits for a number of completed segments, then for a random moment. With random moments alone all kills
    # would come before any work on a slow machine.
    points = sorted(random.sample(range(SEGMENTS * 2 // 3), KILLS))
    for number, point in enumerate(points):
        work_log = tmp_path / f"work-{number}.log"
        with segments(["work"], variables, work_log, folder=place.folder) as work:
            wait_for_line(work, work_log, "metrics on http://")
            until(lambda point=point: place.done() >= point)  # type: ignore[misc]
            pause = random.uniform(0.0, 0.2)
            time.sleep(pause)
            work.kill()
            work.wait()
        print(f"killed {pause:.3f} s after {point} of {SEGMENTS} were done")  # shown when it fails
    with segments(["work"], variables, tmp_path / "work.log", folder=place.folder) as work:
        until(lambda: place.done() == SEGMENTS, "a segment was lost")
        until(place.sent, "nobody sent the job to be put together")
        work.kill()  # on SIGTERM it would wait for its last long poll
    assert place.sent() == [job_id]
    with segments(["reassemble"], variables, tmp_path / "reassemble.log", folder=place.folder) as reassemble:
        run(["submit", str(source), *SECONDS], place.variables, log, folder=place.folder)
        reassemble.kill()
    final = place.fetch(job_id, tmp_path / "final.mp4")
    assert_whole(final, source)
    assert_lines(final.with_suffix(".jsonl"), SEGMENTS * FRAMES_A_SEGMENT)


def test_a_submission_that_is_killed_goes_on_when_it_is_called_again(
    canned_triton: str, state: Path, tmp_path: Path
) -> None:
    """Cutting, analysing and joining in one process, which is killed at random moments."""
    folder = tmp_path / "out"
    source = film(tmp_path / "film.mp4", SEGMENTS)
    variables = {"TRITON_URL": canned_triton}
    asked = ["submit", str(source), *SECONDS]
    for number in range(3):
        with segments(asked, variables, tmp_path / f"{number}.log", folder=folder) as child:
            time.sleep(random.uniform(0.8, 2.5))
            if child.poll() is None:
                child.kill()
                child.wait()
    final = Path(run(asked, variables, tmp_path / "last.log", folder=folder))
    assert_whole(final, source)
    assert_lines(final.with_suffix(".jsonl"), SEGMENTS * FRAMES_A_SEGMENT)
    told = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert told.count("sent to be put together") == 1
    # Only the video and its results are left.
    assert sorted(path.name for path in final.parent.iterdir()) == ["final.jsonl", "final.mp4"]
    assert list((folder / "segments").iterdir()) == []
