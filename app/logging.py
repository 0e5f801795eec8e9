"""Logging: text on a terminal, one JSON object per line elsewhere. Nothing is logged per frame."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from app.settings import ServerSettings, ignored_variables


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and `error` with a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry).decode()
        except TypeError:  # a name that is not UTF-8 contains lone surrogates
            plain = {key: text.encode(errors="backslashreplace").decode() for key, text in entry.items()}
            return orjson.dumps(plain).decode()


_MAX_CHARS = 8 * 1024
"""Of a message, because it may repeat input of any length."""
_REPORTED = ("Application startup failed", "Invalid HTTP request received", "Unsupported upgrade request")


class _Bounded(logging.Filter):
    """Cuts messages longer than _MAX_CHARS."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if len(message) > _MAX_CHARS:
            record.msg, record.args = f"{message[:_MAX_CHARS]}… ({len(message)} characters)", ()
        return True


class _ReportedAlready(logging.Filter):
    """Drops uvicorn's traceback of a failed start, whose reason is logged in one line, and its lines about malformed
    requests: clients can send these without end, and they are counted.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "StartFailed" not in message and not message.startswith(_REPORTED)


def configure(settings: ServerSettings) -> None:
    """Sends all log records to stderr in the format of LOG_FORMAT; warns of variables that are no settings any more."""
    plain = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.addFilter(_Bounded())
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S") if plain else JsonFormatter()
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)  # in the same format
    # At INFO, uvicorn logs each connection and httpx each request.
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.setLevel(logging.WARNING)
    uvicorn.addFilter(_ReportedAlready())
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the OpenAI client's
    logging.getLogger("botocore").setLevel(logging.WARNING)  # at INFO it logs where it found credentials
    for sentence in ignored_variables():
        logging.getLogger(__name__).warning("%s", sentence)
