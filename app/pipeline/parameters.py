"""What a model's string parameters say about it: its task and the names of its classes."""

from __future__ import annotations

import json
from dataclasses import dataclass

from app.errors import ModelRejected
from app.inference.client import ModelSpec


@dataclass(frozen=True, slots=True)
class ClassModel:
    """A model that is loaded, and the names of its classes by id."""

    name: str
    """Display name from the model's metadata, such as `yolo11n-seg`; without one, its name in Triton."""
    classes: tuple[str, ...]


TASKS = ("detect", "pose", "segment", "obb", "classify")
"""Values of the parameter `task`. The stage of the same name reads the model that TRITON_<TASK>_MODEL names."""


def require_task(spec: ModelSpec, task: str) -> None:
    """Refuses a model that says that it is for another task.

    Raises:
        ModelRejected: its parameter `task` is not this one.
    """
    declared = spec.parameters.get("task", task)
    if declared in TASKS and declared != task:
        raise ModelRejected(
            f"model {spec.name!r}: its parameter task={declared!r} says that stage {declared!r} reads it: name it in "
            f"TRITON_{declared.upper()}_MODEL, not in TRITON_{task.upper()}_MODEL"
        )
    if declared != task:
        raise ModelRejected(f"model {spec.name!r}: parameter task={declared!r}; want {', '.join(TASKS)}")


def class_names(spec: ModelSpec, labels: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The names in the model's parameter `class_names`, else `labels`; none where neither has any.

    Raises:
        ModelRejected: the parameter is no JSON array of names.
    """
    text = spec.parameters.get("class_names")
    if text is None:
        return labels or ()
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ModelRejected(
            f"model {spec.name!r}: parameter class_names={text[:60]!r}; want a JSON array of names in the order of "
            'class ids, such as ["person", "bicycle"]'
        )
    return tuple(names)


def class_name(names: tuple[str, ...], class_id: int) -> str:
    """The name of a class; `class_7` where it has none."""
    return names[class_id] if 0 <= class_id < len(names) else f"class_{class_id}"


def tensors(spec: ModelSpec) -> str:
    """The model's outputs in words, for messages."""
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in spec.outputs) or "none"
