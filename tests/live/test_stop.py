"""How the service ends: in order on SIGTERM, and leaving nothing behind however it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import httpx
import orjson
import psutil
import pytest

from app.settings import ROOT, OcrSettings, TritonSettings
from benchmarks import canned
from tests.conftest import SLOW
from tests.support.live import adds_up, opened, plain_socket, ready, settle, settle_below
from tests.support.service import (
    Service,
    assert_adds_up,
    process,
    require_environment,
    serving,
    wait_for_line,
)

pytestmark = pytest.mark.anyio
PATIENCE_S = 20.0


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Service]:
    """A service with a Triton of its own, and OCR where its environment is installed."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    repository = canned.write(tmp_path / "repository")
    with serving(tmp_path, {"TRITON_REPOSITORY": str(repository), "OCR": "auto"}) as service:
        yield service


def family(service: Service) -> list[psutil.Process]:
    """The service and all that it started, also what was adopted by others since."""
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


def assert_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := [child for child in processes if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def in_shm(pids: list[int]) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if any(f"sightline_{pid}_" in name for pid in pids)]


async def ended(service: Service) -> int:
    """Its exit code."""
    return await asyncio.to_thread(service.process.wait, PATIENCE_S)


async def read_something(service: Service, jpeg: bytes) -> None:
    """One image through HTTP, whose text is read: OCR's process is then there."""
    async with httpx.AsyncClient(timeout=120) as http:
        answer = await http.post(f"{service.url}/v1/frames", content=jpeg)
    assert answer.status_code == 200
    if OcrSettings().ocr_python.exists():
        assert answer.json()["stages"]["ocr"]["status"] == "ok"


# --- SIGTERM ---


async def test_what_is_in_flight_is_answered_and_everybody_is_told(
    canned_triton: str, tmp_path: Path, jpeg: bytes
) -> None:
    settings = {"TRITON_URL": canned_triton, "OCR": "off", **SLOW, "MAX_SESSIONS": "2", "TRITON_MAX_IN_FLIGHT": "1"}
    with serving(tmp_path, settings) as service:
        async with AsyncExitStack() as stack:
            realtime = await stack.enter_async_context(ready(service))
            lossless = await stack.enter_async_context(ready(service, mode="lossless"))
            waiting = await stack.enter_async_context(opened(service))
            await waiting.say("init")
            await waiting.until("queued")
            silent = await stack.enter_async_context(opened(service))
            for seq in (1, 2):
                await realtime.frame(jpeg, seq)
                await lossless.frame(jpeg, seq)
            await asyncio.sleep(0.1)
            service.process.send_signal(signal.SIGTERM)
            rests = await asyncio.gather(*(live.rest() for live in (realtime, lossless, waiting, silent)))
            assert await ended(service) == 0
    for live, rest in zip((realtime, lossless, waiting, silent), rests, strict=True):
        assert (rest[-1]["type"], rest[-1]["reason"]) == ("bye", "shutdown")
        assert live.connection.close_code == 1001
        assert adds_up(rest[-1]["report"])
    for rest in rests[:2]:
        assert [message["seq"] for message in rest if message["type"] == "result"] == [1, 2]
    for rest in rests[2:]:
        assert [message["type"] for message in rest] == ["bye"]  # nobody is let in on the way out
        assert rest[0]["report"]["duration_s"] < 5
    assert "Traceback" not in service.log


SLOW_TO_LOAD = "import time\ntime.sleep(120)\n"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_takes_long_is_given_up_when_told_to(tmp_path: Path, number: signal.Signals, workers: str) -> None:
    require_environment(TritonSettings().triton_python, "make triton-env")
    repository = canned.write(tmp_path / "repository")
    (repository / "yolo" / "1" / "model.py").write_text(SLOW_TO_LOAD)
    state = tmp_path / "state"
    settings = {"TRITON_REPOSITORY": str(repository), "OCR": "off", "PORT": "0", "STATE_DIR": str(state)}
    with process(["serve"], {**settings, "WORKERS": workers}, tmp_path / "log", anew=True) as child:
        wait_for_line(child, tmp_path / "log", "models loaded")
        started = psutil.Process(child.pid)
        processes = started.children(recursive=True)
        assert len(processes) >= 2  # the reaper and the server
        child.send_signal(number)
        ended = child.wait(PATIENCE_S)
        if number == signal.SIGTERM:
            assert ended == 0
        else:
            assert ended != 0
        assert_gone(processes)
    assert in_shm([child.pid]) == []
    assert not [*state.glob("metrics-*")]
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    if number == signal.SIGTERM:
        assert said_of_its_end(log) == ["stopping", "drained", "ended"]


def said_of_its_end(log: str) -> list[str]:
    """The lines of an end in order, by their first word."""
    messages = [orjson.loads(line)["message"] for line in log.splitlines() if line.startswith("{")]
    words = [re.split(r"[ :]", message)[0] for message in messages]
    return [word for word in words if word in ("stopping", "drained", "ended")]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_d11_an_end_that_was_asked_for_is_no_failure_and_is_said(
    canned_triton: str, tmp_path: Path, jpeg: bytes, workers: str
) -> None:
    """0 on SIGTERM, as `docker stop` and systemd want it, and a line each for stopping, drained, ended."""
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "WORKERS": workers}
    with serving(tmp_path, settings) as service:
        async with ready(service) as live:
            await live.frame(jpeg)
            await live.answer()
            service.process.send_signal(signal.SIGTERM)
            assert (await live.bye())["reason"] == "shutdown"
        assert await ended(service) == 0
    assert said_of_its_end(service.log) == ["stopping", "drained", "ended"]
    assert "Traceback" not in service.log


def test_d11_sigterm_before_anything_is_imported_is_heeded_too(tmp_path: Path) -> None:
    settings = {"STATE_DIR": str(tmp_path), "PORT": "0", "TRITON_URL": "127.0.0.1:9"}
    with process(["serve"], settings, tmp_path / "log", anew=True) as child:
        deadline = time.monotonic() + 5 * PATIENCE_S
        while not heeds_sigterm(child.pid) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGTERM)
        assert child.wait(5 * PATIENCE_S) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def heeds_sigterm(pid: int) -> bool:
    with suppress(OSError):
        caught = re.search(r"^SigCgt:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def test_d8_workers_that_start_slowly_are_left_alone(canned_triton: str, tmp_path: Path) -> None:
    """Longer than the 5 s after which uvicorn's own look at them kills those that do not answer."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'spawn_main' in ' '.join(sys.orig_argv):\n    time.sleep(8)\n"
    )
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "WORKERS": "2", "PYTHONPATH": str(tmp_path)}
    with serving(tmp_path, settings) as service:
        pids = {
            child.pid
            for child in psutil.Process(service.process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        }
        assert len(pids) == 2
        deadline = time.monotonic() + PATIENCE_S
        while service.log.count('"ready: ') < 2:
            assert time.monotonic() < deadline, service.log
            time.sleep(0.1)
        now = {
            child.pid
            for child in psutil.Process(service.process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        }
        assert now == pids
        assert "starting another" not in service.log


def test_d8_a_worker_that_cannot_become_ready_in_its_time_is_replaced_and_it_is_said(
    canned_triton: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'spawn_main' in ' '.join(sys.orig_argv):\n    time.sleep(600)\n"
    )
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "WORKERS": "2", "PYTHONPATH": str(tmp_path), "PORT": "0"}
    settings |= {"TRITON_START_TIMEOUT_S": "3", "DRAIN_TIMEOUT_S": "1", "STATE_DIR": str(tmp_path / "state")}
    with process(["serve"], settings, tmp_path / "log", anew=True) as child:
        wait_for_line(
            child, tmp_path / "log", r"was not ready after 3 s, which TRITON_START_TIMEOUT_S gives; starting another"
        )
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0


async def test_what_takes_longer_than_the_drain_is_given_up_with_a_word(
    canned_triton: str, tmp_path: Path, jpeg: bytes
) -> None:
    """40 frames, four in 0.3 s, are too many for a second, whether the service stops or the client did so before."""
    settings = {"TRITON_URL": canned_triton, "OCR": "off", **SLOW, "CREDITS": "40", "DRAIN_TIMEOUT_S": "2"}
    with serving(tmp_path, settings) as service:
        async with ready(service, mode="lossless") as open_, ready(service, mode="lossless") as stopping:
            for live in (open_, stopping):
                for seq in range(1, 41):
                    await live.frame(jpeg, seq)
            await stopping.say("stop")
            await open_.answer()
            await stopping.answer()
            service.process.send_signal(signal.SIGTERM)
            byes = await asyncio.gather(open_.bye(), stopping.bye())
            assert await ended(service) == 0
    assert [bye["reason"] for bye in byes] == ["shutdown", "stopped"]
    for bye in byes:
        assert adds_up(bye["report"])
        assert bye["report"]["dropped"][bye["reason"]] > 0
    assert "Traceback" not in service.log


async def test_after_sigterm_nobody_is_let_in(canned_triton: str, tmp_path: Path, jpeg: bytes) -> None:
    settings = {"TRITON_URL": canned_triton, "OCR": "off", **SLOW}
    with serving(tmp_path, settings) as service:
        async with ready(service) as live:
            await live.frame(jpeg, 1)
            await live.frame(jpeg, 2)
            service.process.send_signal(signal.SIGTERM)
            assert (await live.answer())["seq"] == 1
            with pytest.raises(ConnectionError):
                plain_socket(service)
            assert (await live.answer())["seq"] == 2
            assert (await live.bye())["reason"] == "shutdown"
        assert await ended(service) == 0


async def test_clients_that_do_not_listen_hold_nobody_up_for_long(canned_triton: str, tmp_path: Path) -> None:
    """A peer that does not answer the close, a connection that says nothing, half a request, half a body."""
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "DRAIN_TIMEOUT_S": "2", "SEND_TIMEOUT_S": "1"}
    with serving(tmp_path, settings) as service:
        async with opened(service) as live:
            await live.say("init")
            await live.until("ready")
            live.connection.transport.pause_reading()
            halves = [b"", b"GET / HT", b"POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n"]
            connections = [plain_socket(service) for _ in halves]
            for connection, half in zip(connections, halves, strict=True):
                connection.sendall(half)
            await asyncio.sleep(0.1)
            service.process.send_signal(signal.SIGTERM)
            assert await ended(service) == 0
            for connection in connections:
                connection.close()
            live.connection.transport.abort()


async def test_with_an_embedded_triton_no_process_is_left(embedded: Service, jpeg: bytes) -> None:
    await read_something(embedded, jpeg)
    everybody = family(embedded)
    names = " ".join(child.name() for child in everybody)
    assert "tritonserver" in names
    async with ready(embedded) as live:
        await live.frame(jpeg)
        assert len((await live.answer())["objects"]) == 2
        embedded.process.send_signal(signal.SIGTERM)
        assert (await live.bye())["reason"] == "shutdown"
    assert await ended(embedded) == 0
    assert_gone(everybody)
    assert in_shm([child.pid for child in everybody]) == []
    assert "Traceback" not in embedded.log


# --- SIGKILL ---


async def test_after_kill_9_triton_and_ocr_are_gone_too(embedded: Service, jpeg: bytes) -> None:
    await read_something(embedded, jpeg)
    everybody = family(embedded)
    embedded.process.kill()
    await ended(embedded)
    assert_gone(everybody)
    assert in_shm([child.pid for child in everybody]) == []


# --- several workers ---


@pytest.fixture
def pair(tmp_path: Path, canned_triton: str) -> Iterator[Service]:
    """Two workers that the test may end."""
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "WORKERS": "2"}
    with serving(tmp_path, settings) as service:
        yield service


@pytest.fixture(scope="module")
def lasting_pair(tmp_path_factory: pytest.TempPathFactory, canned_triton: str) -> Iterator[Service]:
    """Two workers that several tests use."""
    settings = {"TRITON_URL": canned_triton, "OCR": "off", "WORKERS": "2"}
    with serving(tmp_path_factory.mktemp("pair"), settings) as service:
        yield service


async def workers_that_serve(service: Service, jpeg: bytes, sessions: int = 12) -> None:
    """Sessions until every worker has had some; the kernel deals out the connections."""
    async with AsyncExitStack() as stack:
        lives = [await stack.enter_async_context(ready(service)) for _ in range(sessions)]
        for live in lives:
            await live.frame(jpeg)
        for live in lives:
            assert (await live.answer())["type"] == "result"
        assert service.metrics()["sightline_sessions_active"] == sessions
        for live in lives:
            await live.stop()


async def test_two_workers_serve_and_their_metrics_add_up(pair: Service, jpeg: bytes) -> None:
    await workers_that_serve(pair, jpeg)
    counts = assert_adds_up(pair)
    assert counts == {"received": 12, "processed": 12, "dropped": 0, "failed": 0}
    assert pair.metrics()["sightline_inference_up"] == 1
    assert pair.metrics()["sightline_last_activity_timestamp_seconds"] > time.time() - 60
    everybody = family(pair)
    assert len([child for child in everybody if child.name().startswith("python")]) >= 3
    async with ready(pair) as live:
        pair.process.send_signal(signal.SIGTERM)
        assert (await live.bye())["reason"] == "shutdown"
    await ended(pair)
    assert_gone(everybody)
    assert "Traceback" not in pair.log


async def test_sessions_that_come_at_once_are_spread_over_the_workers(lasting_pair: Service) -> None:
    pair = lasting_pair

    def held() -> list[int]:
        """Sockets of sessions, by worker; the kernel chooses by address and port, as good as by dice."""
        children = psutil.Process(pair.process.pid).children()
        counts = [
            sum(
                connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == pair.port
                for connection in child.net_connections()
            )
            for child in children
        ]
        return sorted(count for count in counts if count)

    both = time.monotonic() + PATIENCE_S
    while sum(listening(child, pair.port) for child in psutil.Process(pair.process.pid).children()) < 2:
        assert time.monotonic() < both
        await asyncio.sleep(0.1)
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(ready(pair)) for _ in range(32)))
        spread = held()
        assert len(spread) == 2
        assert spread[0] >= 4  # less happens once in 30,000 times


def listening(process: psutil.Process, port: int) -> bool:
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in process.net_connections("tcp")
    )


def test_a_port_that_is_taken_is_not_shared_with_whoever_has_it(lasting_pair: Service, tmp_path: Path) -> None:
    settings = {
        "WORKERS": "2",
        "PORT": str(lasting_pair.port),
        "STATE_DIR": str(tmp_path / "other"),
        "TRITON_URL": "127.0.0.1:9",
    }
    command = [sys.executable, "-m", "app", "serve"]
    second = subprocess.run(
        command, env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 2
    assert f"PORT={lasting_pair.port}: cannot listen there (Address already in use)" in second.stderr + second.stdout


async def test_workers_do_not_outlive_their_parent(pair: Service) -> None:
    everybody = family(pair)
    assert len(everybody) >= 3
    pair.process.kill()
    await ended(pair)
    assert_gone(everybody)


async def test_a_worker_that_is_killed_is_replaced_and_its_sessions_count_no_more(pair: Service, jpeg: bytes) -> None:
    parent = psutil.Process(pair.process.pid)
    async with AsyncExitStack() as stack:
        lives = [await stack.enter_async_context(ready(pair)) for _ in range(12)]
        victim = max(parent.children(), key=lambda process: len(process.net_connections("tcp")))
        victim.kill()
        await asyncio.to_thread(settle_below, pair, "sightline_sessions_active", 12)
        for live in lives:
            live.connection.transport.abort()
    settle(pair)
    assert f"(pid {victim.pid}) was ended by SIGKILL; starting another" in pair.log
    deadline = time.monotonic() + PATIENCE_S
    while len([child for child in parent.children() if child.pid != victim.pid]) < 3:  # two, and the resource tracker
        assert time.monotonic() < deadline, parent.children()
        await asyncio.sleep(0.1)
    await workers_that_serve(pair, jpeg)
