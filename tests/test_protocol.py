"""The wire without a socket: header, messages, schema, and the counts behind the report."""

from __future__ import annotations

import math
import operator
import re
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from app.client import decode
from app.errors import ProtocolError, SightlineError, UndecodableFrame
from app.limits import TokenBucket
from app.live.stats import FrameStats
from app.pipeline.stages.detect import Detection, DetectModel
from app.pipeline.stages.motion import CameraMotion, Motion
from app.pipeline.stages.pose import PoseModel
from app.protocol import header, messages
from app.protocol.result import Box, FrameResult, Image, Stage
from app.protocol.stages import STAGES

SCHEMA = messages.schema()


def valid(side: str, name: str, message: Any) -> None:
    Draft202012Validator({**SCHEMA[side][name], "$defs": SCHEMA["$defs"]}).validate(message)


# --- the header ---

TIMES = st.floats(0, allow_nan=False, allow_infinity=False)


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), TIMES)
def test_what_is_packed_is_unpacked(jpeg: bytes, seq: int, captured_at_ms: float) -> None:
    message = header.pack(jpeg, seq=seq, captured_at_ms=captured_at_ms)
    assert header.unpack(message) == (seq, captured_at_ms, jpeg)
    assert header.seq_of(message) == seq


@given(st.integers())
def test_the_number_wraps(seq: int) -> None:
    assert header.unpack(header.pack(b"", seq=seq, captured_at_ms=0)).seq == seq % 2**32


@given(st.builds(operator.add, st.sampled_from([b"", b"\xff\xd8", b"SLF1"]), st.binary(max_size=24)))
def test_any_bytes_are_a_frame_or_refused(message: bytes) -> None:
    if message.startswith(b"\xff\xd8"):
        assert header.unpack(message).jpeg == message
    elif message.startswith(header.MAGIC) and len(message) >= header.SIZE:
        with suppress(UndecodableFrame):  # its time may be none
            assert header.unpack(message).seq == int.from_bytes(message[4:8])
    else:
        with pytest.raises(UndecodableFrame):
            header.unpack(message)


def test_a_jpeg_passes_through_untouched() -> None:
    assert header.unpack(b"\xff\xd8rest") == (None, None, b"\xff\xd8rest")
    assert header.seq_of(b"\xff\xd8rest") is None


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, -0.5])
def test_a_time_must_be_one(time: float) -> None:
    with pytest.raises(UndecodableFrame, match="captured_at_ms"):
        header.unpack(header.pack(b"\xff\xd8", seq=1, captured_at_ms=time))


def test_the_layout_is_the_one_published() -> None:
    assert header.pack(b"\xff\xd8", seq=258, captured_at_ms=1.0).hex() == "534c4631000001023ff0000000000000ffd8"


# --- messages ---

SUMMARY = messages.Summary("digest", "A person", "One person stands.", ("standing",), ("EXIT",), (), 0.8, 1, 9, 1.7e12)
EXAMPLES: list[messages.ServerMessage] = [
    messages.Queued(1, 0, None),
    messages.Queued(2, 1, 3.5),
    messages.Ready(
        1,
        "s",
        messages.Models(
            {
                **{stage.name: None for stage in STAGES.values() if stage.model},
                "detect": DetectModel("yolov8n", ("person",)),
                "pose": PoseModel("p", ("nose",), ((0, 0),)),
            }
        ),
        messages.StreamSettings(classes=(0, 2)),
        messages.Limits(1, 2, 3.0, 4.0, 5.0, 6.0),
        2,
    ),
    messages.SettingsInForce(messages.StreamSettings()),
    messages.Result(
        "s",
        1,
        7,
        1.7e12,
        FrameResult(
            Image(640, 480),
            objects=[Detection(0, "person", 0.9, Box(1, 2, 3, 4), 5), Detection(1, "dog", 0.5, Box(0, 0, 1, 1))],
            motion=Motion(0.1, None, 0.0, CameraMotion(0.0, 0.0)),
            stages={name: Stage("ok") for name in STAGES if name != "face"},
            timings_ms={"total": 1.5},
        ),
        2.5,
        messages.Dropped(0, 3),
    ),
    SUMMARY,
    messages.Notice("inference_unavailable", "gone"),
    messages.Error("stale", "late", seq=3),
    messages.Error("invalid_value", "wrong", field="iou"),
    messages.Ping(1.7e12),
    messages.Bye("stopped", messages.Report(stages={"total": messages.StageTimes(1.0, 2.0)})),
    messages.Bye("stopped", messages.Report(summary=SUMMARY)),
    messages.Bye("rejected", messages.Report(), "full", 5.0),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda example: example.type)
def test_every_message_is_as_the_schema_says_and_is_read_back_as_it_was(message: messages.ServerMessage) -> None:
    wire = messages.encode(message)
    valid("server", message.type, orjson.loads(wire))
    assert decode(wire) == message


def test_every_kind_of_message_is_among_the_examples() -> None:
    assert {type(example) for example in EXAMPLES} == set(messages.SERVER_MESSAGES)


def test_a_message_of_a_newer_service_is_named() -> None:
    with pytest.raises(SightlineError, match="'hologram'"):
        decode('{"type":"hologram"}')


def test_fields_of_a_newer_service_are_passed_over() -> None:
    assert decode('{"type":"ping","t":1.0,"colour":"blue"}') == messages.Ping(1.0)


TEXT = st.text(st.sampled_from('aβ😀"\\0 \n'), max_size=8)
SCALAR = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 1000) | TEXT
JSON = SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(TEXT, SCALAR, max_size=3)
FIELDS = sorted({name for message in SCHEMA["client"].values() for name in message["properties"]} - {"type"})


@given(st.sampled_from(sorted(SCHEMA["client"])), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_whatever_an_object_holds_it_is_parsed_or_refused_by_field(kind: str, fields: dict[str, Any]) -> None:
    try:
        message = messages.parse(orjson.dumps({"type": kind, **fields}))
    except ProtocolError as error:
        named = (error.field or "").split(".")[0]
    else:
        named = None
        valid("client", kind, {"type": message.type, **fields})
    assert named is None or named in fields


@given(TEXT | st.binary())
def test_text_that_is_no_message_is_refused(text: str | bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.parse(text)


def test_every_reason_to_part_has_a_close_code() -> None:
    reasons = SCHEMA["server"]["bye"]["properties"]["reason"]["enum"]
    assert set(reasons) == set(messages.CLOSE_CODES)
    assert all(code in (1000, 1001, 1013) or 4000 <= code < 5000 for code in messages.CLOSE_CODES.values())


# --- the counts of a session ---

STEPS = st.sampled_from(["received", "processed", "failed", "superseded", "stale", "tell"])


@given(st.lists(STEPS, max_size=60))
def test_received_is_processed_and_dropped_and_failed_and_in_flight(steps: list[str]) -> None:
    stats = FrameStats()
    told = 0
    for step in steps:
        if step == "received":
            stats.received(10)
        elif step == "tell":
            dropped = stats.report_dropped()
            told += dropped.since_last
            assert dropped.total == told
        elif stats.in_flight:
            if step == "processed":
                stats.processed(0.01, {"total": 1.0})
            elif step == "failed":
                stats.failed("pipeline")
            else:
                stats.dropped(step)
        report = stats.report()
        accounted = report.processed + report.failed + sum(report.dropped.values()) + stats.in_flight
        assert report.received == accounted
    stats.settle("disconnected")
    report = stats.report()
    assert stats.in_flight == 0
    assert report.received == report.processed + report.failed + sum(report.dropped.values())
    assert report.bytes == 10 * report.received


def test_the_reports_times_are_the_nearest_rank() -> None:
    stats = FrameStats()
    for number in range(100, 0, -1):
        stats.received(1)
        stats.processed(0.0, {"total": float(number)})
    assert stats.report().stages == {"total": messages.StageTimes(50.0, 95.0)}


def test_one_sample_is_both_times() -> None:
    stats = FrameStats()
    stats.received(1)
    stats.processed(0.0, {"decode": 4.0})
    assert stats.report().stages == {"decode": messages.StageTimes(4.0, 4.0)}


# --- the rate ---


def test_two_seconds_worth_at_once_then_no_faster_than_allowed() -> None:
    now = 100.0
    bucket = TokenBucket(5.0, 10.0, lambda: now)
    assert [bucket.take() for _ in range(12)] == [True] * 10 + [False] * 2
    assert bucket.wait_s == pytest.approx(0.2)
    now += 0.21
    assert [bucket.take(), bucket.take()] == [True, False]
    now += 1000
    assert sum(bucket.take() for _ in range(100)) == 10


def test_less_than_one_in_two_seconds_is_still_one() -> None:
    bucket = TokenBucket(0.01, 0.02)
    assert [bucket.take(), bucket.take()] == [True, False]


# --- stages: those that a client names, and those that only the other side knows ---


@pytest.mark.parametrize(
    ("stages", "field"),
    [
        (5, "stages"),
        ("pose", "stages"),
        ([], "stages"),
        (True, "stages"),
        ({"pose": "yes"}, "stages.pose"),
        ({"pose": 1}, "stages.pose"),
        ({"summary": 0}, "stages.summary"),
        ({"detect": False, "pose": {}}, "stages.pose"),
        (None, None),
        ({}, None),
        ({"pose": None}, None),
        ({"unheard_of": 5, "pose": False}, None),
    ],
)
@pytest.mark.parametrize("kind", ["init", "update"])
def test_a_patch_of_stages_is_taken_or_refused_as_the_schema_says(kind: str, stages: Any, field: str | None) -> None:
    message = {"type": kind, "stages": stages}
    if field is None:
        valid("client", kind, message)
        parsed = messages.parse(orjson.dumps(message))
        assert isinstance(parsed, messages.Init | messages.Update)
        assert parsed.stages in (None, {}, {"pose": False})
        return
    with pytest.raises(ValidationError):
        valid("client", kind, message)
    with pytest.raises(ProtocolError) as refused:
        messages.parse(orjson.dumps(message))
    assert (refused.value.code, refused.value.field) == ("invalid_value", field)


def later_ready(**changes: Any) -> bytes:
    """`ready` of a service with a stage, a shape and fields that this version does not know."""
    depth = {
        "name": "depth",
        "title": "Depth",
        "description": "How far away.",
        "field": "depths",
        "shapes": [{"kind": "heat", "at": "map"}, {"kind": "box", "at": "box", "soft": True}],
        "figures": [{"place": "margin", "text": "far"}],
        "late": False,
        "since": 2,
    }
    limits = dict.fromkeys(messages.Limits.__dataclass_fields__, 1)
    settings = {"stages": {"depth": True, "detect": False}}
    message = {"type": "ready", "protocol": 1, "session_id": "a", "models": {"depth": {"name": "deep"}}, "credits": 3}
    return orjson.dumps({**message, "settings": settings, "limits": limits, "stages": [depth], "hints": [], **changes})


def test_a_client_takes_what_a_later_service_says_of_its_stages() -> None:
    ready = decode(later_ready())
    assert isinstance(ready, messages.Ready)
    assert (ready.models["depth"], ready.models.detect) == ({"name": "deep"}, None)
    assert (ready.settings.stages["depth"], ready.settings.stages.detect) == (True, False)
    (described,) = ready.stages
    assert ([shape.kind for shape in described.shapes], described.figures) == (["box"], ())


@pytest.mark.parametrize("changes", [{"models": None}, {"models": [1]}, {"settings": {"stages": None}}])
def test_a_client_refuses_what_is_no_ready(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        decode(later_ready(**changes))


def test_the_schema_lacks_no_definition_and_has_none_too_many() -> None:
    used = set(re.findall(r'"#/\$defs/([^"]+)"', orjson.dumps(SCHEMA).decode()))
    assert used == SCHEMA["$defs"].keys()
