"""nginx with the shipped files before the real service, and connections that stay silent for 70 seconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import orjson
import pytest
from websockets.sync.server import ServerConnection, serve

from tests.support.nginx import NAME, Proxy, running_nginx
from tests.support.service import Service, serving

SILENT_S = 70.0
Silences = dict[str, "Future[str]"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # They wait 70 seconds, from the first test in here on: whatever else is tested runs in the meantime.
    items.sort(key=lambda item: "silences" in getattr(item, "fixturenames", ()) and "waits" in item.name)


@pytest.fixture(scope="session")
def service(canned_triton: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose allowed hosts include the name under which nginx serves it."""
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "ALLOWED_HOSTS": NAME}
    with serving(tmp_path_factory.mktemp("service"), settings) as running:
        yield running


@pytest.fixture(scope="session")
def proxy(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx in front of `service`."""
    with running_nginx(tmp_path_factory.mktemp("nginx"), service.port) as running:
        yield running


@pytest.fixture(scope="session")
def mute_upstream() -> Iterator[int]:
    """Port of a WebSocket server that never speaks first, not even a ping, and echoes."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0, ping_interval=None, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session", autouse=True)
def silences(proxy: Proxy, mute_upstream: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Silences]:
    """Replies of connections after 70 seconds of silence; they begin with the first test of this folder."""
    with ExitStack() as stack:
        mute = stack.enter_context(running_nginx(tmp_path_factory.mktemp("nginx-mute"), mute_upstream))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        over = threading.Event()
        stack.callback(over.set)
        yield {
            "nothing": pool.submit(_after_silence, mute, over, live=False),
            "service": pool.submit(_after_silence, proxy, over, live=True),
        }


def _after_silence(proxy: Proxy, over: threading.Event, *, live: bool) -> str:
    """Opens a connection, sends nothing for 70 seconds, then sends a message; returns the reply."""
    with proxy.opened_plainly() as connection:
        if live:
            connection.send('{"type": "init"}')
            assert orjson.loads(connection.recv(10))["type"] == "ready"
        if over.wait(SILENT_S):
            return "the tests ended before"
        if not live:
            connection.send("still there?")
            return str(connection.recv(10))
        connection.send('{"type": "stop"}')
        while (message := orjson.loads(connection.recv(10)))["type"] == "ping":
            pass
        return f"{message['type']}: {message['reason']}"
