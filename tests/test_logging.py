"""JSON logs: one object a line, whatever the message holds."""

from __future__ import annotations

import asyncio
import logging
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import orjson
import pytest

from app.logging import CAMERA_ID, SESSION_ID, JsonFormatter, configure
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


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_record_carries_the_session_or_camera_of_its_task(
    log_format: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(ServerSettings(log_format=log_format))
    logging.getLogger().handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]  # the one of the capture
    log = logging.getLogger("app.somewhere")

    async def work(variable: ContextVar[str | None], value: str) -> None:
        variable.set(value)
        await asyncio.sleep(0)
        await asyncio.to_thread(log.warning, "in %s", value)

    async def run() -> None:
        await asyncio.gather(work(SESSION_ID, "s1"), work(SESSION_ID, "s2"), work(CAMERA_ID, "c1"))
        log.warning("in none")

    asyncio.run(run())
    lines = {line for line in capsys.readouterr().err.splitlines() if "in " in line}
    if log_format == "json":
        said = {entry["message"]: entry for entry in map(orjson.loads, lines)}
        assert [said[f"in {name}"]["session_id"] for name in ("s1", "s2")] == ["s1", "s2"]
        assert said["in c1"]["camera_id"] == "c1"
        assert "session_id" not in said["in c1"]
        assert {"session_id", "camera_id"}.isdisjoint(said["in none"])
    else:
        ends = {line.partition("app.somewhere: ")[2] for line in lines}
        assert ends == {
            "in s1 [session_id=s1]",
            "in s2 [session_id=s2]",
            "in c1 [camera_id=c1]",
            "in none",
        }
