"""Recorded film: buckets, queues, tables, and who analyses a segment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from app.settings.section import Section, web_address


class SegmentSettings(Section):
    input_bucket_name: str | None = Field(None, description="bucket of the segments to be analysed")
    output_bucket_name: str | None = Field(None, description="bucket of analysed segments and `final.mp4`")
    jobs_table_name: str | None = Field(None, description="DynamoDB table of jobs")
    invocations_table_name: str | None = Field(None, description="DynamoDB table of SageMaker invocations")
    segment_completions_table_name: str | None = Field(None, description="DynamoDB table of segments that are done")
    reassembly_triggered_table_name: str | None = Field(
        None, description="DynamoDB table that lets a job be put together once"
    )
    video_worker_queue_url: str | None = Field(None, description="SQS queue of segments that were uploaded")
    segment_output_queue_url: str | None = Field(None, description="SQS queue of what appears in the output bucket")
    reassembly_queue_url: str | None = Field(None, description="SQS queue of jobs whose segments are all done")
    inference_backend: Literal["stub", "http", "sagemaker"] = Field(
        "stub", description="who analyses a segment: `stub` passes it through, `http` INFERENCE_HTTP_URL, `sagemaker`"
    )
    inference_http_url: str | None = Field(None, description="service that answers `/invocations`, for `http`")
    inference_max_in_flight: int = Field(5, ge=1, le=20, description="segments at the backend at once")
    sagemaker_endpoint_name: str | None = Field(None, description="asynchronous endpoint, for `sagemaker`")
    sagemaker_region: str | None = Field(None, description="its region; unset: AWS_REGION")
    sagemaker_invoke_timeout_seconds: int = Field(
        1200, ge=1, le=3600, description="seconds after which an invocation without an answer is given up and repeated"
    )
    segment_attempts: int = Field(3, ge=1, le=20, description="times a segment is tried before its job fails")
    segment_visibility_s: int = Field(
        120, ge=2, le=43_200, description="seconds a segment's message stays hidden; prolonged while it is worked on"
    )
    segment_folder: Path | None = Field(
        None, description="folder that `/invocations` may read and write by file: addresses; unset: none"
    )

    @field_validator("inference_http_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return web_address(value, "http://10.0.1.5:8080")
