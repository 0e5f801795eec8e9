"""Which of a model's answers are accepted as summaries."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.summary.answer import ITEM_CHARS, ITEMS, SCENE_CHARS, TITLE_CHARS, InvalidAnswer, clean, parse_answer
from tests.support.openai import ANSWER


def answered(parsed, **told):
    """A message of LangChain's with this value as JSON; None: no text."""
    text = "" if parsed is None else json.dumps(parsed)
    return SimpleNamespace(content=text, tool_calls=[], response_metadata=told, additional_kwargs={})


def test_one_that_fits():
    words = parse_answer(answered(ANSWER))
    assert words.title == "Two people at a gate"
    assert words.activities == ("two people stand at the gate", "one person leaves")
    assert (words.concerns, words.confidence) == ((), 0.8)


def test_what_is_too_long_is_cut():
    long = {"title": "x" * 999, "scene": "word " * 999, "activities": ["y" * 999] * 99}
    words = parse_answer(answered({**ANSWER, **long}))
    assert len(words.title) == TITLE_CHARS
    assert len(words.scene) <= SCENE_CHARS
    assert words.scene.endswith("word…")
    assert [len(activity) for activity in words.activities] == [ITEM_CHARS] * ITEMS


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"title": 3}, "title: Input should be a valid string"),
        ({"title": " \n"}, "title: Value error, must not be empty"),
        ({"confidence": 85}, "confidence: Value error, must be between 0 and 1"),
        ({"confidence": float("nan")}, "confidence: Value error, must be between 0 and 1"),
        ({"activities": "walking"}, "activities: Input should be a valid list"),
        ({"mood": "sunny"}, "another field: Extra inputs are not permitted"),
    ],
)
def test_one_of_another_form_says_what_is_wrong_without_quoting_it(changes, problem):
    with pytest.raises(InvalidAnswer) as caught:
        parse_answer(answered({**ANSWER, **changes}))
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("parsed", "told", "problem", "refused"),
    [
        (None, {}, "no JSON object", False),
        ([1], {}, "no JSON object", False),
        (None, {"finish_reason": "length"}, "LLM_MAX_OUTPUT_TOKENS", False),
        (None, {"stop_reason": "max_tokens"}, "LLM_MAX_OUTPUT_TOKENS", False),
        (None, {"refusal": "no"}, "refused", True),
        (ANSWER, {"finish_reason": "content_filter"}, "refused", True),
        (None, {"stop_reason": "refusal"}, "refused", True),
    ],
)
def test_none_at_all(parsed, told, problem, refused):
    with pytest.raises(InvalidAnswer, match=problem) as caught:
        parse_answer(answered(parsed, **told))
    assert caught.value.refused is refused


@given(st.text(), st.integers(1, 50))
def test_a_clean_text_is_one_short_line_that_can_be_written(text, most):
    line = clean(text, most)
    assert len(line) <= most
    assert line.encode().decode() == " ".join(line.split())


def test_half_a_surrogate_pair_and_control_characters_are_taken_out():
    assert clean("a\ud800b\x1b[31m\u202ec", 99) == "a?b [31m c"
