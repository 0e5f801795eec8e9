"""The embedded Triton as a process: starts, comes back, goes."""

import asyncio
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client import REGISTRY

from app.errors import ConfigurationError, InferenceUnavailable
from app.inference import embedded
from app.inference.embedded import BACKENDS_CHECK_S, EmbeddedTriton
from app.inference.liveness import BackendProcess, backend_processes
from app.settings import ROOT, TritonSettings
from tests.support.service import require_environment

MODEL = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""
CONFIG = """
backend: "python" max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ] output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ECHO = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model that gives back what it gets."""
    require_environment(TritonSettings().triton_python, "make triton-env")
    version = tmp_path / "repository" / "echo" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return version.parent.parent


def settings_of(repository: Path, **more: object) -> TritonSettings:
    return TritonSettings(triton_repository=repository, triton_start_timeout_s=60, **more)  # type: ignore[arg-type]


def echo(triton: EmbeddedTriton) -> list[float]:
    answer = httpx.post(f"{triton.http_url}/v2/models/echo/infer", json=ECHO, timeout=10)
    return answer.json()["outputs"][0]["data"]


def ready(triton: EmbeddedTriton) -> bool:
    try:
        return httpx.get(f"{triton.http_url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def metrics(triton: EmbeddedTriton) -> str:
    return httpx.get(triton.metrics_url, timeout=10).text


def family(pid: int) -> list[psutil.Process]:
    """A server and the backend processes that it started."""
    server = psutil.Process(pid)
    return [server, *server.children(recursive=True)]


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def regions(pid: int) -> list[str]:
    """Shared memory of all servers that a process started."""
    return [path.name for path in Path("/dev/shm").glob(f"sightline_{pid}_*")]


def wait_for(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_starts_answers_and_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    said: list[str] = []
    triton = EmbeddedTriton(settings_of(repository), tmp_path / "state", progress=said.append)

    async def life() -> list[psutil.Process]:
        address = await triton.start()
        assert address == triton.grpc_url
        assert address.startswith("127.0.0.1:")
        assert echo(triton) == [3, 4]
        assert "nv_inference_request_success" in metrics(triton)
        assert triton.pid is not None
        processes = family(triton.pid)
        await triton.stop()
        return processes

    processes = asyncio.run(life())
    assert len(processes) == 2
    assert not running(processes)
    assert not regions(os.getpid())
    assert triton.pid is None
    assert said[0] == "starting Triton: models loaded 0/1"
    assert said[-1].endswith("echo")
    assert "successfully loaded 'echo'" in triton.log_path.read_text()


def test_listens_on_loopback_only(repository: Path, tmp_path: Path) -> None:
    async def addresses() -> set[str]:
        triton = EmbeddedTriton(settings_of(repository), tmp_path / "state")
        await triton.start()
        try:
            assert triton.pid is not None
            sockets = psutil.Process(triton.pid).net_connections("inet")
            return {sock.laddr.ip.removeprefix("::ffff:") for sock in sockets if sock.status == psutil.CONN_LISTEN}
        finally:
            await triton.stop()

    assert asyncio.run(addresses()) == {"127.0.0.1"}


def test_killed_it_comes_back_at_the_same_address(repository: Path, tmp_path: Path) -> None:
    async def life() -> None:
        triton = EmbeddedTriton(settings_of(repository), tmp_path / "state")
        address = await triton.start()
        try:
            assert triton.pid is not None
            first = family(triton.pid)
            os.kill(triton.pid, signal.SIGKILL)
            await asyncio.to_thread(wait_for, lambda: triton.restarts == 1 and ready(triton), 60)
            assert triton.grpc_url == address
            assert triton.restarts == 1
            assert await asyncio.to_thread(echo, triton) == [3, 4]
            # The backend processes of the first life went with it.
            assert not running(first)
            assert triton.log_path.with_suffix(".log.1").exists()
        finally:
            await triton.stop()

    asyncio.run(life())
    assert not regions(os.getpid())


def test_a_backend_process_that_dies_is_noticed_and_replaced(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton goes on to say that it is ready, and fails whatever falls to that process."""

    async def life() -> None:
        triton = EmbeddedTriton(settings_of(repository), tmp_path / "state")
        await triton.start()
        try:
            assert triton.pid is not None
            server, stub = family(triton.pid)
            stub.kill()
            await asyncio.to_thread(wait_for, lambda: triton.restarts == 1 and ready(triton), 60)
            assert await asyncio.to_thread(echo, triton) == [3, 4]
            assert not running([server, stub])
            # One that nobody replaced: a long life is not ended for what the first one lost.
            await asyncio.sleep(3 * BACKENDS_CHECK_S)
            assert triton.restarts == 1
        finally:
            await triton.stop()

    asyncio.run(life())
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "lost the process" in said
    assert "of its model echo" in said
    assert not regions(os.getpid())


def test_other_processes_are_no_models(repository: Path, tmp_path: Path) -> None:
    async def life() -> tuple[BackendProcess, ...]:
        triton = EmbeddedTriton(settings_of(repository), tmp_path / "state")
        await triton.start()
        try:
            assert triton.pid is not None
            return backend_processes(triton.pid)
        finally:
            await triton.stop()

    (stub,) = asyncio.run(life())
    assert stub.model == "echo"
    assert not stub.alive
    with subprocess.Popen(["sleep", "60"]) as child:
        assert backend_processes(os.getpid()) == ()
        assert not dataclasses.replace(stub, pid=child.pid).alive  # another of that number
        child.kill()


PARENT = """
import asyncio, sys
from pathlib import Path
from app.inference.embedded import EmbeddedTriton
from app.settings import TritonSettings

async def main():
    triton = EmbeddedTriton(TritonSettings(triton_repository=sys.argv[1]), Path(sys.argv[2]))
    await triton.start()
    print(triton.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_goes_with_its_parent_however_that_went(repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(repository), str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            processes = psutil.Process(parent.pid).children(recursive=True)
            assert pid in {process.pid for process in processes}
            assert len(processes) == 3  # reaper, server, backend process
            assert regions(parent.pid)
        finally:
            parent.send_signal(number)
    wait_for(lambda: not running(processes))
    assert not regions(parent.pid)


def test_server_ends_when_the_reaper_itself_is_killed(repository: Path, tmp_path: Path) -> None:
    async def life() -> None:
        triton = EmbeddedTriton(settings_of(repository), tmp_path / "state")
        await triton.start()
        assert triton.pid is not None
        processes = family(triton.pid)
        reaper = psutil.Process(triton.pid).parent()
        assert reaper is not None
        reaper.kill()
        await asyncio.to_thread(wait_for, lambda: not running(processes))
        await triton.stop()

    asyncio.run(life())
    assert not regions(os.getpid())


def test_a_port_taken_meanwhile_is_replaced(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = embedded.free_ports()
        stolen = embedded.Ports(grpc=taken.getsockname()[1], http=free.http, metrics=free.metrics)
        offers = iter([stolen, embedded.free_ports()])
        monkeypatch.setattr(embedded, "free_ports", lambda: next(offers))

        async def life() -> None:
            triton = EmbeddedTriton(settings_of(repository), tmp_path / "state")
            address = await triton.start()
            try:
                assert address != f"127.0.0.1:{stolen.grpc}"
                assert await asyncio.to_thread(echo, triton) == [3, 4]
            finally:
                await triton.stop()

        asyncio.run(life())


def test_several_at_once(repository: Path, tmp_path: Path) -> None:
    async def life() -> None:
        tritons = [EmbeddedTriton(settings_of(repository), tmp_path / "state") for _ in range(2)]
        try:
            addresses = await asyncio.gather(*(triton.start() for triton in tritons))
            assert len(set(addresses)) == 2
            assert [echo(triton) for triton in tritons] == [[3, 4], [3, 4]]
            assert len({triton.log_path for triton in tritons}) == 2
        finally:
            for triton in tritons:
                await triton.stop()

    asyncio.run(life())


def refusal(settings: TritonSettings, state: Path, kind: type[Exception]) -> str:
    with pytest.raises(kind) as refused:
        asyncio.run(EmbeddedTriton(settings, state).start())
    return str(refused.value)


def test_a_missing_environment_names_the_command_that_installs_it(tmp_path: Path) -> None:
    python = tmp_path / "nowhere" / "python"
    message = refusal(TritonSettings(triton_python=python), tmp_path, ConfigurationError)
    assert f"TRITON_PYTHON='{python}'" in message
    assert "make triton-env" in message
    assert "TRITON_URL" in message


def test_an_environment_without_triton_is_named(tmp_path: Path) -> None:
    message = refusal(TritonSettings(triton_python=Path(sys.executable)), tmp_path, ConfigurationError)
    assert "nvidia-pytriton is not installed" in message


def test_a_missing_or_empty_repository_is_named(repository: Path, tmp_path: Path) -> None:
    missing = refusal(settings_of(tmp_path / "none"), tmp_path, ConfigurationError)
    assert f"TRITON_REPOSITORY='{tmp_path / 'none'}': there is no such folder" in missing
    shutil.rmtree(repository / "echo")
    assert "no model in it" in refusal(settings_of(repository), tmp_path, ConfigurationError)


def test_a_model_that_does_not_load_is_quoted(repository: Path, tmp_path: Path) -> None:
    (repository / "echo" / "1" / "model.py").write_text("raise RuntimeError('weights are for another machine')\n")
    message = refusal(settings_of(repository), tmp_path, InferenceUnavailable)
    assert "echo" in message
    assert "weights are for another machine" in message
    assert not regions(os.getpid())


def test_a_start_that_takes_too_long_is_ended(repository: Path, tmp_path: Path) -> None:
    (repository / "echo" / "1" / "model.py").write_text("import time\ntime.sleep(60)\n")
    settings = TritonSettings(triton_repository=repository, triton_start_timeout_s=0.5)
    assert "TRITON_START_TIMEOUT_S=0.5" in refusal(settings, tmp_path, InferenceUnavailable)
    assert not regions(os.getpid())


def stub_of(triton: EmbeddedTriton, number: int = 0) -> psutil.Process:
    assert triton.pid is not None
    return sorted(family(triton.pid)[1:], key=lambda process: process.pid)[number]


@pytest.mark.parametrize("who", ["stub", "server"])
@pytest.mark.parametrize("instances", [1, 2])
def test_d7_what_a_signal_stopped_is_noticed_and_replaced(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, who: str, instances: int
) -> None:
    """Also while nobody asks anything. The processes of the first life are gone, though they took no SIGTERM."""
    (repository / "echo" / "config.pbtxt").write_text(CONFIG.replace("KIND_CPU", f"KIND_CPU count: {instances}"))

    async def life() -> None:
        triton = EmbeddedTriton(settings_of(repository, triton_deadline_s=1), tmp_path / "state")
        await triton.start()
        try:
            assert triton.pid is not None
            first = family(triton.pid)
            (first[0] if who == "server" else stub_of(triton)).send_signal(signal.SIGSTOP)
            await asyncio.to_thread(wait_for, lambda: triton.restarts == 1 and ready(triton), 60)
            assert triton.restarts_by == {"hung": 1}
            assert await asyncio.to_thread(echo, triton) == [3, 4]
            assert not running(first)
        finally:
            await triton.stop()

    before = REGISTRY.get_sample_value("sightline_triton_restarts_total", {"reason": "hung"}) or 0
    asyncio.run(life())
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "Triton is hung: " in said
    assert "stopped by a signal" in said
    assert REGISTRY.get_sample_value("sightline_triton_restarts_total", {"reason": "hung"}) == before + 1
    assert not regions(os.getpid())


HANGS = """
import os, time
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        self.first = args["model_instance_name"].endswith("_0")
    def execute(self, requests):
        while self.first and os.path.exists(FLAG):
            HOW
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""


@pytest.mark.parametrize("how", ["time.sleep(0.1)", "pass"])
@pytest.mark.parametrize("instances", [1, 2])
def test_d7_a_model_that_hangs_without_being_stopped_is_noticed(
    repository: Path, tmp_path: Path, how: str, instances: int
) -> None:
    """In a deadlock or an endless loop, all of its processes or one: whose requests then wait for ever."""
    flag = tmp_path / "hang"
    (repository / "echo" / "1" / "model.py").write_text(HANGS.replace("FLAG", repr(str(flag))).replace("HOW", how))
    (repository / "echo" / "config.pbtxt").write_text(CONFIG.replace("KIND_CPU", f"KIND_CPU count: {instances}"))

    async def life() -> None:
        triton = EmbeddedTriton(settings_of(repository, triton_deadline_s=1), tmp_path / "state")
        await triton.start()
        try:
            await asyncio.sleep(2)  # a model that has never answered is not started anew
            flag.touch()
            await asyncio.to_thread(wait_for, lambda: triton.restarts == 1, 60)
            flag.unlink()
            await asyncio.to_thread(wait_for, lambda: ready(triton), 60)
            assert triton.restarts_by == {"hung": 1}
            assert await asyncio.to_thread(echo, triton) == [3, 4]
        finally:
            await triton.stop()

    asyncio.run(life())


def test_d7_a_short_stop_and_a_slow_model_are_no_hang(repository: Path, tmp_path: Path) -> None:
    slow = MODEL.replace("        return", "        import time; time.sleep(1.5)\n        return")
    (repository / "echo" / "1" / "model.py").write_text(slow)

    async def life() -> None:
        triton = EmbeddedTriton(settings_of(repository, triton_deadline_s=1), tmp_path / "state")
        await triton.start()
        try:
            # Others' requests before its own questions: every answer takes many deadlines.
            async with httpx.AsyncClient(timeout=60) as http:
                url = f"{triton.http_url}/v2/models/echo/infer"
                answers = await asyncio.gather(*(http.post(url, json=ECHO) for _ in range(6)))
            assert {answer.status_code for answer in answers} == {200}
            stub_of(triton).send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.5)
            stub_of(triton).send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(echo, triton) == [3, 4]
            assert triton.restarts == 0
        finally:
            await triton.stop()

    asyncio.run(life())
