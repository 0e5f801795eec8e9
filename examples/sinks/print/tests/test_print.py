"""The lines that the sink prints."""

from __future__ import annotations

import json

import pytest
from sightline_print import PrintSink

from app.settings import Settings
from app.sinks import SinkHost, SinkMessage


def test_a_line_has_the_stream_and_the_number_of_objects_of_each_class(capsys: pytest.CaptureFixture[str]) -> None:
    sink = PrintSink(SinkHost(Settings(), "service", pytest.fail))
    objects = [{"class_name": "cat"}, {"class_name": "dog"}, {"class_name": "cat"}]
    sink.write(
        [
            SinkMessage("gate", "gate/1", json.dumps({"objects": objects}).encode()),
            SinkMessage("yard", "yard/1", b'{"objects": []}'),
        ]
    )
    assert capsys.readouterr().out == "gate: 2 cat, 1 dog\nyard: nothing\n"
