"""A server that answers `POST /invocations` when the segment is done, such as this service itself."""

from __future__ import annotations

import logging

import httpx

from app.addresses import leads_to_loopback
from app.segments.backends.backend import BackendLost, BackendUnavailable, Done, SegmentFailed
from app.segments.keys import SegmentKey

log = logging.getLogger(__name__)

_NOT_NOW = (401, 429, 503, 507)
"""Says the server of itself, and not of the segment: no token of its, no room, no place on its disk."""
_GONE = (502, 504)
"""Says the proxy before it, of a server that went away, or its own store's trouble."""
_PING_S = 5.0
_CONNECT_S = 10.0


class Http:
    """See `Backend`.

    Args:
        url: INFERENCE_HTTP_URL.
        timeout_s: seconds after which an answer is no longer waited for.
        most: calls at once.
        token: sent as `Authorization: Bearer`; for a server that knows AUTH_TOKENS.
    """

    name = "http"

    def __init__(self, url: str, *, timeout_s: float, most: int, token: str | None = None) -> None:
        self._timeout_s = timeout_s
        self._where = f"INFERENCE_HTTP_URL={url}"
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            trust_env=not leads_to_loopback(url),  # no proxy between us and a server beside us
            limits=httpx.Limits(max_connections=most + 1, max_keepalive_connections=most),
        )

    def ready(self) -> bool:
        try:
            return self._client.get("/ping", timeout=_PING_S).is_success
        except httpx.TransportError:
            return False

    def invoke(self, segment: SegmentKey, input_uri: str, output_uri: str) -> Done:
        asked = {"s3_input_uri": input_uri, "s3_output_uri": output_uri, "mode": segment.mode}
        try:
            answer = self._client.post("/invocations", json=asked)
        except httpx.ReadTimeout:
            raise SegmentFailed(
                f"no answer after {self._timeout_s:g} s (SAGEMAKER_INVOKE_TIMEOUT_SECONDS); shorter segments need less"
            ) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise BackendUnavailable(f"{self._where}: {str(error) or type(error).__name__}") from None
        except httpx.TransportError as error:
            raise BackendLost(f"{self._where}: {str(error) or type(error).__name__}") from None
        if answer.status_code in _NOT_NOW:
            raise BackendUnavailable(f"{self._where}: {_words(answer)}")
        if answer.status_code in _GONE:
            raise BackendLost(f"{self._where}: {_words(answer)}")
        if not answer.is_success:
            raise SegmentFailed(_words(answer))
        _tell(segment, answer)
        return Done()

    def close(self) -> None:
        self._client.close()


def _tell(segment: SegmentKey, answer: httpx.Response) -> None:
    """Says what is wanting in a segment that is done; a server that is not ours need not count it."""
    try:
        said = answer.json()
        failed, undecodable = int(said.get("failed", 0)), int(said.get("undecodable", 0))
    except (ValueError, TypeError, AttributeError):
        return
    if failed or undecodable:
        words = "segment %s: %d frames could not be analysed, %d pieces could not be decoded"
        log.warning(words, segment, failed, undecodable)


def _words(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.reason_phrase}: {answer.text[:300]}"
