"""What went wrong with a request to Triton: gRPC's status as an error of ours, counted."""

from __future__ import annotations

from typing import Any

import grpc

from app import metrics
from app.errors import InferenceError, InferenceTimeout, InferenceUnavailable


def failure(model: str, error: Any, *, url: str, deadline_s: float) -> InferenceError:
    """The error to raise for one of gRPC's (`grpc.RpcError` with `code` and `details`, of either kind of channel)."""
    details = error.details() or error.code().name
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        metrics.INFERENCE_ERRORS.labels("timeout").inc()
        return InferenceTimeout(f"{model}: no answer within TRITON_DEADLINE_S={deadline_s:g} seconds")
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        metrics.INFERENCE_ERRORS.labels("unavailable").inc()
        return InferenceUnavailable(f"Triton at {url}: {details}")
    metrics.INFERENCE_ERRORS.labels("refused").inc()
    return InferenceError(f"{model}: {details}")


def undescribed(error: InferenceError) -> InferenceError:
    """The same where a model's description was asked for: a server too busy to give it is asked again, as if away."""
    if isinstance(error, InferenceTimeout):
        return InferenceUnavailable("the server did not say in time what it serves")
    return error
