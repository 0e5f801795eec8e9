"""The sink `kafka` for live sessions and recorded video, with a real broker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve
from tests.fleet.work import eventually, topic_values
from tests.segments.films import assert_lines, film, run
from tests.sinks.sending import message, opened, until
from tests.support.kafka import Broker, running_kafka
from tests.support.live import ready


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def settings(kafka: Broker) -> dict[str, Any]:
    topic = f"sinks-{uuid.uuid4().hex[:12]}"
    return {"RESULT_SINKS": "kafka", "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap, "KAFKA_TOPIC": topic}


def values(settings: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The values of the topic, once it has so many."""

    def all_values() -> list[dict[str, Any]]:
        return topic_values(settings["KAFKA_BOOTSTRAP_SERVERS"], settings["KAFKA_TOPIC"])

    found: list[dict[str, Any]] = eventually(all_values, lambda present: len(present) >= count)
    return found


def test_messages_keep_their_order_and_their_stream_is_the_key(settings: dict[str, Any]) -> None:
    lower = {name.lower(): value for name, value in settings.items()}
    with opened(**lower) as (_, sender):
        sender.send(*(message(number, stream) for number in range(500) for stream in ("gate", "yard")))
        sender.wait(1000)
    found = values(settings, 1000)
    for stream in ("gate", "yard"):
        assert [value["n"] for value in found if value["key"] == stream] == [*range(500)]


@pytest.mark.anyio
async def test_results_of_a_session_arrive_under_its_id(serve: Serve, settings: dict[str, Any], jpeg: bytes) -> None:
    service = serve(**settings)
    async with ready(service, mode="lossless") as live:
        for seq in range(1, 6):
            await live.frame(jpeg, seq)
            result = await live.answer()
        await live.stop()
    found = values(settings, 5)
    assert [value["seq"] for value in found] == [1, 2, 3, 4, 5]
    assert {value["key"] for value in found} == {result["session_id"]}
    assert found[-1]["objects"] == result["objects"]
    assert found[-1]["schema"] == "sightline.live.v1"


def test_results_of_a_video_arrive_under_its_segments(
    canned_triton: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    source = film(tmp_path / "film.mp4", 2)
    arguments = ["submit", str(source), "--seconds", "0.3"]
    variables = {"TRITON_URL": canned_triton, **settings}
    final = Path(run(arguments, variables, tmp_path / "log", folder=tmp_path / "out"))
    lines = assert_lines(final.with_suffix(".jsonl"), 20)
    found = values(settings, 20)
    assert len({value["key"] for value in found}) == 2
    assert all(value.pop("key") == value.pop("video") for value in found)
    assert {value.pop("schema") for value in found} == {"sightline.video.v1"}
    assert sorted(found, key=lambda value: value["frame_id"]) == lines


def test_a_broker_that_is_not_there_is_said() -> None:
    given = {"result_sinks": "kafka", "kafka_bootstrap_servers": "127.0.0.1:1"}
    with opened(**given, close_s=0.1) as (sinks, sender):
        sender.send(message(1))
        until(lambda: "kafka" in sinks.errors())
    assert sender.of("kafka") == ["left"]
