"""A server that answers `POST /invocations` once the segment is analysed, such as this service itself."""

from __future__ import annotations

import logging

import httpx

from app.addresses import leads_to_loopback
from app.segments.keys import SegmentKey
from app.segments.ports import Backend, BackendLost, BackendUnavailable, Done, SegmentFailed

log = logging.getLogger(__name__)

_UNAVAILABLE = (401, 429, 503, 507)
"""Statuses about the server, not about the segment: the token is wrong, or it has no capacity or no disk space."""
_LOST = (502, 504)
"""Statuses of a proxy whose server went away, and of a server whose object store fails."""
_PING_S = 5.0
_CONNECT_S = 10.0


class HttpBackend(Backend):
    """Calls a server.

    Args:
        url: INFERENCE_HTTP_URL.
        timeout_s: seconds to wait for an answer.
        max_calls: concurrent calls.
        token: sent as `Authorization: Bearer`, for a server with AUTH_TOKENS.
    """

    name = "http"

    def __init__(self, url: str, *, timeout_s: float, max_calls: int, token: str | None = None) -> None:
        self._timeout_s = timeout_s
        self._server = f"INFERENCE_HTTP_URL={url}"
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            trust_env=not leads_to_loopback(url),  # a proxy cannot reach a server on this machine
            limits=httpx.Limits(max_connections=max_calls + 1, max_keepalive_connections=max_calls),
        )

    def ready(self) -> bool:
        try:
            return self._client.get("/ping", timeout=_PING_S).is_success
        except httpx.TransportError:
            return False

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done:
        request = {"s3_input_uri": input_uri, "s3_output_uri": output_uri, "mode": segment.mode}
        try:
            answer = self._client.post("/invocations", json=request)
        except httpx.ReadTimeout:
            raise SegmentFailed(
                f"no answer after {self._timeout_s:g} s (SAGEMAKER_INVOKE_TIMEOUT_SECONDS); shorter segments need less"
            ) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise BackendUnavailable(f"{self._server}: {str(error) or type(error).__name__}") from None
        except httpx.TransportError as error:
            raise BackendLost(f"{self._server}: {str(error) or type(error).__name__}") from None
        if answer.status_code in _UNAVAILABLE:
            raise BackendUnavailable(f"{self._server}: {_described(answer)}")
        if answer.status_code in _LOST:
            raise BackendLost(f"{self._server}: {_described(answer)}")
        if not answer.is_success:
            raise SegmentFailed(_described(answer))
        _log_failed_frames(segment, answer)
        return Done()

    def close(self) -> None:
        self._client.close()


def _log_failed_frames(segment: SegmentKey, answer: httpx.Response) -> None:
    """Logs how many frames of an analysed segment have no result, if the server counts them; a foreign one need not."""
    try:
        report = answer.json()
        failed, undecodable = int(report.get("failed", 0)), int(report.get("undecodable", 0))
    except (ValueError, TypeError, AttributeError):
        return
    if failed or undecodable:
        message = "segment %s: %d frames could not be analysed, %d pieces could not be decoded"
        log.warning(message, segment, failed, undecodable)


def _described(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.reason_phrase}: {answer.text[:300]}"
