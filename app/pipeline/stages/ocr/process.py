"""The service's side of the OCR process: starts it, sends it frames, replaces it. It runs the program `worker.py`.

OcrProcessError
├── OcrStartFailed    the process did not start: its environment or its models are broken
├── OcrTimedOut       a run took too long; the process must be killed
├── OcrCrashed        the process died, or sent an invalid answer
└── OcrUnreadable     only this frame cannot be read; the process goes on
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from app.errors import ConfigurationError, SightlineError
from app.limits import backoff_s
from app.metrics import OCR_RSS
from app.pipeline.stages.ocr.policy import Text
from app.settings import OcrSettings

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("worker.py")
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 2.0
LONGEST_ANSWER = 4 * 1024 * 1024


class OcrProcessError(SightlineError):
    """`outcome` is the label of the counter OCR_RUNS."""

    outcome = "failed"


class OcrStartFailed(OcrProcessError):
    """The process did not start: its environment or its models are broken."""


class OcrTimedOut(OcrProcessError):
    """A run took longer than OCR_TIMEOUT_S; the process must be killed."""

    outcome = "timeout"


class OcrCrashed(OcrProcessError):
    """The process died, or sent an invalid answer."""

    outcome = "crashed"


class OcrUnreadable(OcrProcessError):
    """Only this frame cannot be read; the process goes on."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer of the OCR process to one frame."""

    texts: list[Text]
    """Texts of any confidence, in reading order."""
    width: int
    height: int
    """Size of the frame, in the pixels that the polygons count."""


class OcrProcess:
    """A running process, made by `start`. It reads one frame at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._in, self._out = process.stdin, process.stdout
        self._errors = b""
        self._listening = asyncio.create_task(self._listen(process.stderr), name="ocr-stderr")
        self.runs = 0
        """Frames that the process answered."""
        self.rss = 0
        """Resident bytes of the process after its last answer."""

    @classmethod
    async def start(cls, python: Path, cache: Path, models: Path | None) -> OcrProcess:
        """Starts a process and waits until its models are loaded.

        `cache` is a folder for the models that it lays out. `models` has `det.onnx` and `rec.onnx`; None takes the
        installed ones. When the call is cancelled, the process is killed.

        Raises:
            OcrStartFailed: with the last line of its output.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(python, cache, models),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LONGEST_ANSWER,
                cwd=cache,
                env=_environment(cache),
                # Ctrl-C in a terminal must reach only the service, which then ends this process itself.
                start_new_session=True,
            )
        except OSError as error:
            raise OcrStartFailed(f"cannot start {python} (OCR_PYTHON): {error}") from error
        self = cls(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self._take(await self._answer())
        except TimeoutError:
            await self.kill()
            raise OcrStartFailed(f"not ready within {START_TIMEOUT_S:g} s: {self.last_line}") from None
        except OcrProcessError as error:
            await self.kill()
            raise OcrStartFailed(str(error)) from None
        except BaseException:
            await self.kill()
            raise
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def last_line(self) -> str:
        """The last line that the process wrote to stderr."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self._errors.decode(errors="replace")).strip().splitlines()
        return lines[-1][:300] if lines else "it wrote nothing"

    async def read(self, jpeg: bytes, *, timeout_s: float) -> Reading:
        """The lines of text in a frame.

        Raises:
            OcrTimedOut, OcrCrashed: the process must be killed.
            OcrUnreadable: this frame cannot be read.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._in.write(struct.pack(">I", len(jpeg)))
                self._in.write(jpeg)
                await self._in.drain()
                answer = await self._answer()
        except TimeoutError:
            raise OcrTimedOut(f"no answer within OCR_TIMEOUT_S={timeout_s:g}; the process was killed") from None
        except ConnectionError:
            raise OcrCrashed(await self._death_reason()) from None
        self.runs += 1
        self._take(answer)
        texts = [
            Text(line["text"], line["confidence"], tuple((x, y) for x, y in line["polygon"]))
            for line in answer["texts"]
        ]
        return Reading(texts, *answer["size"])

    async def end(self) -> None:
        """Ends the process between two runs: closes its input, so that it exits."""
        self._in.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """Kills the process, also in the middle of a run or while it is stopped. Nothing of it is left afterwards."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._in.close()
        await self._process.wait()
        # Not awaited directly: after a cancellation here, the task must live on for the next wait.
        await asyncio.wait([self._listening])

    async def _answer(self) -> dict[str, Any]:
        try:
            line = await self._out.readline()
        except ValueError:
            raise OcrCrashed(f"an answer of more than {LONGEST_ANSWER} bytes") from None
        if not line.endswith(b"\n"):
            raise OcrCrashed(await self._death_reason())
        try:
            answer = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise OcrCrashed(f"an answer that is not JSON: {line[:100]!r}") from None
        if "fatal" in answer:
            raise OcrStartFailed(str(answer["fatal"])[:300])
        return dict(answer)

    def _take(self, answer: dict[str, Any]) -> None:
        self.rss = int(answer["rss"])
        if "error" in answer:
            raise OcrUnreadable(str(answer["error"]).strip()[:300])

    async def _death_reason(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        # Its last lines may still be in the pipe.
        await asyncio.wait([self._listening], timeout=END_TIMEOUT_S)
        code = self._process.returncode
        if code is None:
            return f"the OCR process closed its output: {self.last_line}"
        if code < 0:
            return f"the OCR process was killed by {signal.Signals(-code).name}"
        return f"the OCR process ended with code {code}: {self.last_line}"

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        # Read continuously, because a full pipe would block the process.
        while chunk := await stderr.read(4096):
            self._errors = (self._errors + chunk)[-4096:]


def _command(python: Path, cache: Path, models: Path | None) -> list[str]:
    cache.mkdir(parents=True, exist_ok=True)
    # -P: the folder of the script holds modules of the service, whose names must not shadow those of libraries.
    command = [os.path.abspath(python), "-E", "-P", str(WORKER), str(cache)]
    return command if models is None else [*command, str(models.resolve())]


def _environment(cache: Path) -> dict[str, str]:
    """The environment of the process, without the service's secrets."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": str(cache),
        "PADDLE_PDX_CACHE_HOME": str(cache / "paddlex"),
        # The models are local, so the process never needs the network.
        "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


class OcrSupervisor:
    """Keeps one OCR process ready: starts it, replaces it when it is worn out, and waits longer after each failure.

    `changed` is called with the reason when no process can be started, and with None once one runs.
    """

    def __init__(self, settings: OcrSettings, cache: Path, changed: Callable[[str | None], None]) -> None:
        self._settings = settings
        self._cache = cache
        self._changed = changed
        self._failed_starts = 0
        self._failed_runs = 0
        self._starts = 0
        self._process: OcrProcess | None = None
        self.starting = False

    @property
    def process(self) -> OcrProcess | None:
        """The process; None while none runs."""
        return self._process if self._process is not None and self._process.alive else None

    @property
    def restarts(self) -> int:
        """Number of successful starts after the first."""
        return max(0, self._starts - 1)

    async def ready(self) -> OcrProcess:
        """Returns the process. Starts one where there is none, with as many attempts as that takes."""
        while (process := self.process) is None:
            await self.drop()
            await asyncio.sleep(restart_wait_s(self._failed_starts, self._failed_runs))
            self.starting = True
            try:
                self._process = await OcrProcess.start(
                    self._settings.ocr_python, self._cache, self._settings.ocr_models
                )
            except OcrStartFailed as error:
                self._failed_starts += 1
                self._changed(f"the OCR process does not start: {error}. Does `make ocr-env` go through?")
            else:
                self._failed_starts = 0
                self._starts += 1
                OCR_RSS.set(self._process.rss)
                log.info("OCR process %d is ready", self._process.pid)
                self._changed(None)
            finally:
                self.starting = False
        return process

    async def release(self, process: OcrProcess, *, failed: bool) -> None:
        """Ends a run. A process that failed is killed; one that is worn out exits by itself."""
        OCR_RSS.set(process.rss)
        self._failed_runs = self._failed_runs + 1 if failed else 0
        if failed:
            await process.kill()
        if failed or self._worn(process):
            await self.drop()

    async def drop(self) -> None:
        """Ends the process, if there is one. May be called again after a cancellation."""
        if self._process is not None:
            await self._process.end()
            self._process = None
            OCR_RSS.set(0)

    def _worn(self, process: OcrProcess) -> bool:
        if process.runs >= self._settings.ocr_max_runs:
            log.info("OCR process %d is replaced after %d runs", process.pid, process.runs)
            return True
        limit = self._settings.ocr_max_rss_mb
        if process.rss <= limit * 2**20:
            return False
        advice = "" if process.runs > 1 else "; a fresh one needs that much: allow more"
        log.warning("OCR process is replaced at %d MB, OCR_MAX_RSS_MB=%d%s", process.rss >> 20, limit, advice)
        return True


def restart_wait_s(failed_starts: int, failed_runs: int) -> float:
    """Seconds before the next start, by failures in a row. A broken environment rarely repairs itself soon."""
    return backoff_s(failed_starts, 5.0, 300.0) or backoff_s(failed_runs, 0.5, 30.0)


def why_off(settings: OcrSettings) -> str | None:
    """Why text reading is off with these settings; None where it is on.

    Raises:
        ConfigurationError: OCR=on and its environment is missing, or OCR_MODELS holds no models.
    """
    if settings.ocr == "off":
        return "switched off: OCR=off"
    if settings.ocr_models is not None:
        for name in ("det.onnx", "rec.onnx"):
            if not (settings.ocr_models / name).is_file():
                raise ConfigurationError(
                    f"OCR_MODELS={settings.ocr_models}: should be a folder with det.onnx and rec.onnx, has no {name}"
                )
    if settings.ocr_python.is_file() and os.access(settings.ocr_python, os.X_OK):
        return None
    if settings.ocr == "on":
        raise ConfigurationError(
            f"OCR_PYTHON={settings.ocr_python}: should be the interpreter of OCR's environment, and OCR=on insists "
            "on it. Run `make ocr-env`, or set OCR=auto"
        )
    return "OCR's environment is not installed: run `make ocr-env`"
