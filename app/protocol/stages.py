"""The stages that this process knows, as the wire shows them: their names, their fields of a result, how to draw these.

The stages themselves are files of `app/pipeline/stages` or come from plug-ins. Each declares itself here when it is
loaded, so that messages, schema, painters and clients need to know none of them by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Literal

from pydantic import BaseModel

from app.errors import ConfigurationError

ShapeKind = Literal["box", "polygon", "polyline", "mask", "points", "label", "arrow", "field"]
FigurePlace = Literal["figures", "status", "sentence"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one entry of a part is drawn. Coordinates are pixels of the frame.

    - `box`: x1, y1, x2, y2; `polygon` and `polyline`: `[[x, y], ...]`, or a list of such;
    - `mask`: polygons, half transparent, with an outline;
    - `points`: objects with x, y, confidence and perhaps a name;
    - `label`: text alone, at the entry's `box`, or at the top left of the frame where `box` is null;
    - `arrow`: dx, dy from the middle of the frame; `field`: vectors in a grid (columns, rows, scale, data).
    """

    kind: ShapeKind
    at: str = ""
    """Path within the entry to the geometry, with dots; empty: the entry itself."""
    label: str = ""
    """Text with the entry's fields in braces, such as `{class_name} {confidence}`; empty: no text."""
    colour: str = "class"
    """`class`: by the entry's `class_id`; `#rrggbb`; or `{rgb}`: the entry's field of that name, with red, green and
    blue from 0 to 255."""
    least: float = 0.0
    """Of points: the least confidence of one that is drawn."""
    lines: str = ""
    """Of points: the field of the stage's model in `ready.models` that holds the pairs of points to connect."""
    camera: str = ""
    """Of `arrow` and `field`: path within the entry to the motion of the whole image; a field's vectors contain it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a part says in words and numbers beside the picture."""

    place: FigurePlace
    """`figures`: in a tile of its own, with the stage's title; `status`: behind the stage's status; `sentence`: in the
    sentence that says what is in view."""
    text: str
    """Text with the part's fields in braces: `{path}`, or `{path:format}` with the format `percent`, `arrow` or
    `direction` (of degrees), or `.N` (N decimals). Of a list: of its first entry; `{count}` is their number."""
    where: str = ""
    """Field that must be at least `least` for the text to be shown; empty: always."""
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a result."""

    field: str
    type: Any
    """Its annotation, `list[Detection]` or `Motion | None`: JSON Schema and the Python client follow from it."""
    empty: Callable[[], Any] = list
    """Makes its value where the stage did not run."""
    shapes: tuple[Shape, ...] = ()
    figures: tuple[Figure, ...] = ()
    late: bool = False
    """Whether entries may come from an earlier frame; the stage's outcome then says how old they are. A client may let
    them move with the camera."""


@dataclass(frozen=True, slots=True)
class StageInfo:
    """One stage, as the wire shows it."""

    name: str
    """Its key in `stages` of a result and of the settings, in FLEET_STAGES and in metrics."""
    title: str
    """A few words for a switch or a table."""
    description: str
    part: Part | None = None
    """The field of a result that it fills; None where it adds to the parts of others."""
    live: bool = True
    """Whether it runs for live clients, who may switch it off. Others run only where FLEET_STAGES names them."""
    model: Any = None
    """Annotation of its entry in `ready.models`; None: it has no entry."""


STAGES: dict[str, StageInfo] = {}
"""By name, in the order of the wire."""
PARTS: dict[str, Part] = {}
"""By field, in the order of the wire."""


def declare(info: StageInfo) -> None:
    """Adds a stage, once: declaring the same one again changes nothing.

    Raises:
        ConfigurationError: another stage has its name or its field.
    """
    known = STAGES.get(info.name)
    if known == info:
        return
    if known is not None or info.name in _RESERVED_NAMES or hasattr(BaseModel, info.name) or not _usable(info.name):
        raise ConfigurationError(
            f"a stage is named {info.name!r}; should be 1 to 64 of a-z, 0-9 and _, a letter first, and a name that "
            "neither another stage nor the service itself uses"
        )
    if info.part is not None:
        if info.part.field in PARTS or info.part.field in _RESERVED_FIELDS or not _usable(info.part.field):
            raise ConfigurationError(
                f"stage {info.name!r}: its field of a result is named {info.part.field!r}; should be 1 to 64 of a-z, "
                "0-9 and _, a letter first, and a name that no other field of a result has"
            )
        PARTS[info.part.field] = info.part
    STAGES[info.name] = info


def _usable(name: str) -> bool:
    # Names are fields of dataclasses and models, and keyword arguments.
    return _NAME.fullmatch(name) is not None and not iskeyword(name) and name != "self"


_NAME = re.compile("[a-z][a-z0-9_]{0,63}")
_RESERVED_NAMES = frozenset(
    # What else is measured by name, what else /health/ready shows by name, and the page's switch of its own.
    {"total", "queue", "decode", "prepare", "gate", "infer", "parse", "draw", "encode"}
    | {"flow"}
    | {"summary", "summaries", "inference", "status", "disk"}
)
_RESERVED_FIELDS = frozenset(
    # The other fields of a live result, of a camera's result, of a recorded video's line; and methods of FrameResult.
    {"type", "session_id", "frame_id", "seq", "captured_at_ms", "image", "stages", "timings_ms", "age_ms", "dropped"}
    | {"schema", "camera_id", "camera_type", "epoch", "worker", "error"}
    | {"pts_s"}
    | {"values", "replace"}
)
