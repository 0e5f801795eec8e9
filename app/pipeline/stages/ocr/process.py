"""One OCR process, seen from the service: started, asked frame by frame, ended. `worker.py` is its inside.

OcrProcessError
├── OcrStartFailed    it never came up: its environment is broken, or its models are
├── OcrTimedOut       a run took too long; the process is of no further use
├── OcrCrashed        it died, or answered nonsense
└── OcrUnreadable     this one frame cannot be read; the process goes on
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
from app.protocol.result import Text
from app.settings import OcrSettings

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("worker.py")
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 2.0
LONGEST_ANSWER = 4 * 1024 * 1024


class OcrProcessError(SightlineError):
    """`outcome` is the counter's."""

    outcome = "failed"


class OcrStartFailed(OcrProcessError):
    pass


class OcrTimedOut(OcrProcessError):
    outcome = "timeout"


class OcrCrashed(OcrProcessError):
    outcome = "crashed"


class OcrUnreadable(OcrProcessError):
    pass


@dataclass(frozen=True, slots=True)
class Reading:
    texts: list[Text]
    """Of every confidence, in reading order."""
    width: int
    height: int
    """Of the frame, pixels, as its polygons count them."""


class OcrProcess:
    """Made by `start`. One frame at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._in, self._out = process.stdin, process.stdout
        self._said = b""
        self._listening = asyncio.create_task(self._listen(process.stderr), name="ocr-stderr")
        self.runs = 0
        """Frames that it answered."""
        self.rss = 0
        """Resident bytes after its last answer."""

    @classmethod
    async def start(cls, python: Path, cache: Path, models: Path | None) -> OcrProcess:
        """Starts a process and waits until its models are loaded.

        `cache` keeps what it builds; `models` has `det.onnx` and `rec.onnx`, None takes the installed ones.
        When cancelled, the process is gone.

        Raises:
            OcrStartFailed: with what it said last.
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
                # A terminal's Ctrl-C is for the service, which then ends this process itself.
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
            raise OcrStartFailed(f"not ready within {START_TIMEOUT_S:g} s: {self.last_words}") from None
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
    def last_words(self) -> str:
        """The last line it wrote to stderr."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self._said.decode(errors="replace")).strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    async def read(self, jpeg: bytes, *, timeout_s: float) -> Reading:
        """The lines of text in a frame.

        Raises:
            OcrTimedOut, OcrCrashed: the process must be killed.
            OcrUnreadable: the frame's fault.
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
            raise OcrCrashed(await self._obituary()) from None
        self.runs += 1
        self._take(answer)
        texts = [
            Text(line["text"], line["confidence"], tuple((x, y) for x, y in line["polygon"]))
            for line in answer["texts"]
        ]
        return Reading(texts, *answer["size"])

    async def end(self) -> None:
        """Ends it between two runs: its input closes, and it goes by itself."""
        self._in.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """Ends it in the middle of whatever it does, stopped processes too. Nothing of it is left afterwards."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._in.close()
        await self._process.wait()
        # Not awaited itself: when we are cancelled here, it must live on to be waited for again.
        await asyncio.wait([self._listening])

    async def _answer(self) -> dict[str, Any]:
        try:
            line = await self._out.readline()
        except ValueError:
            raise OcrCrashed(f"an answer of more than {LONGEST_ANSWER} bytes") from None
        if not line.endswith(b"\n"):
            raise OcrCrashed(await self._obituary())
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

    async def _obituary(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        # Its last words may still be in the pipe.
        await asyncio.wait([self._listening], timeout=END_TIMEOUT_S)
        code = self._process.returncode
        if code is None:
            return f"the OCR process closed its output: {self.last_words}"
        if code < 0:
            return f"the OCR process was killed by {signal.Signals(-code).name}"
        return f"the OCR process ended with code {code}: {self.last_words}"

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        # Read all the time: a full pipe would hold the process up.
        while chunk := await stderr.read(4096):
            self._said = (self._said + chunk)[-4096:]


def _command(python: Path, cache: Path, models: Path | None) -> list[str]:
    cache.mkdir(parents=True, exist_ok=True)
    # -P: the folder of the script holds the service's modules; their names must not shadow a library's.
    command = [os.path.abspath(python), "-E", "-P", str(WORKER), str(cache)]
    return command if models is None else [*command, str(models.resolve())]


def _environment(cache: Path) -> dict[str, str]:
    """All that the process sees of the environment: the service's secrets are not its business."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": str(cache),
        "PADDLE_PDX_CACHE_HOME": str(cache / "paddlex"),
        # No network, ever: models are local.
        "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


class OcrSupervisor:
    """`changed(reason)` is called when no process can be started, `reason` says why, and with None when one can."""

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
        return self._process if self._process is not None and self._process.alive else None

    @property
    def restarts(self) -> int:
        return max(0, self._starts - 1)

    async def ready(self) -> OcrProcess:
        """The process; a new one where there is none, however many attempts that takes."""
        while (process := self.process) is None:
            await self.drop()
            await asyncio.sleep(back_off_s(self._failed_starts, self._failed_runs))
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
        """After a run. A process that failed is killed; a worn one ends by itself."""
        OCR_RSS.set(process.rss)
        self._failed_runs = self._failed_runs + 1 if failed else 0
        if failed:
            await process.kill()
        if failed or self._worn(process):
            await self.drop()

    async def drop(self) -> None:
        """Ends the process, if there is one. May be called again when it was cancelled."""
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


def back_off_s(failed_starts: int, failed_runs: int) -> float:
    """Seconds before the next start after so many failures in a row. A broken environment rarely mends itself soon."""
    return backoff_s(failed_starts, 5.0, 300.0) or backoff_s(failed_runs, 0.5, 30.0)


def why_off(settings: OcrSettings) -> str | None:
    """Why these settings give no text reading; None where they do.

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
