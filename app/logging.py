"""Logging: lines for people on a terminal, one JSON object a line for machines. Nothing is logged per frame."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from app.settings import ServerSettings


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and `error` with a traceback where there is one."""

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
        except TypeError:  # a name that is no UTF-8, as Python carries it about: half a character
            plain = {key: text.encode(errors="backslashreplace").decode() for key, text in entry.items()}
            return orjson.dumps(plain).decode()


_MOST = 8 * 1024
"""Characters of a message; what it says of others' input is theirs to choose."""


_SAID = ("Application startup failed", "Invalid HTTP request received", "Unsupported upgrade request")


class _Bounded(logging.Filter):
    """Cuts messages that are longer than anybody reads."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if len(message) > _MOST:
            record.msg, record.args = f"{message[:_MOST]}… ({len(message)} characters)", ()
        return True


class _SaidAlready(logging.Filter):
    """Drops uvicorn's traceback of a start that ended with a reason of our own, logged in one line; and its lines about
    requests that are wrong, which anybody can send without end: they are counted.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "StartFailed" not in message and not message.startswith(_SAID)


def configure(settings: ServerSettings) -> None:
    """Sends everything to stderr in the format asked for."""
    plain = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.addFilter(_Bounded())
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S") if plain else JsonFormatter()
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)  # in the same format as all else
    # Uvicorn says a line a connection at this level; httpx one a request.
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.setLevel(logging.WARNING)
    uvicorn.addFilter(_SaidAlready())
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the OpenAI client's
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it says where it found credentials
