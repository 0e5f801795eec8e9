"""A service without tokens behind a proxy on its machine: the machine itself is served, the world is not."""

from __future__ import annotations

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import Serve

FROM_THE_WORLD = {"X-Forwarded-For": "203.0.113.9"}
FROM_HERE = {"X-Forwarded-For": "127.0.0.1"}


def test_who_comes_from_elsewhere_through_a_proxy_needs_a_token_or_an_open_service(serve: Serve, jpeg: bytes) -> None:
    service = serve()
    url = f"{service.url}/v1/frames"
    assert httpx.post(url, content=jpeg).status_code == 200
    assert httpx.post(url, content=jpeg, headers=FROM_HERE).status_code == 200
    for path in ("/v1/frames", "/invocations"):
        answer = httpx.post(service.url + path, content=jpeg, headers=FROM_THE_WORLD)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "anonymous"
        assert "AUTH_TOKENS is empty" in answer.json()["error"]["message"]
        assert "203.0.113.9" in answer.json()["error"]["message"]
    socket = f"ws://127.0.0.1:{service.port}/ws/inference"
    with pytest.raises(InvalidStatus) as refused, connect(socket, additional_headers=FROM_THE_WORLD, proxy=None):
        pass
    assert refused.value.response.status_code == 403
    assert b"ALLOW_ANONYMOUS=true" in refused.value.response.body
    assert httpx.get(f"{service.url}/health/live", headers=FROM_THE_WORLD).status_code == 200
    assert httpx.get(service.url, headers=FROM_THE_WORLD).status_code == 200
    assert service.metrics()['sightline_auth_failures_total{reason="anonymous"}'] == 3
    assert service.log.count("turned away") == 1


@pytest.mark.parametrize("settings", [{"ALLOW_ANONYMOUS": "true"}, {"AUTH_TOKENS": "secret"}])
def test_an_open_service_and_one_with_tokens_serve_whoever_may(
    serve: Serve, jpeg: bytes, settings: dict[str, str]
) -> None:
    headers = FROM_THE_WORLD | {"Authorization": "Bearer secret"}
    assert httpx.post(f"{serve(**settings).url}/v1/frames", content=jpeg, headers=headers).status_code == 200
