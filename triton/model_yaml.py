"""Reads `model.yaml`, a few lines beside an ONNX that say what neither its metadata nor its shapes show.

    layout: boxes_logits
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]

It lies in the ONNX's folder, or is called as the ONNX, `best.model.yaml`, which takes precedence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from class_names import names_of
from layouts import LAYOUTS, UnknownLayout

from app.pipeline.layouts import COLOURS, LAYOUT_FORMATS, RESIZES
from app.pipeline.parameters import TASKS

_MOST_BYTES = 1_000_000
Three = tuple[float, float, float]


@dataclass(frozen=True)
class Image:
    """What a model wants its image to be: (pixels / scale - mean) / std, in the order `colour`."""

    colour: str = "rgb"
    scale: int = 255
    mean: Three = (0.0, 0.0, 0.0)
    std: Three = (1.0, 1.0, 1.0)
    resize: str = "letterbox"


@dataclass(frozen=True)
class ModelYaml:
    """The contents of the file; None where it says nothing."""

    path: Path | None = None
    task: str | None = None
    layout: str | None = None
    names: tuple[str, ...] | None = None
    colour: str | None = None
    scale: int | None = None
    mean: Three | None = None
    std: Three | None = None
    resize: str | None = None
    kpt_shape: tuple[int, int] | None = None
    kpt_names: tuple[str, ...] | None = None
    skeleton: tuple[tuple[int, int], ...] | None = None
    """Pairs of indices of keypoints, counted from 0."""
    logits: bool | None = None

    def image(self, layout: str, task: str) -> Image:
        """The image that a model of this layout and task wants."""
        usual: dict[str, Any] = {"resize": "crop"} if task == "classify" else {**LAYOUT_FORMATS.get(layout, {})}
        said = {key: getattr(self, key) for key in ("colour", "scale", "mean", "std", "resize")}
        wanted = usual | {key: value for key, value in said.items() if value is not None}
        return Image(**wanted | {"scale": int(wanted.get("scale", 255))})


SILENT = ModelYaml()
"""Of an ONNX without such a file."""


def read_model_yaml(source: Path) -> ModelYaml:
    """Reads the file beside an ONNX; an empty one if there is none.

    Raises:
        UnknownLayout: it cannot be read, or a line has an unknown key or value; the message names both.
    """
    for path in (source.with_suffix(".model.yaml"), source.with_name("model.yaml")):
        if path.is_file():
            break
    else:
        return SILENT
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UnknownLayout(f"{path}: {path.stat().st_size} bytes; such a file has at most {_MOST_BYTES}")
        given = yaml.safe_load(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UnknownLayout(f"{path}: cannot be read: {error}") from None
    if not isinstance(given, dict) or not given:
        raise UnknownLayout(f"{path}: want lines such as `layout: yolox`, out of {', '.join(_READ)}")
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _READ:
            raise UnknownLayout(f"{path}: {key!r} is not known; there are {', '.join(_READ)}")
        read, right = _READ[key]
        try:
            found[key] = read(value)
        except UnknownLayout as error:
            raise UnknownLayout(f"{path}: {key}: {error}") from None
        except (ValueError, TypeError, KeyError):
            raise UnknownLayout(f"{path}: {key}: {value!r}; want {right}") from None
    return ModelYaml(path, **found)


def _one_of(known: tuple[Any, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in known or isinstance(value, bool):
            raise ValueError
        return value

    return read


def _three(value: Any) -> Three:
    if not isinstance(value, list):
        raise TypeError
    first, second, third = (float(number) for number in value)
    if not all(map(math.isfinite, (first, second, third))):
        raise ValueError
    return first, second, third


def _std(value: Any) -> Three:
    found = _three(value)
    if min(found) <= 0:
        raise ValueError
    return found


def _shape(value: Any) -> tuple[int, int]:
    points, numbers = value
    if type(points) is not int or points < 1 or numbers not in (2, 3):
        raise ValueError
    return points, numbers


def _texts(value: Any) -> tuple[str, ...]:
    if not (isinstance(value, list) and value and all(isinstance(text, str) and text for text in value)):
        raise ValueError
    return tuple(value)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        raise TypeError
    pairs = tuple((start, end) for start, end in value)
    if not all(type(index) is int and index >= 0 for pair in pairs for index in pair):
        raise ValueError
    return pairs


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


_READ: dict[str, tuple[Callable[[Any], Any], str]] = {
    "task": (_one_of(TASKS), " or ".join(TASKS)),
    "layout": (_one_of(LAYOUTS), " or ".join(LAYOUTS)),
    "names": (names_of, "a list of names"),
    "colour": (_one_of(COLOURS), " or ".join(COLOURS)),
    "scale": (_one_of((255, 1)), "255 (pixels become 0 to 1), or 1 (they stay 0 to 255)"),
    "mean": (_three, "three numbers, one a channel, in units of pixels / scale"),
    "std": (_std, "three numbers above 0, one a channel"),
    "resize": (_one_of(RESIZES), " or ".join(RESIZES)),
    "kpt_shape": (_shape, "the number of points, then 2 (x, y) or 3 (x, y, confidence): [17, 3]"),
    "kpt_names": (_texts, "a list with a name for each keypoint"),
    "skeleton": (_pairs, "a list of pairs of keypoints' indices, the first 0: [[0, 1], [1, 2]]"),
    "logits": (_boolean, "true or false"),
}
