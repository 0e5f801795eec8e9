"""From what a client asked for to the settings in force. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from app.errors import ProtocolError, quoted
from app.protocol.messages import Patch, StreamSettings
from app.settings import LiveSettings, PipelineSettings

Choose = Callable[[str | None], str]
"""From the prompt that a client names to the one in force."""


def defaults(pipeline: PipelineSettings, live: LiveSettings) -> StreamSettings:
    """The settings of a client that asks for nothing."""
    return StreamSettings(confidence=pipeline.confidence, iou=pipeline.iou, max_age_ms=live.max_age_ms)


def apply(
    patch: Patch, settings: StreamSettings, class_names: Sequence[str], prompt: Choose | None = None
) -> StreamSettings:
    """The settings with a client's wishes in them.

    Args:
        prompt: `Summaries.prompt`; None where nothing is summarised.

    Raises:
        ProtocolError: a class that the model does not know, a prompt that the operator does not have.
    """
    given = patch.model_dump(
        exclude_none=True, include={"mode", "confidence", "iou", "motion_grid", "max_age_ms"}, warnings=False
    )
    if patch.stages is not None:
        given["stages"] = dataclasses.replace(settings.stages, **patch.stages.model_dump(exclude_none=True))
    if patch.classes is not None:
        given["classes"] = class_ids(patch.classes, class_names)
    if patch.summary is not None and prompt is not None:
        given["summary_prompt"] = prompt(patch.summary.prompt)
    changed: StreamSettings = dataclasses.replace(settings, **given)
    if prompt is None:  # settings in force say what really runs
        return dataclasses.replace(changed, stages=dataclasses.replace(changed.stages, summary=False))
    return dataclasses.replace(changed, summary_prompt=prompt(changed.summary_prompt))


def class_ids(wanted: Sequence[int | str], names: Sequence[str]) -> tuple[int, ...] | None:
    """Ids of the classes wanted; None, which keeps all, for an empty list."""
    ids = {name.lower(): number for number, name in enumerate(names)}
    out: set[int] = set()
    for index, one in enumerate(wanted):
        number = one if isinstance(one, int) else ids.get(one.lower(), -1)
        if not 0 <= number < len(names):
            known = ", ".join(names[:100]) or "none, since no detection model is served now"
            raise ProtocolError(
                f"classes.{index}: {quoted(one)} is no class of this model; known: {known}",
                code="invalid_value",
                field=f"classes.{index}",
            )
        out.add(number)
    return tuple(sorted(out)) or None
