"""Text messages that are wrong: each gets an error that names what is wrong, and the session goes on."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from websockets.exceptions import ConnectionClosed

from app.protocol import messages
from tests.conftest import Serve
from tests.support.live import Live, Message, opened, ready
from tests.support.service import Service

pytestmark = pytest.mark.anyio
SCHEMA = messages.schema()
CANDIDATES: list[Any] = [True, False, -1, 0, 2, 0.5, 1.5, 1e300, "", "x", "true", "0.5", [], [1], {}, {"detect": 1}]
CANDIDATES += ["y" * 5000, [[]], [True], [None], [{}], [0.5], ["a"] * 1001, {"prompt": 5}, {"prompt": ""}]


@pytest.fixture(scope="module")
def unhurried(serve: Serve) -> Service:
    """One that takes as many messages as these tests have."""
    return serve(MAX_MESSAGES_PER_S="5000")


def wrong_values() -> list[tuple[str, str, Any]]:
    """Every field of every message with each value that the published schema does not allow."""
    found = []
    for kind, schema in SCHEMA["client"].items():
        for field, definition in schema["properties"].items():
            if field == "type":
                continue
            allowed = Draft202012Validator({**definition, "$defs": SCHEMA["$defs"]})
            found += [(kind, field, value) for value in CANDIDATES if not allowed.is_valid(value)]
    return found


async def refusal(live: Live, text: str | bytes) -> Message:
    """The error that a text is answered with; the session must then still obey."""
    await live.text(text)
    error = await live.until("error")
    assert (error["fatal"], error["seq"]) == (False, None)
    await live.say("update", confidence=0.5)
    assert (await live.receive())["type"] == "settings"
    return error


@pytest.mark.parametrize(
    "text", ["", "{", "nonsense", "{'type': 'stop'}", '{"type":"stop"} x', "NaN", '"\\ud800"', "\0"]
)
async def test_what_is_no_json_is_said_to_be_none(unhurried: Service, text: str) -> None:
    async with ready(unhurried) as live:
        assert (await refusal(live, text))["code"] == "not_json"


@pytest.mark.parametrize(
    ("text", "kind"), [("[]", "array"), ("3", "number"), ('"stop"', "string"), ("null", "null"), ("true", "boolean")]
)
async def test_json_that_is_no_object_is_named(unhurried: Service, text: str, kind: str) -> None:
    async with ready(unhurried) as live:
        error = await refusal(live, text)
    assert error["code"] == "not_an_object"
    assert kind in error["message"]


@pytest.mark.parametrize("kind", ["", "Stop", "result", "x" * 100_000, None, 5, True, ["stop"], {"a": 1}], ids=str)
async def test_an_unknown_type_is_answered_with_those_known(unhurried: Service, kind: object) -> None:
    async with ready(unhurried) as live:
        error = await refusal(live, orjson.dumps({"type": kind}).decode())
    assert (error["code"], error["field"]) == ("unknown_type", "type")
    assert len(error["message"]) <= 300
    if len(str(kind)) < 100:
        assert "init, update, pause, resume, stop, pong" in error["message"]


async def test_an_object_without_a_type_and_one_nested_too_deep(unhurried: Service) -> None:
    async with ready(unhurried) as live:
        assert (await refusal(live, "{}"))["code"] == "unknown_type"
        assert (await refusal(live, '{"type":' + "[" * 50_000))["code"] == "not_json"


async def test_a_wrong_value_in_any_field_is_named_by_its_path(unhurried: Service) -> None:
    wrong = wrong_values()
    assert len(wrong) > 150
    async with opened(unhurried) as before, ready(unhurried) as within:
        for kind, field, value in wrong:
            live = before if kind == "init" else within
            await live.say(kind, **{field: value})
            error = await live.until("error", "settings", "ready")
            assert error.get("code") == "invalid_value", (kind, field, value, error)
            assert error["field"].split(".")[0] == field, (kind, field, value, error)
            assert error["message"].startswith(error["field"] + ":")
            assert len(error["message"]) < 300
        await before.say("init")
        assert (await before.until("ready"))["settings"] == within.welcome["settings"]
        await within.say("update")
        assert (await within.until("settings"))["settings"] == within.welcome["settings"]


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"stages": {"pose": "yes"}}, "stages.pose"),
        ({"classes": ["dog", True]}, "classes.1"),
        ({"classes": [0.5]}, "classes.0"),
        ({"summary": {}}, "summary.prompt"),
    ],
)
async def test_the_path_leads_to_the_value_itself(unhurried: Service, patch: dict[str, Any], field: str) -> None:
    async with ready(unhurried) as live:
        error = await refusal(live, orjson.dumps({"type": "update", **patch}).decode())
    assert (error["code"], error["field"]) == ("invalid_value", field)


async def test_fields_of_a_newer_client_are_ignored(unhurried: Service) -> None:
    async with ready(unhurried, colour="blue", stages={"smell": True}) as live:
        await live.say("update", mode="lossless", hat=3)
        assert (await live.until("settings"))["settings"]["mode"] == "realtime"


async def test_another_version_of_the_protocol_is_refused(unhurried: Service) -> None:
    async with opened(unhurried) as live:
        await live.say("init", protocol=2)
        error = await live.until("error")
        assert (error["code"], error["field"]) == ("invalid_value", "protocol")
        await live.say("init", protocol=1)
        assert (await live.receive())["type"] == "ready"


async def test_init_comes_once(unhurried: Service) -> None:
    async with ready(unhurried) as live:
        error = await refusal(live, '{"type":"init"}')
    assert (error["code"], error["field"]) == ("already_started", "type")


async def test_update_before_init_is_refused_and_pause_resume_and_pong_do_no_harm(unhurried: Service) -> None:
    async with opened(unhurried) as live:
        await live.say("update", confidence=0.9)
        error = await live.until("error")
        assert (error["code"], error["field"]) == ("not_started", "type")
        for kind in ("pause", "resume", "pong"):
            await live.say(kind)
        await live.say("init")
        assert (await live.receive())["settings"]["confidence"] == 0.35


async def test_text_that_is_no_utf8_ends_the_connection(unhurried: Service) -> None:
    async with ready(unhurried) as live:
        await live.text(b'{"type":"stop\xff"}')
        with pytest.raises(ConnectionClosed) as closed:
            await live.until("bye")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007
    async with ready(unhurried):
        pass


async def test_a_flood_of_texts_is_read_no_faster_than_allowed(serve: Serve) -> None:
    strict = serve(MAX_MESSAGES_PER_S="20")
    async with ready(strict) as live:
        for _ in range(60):
            await live.say("update", confidence=0.5)
        answers = [await live.receive() for _ in range(60)]
        bye = await live.stop()
    assert {answer["type"] for answer in answers} == {"settings"}
    assert bye["report"]["duration_s"] >= (60 - 40) / 20
