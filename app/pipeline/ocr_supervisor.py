"""Keeps one OCR process ready: starts it, replaces it when it is worn, and waits longer each time it fails."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from app.errors import ConfigurationError
from app.limits import backoff_s
from app.metrics import OCR_RSS
from app.pipeline.ocr_process import OcrProcess, OcrStartFailed
from app.settings import OcrSettings

log = logging.getLogger(__name__)


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
