"""Logging: text on a terminal, one JSON object per line elsewhere. No code logs per frame.

A record carries the id of the session or camera on whose behalf the code runs, by `SESSION_ID` and `CAMERA_ID`. Tasks
and `asyncio.to_thread` inherit the values; a plain thread starts without them.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

from app.settings import ServerSettings, ignored_variables

SESSION_ID: ContextVar[str | None] = ContextVar("session_id", default=None)
"""The live session on whose behalf this task runs."""
CAMERA_ID: ContextVar[str | None] = ContextVar("camera_id", default=None)
"""The camera on whose behalf this task or thread runs."""
_CONTEXT = (SESSION_ID, CAMERA_ID)


class _Context(logging.Filter):
    """Adds `session_id` and `camera_id` to each record that has one; for the console also as the text `context`.

    A filter of the handler runs in the thread and task that logs.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        found = {variable.name: value for variable in _CONTEXT if (value := variable.get()) is not None}
        record.__dict__.update(found, context="".join(f" [{name}={value}]" for name, value in found.items()))
        return True


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`; `session_id`, `camera_id` and `error`, a traceback, if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for variable in _CONTEXT:
            if hasattr(record, variable.name):
                entry[variable.name] = getattr(record, variable.name)
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry).decode()
        except TypeError:  # a name that is not UTF-8 contains lone surrogates
            plain = {key: text.encode(errors="backslashreplace").decode() for key, text in entry.items()}
            return orjson.dumps(plain).decode()


_MAX_CHARS = 8 * 1024
"""Most characters of a logged message, because it may repeat input of any length."""
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
    handler.addFilter(_Context())
    console = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s%(context)s", "%H:%M:%S")
    handler.setFormatter(console if plain else JsonFormatter())
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
