"""The result of one frame: every entry point returns the same `FrameResult`.

All coordinates are pixels of the frame as sent: x right, y down, clipped to the frame. By
default an EXIF orientation is applied to single images, not to frames of a stream (EXIF_ORIENTATION); `image` has the
size that the coordinates refer to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, dataclass_transform

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from app.protocol.stages import PARTS

T = TypeVar("T")

Status = Literal["ok", "stale", "skipped", "error", "disabled"]


@dataclass_transform(frozen_default=True)
def many(kind: type[T]) -> type[T]:
    """A dataclass that is frozen for mypy only. At run time that would triple the time to make one, of dozens a frame.

    It has no slots, because orjson serializes an object with a `__dict__` in a quarter of the time.
    """
    return dataclass(kind)


@many
class Box:
    """A box from its top left to its bottom right corner, pixels."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Stage:
    """Outcome of one stage on this frame, so that "no text was found" differs from "OCR did not run"."""

    status: Status
    reason: str | None = None
    age_ms: float | None = None
    """For `stale`: age of the attached result, milliseconds."""


OK = Stage("ok")
OFF = Stage("disabled", "off")
"""The stage was not requested."""


@dataclass(frozen=True)
class Image:
    """Size of the frame that coordinates refer to, pixels."""

    width: int
    height: int


class _Fields:
    """The fields of a `FrameResult`, as those of a dataclass: `dataclasses.asdict` and orjson take it for one."""

    def __get__(self, result: object, kind: type) -> dict[str, Field[Any]]:
        fields: dict[str, Field[Any]] = _as_dataclass().__dataclass_fields__
        return fields


class FrameResult:
    """All results of one frame: `image`, then the part of each stage (`PARTS`), then `stages` and `timings_ms`.

    Parts are attributes. A part that is not given is empty, as where its stage did not run: a list without entries, or
    None.

    Args:
        stages: the outcome of each stage, by name: always all that the entry point may run.
        timings_ms: monotonic durations: queue, decode, prepare, gate, infer, parse, total, and those of stages that
            measure themselves; only of those that ran.
        parts: by field. A field that no stage of this process fills is kept as it is.
    """

    image: Image
    stages: dict[str, Stage]
    timings_ms: dict[str, float]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]] = _Fields()  # type: ignore[assignment]

    def __init__(
        self,
        image: Image,
        stages: dict[str, Stage] | None = None,
        timings_ms: dict[str, float] | None = None,
        **parts: Any,
    ) -> None:
        values = self.__dict__
        values["image"] = image
        for name, part in PARTS.items():
            values[name] = parts.pop(name) if name in parts else part.empty()
        values.update(parts)
        values["stages"] = {} if stages is None else stages
        values["timings_ms"] = {} if timings_ms is None else timings_ms

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def values(self) -> dict[str, Any]:
        """The fields by name, in order, as every message of a result carries them. The dict is the result's own."""
        return self.__dict__

    def replace(self, **changes: Any) -> FrameResult:
        """A copy with other values of the fields that are named."""
        return FrameResult(**{**self.__dict__, **changes})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrameResult) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"FrameResult({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of a dataclass with the fields of this process's parts, from which pydantic reads a result."""
        kind = _as_dataclass()
        kind.__doc__ = (cls.__doc__ or "").split("\n\n")[0]

        def read(value: Any, handle: Callable[[Any], Any]) -> FrameResult:
            known = vars(handle(value))
            # The part of a stage that this process does not have stays as it is.
            return cls(**known, **{name: part for name, part in value.items() if name not in known})

        return core_schema.no_info_wrap_validator_function(read, handler.generate_schema(kind))


def _as_dataclass() -> Any:
    """A dataclass with the fields of a `FrameResult`, as this process's stages declare them."""
    parts: list[Any] = [(name, part.type, field(default_factory=part.empty)) for name, part in PARTS.items()]
    outcomes: list[Any] = [
        ("stages", dict[str, Stage], field(default_factory=dict)),
        ("timings_ms", dict[str, float], field(default_factory=dict)),
    ]
    return make_dataclass("FrameResult", [("image", Image), *parts, *outcomes])
