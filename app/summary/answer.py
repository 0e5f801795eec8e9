"""The form of a summary, and the check of a model's answer against it. Does no I/O."""

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
"""Most opening braces of a text at which a JSON object is tried."""


@dataclass(frozen=True, slots=True)
class SummaryContent:
    """The content of a summary: the fields that it shares with the protocol's `summary` message."""

    title: str
    scene: str
    activities: tuple[str, ...]
    visible_text: tuple[str, ...]
    concerns: tuple[str, ...]
    confidence: float


class InvalidAnswer(SightlineError):
    """An answer that is not a summary. The message says what is wrong with it, without quoting it."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """Whether the model refused to answer."""


def clean(text: str, most: int) -> str:
    """The text as one line of at most `most` characters, without control characters and lone surrogates."""
    whole = text.encode("utf-8", "replace").decode()
    line = " ".join("".join(" " if unicodedata.category(char) in ("Cc", "Cf") else char for char in whole).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _items(values: Sequence[str]) -> list[str]:
    cleaned = (clean(value, ITEM_CHARS) for value in values)
    return [item for item in cleaned if item][:ITEMS]


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


# The descriptions state the bounds and the validators keep them, because many servers reject `maxLength` or `maximum`.
_Items = Annotated[list[str], AfterValidator(_items)]


class SummaryAnswer(BaseModel):
    """The summary of what a camera showed."""

    # The docstring, the title and the descriptions are sent to the model as its schema.
    model_config = ConfigDict(extra="forbid", strict=True, title="Answer")

    title: Annotated[str, _line(TITLE_CHARS)] = Field(description=f"a headline, at most {TITLE_CHARS} characters")
    scene: Annotated[str, _line(SCENE_CHARS)] = Field(
        description=f"two to five plain sentences, at most {SCENE_CHARS} characters"
    )
    activities: _Items = Field(description=f"what was done, one short phrase each, at most {ITEMS}")
    visible_text: _Items = Field(description=f"text that was read in the image, as it was read, at most {ITEMS}")
    concerns: _Items = Field(description=f"what the operator should know of, at most {ITEMS}; often none")
    confidence: Annotated[float, AfterValidator(_share)] = Field(
        description="how far the observations bear this out, 0 to 1"
    )


def parse_answer(answer: Any) -> SummaryContent:
    """The content of an answer, an AIMessage of LangChain: of its first tool call, else of its text.

    The JSON object may stand anywhere in the text, because many servers put it behind reasoning or into a Markdown
    fence. Texts that are too long are cut; everything else must match the schema.

    Raises:
        InvalidAnswer: refused, cut off, without JSON, or with fields missing, unknown or of another type.
    """
    reported = {**getattr(answer, "response_metadata", {}), **getattr(answer, "additional_kwargs", {})}
    if (
        reported.get("refusal")
        or reported.get("stop_reason") == "refusal"
        or reported.get("finish_reason") == "content_filter"
    ):
        raise InvalidAnswer("it refused", refused=True)
    calls = getattr(answer, "tool_calls", None)
    parsed = calls[0].get("args") if calls else _object_in(_text_of(answer))
    if not isinstance(parsed, dict):
        if (
            "length" in (reported.get("finish_reason"), reported.get("done_reason"))
            or reported.get("stop_reason") == "max_tokens"
        ):
            raise InvalidAnswer("it was cut off by LLM_MAX_OUTPUT_TOKENS")
        raise InvalidAnswer("it is no JSON object of the form asked for")
    try:
        fields = SummaryAnswer.model_validate(parsed)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)[:3]
        raise InvalidAnswer("; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in problems)) from None
    return SummaryContent(
        fields.title,
        fields.scene,
        tuple(fields.activities),
        tuple(fields.visible_text),
        tuple(fields.concerns),
        fields.confidence,
    )


def _text_of(answer: Any) -> str:
    """The text of a message, whose content is a string or a list of blocks."""
    content = getattr(answer, "content", "")
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(block if isinstance(block, str) else str(block.get("text", "")) for block in blocks)


def _object_in(text: str) -> dict[str, Any] | None:
    """The JSON object that has the fields of a summary; else the first JSON object; None without any."""
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
            if value.keys() >= SummaryAnswer.model_fields.keys():
                return value
            found = found or value
        at = text.find("{", end)
    return found


def schema_prompt() -> str:
    """The schema in words, for a model that does not get it as a part of the request."""
    return (
        "Answer with one JSON object and nothing else: no other text, no fence. It has exactly the fields of this JSON "
        f"schema:\n{json.dumps(SummaryAnswer.model_json_schema())}"
    )


def _place(loc: tuple[int | str, ...]) -> str:
    """The field of a problem. Unknown names are not repeated to the model, because a sign may have put them there."""
    return ".".join(map(str, loc)) if loc and loc[0] in SummaryAnswer.model_fields else "another field"


def correction(problem: str) -> str:
    """The message that asks for another answer after an invalid one."""
    return (
        f"Your last answer could not be used: {clean(problem, 300)}. Summarize the observations above again. "
        "Answer with one JSON object that has exactly the fields asked for, and nothing else."
    )
