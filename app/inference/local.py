"""The embedded Triton: a real tritonserver of our own on the CPU, supervised, gone when we are gone.

    triton = LocalTriton(settings, state_dir)
    address = await triton.start()      # "127.0.0.1:41234", ready to answer
    ...
    await triton.stop()

`reaper.py` stands between the server and us and ends it however this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

from app import metrics
from app.errors import ConfigurationError, InferenceUnavailable
from app.inference import launch, reaper
from app.inference.stubs import Stub, stubs_of
from app.inference.vitals import Vitals
from app.settings import TritonSettings

log = logging.getLogger(__name__)

POLL_S = 0.1
GRACE_S = 1.5
"""Between SIGTERM and SIGKILL. Whoever stops us has had its answers; Triton would go on unloading models in order."""
BACKOFF_S = (0.5, 30.0)
"""The first wait before a restart, and the longest: it doubles in between."""
STEADY_S = 60.0
"""A server that lived this long is restarted after the first wait again."""
LOGS_KEPT = 8
_REAPER_S = 5.0
"""Beyond the grace, that the reaper may take to end the server."""
_LOOK_S = 0.5
"""Between two looks whether the backend processes are all there."""


_PASSING = ("already in use", "lock_exception")
"""In the log of a start that is worth repeating: somebody took a port that was free when we asked for it; or Triton's
Python backend fell over its own locks (https://github.com/triton-inference-server/server/issues/8882)."""


class LocalTriton:
    """Starts a Triton on free loopback ports, keeps it running, ends it.

    Args:
        settings: `triton_python`, `triton_repository`, `triton_start_timeout_s` and `triton_deadline_s` are read.
        state_dir: logs, compiled Python and the backend's links go to `triton/` in it. Instances may share it.
        progress: called with a line for people whenever the start gets further.
    """

    def __init__(
        self, settings: TritonSettings, state_dir: Path, progress: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings
        self._folder = (state_dir / "triton").resolve()
        self._progress = progress or (lambda line: log.info("%s", line))
        self._ports: launch.Ports | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._stubs: tuple[Stub, ...] = ()
        self.pid: int | None = None
        """tritonserver's process id; None while there is none."""
        self.restarts = 0
        """Times that it, or a process of one of its models, died or hung and it was started again."""
        self.restarts_by: Counter[str] = Counter()
        """The same by reason: ended, process_lost, hung."""
        self.log_path = self._folder / f"triton-{secrets.token_hex(4)}.log"
        """What this instance's server printed."""

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self._given.grpc}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self._given.http}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._given.metrics}/metrics"

    @property
    def _given(self) -> launch.Ports:
        if self._ports is None:
            raise InferenceUnavailable("the embedded Triton was not started")
        return self._ports

    async def start(self) -> str:
        """Starts the server and waits until every model is ready.

        Returns:
            Its gRPC address, `host:port`. It stays the same over restarts.

        Raises:
            ConfigurationError: its environment or its repository is missing or unfit; names the setting.
            InferenceUnavailable: it died, or was not ready in time; quotes the end of its log.
        """
        if self._supervision is not None:
            raise RuntimeError("already started")
        self._environment = await asyncio.to_thread(launch.probe, self._settings.triton_python)
        self._backends = await asyncio.to_thread(launch.backend_overlay, self._environment, self._folder)
        try:
            for attempt in range(3):
                self._ports = launch.free_ports()
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
        """Ends the server and its backend processes, and waits for it. Does nothing when there is none."""
        if self._supervision is not None:
            self._supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervision
            self._supervision = None
        await self._end()

    async def _supervise(self) -> None:
        wait, longest = BACKOFF_S
        while True:
            started = time.monotonic()
            reason, why = await self._until_broken()
            if time.monotonic() - started > STEADY_S:
                wait = BACKOFF_S[0]
            log.error("%s; starting it again in %.1f s. Its last words:\n%s", why, wait, self._log_tail())
            await self._end()
            await asyncio.sleep(wait)
            wait = min(wait * 2, longest)
            self.restarts += 1
            self.restarts_by[reason] += 1
            metrics.triton_restarted(reason)
            try:
                await self._run_until_ready()
            except (InferenceUnavailable, ConfigurationError, OSError) as error:
                log.error("Triton did not come back: %s", error)
                await self._end()

    async def _until_broken(self) -> tuple[str, str]:
        """Waits until the server or one of its backend processes ended or hangs: the reason, and in words which."""
        if self.pid is None:  # it did not start, and there is nobody to be asked
            return await self._until_lost()
        vitals = Vitals(self.http_url, self.pid, self._stubs, self._settings.triton_deadline_s)
        lost = asyncio.ensure_future(self._until_lost())
        hung = asyncio.ensure_future(vitals.until_hung())
        try:
            await asyncio.wait({lost, hung}, return_when=asyncio.FIRST_COMPLETED)
            return lost.result() if lost.done() else ("hung", hung.result())
        finally:
            for task in (lost, hung):
                task.cancel()
            await asyncio.gather(lost, hung, return_exceptions=True)

    async def _until_lost(self) -> tuple[str, str]:
        looked = time.monotonic()
        while self._running():
            await asyncio.sleep(POLL_S)  # a process sets no event; child watchers differ between loops
            if time.monotonic() - looked < _LOOK_S:
                continue
            looked = time.monotonic()
            lost = next((stub for stub in self._stubs if not stub.alive), None)
            if lost is not None:  # a server that ends takes them with it, and is what is to be named
                await asyncio.sleep(POLL_S)
                if self._running():
                    words = f"Triton lost the process {lost.pid} of its model {lost.model}, which it does not replace"
                    return "process_lost", words
        return "ended", "Triton ended"

    async def _run_until_ready(self) -> None:
        """One life of the server, up to ready."""
        launching = asyncio.ensure_future(asyncio.to_thread(self._launch))
        try:
            await asyncio.shield(launching)
        except asyncio.CancelledError:
            await asyncio.wait({launching})  # what the thread started must be known, or nobody would end it
            raise
        names = launch.models_of(self._settings.triton_repository)
        deadline = time.monotonic() + self._settings.triton_start_timeout_s
        said, begun = "", time.monotonic()
        # trust_env=False: a proxy named in the environment has no business between us and loopback.
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
                if line != said:
                    self._progress(said := line)
                await asyncio.sleep(POLL_S)
        if self.pid is not None:
            self._stubs = await asyncio.to_thread(stubs_of, self.pid)
        self._progress(f"Triton is ready after {time.monotonic() - begun:.1f} s: {', '.join(names)}")

    def _launch(self) -> None:
        self._turn_log()
        # New for each life: a region that a dead server left behind is never met again.
        self._shm = f"sightline_{os.getpid()}_{secrets.token_hex(4)}_"
        assert self._ports is not None
        server = launch.command(
            self._environment, self._settings.triton_repository, self._backends, self._ports, self._shm
        )
        guard = [sys.executable, "-S", "-E", reaper.__file__, "--parent", str(os.getpid()), "--log", str(self.log_path)]
        guard += [f"--set={name}={value}" for name, value in launch.variables(self._environment, self._folder).items()]
        self._reaper = subprocess.Popen(
            [*guard, "--shm", self._shm, "--grace", str(GRACE_S), "--", *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A terminal's Ctrl-C is for the service, which then stops Triton in order.
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
        """Closes the reaper's pipe and waits for it: it returns when the whole process group is gone."""
        ended, server, self._reaper, self.pid = self._reaper, self.pid, None, None
        self._stubs = ()
        if ended is not None:
            self._ending = asyncio.ensure_future(self._see_out(ended, server, self._shm))
        if self._ending is not None:
            await asyncio.shield(self._ending)  # also one that a cancelled caller began

    @staticmethod
    async def _see_out(ended: subprocess.Popen[bytes], server: int | None, shm: str) -> None:
        assert ended.stdin is not None
        ended.stdin.close()
        try:
            code = await asyncio.to_thread(ended.wait, GRACE_S + _REAPER_S)
        except subprocess.TimeoutExpired:  # it hangs itself: a stopped process takes nothing but SIGKILL
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if server is not None:
                    os.killpg(server, signal.SIGKILL)
            ended.kill()
            code = await asyncio.to_thread(ended.wait)
        if code < 0:
            # Killed itself, it could not clear up; the kernel ends the server in its place.
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
        """Triton's reasons where it names them (with a model's own traceback), else the end of its log."""
        text = [line.replace("\\n", "\n  ") for line in self._read_log().splitlines() if line.strip()]
        for marks in (r"error: |load failed|failed to ", r"E\d{4} (?!.*CudaDriver)", ""):
            marked = [line for line in text if re.match(marks, line)]
            if marked:
                break
        return "\n".join(marked[-lines:])

    def _turn_log(self) -> None:
        """The last life's log becomes `.1`; of other instances' logs the newest few stay."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        logs = sorted(self._folder.glob("triton-*.log*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in logs[LOGS_KEPT:]:
            old.unlink(missing_ok=True)
