"""The sink `webhook`: messages are posted to WEBHOOK_URL as a JSON array, some at a time, in their order.

Requests are signed as Standard Webhooks says (https://www.standardwebhooks.com): `webhook-id`, the same when a request
is repeated, `webhook-timestamp` and, with WEBHOOK_SECRET, `webhook-signature`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime

import httpx

from app import __version__
from app.addresses import leads_to_loopback
from app.errors import ConfigurationError
from app.settings import webhook_key
from app.sinks.sink import BatchSink, MessageRejected, SinkHost, SinkMessage, SinkUnavailable

_NEVER = frozenset({400, 413, 415, 422})
"""Statuses by which a server says that this content is wrong. Others may be right another time, such as 401 and 404,
which an operator can mend."""

_MOST_READ = 64 * 1024
"""Bytes that are read of an answer's body, which says nothing that matters."""


class WebhookSink(BatchSink):
    """Posts messages. Any status of 2xx means that the server has them.

    Raises:
        ConfigurationError: WEBHOOK_URL is unset.
    """

    name = "webhook"
    batch = 32

    def __init__(self, host: SinkHost) -> None:
        super().__init__(host)
        settings = host.settings.sinks
        if settings.webhook_url is None:
            raise ConfigurationError("WEBHOOK_URL is unset: the sink `webhook` needs an address to post to")
        self._url = settings.webhook_url.get_secret_value()
        self._keys = [webhook_key(secret.get_secret_value()) for secret in settings.webhook_secret]
        self._timeout_s = settings.webhook_timeout_s
        # An event loop of its own, because only asyncio can bound the time of a whole request.
        self._runner = asyncio.Runner()
        self._client: httpx.AsyncClient | None = None

    def write(self, messages: Sequence[SinkMessage]) -> None:
        self._runner.run(self._post(messages))

    def finish(self) -> None:
        if self._client is not None:
            self._runner.run(self._client.aclose())
        self._runner.close()

    async def _post(self, messages: Sequence[SinkMessage]) -> None:
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=self._timeout_s,
                follow_redirects=False,
                trust_env=not leads_to_loopback(self._url),
                headers={"user-agent": f"sightline/{__version__}"},
            )
        body = b"[" + b",".join(message.value for message in messages) + b"]"
        headers = {"content-type": "application/json", **self._signature(messages, body)}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
                read = 0
                async for chunk in answer.aiter_raw():  # so that the connection can be used again
                    if (read := read + len(chunk)) > _MOST_READ:
                        break
        except TimeoutError:
            raise SinkUnavailable(f"no answer within WEBHOOK_TIMEOUT_S={self._timeout_s:g} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SinkUnavailable(f"{type(error).__name__}: {error}") from None
        if 200 <= status < 300:
            return
        if status in _NEVER:
            raise MessageRejected(f"the server answers {status}")
        if 300 <= status < 400:
            raise SinkUnavailable(f"it answers {status}, a redirect, which is not followed")
        raise SinkUnavailable(f"it answers {status}", _retry_after_s(answer.headers.get("retry-after", "")))

    def _signature(self, messages: Sequence[SinkMessage], body: bytes) -> dict[str, str]:
        ids = "\n".join(message.id for message in messages)
        name = f"msg_{hashlib.sha256(ids.encode()).hexdigest()[:32]}"
        at = str(int(time.time()))
        headers = {"webhook-id": name, "webhook-timestamp": at}
        if self._keys:
            signed = f"{name}.{at}.".encode() + body
            marks = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in self._keys)
            headers["webhook-signature"] = " ".join(f"v1,{mark}" for mark in marks)
        return headers


def _retry_after_s(value: str) -> float | None:
    """Seconds of a `Retry-After`, which is a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
