"""uvicorn has an upper bound, because we subclass classes that it does not document.

Before you raise the bound in `pyproject.toml` and `requirements/service.in`, compare the old and the new version of
uvicorn's `protocols/http/h11_impl.py`, `protocols/websockets/websockets_sansio_impl.py`, `server.py` and
`supervisors/multiprocess.py`:

- `HttpConnection` and `LiveSocket` (`app/connections.py`) set timers in the methods below, so each must still be called
  at the same point of a connection; they also use the attributes below.
- `LiveSocket.try_send` writes to the transport as `send` does for a text message: compare the two.
- `Server` (`app/server.py`) drains in `shutdown` and `_wait_tasks_to_complete`, and logs in place of `capture_signals`.
- `WorkerProcess` and `Supervisor` replace how workers are started, watched and joined.

Then run `tests/live` (`test_handshakes`, `test_hostile`, `test_stop`, `test_silence`) and the tests of several workers.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

import pytest
from uvicorn import Server as UvicornServer
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app.connections import HttpConnection, LiveSocket
from app.server import Server, Supervisor, WorkerProcess
from app.settings import ROOT

OVERRIDDEN = {
    (HttpConnection, H11Protocol): (
        "connection_made connection_lost data_received send_400_response on_response_complete "
        "handle_websocket_upgrade pause_writing resume_writing shutdown"
    ),
    (LiveSocket, WebSocketsSansIOProtocol): (
        "connection_lost data_received send run_asgi keepalive_timeout send_keepalive_ping handle_ping handle_cont "
        "shutdown"
    ),
    (Server, UvicornServer): "startup on_tick shutdown _wait_tasks_to_complete capture_signals",
    (WorkerProcess, Process): "server",
    (Supervisor, Multiprocess): "init_processes run handle_signals keep_subprocess_alive restart_all join_all",
}
"""(Our class, uvicorn's) -> the methods of uvicorn's that ours replaces."""


@pytest.mark.parametrize(("ours", "theirs"), OVERRIDDEN, ids=lambda each: each.__name__)
def test_what_we_override_is_there(ours: type, theirs: type) -> None:
    replaced = {name for name in vars(ours) if hasattr(theirs, name) and not name.startswith("__")}
    assert issubclass(ours, theirs)
    assert replaced == set(OVERRIDDEN[ours, theirs].split()), "uvicorn has changed; see the top of this file"


def test_uvicorn_has_an_upper_bound_and_the_installed_one_is_within() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (bound,) = (line for line in project["project"]["dependencies"] if line.startswith("uvicorn"))
    limit = re.search(r"<(\d+)\.(\d+)", bound)
    assert limit is not None, "see the top of this file"
    major, minor = version("uvicorn").split(".")[:2]
    assert (int(major), int(minor)) < tuple(map(int, limit.groups())), "see the top of this file"
    assert f"uvicorn<{limit[1]}.{limit[2]}\n" in (ROOT / "requirements" / "service.in").read_text()
