"""Builds and parses the keys and addresses of objects. No I/O.

A *bucket* is an S3 bucket, or without S3 the absolute path of a folder. The keys are the same in both.

    input bucket    segments/{job}/{index:05d}.{mode}.mp4     a segment to be analysed
                    requests/{invocation}.json                the body that SageMaker sends to the container
    output bucket   jobs/{job}/segments/{index:05d}.mp4       the analysed segment
                    jobs/{job}/segments/{index:05d}.jsonl     its results, one frame a line
                    jobs/{job}/final.mp4, final.jsonl         all segments, joined
                    async/…{invocation}.out                   the response that SageMaker stores
                    async-failures/…{invocation}…             the error that SageMaker stores
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, cast, get_args
from urllib.parse import quote, unquote

from app.errors import quoted

Mode = Literal["annotate", "blur_faces", "results_only"]
MODES: tuple[Mode, ...] = get_args(Mode)

MAX_SEGMENTS = 100_000
"""Segments per job. An index has five digits, so that keys sort in the order of the video."""

_JOB = re.compile(r"[A-Za-z0-9-]{1,64}")
_INPUT = re.compile(rf"segments/({_JOB.pattern})/(\d{{5}})\.({'|'.join(MODES)})\.mp4")
_OUTPUT = re.compile(rf"jobs/({_JOB.pattern})/segments/(\d{{5}})\.mp4")
_ANSWER = re.compile(r"(async|async-failures)/(?:.*[^0-9a-f])?([0-9a-f]{32})(?![0-9a-f])[^/]*")


@dataclass(frozen=True, slots=True)
class SegmentId:
    """One segment of one job's video.

    Raises:
        ValueError: the job id is not valid, or the index is out of range.
    """

    job_id: str
    index: int

    def __post_init__(self) -> None:
        check_job_id(self.job_id)
        if not 0 <= self.index < MAX_SEGMENTS:
            raise ValueError(f"index {self.index}: should be from 0 to {MAX_SEGMENTS - 1}")

    @property
    def id(self) -> SegmentId:
        """The id without the mode, so that ids of the same segment are equal in every mode."""
        return SegmentId(self.job_id, self.index)

    def __str__(self) -> str:
        return f"{self.job_id}/{self.index:05d}"


@dataclass(frozen=True, slots=True)
class SegmentKey(SegmentId):
    """A segment and the mode in which it is analysed.

    Raises:
        ValueError: the job id, the index or the mode is not valid.
    """

    mode: Mode

    def __post_init__(self) -> None:
        # Not super(): `slots=True` creates a new class, which the bare form of super() does not find.
        SegmentId.__post_init__(self)
        if self.mode not in MODES:
            raise ValueError(f"mode {quoted(self.mode)}: should be one of {', '.join(MODES)}")


@dataclass(frozen=True, slots=True)
class Answer:
    """The object that SageMaker wrote for an invocation."""

    invocation_id: str
    failed: bool
    """Whether the object lies below `async-failures/`."""


def check_job_id(job_id: str) -> str:
    """Returns the id unchanged.

    Raises:
        ValueError: it is not 1 to 64 letters, digits and `-`.
    """
    if not _JOB.fullmatch(job_id):
        raise ValueError(f"job id {quoted(job_id)}: should be 1 to 64 letters, digits or -")
    return job_id


def uri(bucket: str, key: str) -> str:
    """`s3://bucket/key`, or `file:///folder/key` if the bucket is a folder's absolute path."""
    if bucket.startswith("/"):
        return "file://" + quote(str(PurePosixPath(bucket) / key))
    return f"s3://{bucket}/{key}"


def split_s3(address: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` address.

    Raises:
        ValueError: the address has another form.
    """
    found = re.fullmatch(r"s3://([^/]+)/(.+)", address, re.DOTALL)
    if not found:
        raise ValueError(f"{quoted(address)}: should be s3://bucket/key")
    return found[1], found[2]


def split_file(address: str) -> PurePosixPath:
    """The absolute path of a `file://` address.

    Raises:
        ValueError: the address has another form.
    """
    found = re.fullmatch(r"file://(/.+)", address, re.DOTALL)
    if not found:
        raise ValueError(f"{quoted(address)}: should be file:///folder/name")
    return PurePosixPath(unquote(found[1]))


# --- the input bucket ---


def input_key(segment: SegmentKey) -> str:
    return f"segments/{segment.job_id}/{segment.index:05d}.{segment.mode}.mp4"


def input_uri(bucket: str, segment: SegmentKey) -> str:
    return uri(bucket, input_key(segment))


def parse_input(bucket: str, key: str) -> SegmentKey | None:
    """The segment in this object of the input bucket; None for any other key."""
    found = _INPUT.fullmatch(key)
    return SegmentKey(found[1], int(found[2]), cast(Mode, found[3])) if found and bucket else None


def request_uri(bucket: str, invocation_id: str) -> str:
    """Address of the body of an asynchronous invocation. The bucket sends no event for it."""
    return uri(bucket, f"requests/{invocation_id}.json")


# --- the output bucket ---


def output_key(segment: SegmentId) -> str:
    return f"jobs/{segment.job_id}/segments/{segment.index:05d}.mp4"


def output_uri(bucket: str, segment: SegmentId) -> str:
    """Address of the analysed segment. In mode `results_only` no object is there. In every mode the results are
    `beside` it."""
    return uri(bucket, output_key(segment))


def beside(video_uri: str) -> str:
    """Address of the results (JSONL) that belong to a video's address."""
    return video_uri.removesuffix(".mp4") + ".jsonl"


def parse_output(bucket: str, key: str) -> SegmentId | None:
    """The segment whose analysed video has this key of the output bucket; None for other keys, such as `final.mp4`."""
    found = _OUTPUT.fullmatch(key)
    return SegmentId(found[1], int(found[2])) if found and bucket else None


def parse_answer(bucket: str, key: str) -> Answer | None:
    """The invocation whose outcome this object below `async/` or `async-failures/` is; None if its name contains no id.

    SageMaker may put folders before the name, or text around the id.
    """
    found = _ANSWER.fullmatch(key)
    return Answer(found[2], failed=found[1] == "async-failures") if found and bucket else None


def final_uri(bucket: str, job_id: str) -> str:
    return uri(bucket, f"jobs/{check_job_id(job_id)}/final.mp4")


def final_results_uri(bucket: str, job_id: str) -> str:
    return uri(bucket, f"jobs/{check_job_id(job_id)}/final.jsonl")
