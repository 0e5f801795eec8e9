"""The operator's prompts."""

import pytest

from app.errors import ConfigurationError, ProtocolError
from app.settings import SummarySettings
from app.summary.prompt import read_prompts as read


def folder(tmp_path, **texts):
    for name, text in texts.items():
        (tmp_path / f"{name}.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    return SummarySettings(summary_prompts=tmp_path)


def test_those_that_come_with_the_service_are_chosen_by_name():
    prompts = read(SummarySettings())
    assert prompts.names == ("default", "retail", "security")
    assert prompts.chosen(None) == "default"
    assert "security desk" in prompts.text(prompts.chosen("security"))


def test_an_unknown_name_is_answered_with_those_known():
    with pytest.raises(ProtocolError, match=r"no prompt is named 'poem'; known: default, retail, security") as caught:
        read(SummarySettings()).chosen("poem")
    assert (caught.value.code, caught.value.field) == ("invalid_value", "summary.prompt")


def test_an_operators_folder_takes_their_place(tmp_path):
    prompts = read(folder(tmp_path, default="Count the cars.", dock="Name the ships."))
    assert prompts.names == ("default", "dock")
    assert prompts.text("dock") == "Name the ships."


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "it has no NAME.md"),
        ({"dock": "x"}, r"SUMMARY_PROMPT='default': should be one of dock"),
        ({"default": " \n"}, r"default\.md is empty"),
        ({"default": b"\xff\xfe"}, "should be UTF-8"),
        ({"default": "x" * 20_000}, "20000 bytes; at most 16384"),
        ({"default": "x", "two words": "x"}, "should be named by letters"),
    ],
)
def test_a_folder_that_cannot_be_used_stops_the_start(tmp_path, texts, said):
    with pytest.raises(ConfigurationError, match=said):
        read(folder(tmp_path, **texts))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"SUMMARY_PROMPTS='.*/away': should be a folder"):
        read(SummarySettings(summary_prompts=tmp_path / "away"))
