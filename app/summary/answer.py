"""The form of a summary, and whether what the model answered has it. Pure."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.errors import SightlineError

TITLE_CHARS = 120
SCENE_CHARS = 1200
ITEM_CHARS = 200
ITEMS = 12
_OBJECTS_TRIED = 64
"""Braces in a text at which JSON is looked for."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a summary says; the same fields as the wire's `summary`."""

    title: str
    scene: str
    activities: tuple[str, ...]
    visible_text: tuple[str, ...]
    concerns: tuple[str, ...]
    confidence: float


class NotFitting(SightlineError):
    """An answer that is no summary. The message says what is wrong with it, without quoting it."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


def clean(text: str, most: int) -> str:
    """One line of at most `most` characters, without control characters or halves of surrogate pairs."""
    whole = text.encode("utf-8", "replace").decode()
    line = " ".join("".join(" " if unicodedata.category(one) in ("Cc", "Cf") else one for one in whole).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _items(values: Sequence[str]) -> list[str]:
    cleaned = (clean(one, ITEM_CHARS) for one in values)
    return [one for one in cleaned if one][:ITEMS]


def _line(most: int) -> AfterValidator:
    def checked(text: str) -> str:
        line = clean(text, most)
        if not line:
            raise ValueError("must not be empty")
        return line

    return AfterValidator(checked)


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("must be between 0 and 1")
    return value


# Bounds stand in the descriptions and are kept by us: many servers refuse a schema that has `maxLength` or `maximum`.
Items = Annotated[list[str], AfterValidator(_items)]


class Answer(BaseModel):
    """The summary of what a camera showed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Annotated[str, _line(TITLE_CHARS)] = Field(description=f"a headline, at most {TITLE_CHARS} characters")
    scene: Annotated[str, _line(SCENE_CHARS)] = Field(
        description=f"two to five plain sentences, at most {SCENE_CHARS} characters"
    )
    activities: Items = Field(description=f"what was done, one short phrase each, at most {ITEMS}")
    visible_text: Items = Field(description=f"text that was read in the picture, as it was read, at most {ITEMS}")
    concerns: Items = Field(description=f"what the operator should be told of, at most {ITEMS}; often none")
    confidence: Annotated[float, AfterValidator(_share)] = Field(
        description="how far the observations bear this out, 0 to 1"
    )


def words_of(answer: Any) -> Words:
    """The words of an answer, an AIMessage of LangChain's: those of its first tool call, else of its text.

    In the text a JSON object is looked for: many servers put it behind thoughts or into a fence of Markdown. Too long a
    text is cut; everything else must fit.

    Raises:
        NotFitting: refused, cut off, no JSON, fields missing, too many or of another type.
    """
    told = {**getattr(answer, "response_metadata", {}), **getattr(answer, "additional_kwargs", {})}
    if told.get("refusal") or told.get("stop_reason") == "refusal" or told.get("finish_reason") == "content_filter":
        raise NotFitting("it refused", refused=True)
    calls = getattr(answer, "tool_calls", None)
    parsed = calls[0].get("args") if calls else _object_in(_text_of(answer))
    if not isinstance(parsed, dict):
        if "length" in (told.get("finish_reason"), told.get("done_reason")) or told.get("stop_reason") == "max_tokens":
            raise NotFitting("it was cut off by LLM_MAX_OUTPUT_TOKENS")
        raise NotFitting("it is no JSON object of the form asked for")
    try:
        fields = Answer.model_validate(parsed)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)[:3]
        raise NotFitting("; ".join(f"{_place(one['loc'])}: {one['msg']}" for one in problems)) from None
    return Words(
        fields.title,
        fields.scene,
        tuple(fields.activities),
        tuple(fields.visible_text),
        tuple(fields.concerns),
        fields.confidence,
    )


def _text_of(answer: Any) -> str:
    """The text of a message; its content is a string, or a list of blocks."""
    content = getattr(answer, "content", "")
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(block if isinstance(block, str) else str(block.get("text", "")) for block in blocks)


def _object_in(text: str) -> dict[str, Any] | None:
    """The JSON object that has the fields of a summary, else the first one; None without any."""
    decoder = json.JSONDecoder()
    found: dict[str, Any] | None = None
    at = text.find("{")
    for _ in range(_OBJECTS_TRIED):
        if at < 0:
            break
        end = at + 1
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            if value.keys() >= Answer.model_fields.keys():
                return value
            found = found or value
        at = text.find("{", end)
    return found


def form() -> str:
    """The form of an answer in words, for a model that is not sent the schema by other means."""
    return (
        "Answer with one JSON object and nothing else: no other text, no fence. It has exactly the fields of this JSON "
        f"schema:\n{json.dumps(Answer.model_json_schema())}"
    )


def _place(loc: tuple[int | str, ...]) -> str:
    """Where a problem is. Names that the model made up are not told it again: a sign may have put them there."""
    return ".".join(map(str, loc)) if loc and loc[0] in Answer.model_fields else "another field"


def ask_again(problem: str) -> str:
    """What to say to an answer that did not fit."""
    return (
        f"Your last answer could not be used: {clean(problem, 300)}. Summarise the observations above again. "
        "Answer with one JSON object that has exactly the fields asked for, and nothing else."
    )
