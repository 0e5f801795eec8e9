"""Recorded video: a segment is done only once every sink has its results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.segments.films import assert_lines, assert_whole, film, run, segments
from tests.sinks.sending import until
from tests.support.receiving import Receiver, answers, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def test_the_results_of_every_segment_reach_all_sinks(canned_triton: str, receiver: Receiver, tmp_path: Path) -> None:
    source, lines_path = film(tmp_path / "film.mp4", 3), tmp_path / "all.jsonl"
    settings = {
        "TRITON_URL": canned_triton,
        "RESULT_SINKS": "jsonl,webhook",
        "JSONL_PATH": str(lines_path),
        "WEBHOOK_URL": receiver.url,
    }
    arguments = ["submit", str(source), "--seconds", "0.3"]
    final = Path(run(arguments, settings, tmp_path / "log", folder=tmp_path / "out"))
    assert_whole(final, source)
    lines = assert_lines(final.with_suffix(".jsonl"), 30)
    sent = [orjson.loads(line) for line in lines_path.read_bytes().splitlines()]
    for values in (sent, receiver.values()):
        assert {value.pop("schema") for value in values} == {"sightline.video.v1"}
        assert len({value.pop("video") for value in values}) == 3
        assert sorted(values, key=lambda value: value["frame_id"]) == lines


def test_a_segment_waits_for_a_sink_that_is_away_and_loses_nothing(
    canned_triton: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.usual = answers(503)
    source = film(tmp_path / "film.mp4", 2)
    settings = {"TRITON_URL": canned_triton, "RESULT_SINKS": "webhook", "WEBHOOK_URL": receiver.url}
    arguments = ["submit", str(source), "--seconds", "0.3"]
    log = tmp_path / "log"
    with segments(arguments, settings, log, folder=tmp_path / "out") as child:
        until(lambda: len(receiver.requests) >= 3)
        assert child.poll() is None
        assert not [*(tmp_path / "out").rglob("final.mp4")]
        receiver.requests.clear()
        receiver.usual = answers(200)
        assert child.wait(60) == 0, log.read_text()
    assert sorted({value["frame_id"] for value in receiver.values()}) == [*range(20)]


def test_a_stop_while_a_sink_is_away_leaves_the_segment_to_the_next_start(
    canned_triton: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.usual = answers(503)
    source = film(tmp_path / "film.mp4", 1)
    settings = {"TRITON_URL": canned_triton, "RESULT_SINKS": "webhook", "WEBHOOK_URL": receiver.url}
    arguments = ["submit", str(source), "--seconds", "0.3"]
    with segments(arguments, settings, tmp_path / "log", folder=tmp_path / "out") as child:
        until(lambda: receiver.requests)
        child.terminate()
        assert child.wait(30) != 0
    receiver.requests.clear()
    receiver.usual = answers(200)
    final = Path(run(arguments, settings, tmp_path / "log", folder=tmp_path / "out"))
    assert_whole(final, source)
    assert sorted({value["frame_id"] for value in receiver.values()}) == [*range(10)]
