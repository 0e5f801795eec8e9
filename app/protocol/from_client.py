"""Messages from client to service: strict pydantic models (a string is not a number) that ignore unknown fields."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from app.errors import MAX_VALUE, ProtocolError, quoted, shortened
from app.protocol.stages import STAGES
from app.protocol.stream import SUMMARY, Mode


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class StagesPatch(dict[str, bool]):
    """Stages to switch on or off; one that is omitted, or null, stays as it is."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        # The stages are known once the service has loaded them, which is after this module.
        return core_schema.no_info_plain_validator_function(
            lambda value: cls(_switches(tuple(_names())).model_validate(value).model_dump(exclude_none=True))
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _switches(tuple(_names())).model_json_schema()


def _names() -> Iterable[str]:
    yield from (name for name, stage in STAGES.items() if stage.live)
    yield SUMMARY


@cache
def _switches(names: tuple[str, ...]) -> type[BaseModel]:
    fields: dict[str, Any] = dict.fromkeys(names, (bool | None, None))
    made: type[BaseModel] = create_model("StagesPatch", __base__=_Message, __doc__=StagesPatch.__doc__, **fields)
    return made


class SummaryChoice(_Message):
    """The prompt that summaries follow."""

    prompt: str = Field(min_length=1, max_length=64, description="name of one of the operator's prompts")


def _name_or_id(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("want a class's name or id")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):  # a bool is an int in Python
        raise ValueError("want a number")
    return value


ClassChoice = Annotated[int | str, BeforeValidator(_name_or_id)]


class Patch(_Message):
    """The settings that both `init` and `update` may change."""

    stages: StagesPatch | None = Field(None, description="which stages run, by name, and `summary`")
    confidence: float | None = Field(None, ge=0, le=1, description="least score of a detection")
    iou: float | None = Field(None, ge=0, le=1, description="NMS threshold")
    classes: Annotated[list[ClassChoice] | None, Field(max_length=1000)] = Field(
        None, description="class names or ids to keep; an empty list keeps all"
    )
    motion_grid: bool | None = Field(None, description="send the flow as a grid of vectors")
    mask_rle: bool | None = Field(None, description="send masks as COCO's run lengths, too")
    max_age_ms: float | None = Field(
        None, gt=0, le=600_000, description="a realtime frame that waited longer is dropped"
    )
    summary: SummaryChoice | None = Field(None, description="`{prompt: NAME}`")


class Init(Patch):
    """The first message, optional. The service answers with `ready`, or with `queued` and then `ready`."""

    type: Literal["init"]
    protocol: Annotated[Literal[1], BeforeValidator(_number)] = Field(1, description="protocol version")
    token: str | None = Field(None, max_length=4096, description="one of AUTH_TOKENS, if the service requires one")
    mode: Mode | None = Field(None, description="`realtime` (the newest frame wins) or `lossless` (every frame)")


class Update(Patch):
    """Changes settings from the next frame on; the service answers with `settings`."""

    type: Literal["update"]


class Pause(_Message):
    """Stops the idle timeout; the session keeps its slot until its pauses have lasted `max_pause_s` in all."""

    type: Literal["pause"]


class Resume(_Message):
    """Ends a pause; the idle timeout continues from where it stopped, and only a frame restarts it."""

    type: Literal["resume"]


class Stop(_Message):
    """Asks the service to answer the frames in flight and then to send `bye`."""

    type: Literal["stop"]


class Pong(_Message):
    """The answer to `ping`."""

    type: Literal["pong"]
    t: float | None = Field(None, description="`t` of the ping")


CLIENT_MESSAGES: tuple[type[_Message], ...] = (Init, Update, Pause, Resume, Stop, Pong)
ClientMessage = Init | Update | Pause | Resume | Stop | Pong
_BY_TYPE: dict[str, type[Any]] = {model.model_fields["type"].annotation.__args__[0]: model for model in CLIENT_MESSAGES}  # type: ignore[union-attr]


def parse(text: str | bytes) -> ClientMessage:
    """Parses one control message.

    Raises:
        ProtocolError: it is not a JSON object, an unknown `type`, or a wrong value (with the field's dotted name).
    """
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"not JSON: {error}", code="not_json") from None
    if not isinstance(data, dict):
        raise ProtocolError(f"want a JSON object with a `type`, got {_kind(data)}", code="not_an_object")
    name = data.get("type")
    model = _BY_TYPE.get(name) if isinstance(name, str) else None
    if model is None:
        raise ProtocolError(
            f"unknown type {quoted(name)}; known: {', '.join(_BY_TYPE)}", code="unknown_type", field="type"
        )
    try:
        message: ClientMessage = model.model_validate(data)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = shortened(".".join(map(str, detail["loc"])), MAX_VALUE)
        message_ = detail["msg"].removeprefix("Value error, ")
        raise ProtocolError(f"{path}: {shortened(message_)}", code="invalid_value", field=path) from None
    return message


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
