"""Log lines for machines: one JSON object a line, whatever is in it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator

import orjson
import pytest

from app.logging import JsonFormatter, configure
from app.settings import ServerSettings


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    caught = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("app.somewhere", logging.WARNING, __file__, 1, message, arguments, caught)


def test_a_line_is_one_object_with_the_traceback_in_it() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        line = JsonFormatter().format(record("it %s", "failed", error=error))
    said = orjson.loads(line)
    assert "\n" not in line
    assert (said["level"], said["logger"], said["message"]) == ("warning", "app.somewhere", "it failed")
    assert "ValueError: two\nlines" in said["error"]
    assert said["time"].endswith("+00:00")


def test_a_name_that_is_no_text_does_not_cost_the_line() -> None:
    name = b"a\xe4.mp4".decode(errors="surrogateescape")
    said = orjson.loads(JsonFormatter().format(record("no such film: %s", name)))
    assert said["message"] == "no such film: a\\udce4.mp4"


@pytest.mark.usefixtures("restored")
def test_warnings_are_lines_like_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    configure(ServerSettings(log_format="json"))
    logging.getLogger().handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]  # the one of the capture
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old ways" in orjson.loads(capsys.readouterr().err)["message"]
