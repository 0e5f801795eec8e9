"""The embedded Triton: a real tritonserver on the CPU that this process starts, supervises and ends.

    triton = EmbeddedTriton(settings, state_dir)
    address = await triton.start()      # "127.0.0.1:41234", ready to answer
    ...
    await triton.stop()

`reaper.py` runs between the server and this process, and ends the server however this process ends. The wheel
`nvidia-pytriton` contains the server, the Python backend and one backend process ("stub") for each Python version; its
Python package is not imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app import metrics
from app.errors import ConfigurationError, InferenceUnavailable
from app.files import writable_folder
from app.inference import reaper
from app.inference.liveness import BackendProcess, LivenessProbe, backend_processes
from app.limits import backoff_s
from app.process import log_while_waiting
from app.settings import TritonSettings

log = logging.getLogger(__name__)

INSTALL = "`make triton-env` installs it; `make demo` does so by itself"
POLL_S = 0.1
"""Seconds between two checks whether the server is ready, or has ended."""
GRACE_S = 1.5
"""Seconds between SIGTERM and SIGKILL. All requests are answered by then; Triton would still unload models in order."""
BACKOFF_S = (0.5, 30.0)
"""Seconds of the first wait before a restart, and of the longest; each wait is twice the one before."""
STEADY_S = 60.0
"""Seconds that a server must run so that its next restart again comes after the first wait."""
LOGS_KEPT = 8
"""Newest log files in the folder that a start keeps, of all instances."""
_REAPER_S = 5.0
"""Seconds beyond the grace that the reaper may take to end the server."""
BACKENDS_CHECK_S = 0.5
"""Seconds between two checks that all backend processes run."""
_PASSING = ("already in use", "lock_exception")
"""Words in the log of a start that is worth a second try: another program took a port that was free when we asked for
it, or Triton's Python backend failed on its own locks (https://github.com/triton-inference-server/server/issues/8882).
"""

# Runs in the environment's own interpreter. -I keeps the caller's variables and folder out of it.
_ENVIRONMENT_QUERY = """
import importlib.util, json, sys, sysconfig
spec = importlib.util.find_spec("pytriton")
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2], "bin": sysconfig.get_path("scripts"),
    "libraries": [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib"],
    "library": sysconfig.get_config_var("INSTSONAME"),
    "triton": spec and list(spec.submodule_search_locations)[0],
}))
"""


class EmbeddedTriton:
    """Starts a Triton on free loopback ports, keeps it running, and ends it.

    Args:
        settings: `triton_python`, `triton_repository`, `triton_start_timeout_s` and `triton_deadline_s` are read.
        state_dir: its folder `triton/` takes logs, compiled Python and the backend's links. Instances may share it.
        progress: called with a line for the user whenever the start makes progress.
    """

    def __init__(
        self, settings: TritonSettings, state_dir: Path, progress: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings
        self._folder = (state_dir / "triton").resolve()
        self._progress = progress or (lambda line: log.info("%s", line))
        self._ports: Ports | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._backend_processes: tuple[BackendProcess, ...] = ()
        self.pid: int | None = None
        """tritonserver's process id; None while it does not run."""
        self.restarts = 0
        """Number of restarts, because the server or a process of one of its models died or hung."""
        self.restarts_by: Counter[str] = Counter()
        """Number of restarts by reason: ended, process_lost, hung."""
        self.log_path = self._folder / f"triton-{secrets.token_hex(4)}.log"
        """The output of this instance's server."""

    @property
    def grpc_url(self) -> str:
        """`host:port`. Raises InferenceUnavailable before `start`."""
        return f"127.0.0.1:{self._bound_ports.grpc}"

    @property
    def http_url(self) -> str:
        """`http://host:port`. Raises InferenceUnavailable before `start`."""
        return f"http://127.0.0.1:{self._bound_ports.http}"

    @property
    def metrics_url(self) -> str:
        """Address of Triton's Prometheus metrics. Raises InferenceUnavailable before `start`."""
        return f"http://127.0.0.1:{self._bound_ports.metrics}/metrics"

    @property
    def _bound_ports(self) -> Ports:
        if self._ports is None:
            raise InferenceUnavailable("the embedded Triton was not started")
        return self._ports

    async def start(self) -> str:
        """Starts the server and waits until every model is ready.

        Returns:
            The server's gRPC address, `host:port`. It stays the same over restarts.

        Raises:
            ConfigurationError: its environment or its repository is missing or cannot be used; names the setting.
            InferenceUnavailable: the server died, or was not ready in time; quotes the end of its log.
        """
        if self._supervision is not None:
            raise RuntimeError("already started")
        self._environment = await asyncio.to_thread(probe, self._settings.triton_python)
        self._backends = await asyncio.to_thread(backend_overlay, self._environment, self._folder)
        try:
            for attempt in range(3):
                self._ports = free_ports()
                try:
                    await self._run_until_ready()
                    break
                except InferenceUnavailable:
                    if attempt == 2 or not any(words in self._log_tail() for words in _PASSING):
                        raise
                    log.warning("Triton is started once more: %s", self._log_tail().rpartition("\n")[2])
                    await self._end()
        except BaseException:
            await self._end()
            raise
        self._supervision = asyncio.create_task(self._supervise(), name="embedded-triton")
        return self.grpc_url

    async def stop(self) -> None:
        """Ends the server and its backend processes, and waits for their end. Does nothing if no server runs."""
        if self._supervision is not None:
            self._supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervision
            self._supervision = None
        await self._end()

    async def _supervise(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            reason, why = await self._until_broken()
            if time.monotonic() - started > STEADY_S:
                failures = 0
            failures += 1
            wait = backoff_s(failures, *BACKOFF_S)
            log.error("%s; starting it again in %.1f s. The end of its log:\n%s", why, wait, self._log_tail())
            await self._end()
            await asyncio.sleep(wait)
            self.restarts += 1
            self.restarts_by[reason] += 1
            metrics.triton_restarted(reason)
            try:
                await self._run_until_ready()
            except (InferenceUnavailable, ConfigurationError, OSError) as error:
                log.error("Triton did not come back: %s", error)
                await self._end()

    async def _until_broken(self) -> tuple[str, str]:
        """Waits until the server or one of its backend processes ends or hangs; returns a reason and a description."""
        if self.pid is None:  # it did not start, and cannot be probed
            return await self._until_lost()
        liveness = LivenessProbe(self.http_url, self.pid, self._backend_processes, self._settings.triton_deadline_s)
        lost = asyncio.ensure_future(self._until_lost())
        hung = asyncio.ensure_future(liveness.until_hung())
        try:
            await asyncio.wait({lost, hung}, return_when=asyncio.FIRST_COMPLETED)
            return lost.result() if lost.done() else ("hung", hung.result())
        finally:
            for task in (lost, hung):
                task.cancel()
            await asyncio.gather(lost, hung, return_exceptions=True)

    async def _until_lost(self) -> tuple[str, str]:
        checked = time.monotonic()
        while self._running():
            await asyncio.sleep(POLL_S)  # polled, because child watchers differ between event loops
            if time.monotonic() - checked < BACKENDS_CHECK_S:
                continue
            checked = time.monotonic()
            lost = next((process for process in self._backend_processes if not process.alive), None)
            if lost is not None:  # a server that ends takes its processes with it; then the server is the reason
                await asyncio.sleep(POLL_S)
                if self._running():
                    description = (
                        f"Triton lost the process {lost.pid} of its model {lost.model}, which it does not replace"
                    )
                    return "process_lost", description
        return "ended", "Triton ended"

    async def _run_until_ready(self) -> None:
        """Starts the server and waits until it is ready."""
        launching = asyncio.ensure_future(asyncio.to_thread(self._launch))
        try:
            await asyncio.shield(launching)
        except asyncio.CancelledError:
            await asyncio.wait({launching})  # the process that the thread starts must be known, so that it can be ended
            raise
        names = models_of(self._settings.triton_repository)
        deadline = time.monotonic() + self._settings.triton_start_timeout_s
        last_line, begun = f"starting Triton: models loaded 0/{len(names)}", time.monotonic()
        self._progress(last_line)
        # trust_env=False: a proxy named in the environment must not stand between us and loopback.
        async with httpx.AsyncClient(base_url=self.http_url, timeout=2.0, trust_env=False) as http:
            while not await self._is_ready(http):
                if not self._running():
                    raise InferenceUnavailable(f"Triton ended while starting:\n{self._log_tail()}\n({self.log_path})")
                if time.monotonic() > deadline:
                    raise InferenceUnavailable(
                        f"Triton was not ready within TRITON_START_TIMEOUT_S="
                        f"{self._settings.triton_start_timeout_s:g}:\n{self._log_tail()}\n({self.log_path})"
                    )
                line = f"starting Triton: models loaded {self._loaded(names)}/{len(names)}"
                if line != last_line:
                    self._progress(last_line := line)
                await asyncio.sleep(POLL_S)
        if self.pid is not None:
            self._backend_processes = await asyncio.to_thread(backend_processes, self.pid)
        self._progress(f"Triton is ready after {time.monotonic() - begun:.1f} s: {', '.join(names)}")

    def _launch(self) -> None:
        self._rotate_logs()
        # A new prefix for each start, so that a region of a dead server is never reused.
        self._shm = f"sightline_{os.getpid()}_{secrets.token_hex(4)}_"
        assert self._ports is not None
        server = command(self._environment, self._settings.triton_repository, self._backends, self._ports, self._shm)
        guard = [sys.executable, "-S", "-E", reaper.__file__, "--parent", str(os.getpid()), "--log", str(self.log_path)]
        guard += [f"--set={name}={value}" for name, value in variables(self._environment, self._folder).items()]
        self._reaper = subprocess.Popen(
            [*guard, "--shm", self._shm, "--grace", str(GRACE_S), "--", *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C in a terminal must reach only the service, which then stops Triton in order.
            start_new_session=True,
        )
        assert self._reaper.stdout is not None
        first = self._reaper.stdout.readline()
        self._reaper.stdout.close()
        self.pid = int(first) if first.strip().isdigit() else None

    def _running(self) -> bool:
        return self._reaper is not None and self._reaper.poll() is None

    @staticmethod
    async def _is_ready(http: httpx.AsyncClient) -> bool:
        try:
            return (await http.get("/v2/health/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def _end(self) -> None:
        """Closes the reaper's pipe and waits for the reaper, which ends when the whole process group is gone."""
        ended, server, self._reaper, self.pid = self._reaper, self.pid, None, None
        self._backend_processes = ()
        if ended is not None:
            self._ending = asyncio.ensure_future(self._wait_for_reaper(ended, server, self._shm))
        if self._ending is not None:
            await asyncio.shield(self._ending)  # also an end that a cancelled caller began

    @staticmethod
    async def _wait_for_reaper(ended: subprocess.Popen[bytes], server: int | None, shm: str) -> None:
        assert ended.stdin is not None
        ended.stdin.close()
        try:
            code = await asyncio.to_thread(ended.wait, GRACE_S + _REAPER_S)
        except subprocess.TimeoutExpired:  # the reaper itself hangs: only SIGKILL ends a stopped process
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if server is not None:
                    os.killpg(server, signal.SIGKILL)
            ended.kill()
            code = await asyncio.to_thread(ended.wait)
        if code < 0:
            # The reaper was killed and could not clean up; the kernel ends the server in its place.
            reaper.sweep(shm)

    def _loaded(self, names: tuple[str, ...]) -> int:
        text = self._read_log()
        return len(set(re.findall(r"successfully loaded '([^']+)'", text)) & set(names))

    def _read_log(self) -> str:
        try:
            return self.log_path.read_text(errors="replace")
        except OSError:
            return ""

    def _log_tail(self, lines: int = 8) -> str:
        """The errors in Triton's log, with a model's own traceback; without errors, the end of the log."""
        text = [line.replace("\\n", "\n  ") for line in self._read_log().splitlines() if line.strip()]
        for marks in (r"error: |load failed|failed to ", r"E\d{4} (?!.*CudaDriver)", ""):
            marked = [line for line in text if re.match(marks, line)]
            if marked:
                break
        return "\n".join(marked[-lines:])

    def _rotate_logs(self) -> None:
        """Renames the previous start's log to `.1`, and keeps only the newest logs of other instances."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        logs = sorted(self._folder.glob("triton-*.log*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in logs[LOGS_KEPT:]:
            old.unlink(missing_ok=True)


@contextmanager
def shared_triton(settings: TritonSettings, state_dir: Path) -> Iterator[str]:
    """Yields Triton's address: TRITON_URL, or that of an embedded Triton that runs while the block lasts.

    TRITON_URL is set for the worker processes that are started in the block. A thread supervises the server, because
    the calling thread waits for those processes.

    Raises:
        SightlineError: the embedded Triton cannot be started.
    """
    if settings.triton_url is not None:
        yield settings.triton_url
        return
    triton = EmbeddedTriton(settings, writable_folder(state_dir, "STATE_DIR"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="triton", daemon=True)
    thread.start()
    starting: asyncio.Task[str] | None = None

    async def start() -> str:
        nonlocal starting
        starting = asyncio.create_task(triton.start())
        return await starting

    async def stop() -> None:
        if starting is not None and not starting.done():  # stopped before it was ready
            starting.cancel()
            await asyncio.wait({starting})
        await triton.stop()

    try:
        with log_while_waiting("the embedded Triton and its models"):
            url = asyncio.run_coroutine_threadsafe(start(), loop).result()
        os.environ["TRITON_URL"] = url
        yield url
    finally:
        os.environ.pop("TRITON_URL", None)
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# --- how the server is started ---


@dataclass(frozen=True, slots=True)
class Ports:
    """The server's ports on 127.0.0.1."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """Where `nvidia-pytriton` is installed, and which Python runs the models."""

    python_version: str
    bin: Path
    python_libraries: tuple[Path, ...]
    """Folders that may contain its libpython."""
    wheel: Path
    """The wheel's `pytriton/tritonserver`."""

    @property
    def server(self) -> Path:
        return self.wheel / "bin" / "tritonserver"

    @property
    def wheel_libraries(self) -> Path:
        return self.wheel.parent.parent / "nvidia_pytriton.libs"

    @property
    def stub(self) -> Path:
        return self.wheel / "python_backend_stubs" / self.python_version / "triton_python_backend_stub"


def probe(python: Path) -> TritonEnvironment:
    """Asks the environment's interpreter for its paths.

    Raises:
        ConfigurationError: the interpreter does not exist, has no Triton, or has a Python that this Triton lacks.
    """
    setting = f"TRITON_PYTHON={str(python)!r}"
    if not os.access(python, os.X_OK):
        raise ConfigurationError(
            f"{setting}: there is no interpreter; the embedded Triton needs an environment of its own "
            f"({INSTALL}). Or set TRITON_URL to the gRPC address of a Triton that runs already"
        )
    query = subprocess.run(
        [python, "-I", "-c", _ENVIRONMENT_QUERY], capture_output=True, text=True, timeout=60, check=False
    )
    if query.returncode != 0:
        raise ConfigurationError(f"{setting}: does not run as a Python interpreter: {query.stderr.strip()[-500:]}")
    found = json.loads(query.stdout)
    if found["triton"] is None:
        raise ConfigurationError(f"{setting}: nvidia-pytriton is not installed there ({INSTALL})")
    environment = TritonEnvironment(
        python_version=found["version"],
        bin=Path(found["bin"]),
        python_libraries=tuple(map(Path, found["libraries"])),
        wheel=Path(found["triton"]) / "tritonserver",
    )
    if not environment.stub.exists():
        known = sorted(path.name for path in environment.stub.parent.parent.glob("3.*"))
        raise ConfigurationError(
            f"{setting}: is Python {environment.python_version}; this Triton runs models on {', '.join(known)}"
        )
    library = found["library"] or ""
    if not library.startswith("libpython") or ".so" not in library:
        raise ConfigurationError(
            f"{setting}: this interpreter was built without a shared libpython, which Triton's Python backend loads; "
            f"use one built with --enable-shared (Debian: apt install libpython{environment.python_version})"
        )
    return environment


def backend_overlay(environment: TritonEnvironment, folder: Path) -> Path:
    """A backend directory of links into the wheel, with the stub of the right Python next to the backend's library.

    The wheel keeps the stubs in a folder of their own, Triton expects one next to the library, and the installed
    packages stay untouched. The directory is built aside and then renamed, so that several processes may call this at
    once.

    Args:
        folder: the directory is made in it. All instances share one directory for each Python version.
    """
    backend = environment.wheel / "backends" / "python"
    overlay = folder / f"backends-{environment.python_version}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fresh = Path(scratch) / "backends"
        (fresh / "python").mkdir(parents=True)
        for source in (*backend.iterdir(), environment.stub):
            (fresh / "python" / source.name).symlink_to(source.resolve())
        if not _same_links(fresh / "python", overlay / "python"):
            if overlay.exists():
                overlay.rename(Path(scratch) / "old")
            try:
                fresh.rename(overlay)
            except OSError:  # another instance made the same directory first
                if not _same_links(fresh / "python", overlay / "python"):
                    raise
    return overlay


def _same_links(first: Path, second: Path) -> bool:
    def links(folder: Path) -> dict[str, str]:
        paths = folder.iterdir() if folder.is_dir() else ()
        return {path.name: os.readlink(path) for path in paths if path.is_symlink()}

    return links(first) == links(second)


def free_ports() -> Ports:
    """Three loopback ports that are free now. Another program may take one at any time, so the caller must retry."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return Ports(*(int(listener.getsockname()[1]) for listener in sockets))


def models_of(repository: Path) -> tuple[str, ...]:
    """Names of the models to serve: all folders with a configuration, except parts of ensembles and disabled models.

    A name that begins with `_` is a part of an ensemble and is loaded with it if one needs it. A file
    `not_served.txt` disables a model and contains the reason.

    Raises:
        ConfigurationError: the folder does not exist, or has no model in it.
    """
    setting = f"TRITON_REPOSITORY={str(repository)!r}"
    if not repository.is_dir():
        raise ConfigurationError(f"{setting}: there is no such folder; want a Triton model repository")
    names = sorted(
        folder.name
        for folder in repository.iterdir()
        if not folder.name.startswith(("_", "."))
        and not (folder / "not_served.txt").exists()
        and ((folder / "config.pbtxt").exists() or (folder / "configs").is_dir())
    )
    if not names:
        raise ConfigurationError(
            f"{setting}: no model in it; want folders with a config.pbtxt and a version, as NAME/1/"
        )
    return tuple(names)


def command(environment: TritonEnvironment, repository: Path, backends: Path, ports: Ports, shm: str) -> list[str]:
    """tritonserver's command line: loopback only; every model of the repository is loaded by name."""
    return [
        str(environment.server),
        f"--model-repository={repository.resolve()}",
        # Models that `make models` installed have configs/installed.pbtxt, which takes precedence over config.pbtxt.
        "--model-config-name=installed",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models_of(repository)),
        "--exit-on-error=true",
        "--exit-timeout-secs=5",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shm}",
        # An idle stub maps so much address space; memory is used only for pages that are touched.
        f"--backend-config=python,shm-default-byte-size={16 * 1024 * 1024}",
        f"--backend-config=python,shm-growth-byte-size={16 * 1024 * 1024}",
        "--http-address=127.0.0.1",
        f"--http-port={ports.http}",
        "--http-thread-count=1",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={ports.grpc}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",
    ]


def variables(environment: TritonEnvironment, folder: Path) -> dict[str, str]:
    """The server's environment variables. It inherits no others."""
    libraries = (environment.wheel_libraries, *environment.python_libraries)
    return {
        # The backend's interpreter ignores all PYTHON* variables: the first python3 in PATH decides its environment.
        "PATH": f"{environment.bin}:{os.defpath}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        # There is one model process per core already; more threads would compete with them.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # ONNX Runtime sends telemetry from 1.29 on by default.
        "ORT_DISABLE_TELEMETRY": "1",
        # A frame is larger than glibc's mmap threshold: without this, each one would be mapped and unmapped.
        "MALLOC_MMAP_THRESHOLD_": str(64 * 1024 * 1024),
        "MALLOC_TRIM_THRESHOLD_": str(128 * 1024 * 1024),
    }
